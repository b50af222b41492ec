"""How long the pilot of a budget of time may take."""

from __future__ import annotations

import pytest
from tiny_estimates import opened

from crossfeed.estimate import budget
from crossfeed.estimate.budget import LEAST, pace_of
from crossfeed.estimate.network_draws import Size
from networks import tiny


@pytest.mark.parametrize(
    ("seconds", "timed"),
    [(60.0, [LEAST // 4]), (150.0, [LEAST // 4, LEAST]), (1100.0, [LEAST // 4, LEAST, 4 * LEAST])],
)
def test_a_pilot_takes_a_small_part_of_the_budget(
    monkeypatch: pytest.MonkeyPatch, seconds: float, timed: list[int]
) -> None:
    """At a quarter of a second an output: 4 s for 16, 20 s with 64 more, 84 s with 256 more; a quarter of the budget is for pilots."""
    clock, seen = [0.0], []

    def runs(_point: object, _models: object, _rounds: int, size: Size, *_: object) -> tuple[float, float]:
        seen.append(size.outputs)
        clock[0] += 0.25 * size.outputs
        return 0.25 * size.outputs, 0.0

    monkeypatch.setattr(budget, "_timed", runs)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: clock[0])
    pace = pace_of(opened(tiny.flows(samples=50)), 2, Size(), seconds)
    assert seen == timed
    assert pace.outputs == timed[-1]
    assert pace.output == pytest.approx(0.25)
