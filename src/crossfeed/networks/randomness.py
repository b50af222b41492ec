"""Independent random streams by (seed, round, model, purpose): what a resumed run draws is what it would have drawn."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch


def child_seed(seed: int, round: int, model: str | None, purpose: str) -> int:
    """Seed of one stream: the spec's seed, hashed with what the stream is for.

    NumPy's SeedSequence over the seed's two 32-bit words and the SHA-256 of the other three, so the number is the same in
    every process, on every machine and in every version.

    Args:
        seed: The spec's seed, 0 ≤ seed < 2^64.
        round: Round, 0 for what comes before the first.
        model: The model's name, or the data set's; None for the whole run.
        purpose: What is drawn, e.g. ``candidates``.

    Returns:
        A whole number in [0, 2^63).

    Example:
        >>> child_seed(0, 1, "p", "picks") == child_seed(0, 1, "p", "picks")
        True
        >>> len({child_seed(s, r, m, "picks") for s in (0, 1) for r in (1, 2) for m in ("p", "q")})
        8
    """
    digest = hashlib.sha256(json.dumps([round, model, purpose]).encode("ascii")).digest()
    words = [seed & 0xFFFFFFFF, seed >> 32, *np.frombuffer(digest, "<u4").tolist()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def generator(
    seed: int, round: int, model: str | None, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator at the start of the stream that :func:`child_seed` names.

    Example:
        >>> a, b = (torch.randint(2**31, (4,), generator=generator(0, 1, "p", "noise")) for _ in range(2))
        >>> bool((a == b).all())
        True
    """
    return torch.Generator(device).manual_seed(child_seed(seed, round, model, purpose))


def passes(size: int, num: int, draw: torch.Generator) -> torch.Tensor:
    """``num`` indices below ``size``: shuffled passes over all of them, so that none comes twice before all came once.

    Example:
        >>> sorted(passes(3, 6, torch.Generator().manual_seed(0)).tolist())
        [0, 0, 1, 1, 2, 2]
    """
    rounds = [torch.randperm(size, generator=draw) for _ in range(-(-num // size))]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *rounds])[:num]
