"""The linearised loop over R rounds: against every single inner step written out, its transpose, and the theorem at its ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Training
from crossfeed.describe.schema import Cycle, Order, RandomOrder, Sequential, Simultaneous
from crossfeed.dynamics.rounds import steps_of_round
from crossfeed.estimate.horizon import Rounds, adjoint, forward
from crossfeed.estimate.steps import Spectrum, Steps
from crossfeed.networks.training import learning_rate

NAMES = ["a", "b", "c"]
SIZES = [2, 3, 4]


class Loop:
    """Dense blocks, three models that all take from each other, each with steps of its own."""

    def __init__(self, steps: list[Steps], coupling: float = 0.3, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.sizes, self.steps = SIZES, steps

        def draw(m: int, n: int) -> Tensor:
            return torch.randn(m, n, generator=random, dtype=torch.float64)

        halves = [draw(n, n) for n in SIZES]
        self.H = [half @ half.T / 2 + torch.eye(len(half), dtype=torch.float64) for half in halves]
        self.B = {(i, j): coupling * draw(m, n) for i, m in enumerate(SIZES) for j, n in enumerate(SIZES)}
        self.spectra = [Spectrum(H) for H in self.H]
        self.seen: list[int] = []

    def curvature(self, i: int, x: Tensor) -> Tensor:
        return self.H[i] @ x

    def coupling(self, i: int, x: list[Tensor]) -> Tensor:  # type: ignore[override]
        return sum((self.B[i, j] @ x[j] for j in range(3)), torch.zeros_like(x[i]))

    def coupling_transpose(self, i: int, c: Tensor) -> dict[int, Tensor]:
        return {j: self.B[i, j].T @ c for j in range(3)}

    def respond(self, i: int, b: Tensor, round: int) -> Tensor:
        return self.spectra[i].apply(self.steps[i].respond(self.spectra[i].values, round), b)

    def dense(self) -> Tensor:
        rows = [torch.cat([self.B[i, j] + (self.H[i] if i == j else 0) for j in range(3)], 1) for i in range(3)]
        return torch.cat(rows)


def columns(num: int, seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(n, num, generator=random, dtype=torch.float64) for n in SIZES]


def sgd(steps: int, rate: float, momentum: float = 0.0, first: int = 1, **more: object) -> Steps:
    fields = {"steps": steps, "learning_rate": rate, "momentum": momentum, "gradient_clip": None, "optimizer": "sgd"}
    return Steps(Training(**(fields | more)), first)  # type: ignore[arg-type]


MIXED = [sgd(4, 0.1), sgd(7, 0.05, 0.6), sgd(3, 0.1, first=1, decay_from=2, decay=0.5, schedule="linear")]


def by_hand(loop: Loop, rounds: Rounds, pushes: list[Tensor]) -> list[Tensor]:
    """k inner steps a round on F_i(x_i) = H_i x_i + Σ_j B_ij (x_j as the round's data were drawn) − v_i."""
    x = [torch.zeros_like(v) for v in pushes]
    for number, steps in enumerate(rounds):
        for step in steps:
            data = [value.clone() for value in x]
            for i in step:
                training = loop.steps[i].training
                assert training is not None
                fixed = sum((loop.B[i, j] @ data[j] for j in range(3)), torch.zeros_like(x[i])) - pushes[i]
                now, velocity = data[i].clone(), torch.zeros_like(data[i])
                for k in range(training.steps):
                    velocity = training.momentum * velocity + loop.H[i] @ now + fixed
                    now = now - learning_rate(training, loop.steps[i].first_round + number, k) * velocity
                x[i] = now
    return x


ORDERS: dict[str, Order] = {
    "simultaneous": Simultaneous(),
    "sequential": Sequential(models=["c", "a", "b"]),
    "cycle": Cycle(rounds=[[["a", "b"], ["c"]], [["b"]], [["c"], ["b"], ["a"]]]),
    "random": RandomOrder(probability=0.7, seed=3),
}


def rounds_of(order: str, num: int) -> Rounds:
    return [steps_of_round(ORDERS[order], NAMES, t) for t in range(num)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num", [1, 5])
def test_forward_is_the_loop_written_out(order: str, num: int) -> None:
    loop, rounds, pushes = Loop(MIXED), rounds_of(order, num), columns(2, 1)
    path = forward(loop, rounds, pushes)
    for found, want in zip(path.end, by_hand(loop, rounds, pushes), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)
    assert len(path.after_rounds) == num + 1
    assert path.updates == [(t, i) for t, steps in enumerate(rounds) for step in steps for i in step]
    for t in range(1, num + 1):
        shorter = forward(loop, rounds[:t], pushes).end
        assert all(torch.equal(a, b) for a, b in zip(path.after_rounds[t], shorter, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num", [1, 5])
def test_adjoint_is_the_transpose(order: str, num: int) -> None:
    loop, rounds, pushes, goals = Loop(MIXED), rounds_of(order, num), columns(2, 1), columns(3, 2)
    path, back = forward(loop, rounds, pushes), adjoint(loop, rounds, goals)
    left = sum(g.T @ x for g, x in zip(goals, path.end, strict=True))
    right = sum(c.T @ v for c, v in zip(back.total, pushes, strict=True))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert back.updates == path.updates
    for i, total in enumerate(back.total):
        parts = [c for (_, model), c in zip(back.updates, back.answer, strict=True) if model == i]
        torch.testing.assert_close(total, torch.stack(parts).sum(0) if parts else torch.zeros_like(total))


def test_updates_weigh_single_forces() -> None:
    """c of an update is dJ by a force on that update alone: central differences are exact, as everything is linear."""
    loop, rounds, goals = Loop(MIXED), rounds_of("cycle", 3), columns(1, 2)
    back = adjoint(loop, rounds, goals)
    still = [torch.zeros(n, 1, dtype=torch.float64) for n in SIZES]
    for u, (number, i) in enumerate(back.updates):
        nudged = _Nudged(MIXED, u)
        end = forward(nudged, rounds, still).end
        change = sum(float((g * x).sum()) for g, x in zip(goals, end, strict=True))
        assert change == pytest.approx(float(back.answer[u].sum()), rel=1e-10, abs=1e-13), (number, i)


class _Nudged(Loop):
    """A force of ones on the u-th update."""

    def __init__(self, steps: list[Steps], u: int) -> None:
        super().__init__(steps)
        self.u, self.count = u, -1

    def respond(self, i: int, b: Tensor, round: int) -> Tensor:
        self.count += 1
        return super().respond(i, b + 1 if self.count == self.u else b, round)


def test_long_horizons_are_the_theorem() -> None:
    """R → ∞ is D⁻¹ v for whatever steps and order; k → ∞ is Q = H⁻¹, whose rounds are the paper's retraining map."""
    for order in ORDERS:
        loop, pushes = Loop([sgd(4, 0.1), sgd(7, 0.05, 0.6), sgd(3, 0.1)], coupling=0.15), columns(2, 1)
        want = torch.linalg.solve(loop.dense(), torch.cat(pushes))
        torch.testing.assert_close(
            torch.cat(forward(loop, rounds_of(order, 300), pushes).end), want, rtol=1e-8, atol=1e-9
        )
        goals = columns(3, 2)
        weight = torch.linalg.solve(loop.dense().T, torch.cat(goals))
        found = adjoint(loop, rounds_of(order, 300), goals).total
        torch.testing.assert_close(torch.cat(found), weight, rtol=1e-8, atol=1e-9)


def test_many_steps_are_exact_retraining() -> None:
    rounds, pushes = rounds_of("simultaneous", 4), columns(2, 1)
    many, exact = Loop([sgd(4000, 0.1)] * 3, coupling=0.15), Loop([Steps(None)] * 3, coupling=0.15)
    for a, b in zip(forward(many, rounds, pushes).end, forward(exact, rounds, pushes).end, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    D, v = exact.dense(), torch.cat(pushes)
    inverse = torch.block_diag(*[torch.linalg.inv(H) for H in exact.H])
    eye = torch.eye(len(D), dtype=torch.float64)
    want = (eye - torch.linalg.matrix_power(eye - inverse @ D, 4)) @ torch.linalg.solve(D, v)
    torch.testing.assert_close(torch.cat(forward(exact, rounds, pushes).end), want, rtol=1e-9, atol=1e-10)
