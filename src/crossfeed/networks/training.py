r"""Training of any network: optimiser steps on one round's training set, from the current parameters.

A step draws the next batch_size · accumulate samples from a stream of shuffled passes over the training set, so that every pass
uses every row once, and follows the gradient of the mean of ``Network.losses`` over all of them. The step's learning rate is

    learning_rate · decay^{max(0, round − decay_from + 1)} · min(1, (step + 1)/warmup) · schedule,

where the schedule falls from 1 to 0 over the steps after the warm-up (linear, or half a cosine), or stays 1. AdamW is Loshchilov
and Hutter's (2019), with decoupled weight decay. The same generator state gives the same training, bit for bit on a CPU.

Losses stay on the device while steps follow each other; several times a second, and at the end, they are looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Pretraining, Training
from crossfeed.errors import CheckFailedError, CrossfeedError, DataError
from crossfeed.networks.base import Advance, Network, Outputs

_LOOK_SECONDS = 0.2
_SORTED_TOGETHER = 32  # forward passes whose samples are sorted by length among each other


@dataclass(frozen=True)
class Trained:
    """What happened in one call of :func:`train`.

    Attributes:
        first_loss: Mean loss over the first tenth of the steps (one at least), each on its own batch before its update.
        last_loss: The same over the last tenth.
        mean_loss: The same over all steps.
        gradient_norm: Mean over the steps of the gradient's norm before clipping.
        moved: ‖θ′ − θ‖, how far the parameters went.
        norm: ‖θ′‖.
        optimizer_state: Tensors of the optimiser by ``parameter.tensor``; None unless ``keep_optimizer``.
        samples_seen: Samples that entered a gradient, repeats counted.
    """

    first_loss: float
    last_loss: float
    mean_loss: float
    gradient_norm: float
    moved: float
    norm: float
    optimizer_state: dict[str, Tensor] | None
    samples_seen: int


def train(
    network: Network,
    prompts: Tensor,
    outputs: Outputs,
    training: Training,
    round: int,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
    optimizer_state: dict[str, Tensor] | None = None,
    advance: Advance | None = None,
) -> Trained:
    """Take ``training.steps`` optimiser steps on these samples; changes the network's parameters in place.

    Where samples differ in length, those of a forward pass are of similar length: 32 passes' samples are sorted among each
    other and the passes then shuffled.

    Args:
        network: What is trained; left in evaluation mode.
        prompts: (n,) int64.
        outputs: n outcomes.
        training: Steps, batch, optimiser and learning rate.
        round: Number of the round, for the decay of the learning rate; 0 for pretraining.
        generator: Of the order of the samples and of what is random in the loss.
        dtype: ``torch.bfloat16`` runs forward passes under autocast; parameters stay as they are.
        optimizer_state: ``Trained.optimizer_state`` of the round before, to go on from; None starts afresh.
        advance: Called with the number of steps just finished.

    Returns:
        Losses, gradient norm, distance moved, and the optimiser's state where it is kept.

    Raises:
        CheckFailedError: a loss or gradient is not finite; says at which step.
        CrossfeedError: out of memory; says which batch size fits.
        DataError: no samples, or an optimiser state of another network.

    Example:
        >>> from crossfeed.networks.flow import SplineFlow
        >>> from crossfeed.describe.network_nodes import Flow
        >>> random = torch.Generator().manual_seed(0)
        >>> data = torch.randn(200, 2, generator=random) / 4
        >>> training = Training(steps=20, batch_size=50, learning_rate=0.01)
        >>> flow = SplineFlow("p", Flow(width=8), dim=2, seed=0)
        >>> done = train(flow, torch.zeros(200, dtype=torch.int64), data, training, 1, random)
        >>> done.last_loss < done.first_loss, done.samples_seen
        (True, 1000)
    """
    if len(prompts) == 0:
        raise DataError(f"models.{network.name}: the training set is empty; need at least one sample")
    if isinstance(outputs, Tensor):
        outputs = outputs.to(network.device)
    network.train(True)
    try:
        run = _Run(network, prompts, outputs, training, round, generator, dtype, optimizer_state)
        full = False
        try:
            run.go(advance)
        except (RuntimeError, MemoryError) as error:
            full = _out_of_memory(error)
            if not full:
                raise
        if full:  # what was in memory is freed only now that the traceback is gone
            raise CrossfeedError(run.fitting())
        return run.summary()
    finally:
        network.train(False)


class _Run:
    """One call of :func:`train`."""

    def __init__(
        self,
        network: Network,
        prompts: Tensor,
        outputs: Outputs,
        training: Training,
        round: int,
        generator: torch.Generator,
        dtype: torch.dtype,
        state: dict[str, Tensor] | None,
    ) -> None:
        self.network, self.prompts, self.outputs, self.training = network, prompts, outputs, training
        self.round, self.generator, self.dtype = round, generator, dtype
        self.parameters = network.parameters()
        self.values = list(self.parameters.values())
        self.start = [value.detach().clone() for value in self.values]
        self.optimizer = _optimizer(self.values, training)
        self.optimizer.zero_grad()
        if state:
            _restore(network.name, self.optimizer, self.parameters, state)
        self.batch = torch.empty(0, dtype=torch.int64)  # samples of the forward pass that runs
        self.waiting: list[Tensor] = []  # loss and gradient norm of steps that were not looked at yet
        self.losses: list[float] = []
        self.norms: list[float] = []

    def go(self, advance: Advance | None) -> None:
        """All steps."""
        training, looked = self.training, time.monotonic()
        passes = _passes(len(self.prompts), self.network.lengths(self.prompts, self.outputs), training, self.generator)
        for step in range(training.steps):
            loss = torch.zeros((), device=self.network.device)
            for _ in range(training.accumulate):
                self.batch = next(passes)
                part = self._loss(self.batch) / training.accumulate
                part.backward()
                loss = loss + part.detach()
            gradients = [value.grad for value in self.values if value.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            clip = training.gradient_clip
            if clip is not None and (norm.device.type != "cpu" or float(norm) > clip):  # asking is free on a CPU only
                torch.nn.utils.clip_grads_with_norm_(self.values, clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(training, self.round, step)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.waiting += [loss, norm]
            if time.monotonic() - looked > _LOOK_SECONDS or step + 1 == training.steps:
                done = self._look()
                if advance is not None:
                    advance(done)
                looked = time.monotonic()

    def _loss(self, batch: Tensor) -> Tensor:
        """Mean loss over samples ``batch`` (m,)."""
        half = self.dtype == torch.bfloat16
        with torch.autocast(self.network.device.type, self.dtype) if half else nullcontext():
            return self.network.losses(self.prompts[batch], _rows(self.outputs, batch), self.generator).mean()

    def _look(self) -> int:
        """Fetch what steps left on the device, check it, and give the number of steps."""
        pairs: list[list[float]] = torch.stack(self.waiting).view(-1, 2).tolist()
        self.waiting = []
        for loss, norm in pairs:
            self.losses.append(loss)
            self.norms.append(norm)
            if math.isfinite(loss) and math.isfinite(norm):
                continue
            what, value = ("gradient's norm", norm) if math.isfinite(loss) else ("loss", loss)
            where = "in pretraining" if isinstance(self.training, Pretraining) else f"in round {self.round}"
            raise CheckFailedError(
                f"models.{self.network.name}: the {what} is {value} at step {len(self.losses)} of {self.training.steps} "
                f"{where}; lower {self._path}.learning_rate ({self.training.learning_rate:g}), add warm-up steps, or look "
                "at the training set of this round"
            )
        return len(pairs)

    @property
    def _path(self) -> str:
        return f"models.{self.network.name}.{'pretrain' if isinstance(self.training, Pretraining) else 'train'}"

    def fitting(self) -> str:
        """What to do about a batch that was too large: the largest of its halves that fits, found by trying."""
        batch, size = self.batch, len(self.batch)
        wanted = size * self.training.accumulate
        while size > 1:
            size //= 2
            self.optimizer.zero_grad()
            if self.network.device.type == "cuda":
                torch.cuda.empty_cache()
            if self._fits(batch[:size]):
                passes = math.ceil(wanted / size)
                same = "for the same result" if passes * size == wanted else "for nearly the same result"
                return (
                    f"{self._path}.batch_size: {len(batch)} samples do not fit into the memory of {self.network.device}, "
                    f"{size} do; set {self._path}.batch_size: {size} and accumulate: {passes} {same}"
                )
        return (
            f"{self._path}.batch_size: {len(batch)} samples do not fit into the memory of {self.network.device}, and not "
            f"even 1 does; use a smaller network, shorter outputs or a device with more memory"
        )

    def _fits(self, batch: Tensor) -> bool:
        try:
            self._loss(batch).backward()
        except (RuntimeError, MemoryError) as error:
            if _out_of_memory(error):
                return False
            raise
        return True

    @torch.no_grad()
    def summary(self) -> Trained:
        """Numbers of the finished run."""
        tenth = max(1, len(self.losses) // 10)
        moved = torch.nn.utils.get_total_norm([v - s for v, s in zip(self.values, self.start, strict=True)])
        return Trained(
            first_loss=fmean(self.losses[:tenth]),
            last_loss=fmean(self.losses[-tenth:]),
            mean_loss=fmean(self.losses),
            gradient_norm=fmean(self.norms),
            moved=float(moved),
            norm=float(torch.nn.utils.get_total_norm(self.values)),
            optimizer_state=_state(self.optimizer, self.parameters) if self.training.keep_optimizer else None,
            samples_seen=self.training.steps * self.training.accumulate * self.training.batch_size,
        )


def learning_rate(training: Training, round: int, step: int) -> float:
    """Learning rate of a step, counted from 0.

    Example:
        >>> halved = Training(steps=4, learning_rate=0.8, schedule="linear", decay_from=40)
        >>> [round(learning_rate(halved, 41, step), 3) for step in range(4)]
        [0.2, 0.15, 0.1, 0.05]
    """
    rate = training.learning_rate
    if training.decay_from is not None:
        rate *= training.decay ** max(0, round - training.decay_from + 1)
    if step < training.warmup:
        return rate * (step + 1) / training.warmup
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    if training.schedule == "linear":
        return rate * (1 - done)
    return rate * 0.5 * (1 + math.cos(math.pi * done)) if training.schedule == "cosine" else rate


def _passes(num: int, lengths: Tensor | None, training: Training, generator: torch.Generator) -> Iterator[Tensor]:
    """Samples of one forward pass after another, without end."""
    size = training.batch_size
    together = 1 if lengths is None else max(1, min(_SORTED_TOGETHER, num // size))  # no row twice in what is sorted
    block = size * together
    stock = torch.empty(0, dtype=torch.int64)
    while True:
        while len(stock) < block:
            stock = torch.cat([stock, torch.randperm(num, generator=generator, device=generator.device).cpu()])
        batches = list(stock[: len(stock) // block * block].split(block))
        stock = stock[len(batches) * block :]
        for batch in batches:
            if lengths is None:
                yield batch
                continue
            ordered = batch[lengths.cpu()[batch].argsort(stable=True)].view(-1, size)
            order = torch.randperm(len(ordered), generator=generator, device=generator.device).cpu()
            yield from ordered[order]


def _rows(outputs: Outputs, index: Tensor) -> Outputs:
    return [outputs[i] for i in index.tolist()] if isinstance(outputs, list) else outputs[index.to(outputs.device)]


def _optimizer(values: list[Tensor], training: Training) -> torch.optim.Optimizer:
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(values, rate, momentum=training.momentum, weight_decay=decay, fused=True)
    return torch.optim.AdamW(values, rate, betas=training.betas, weight_decay=decay, fused=True)


def _state(optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the optimiser's tensors by ``parameter.tensor``."""
    return {
        f"{name}.{key}": value.detach().clone()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def _restore(
    model: str, optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], state: dict[str, Tensor]
) -> None:
    for name, value in state.items():
        parameter, _, key = name.rpartition(".")
        if parameter not in parameters or value.shape not in (torch.Size([]), parameters[parameter].shape):
            raise DataError(
                f"models.{model}: the optimiser state has {name} of shape {tuple(value.shape)}, which belongs to no parameter "
                "of this network; leave it out to start the optimiser afresh"
            )
        optimizer.state[parameters[parameter]][key] = value.detach().clone().to(parameters[parameter].device)


def _out_of_memory(error: BaseException) -> bool:
    """Whether this is a lack of memory, in the words of the CPU's and the GPU's allocator."""
    words = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in words for sign in signs)
