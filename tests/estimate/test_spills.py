"""Gradients in files: the same as in memory, nothing left behind, and what is said where there is no room."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from tiny_estimates import SGD, Made, opened, trained_by
from tiny_estimates import drawn as samples_of

from crossfeed.describe.network_nodes import Flow, Training
from crossfeed.errors import SettingError
from crossfeed.estimate import budget, coordinates, rows, spill
from crossfeed.estimate.bank import build_bank
from crossfeed.estimate.network_draws import Size
from crossfeed.estimate.networks import differentiable
from crossfeed.estimate.spill import Room, mapped
from networks import tiny

need_of = budget.need_of
ADAM = Training(steps=10, batch_size=50, learning_rate=1e-3, weight_decay=0.1)


def maps() -> int:
    """Files of ours that are mapped at the moment."""
    file = Path("/proc/self/maps")
    if not file.exists():
        pytest.skip("needs Linux")
    gc.collect()
    return len({line.split()[4] for line in file.read_text().splitlines() if ".gradients" in line})


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_vanish_with_their_tensors(tmp_path: Path) -> None:
    before = maps()
    found = mapped((30, 7), torch.float64, tmp_path)
    assert found.shape == (30, 7)
    assert not list(tmp_path.iterdir())  # without a name from the start
    assert maps() == before + 1
    found.fill_(2.5)
    part = found[3:5]
    del found
    assert float(part.sum()) == 35  # while any part of it is there
    assert maps() == before + 1
    del part
    assert maps() == before
    assert mapped((0, 7), torch.float32, tmp_path).shape == (0, 7)


def test_files_that_keep_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where what is mapped cannot be deleted."""
    with monkeypatch.context() as patch:

        def refuse(name: str) -> None:
            raise PermissionError(name)

        patch.setattr(os, "unlink", refuse)
        found = mapped((4, 4), torch.float32, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    found.fill_(1)
    del found
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises((SettingError, KeyboardInterrupt)) as caught:
        mapped((1 << 14, 1 << 14), torch.float32, tmp_path)
    if isinstance(error, OSError):
        assert "spill: 1.0 GiB of gradients do not go into" in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="No such file or directory"):
        mapped((2, 2), torch.float32, tmp_path / "nowhere")
    assert spill.free_disk(tmp_path / "nowhere") == 0
    assert spill.free_disk(tmp_path) > 0


def test_folders_in_memory_are_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_kind", lambda folder: "tmpfs")
    assert spill.free_disk(tmp_path) == 0


def test_memory_first(tmp_path: Path) -> None:
    room = Room(1000, tmp_path)
    room.empty(10, 10, dtype=torch.float64)
    assert (room.left, room.on_disk) == (200, 0)
    room.empty(10, 10, dtype=torch.float32)
    room.empty(10, 5, dtype=torch.float32)
    assert (room.left, room.on_disk) == (0, 400)


# --- the bank -------------------------------------------------------------------------------------------------------


def made(training: Training, dropped: bool = False) -> Made:
    eco = trained_by(tiny.flows(samples=100), training)
    wide = {n: m.model_copy(update={"family": Flow(width=24, bins=8)}) for n, m in eco.models.items()}
    eco = eco.model_copy(update={"models": wide})
    point = opened(eco)
    return Made(eco, point, samples_of(point, 60, 40), None)  # type: ignore[arg-type]


