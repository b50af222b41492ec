"""Whether arrays have the shape and the values that a spec needs; each check returns its complaints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossfeed.describe.wording import Complaint, Loc, shape_text


def covariance(loc: Loc, array: np.ndarray, dim: int, semi: bool = False) -> list[Complaint]:
    """A number, a diagonal or a symmetric matrix, positive definite (or semidefinite)."""
    if array.shape not in ((), (dim,), (dim, dim)):
        return [wrong_shape(loc, array, f"a number, a diagonal ({dim},) or a matrix ({dim}, {dim})")]
    if array.ndim == 2 and not symmetric(array):
        return [Complaint(loc, "found a matrix that is not symmetric", "need a covariance")]
    low = float(np.linalg.eigvalsh(array).min()) if array.ndim == 2 else float(array.min())
    floor = 1e-12 * float(np.abs(array).max())
    if low < -floor or (not semi and low <= floor):
        what = f"a smallest {'eigenvalue' if array.ndim == 2 else 'variance'} of {low:.6g}"
        return [Complaint(loc, f"found {what}", f"need {'none below 0' if semi else 'positive ones'}: a covariance")]
    return []


def full_matrix(array: np.ndarray, dim: int) -> np.ndarray:
    """A number, a diagonal or a matrix as a matrix."""
    if array.ndim == 2:
        return array
    out: np.ndarray = np.diag(np.broadcast_to(array, (dim,)))
    return out


def symmetric(matrix: np.ndarray) -> bool:
    """Whether a square matrix equals its transpose to rounding."""
    with np.errstate(over="ignore"):
        return bool(np.abs(matrix - matrix.T).max() <= 1e-9 * np.abs(matrix).max())


def more(bad: np.ndarray) -> str:
    """How many entries are wrong, when more than one is."""
    return f" ({len(bad):,} such entries)" if len(bad) > 1 else ""


def table(loc: Loc, array: np.ndarray, width: int, meaning: str) -> list[Complaint]:
    """(n, width) with at least one row."""
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        return [wrong_shape(loc, array, f"(n, {width}): rows of {width} ({meaning}), one or more")]
    return []


def masses(loc: Loc, array: np.ndarray, size: int | None, meaning: str) -> list[Complaint]:
    """(size,) nonnegative numbers that are not all 0; any length when the size is not known."""
    if array.ndim != 1 or array.size != (size or array.size):
        return [wrong_shape(loc, array, f"({size or 'n'},): {meaning}")]
    if not len(array) or array.max() <= 0 or array.min() < 0:
        index = int(array.argmin()) if len(array) and array.min() < 0 else None
        found = "found only zeros" if index is None else f"found {array[index]:g}"
        return [Complaint(loc if index is None else (*loc, index), found, "need numbers ≥ 0, not all 0")]
    return []


def vector(loc: Loc, array: np.ndarray, shape: tuple[int, ...] | None, meaning: str) -> list[Complaint]:
    """Exactly this shape; None for a list of any length."""
    if shape is None:
        return [] if array.ndim == 1 else [wrong_shape(loc, array, f"a list ({meaning},)")]
    if array.shape == shape:
        return []
    comma = "," if len(shape) == 1 else ""
    return [wrong_shape(loc, array, f"({', '.join(map(str, shape))}{comma}): ({meaning}{comma})")]


def sized(loc: Loc, array: np.ndarray, sizes: tuple[int, ...], meaning: str) -> list[Complaint]:
    """A list of one of these lengths."""
    if array.ndim != 1 or array.size not in sizes:
        return [wrong_shape(loc, array, f"{' or '.join(f'({n},)' for n in sizes)}: ({meaning},)")]
    return []


def wrong_shape(loc: Loc, array: np.ndarray, need: str) -> Complaint:
    """The shape that stands there against the one that is needed."""
    return Complaint(loc, f"found {shape_text(array.shape)}", f"need {need}")


def twice_at(names: Sequence[str]) -> int | None:
    """Where a name comes a second time."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            return index
        seen.add(name)
    return None
