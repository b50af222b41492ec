"""What-ifs of an audit of networks: answered from its samples, without new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossfeed.describe.schema import Ecosystem
from crossfeed.describe.settings import get, put
from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.estimate.audited import Audited


def planned(eco: Ecosystem, more: Sequence[tuple[str, float]] = ()) -> list[tuple[str, float]]:
    """The spec's changes and more of them, each tried on the spec.

    Raises:
        SettingError: no such setting, or a value that it cannot take.
    """
    wanted = [(change.path, float(change.to)) for change in eco.audit.changes] + list(more)
    for path, value in wanted:
        put(eco, path, value)
    return list(dict.fromkeys(wanted))


def answer_changes(audit: Audited, wanted: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """What each change, by itself, does to every evaluation over the horizon.

    Args:
        audit: Whose samples answer.
        wanted: (path, new value).
    """
    return [_answer(audit, path, value) for path, value in wanted]


def _answer(audit: Audited, path: str, value: float) -> dict[str, Any]:
    out: dict[str, Any] = {"path": path, "from": get(audit.eco, path), "to": value}
    out |= dict.fromkeys(("change", "errors", "low", "high", "first_order", "verdict", "matrix", "note"))
    try:
        found = audit.what_if(put(audit.eco, path, value))
    except (SettingError, NotAvailableError) as error:
        return out | {"note": str(error)}
    change, half = found.change.double(), audit.findings.quantile * found.errors.double()
    return out | {
        "change": change,
        "errors": found.errors,
        "low": change - half,
        "high": change + half,
        "verdict": [_word(c, h) for c, h in zip(change.tolist(), half.tolist(), strict=True)],
        "first_order": found.first_order,
        "matrix": found.matrix,
    }


def _word(change: float, half: float) -> str:
    if change == 0 and half == 0:
        return "no effect"
    if abs(change) <= half:
        return "cannot tell"
    return "rises" if change > 0 else "falls"