def banked(made: Made, **options: object) -> Made:
    models = {name: differentiable(network) for name, network in made.point.networks.items()}
    trainings = {name: node.train for name, node in made.eco.models.items()}
    return Made(made.eco, made.point, made.draws, build_bank(models, made.draws, trainings, limit=0, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [ADAM, SGD], ids=["adamw", "sgd"])
def test_the_same_as_in_memory(training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hardly any memory and blocks of 8 rows and 100 columns."""
    base, before = made(training), maps()
    want = banked(base, memory=1 << 40)
    assert maps() == before
    sizes: list[int] = []
    monkeypatch.setattr(rows, "HELD", 8 * 1246 * 8)
    monkeypatch.setattr(coordinates, "_BLOCK", 1)
    monkeypatch.setattr(coordinates, "_NARROW", 100)
    inside = coordinates.Coordinates.of_gradients
    monkeypatch.setattr(
        coordinates.Coordinates, "of_gradients", lambda self, g: (sizes.append(len(g)), inside(self, g))[1]
    )
    found = banked(base, memory=0, spill=tmp_path)
    assert max(sizes) <= max(8, *(m.chunk for m in (differentiable(n) for n in base.point.networks.values())))
    assert maps() > before
    assert not list(tmp_path.iterdir())
    for one, two in zip(want.bank.models, found.bank.models, strict=True):
        assert one.basis.words == two.basis.words == "span of its samples' gradients"
        assert one.basis.size == two.basis.size
    for a, b in zip(want.bank.sources, found.bank.sources, strict=True):
        torch.testing.assert_close(a.loss @ a.loss.T, b.loss @ b.loss.T, rtol=1e-9, atol=1e-9)
    a, b = want.estimate(), found.estimate()
    torch.testing.assert_close(a.answer.matrix, b.answer.matrix, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(a.errors, b.errors, rtol=1e-6, atol=1e-9)
    x = torch.randn(found.bank.models[0].basis.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    push = want.bank.sources[0].loss[3]
    torch.testing.assert_close(
        want.bank.models[0].basis.to_parameters(push),
        found.bank.models[0].basis.to_parameters(found.bank.sources[0].loss[3]),
        rtol=1e-4,
        atol=1e-6,
    )
    assert len(found.bank.models[0].basis.to_parameters(x)) == found.bank.models[0].num_params
    del found, b, two
    assert maps() == before


def test_nothing_is_left_of_a_bank_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, before = made(SGD), maps()

    def fail(*_: object) -> None:
        raise RuntimeError("half-way")

    monkeypatch.setattr(rows, "coordinates", fail)
    with pytest.raises(RuntimeError, match="half-way"):
        banked(base, memory=0, spill=tmp_path)
    assert not list(tmp_path.iterdir())
    assert maps() == before


# --- what is said before --------------------------------------------------------------------------------------------


def test_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory, then memory and disk, then neither, with a number that does fit."""
    base = made(SGD)
    point, size = base.point, Size(60, 40)
    monkeypatch.setattr(budget, "need_of", lambda p, s, limit=0, *a, **k: need_of(p, s, 0, *a, **k))
    need = need_of(point, size, 0)
    assert 0 < need.spillable < need.bytes
    raw = sum(4 * model.num_params * 60 for model in banked(base).bank.models)
    assert need.spillable > raw
    free: dict[str, int] = {"memory": 1 << 40, "disk": 1 << 40}
    monkeypatch.setattr(budget, "free_memory", lambda: free["memory"])
    monkeypatch.setattr(budget, "free_disk", lambda folder: free["disk"])

    placed = budget.check_memory(point, size)
    assert (placed.disk, placed.memory, placed.kept) == (0, placed.bytes, placed.spillable)
    free["memory"] = int(placed.bytes / budget.SHARE) - 10
    placed = budget.check_memory(point, size)
    assert (placed.disk, placed.kept) == (placed.spillable, 0)
    assert placed.memory == placed.bytes - placed.disk
    free["disk"] = placed.disk  # a share of it only may be taken
    with pytest.raises(SettingError, match=r"--samples: found 60 outputs") as caught:
        budget.check_memory(point, size, spill=tmp_path)
    assert f"of files in {str(tmp_path)!r}" in str(caught.value)
    assert "--projection" in str(caught.value)
    big = Size(100_000, 100_000)
    free["memory"] = free["disk"] = 4 << 30
    with pytest.raises(SettingError) as caught:
        budget.check_memory(point, big)
    fits = int(str(caught.value).split("--samples ")[-1].split(" would fit")[0])
    assert budget.check_memory(point, Size(fits, fits)) is not None
    with pytest.raises(SettingError):
        budget.check_memory(point, Size(2 * fits, 2 * fits))
    more = budget.most_that_fit(point, size, 4 << 30)
    free["disk"] = 0
    assert budget.most_that_fit(point, size, 4 << 30) <= more
    assert need_of(point, size, 0, projection=50).spillable == 0
