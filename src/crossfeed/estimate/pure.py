"""Methods of a network as pure functions of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.func import functional_call

from crossfeed.estimate.base import Parameters


class _Call(nn.Module):
    """A module whose forward pass is some method that works with ``module``."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.method(*arguments, **options)


def pure(module: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` as a function (parameters, *arguments, **options) of parameters named as in ``module``, which it uses.

    Parameters that are not named keep the module's values. The module itself is as it was afterwards.

    Example:
        >>> import torch
        >>> line = nn.Linear(1, 1, bias=False)
        >>> float(pure(line, line.forward)({"weight": torch.tensor([[2.0]])}, torch.tensor([3.0])))
        6.0
    """
    caller = _Call(module, method)

    def call(parameters: Parameters, *arguments: Any, **options: Any) -> Any:
        return functional_call(caller, {f"module.{name}": v for name, v in parameters.items()}, arguments, options)

    return call
