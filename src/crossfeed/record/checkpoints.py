"""Parameters as safetensors: to bytes and back with the order of the names, and which ones are kept."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence

from safetensors.torch import load, save
from torch import Tensor

from crossfeed.errors import DataError

_ORDER = "order"
NUM_LAST = 2


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file; the same tensors give the same bytes.

    Args:
        tensors: Of any dtype and shape safetensors knows, on any device. Tied ones are written twice.
    """
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return bytes(save(plain, metadata={_ORDER: json.dumps(list(plain))}))


def decode(data: bytes, file: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU, in the order they were given to :func:`encode`.

    Args:
        data: The file's bytes.
        file: Its name, for the error.

    Raises:
        DataError: the bytes are no safetensors file.

    Example:
        >>> import torch
        >>> back = decode(encode({"w": torch.arange(3), "b": torch.zeros(2)}), "x")
        >>> list(back), back["w"].tolist()
        (['w', 'b'], [0, 1, 2])
    """
    try:
        tensors: dict[str, Tensor] = load(data)
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    except Exception as error:  # the library has its own exception types
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: is no whole safetensors file ({reason}); need one that a run wrote") from None
    order = json.loads(header.get("__metadata__", {}).get(_ORDER, "null")) or list(tensors)
    return {name: tensors[name] for name in order}


def not_kept(rounds: Sequence[int]) -> list[int]:
    """Rounds whose checkpoints of one model go when only the first and the last two are kept.

    Args:
        rounds: Rounds in which the model has a checkpoint, ascending.

    Example:
        >>> not_kept([0, 1, 2, 3, 5])
        [1, 2]
    """
    return [number for number in rounds[:-NUM_LAST] if number != 0]
