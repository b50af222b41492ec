"""The ecosystems of the prediction benchmark are as it says, and its scores count what they should."""

from __future__ import annotations

import pytest
from benchmarks.prediction import ecosystems
from benchmarks.prediction.ecosystems import HELD_OUT, NUM, ecosystem, kind_of
from benchmarks.prediction.predict import measured, score
from benchmarks.prediction.truth import STEP

from crossfeed.describe.settings import get, put


def test_sixty_four_ecosystems_half_of_them_held_out(tmp_path, monkeypatch):
    """Bases of adapters are made as ever, of two steps."""
    monkeypatch.setattr(ecosystems, "TEXT_PRETRAINING", 2)
    kinds = [kind_of(number) for number in range(NUM)]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {"adamw": 12, "language": 12, "sgd": 40}
    assert len(HELD_OUT) == NUM // 2
    for number in range(NUM):
        eco = ecosystem(number, tmp_path)
        assert 2 <= len(eco.models) <= 4
        for name in eco.names:
            ratio = get(eco, f"{name}.curation")
            for sign in (-1, 1):
                changed = put(eco, f"{name}.curation", ratio + sign * STEP)
                assert get(changed, f"{name}.curation") == pytest.approx(ratio + sign * STEP)


def test_scores():
    """Two models, four seeds: a clear positive entry, a clear negative one that is predicted wrongly, and noise."""
    up = {"p": [[[0.3, 0.0]]] * 4, "q": [[[0.1, -0.3]], [[-0.1, -0.3]], [[0.1, -0.3]], [[-0.1, -0.3]]]}
    truth = {
        "names": ["p", "q"],
        "step": 0.5,
        "base": [0] * 4,
        "up": up,
        "down": {"p": [[[0.0, 0.0]]] * 4, "q": [[[0.0, 0.0]]] * 4},
    }
    value, error = measured(truth)
    assert value.tolist() == [[pytest.approx(0.3), pytest.approx(0.0)], [0.0, pytest.approx(-0.3)]]
    assert error[0, 1] == pytest.approx(0.1 / 3**0.5)
    found = {"estimate": [[0.2, 1.0], [0.0, 0.3]], "errors": [[0.01, 1.0], [0.0, 0.01]]}
    scores = score([{"truth": truth, "found": found}], "estimate")
    assert scores["entries"] == 4
    assert scores["signs, 2 SE"] == pytest.approx(0.5)
    assert score([{"truth": truth, "found": found}], "estimate", "self")["entries"] == 2
