"""Parameters as safetensors: exact, in order, the same bytes each time."""

from __future__ import annotations

import made_runs as made
import pytest
import torch

from crossfeed.errors import DataError
from crossfeed.record.checkpoints import decode, encode, not_kept


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=g)
    weight[0, 0] = float("nan")
    return {
        "z.weight": weight,
        "a.weight": weight.to(torch.bfloat16),
        "step": torch.tensor(7),
        "m.ü": torch.randint(-9, 9, (2, 2), generator=g),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(3, generator=g).half(),
        "double": torch.randn(3, generator=g, dtype=torch.float64),
        "turned": weight.T,
        "part": weight[1:, ::2],
    }


def test_tensors_come_back_in_order_bit_for_bit():
    wanted = tensors()
    assert made.equal_tensors(decode(encode(wanted), "x"), wanted)
    assert encode(wanted) == encode(tensors())


def test_tied_and_trained_parameters_are_written():
    weight = torch.nn.Parameter(torch.ones(2))
    back = decode(encode({"a": weight, "b": weight}), "x")
    assert back["a"].tolist() == back["b"].tolist() == [1, 1]
    assert not back["a"].requires_grad


def test_the_file_is_plain_safetensors():
    from safetensors.torch import load

    assert made.equal_tensors(dict(sorted(load(encode(tensors())).items())), dict(sorted(tensors().items())))


def test_files_of_others_are_read_too():
    from safetensors.torch import save

    assert decode(save({"w": torch.ones(2)}), "x")["w"].tolist() == [1, 1]


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", encode({"w": torch.ones(9)})[:-1]])
def test_what_is_no_safetensors_is_refused(data):
    with pytest.raises(DataError, match=r"some/file: is no whole safetensors file"):
        decode(data, "some/file")


def test_which_checkpoints_go():
    assert not_kept([]) == not_kept([0]) == not_kept([0, 1, 2]) == []
    assert not_kept([0, 1, 2, 3]) == [1]
    assert not_kept([1, 4, 5, 9]) == [1, 4]
