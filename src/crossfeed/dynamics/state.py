"""A run's state as a file: what resuming needs, and no more."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from crossfeed.dynamics.pool import Pool
from crossfeed.dynamics.rounds import State
from crossfeed.errors import DataError


def save_state(state: State, path: Path) -> None:
    """Write a state as .npz: parameters, round, and what earlier rounds left."""
    arrays = {"theta": state.theta.numpy(), "round": np.array(state.round)}
    if state.pool is not None:
        arrays["sizes"] = state.pool.sizes.numpy()
        arrays |= {f"kept_{k:05d}": kept.numpy() for k, kept in enumerate(state.pool.kept)}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_state(path: str | Path) -> State:
    """Read a state that :meth:`Run.save` wrote, for ``run(..., resume=...)``.

    Args:
        path: ``state.npz``, or the folder it is in.

    Raises:
        DataError: no such file, or not a state.
    """
    file = Path(path) / "state.npz" if Path(path).is_dir() else Path(path)
    try:
        with np.load(file, allow_pickle=False) as found:
            theta, number = torch.from_numpy(found["theta"]), int(found["round"])
            if "sizes" not in found:
                return State(theta, number)
            kept = tuple(torch.from_numpy(found[key]) for key in sorted(found) if key.startswith("kept_"))
            return State(theta, number, Pool(torch.from_numpy(found["sizes"]), kept))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); give the state.npz that a run wrote") from None
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        raise DataError(f"{file}: is no state of a run; give the state.npz that a run wrote") from None
