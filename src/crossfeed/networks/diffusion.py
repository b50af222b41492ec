r"""Diffusion on images: diffusers' UNet2DModel with the DDPM loss, sampled by DDIM without noise.

With ᾱ_t the schedule's cumulative product and images x ∈ [−1, 1],

    x_t = √ᾱ_t x + √(1−ᾱ_t) ε,   ℓ(θ; x, c) = mean over pixels of (ε − ε_θ(x_t, t, c))²,   t uniform, ε ~ N(0, 1);
    x̂ = (x_t − √(1−ᾱ_t) ε_θ)/√ᾱ_t,   x_s = √ᾱ_s x̂ + √(1−ᾱ_s) ε_θ   from t down to the next level s.

Ho, Jain and Abbeel 2020, DDPM, equation 14; Song, Meng and Ermon 2021, DDIM, equation 12 with η = 0. Levels and coefficients are those of
diffusers' DDIMScheduler. There is no tractable likelihood, but outputs are differentiable at fixed start noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import Diffusion
from crossfeed.errors import (
    CheckFailedError,
    CrossfeedError,
    DataError,
    NotAvailableError,
    Problem,
    SettingError,
    SpecError,
)
from crossfeed.networks import unet
from crossfeed.networks.base import RSAMPLE, Advance, Outputs

if TYPE_CHECKING:
    from crossfeed.networks.world import World


def build(
    name: str,
    family: Diffusion,
    world: World,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DiffusionNetwork:
    """The network of one model of a spec.

    Raises:
        SpecError: sizes that do not fit, or labels asked for where the photographs have none.
        DataError: a checkpoint that does not fit the photographs.
    """
    if family.conditional and world.num_classes is None:
        need = "set conditional: false, or name the photographs' labels in space.label_column"
        found = "the label is an input, but the photographs have no labels"
        raise SpecError([Problem(f"models.{name}.family.conditional", found, need)])
    classes = world.num_classes if family.conditional else None
    channels, height, width = world.shape
    return DiffusionNetwork(name, family, (channels, height, width), world.prompts.labels, classes, seed, device, dtype)


_BLOCK = 64  # images whose noise is drawn at once


class _Step(NamedTuple):
    """One DDIM step: the noise level, and how much image and noise are in it and in the next one."""

    level: Tensor
    image: float
    noise: float
    next_image: float
    next_noise: float


class DiffusionNetwork:
    """One model of an ecosystem: a diffusion network on images of one size.

    Args:
        name: The model's name in the spec.
        family: Sizes or checkpoint, noise schedule, sampling steps.
        shape: (3, h, w) of an image.
        labels: (m,) int64, the label of each entry of the run's table of inputs.
        num_classes: Labels that the network is given; None: it is given none.
        seed: Of the initial parameters.
        device: Where parameters and outputs live.
        dtype: ``torch.bfloat16`` runs training and sampling under autocast; parameters are float32 always.

    Attributes:
        module: The UNet2DModel. ``torch.func.functional_call`` on a module that holds it and calls :meth:`rsample` or
            :meth:`losses_at` gives these as functions of the parameters.
        scheduler: diffusers' DDIMScheduler, for its tables.
    """

    capabilities = frozenset({RSAMPLE})

    def __init__(
        self,
        name: str,
        family: Diffusion,
        shape: unet.Shape,
        labels: Tensor,
        num_classes: int | None,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        path = f"models.{name}.family"
        if num_classes is not None and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            need = (
                f"the network has {num_classes} classes, 0 to {num_classes - 1}; correct the labels of the photographs"
            )
            raise DataError(f"models.{name}: the label {wrong} is out of range: {need}")
        self.name, self.family, self.shape, self.dtype = name, family, shape, dtype
        self.device = torch.device(device)
        if family.pretrained is None:
            module, self.scheduler = unet.new_unet(family, shape, num_classes, seed, path), unet.new_scheduler(family)
        else:
            module = unet.load_unet(family.pretrained, shape, num_classes, path)
            self.scheduler = unet.load_scheduler(family.pretrained, family, path)
        self.module = module.to(self.device).train()
        self._attend = unet.set_attention(self.module)
        self._attend.plain = self.device.type == "cpu" and dtype == torch.bfloat16  # where the fused kernel is slower
        self._exact = False  # no autocast
        self._labels = labels.to(self.device) if num_classes is not None else None
        self._num_prompts = len(labels)
        self._predicts = self.scheduler.config.prediction_type
        self._signal = self.scheduler.alphas_cumprod.to(self.device)
        for key, steps in (("sampling_steps", family.sampling_steps), ("evaluation_steps", family.evaluation_steps)):
            if steps is not None and steps > len(self._signal):
                found = f"{steps} steps, but the forward process has {len(self._signal)}"
                raise SpecError([Problem(f"{path}.{key}", found, "need at most as many as noise_levels")])
        self._plans: dict[int, list[_Step]] = {}

    # --- parameters ---

    def parameters(self) -> dict[str, Tensor]:
        """The trained ones by name, live, in the order of the module."""
        return {name: value for name, value in self.module.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def load(self, parameters: dict[str, Tensor]) -> None:
        """Copy these values into the parameters.

        Raises:
            DataError: names or shapes differ; says which.
        """
        mine = self.parameters()
        for name in sorted(mine.keys() | parameters.keys()):
            have, want = (tuple(p[name].shape) if name in p else None for p in (parameters, mine))
            if have != want:
                found, needed = (f"shape {s}" if s is not None else "nothing of this name" for s in (have, want))
                fix = "use the family that they were saved with"
                raise DataError(
                    f"models.{self.name}: the stored parameters do not fit this network, first {name}: found {found}, "
                    f"need {needed}; {fix}"
                )
        for name, value in mine.items():
            value.copy_(parameters[name])

    def train(self, mode: bool) -> None:
        """Switch dropout, where a checkpoint has some."""
        self.module.train(mode)

    # --- training ---

    def losses(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator | None = None) -> Tensor:
        """DDPM loss per sample, (n,), at one noise level and one noise each, drawn from the generator.

        Args:
            prompts: (n,) indices into the table of inputs, which say the labels.
            outputs: (n, 3, h, w) uint8, or floats in [0, 1].
            generator: Of levels and noise; None for torch's own.
        """
        return self.losses_at(self.labels(prompts), outputs, *self.draw(len(prompts), generator))

    def draw(self, num: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """What is random in the loss: levels (num,) int64 and noise (num, 3, h, w), on the generator's device."""
        source = self.device if generator is None else generator.device
        levels = torch.randint(len(self._signal), (num,), generator=generator, device=source)
        return levels, torch.randn((num, *self.shape), generator=generator, device=source)

    def losses_at(self, labels: Tensor | None, outputs: Outputs, levels: Tensor, noise: Tensor) -> Tensor:
        """The same at given labels (n,), levels (n,) and noise (n, 3, h, w); nothing is checked, ``vmap`` passes.

        Differentiable in the parameters and in float outputs.
        """
        found, target = self.predict_at(labels, outputs, levels, noise)
        return (found - target).square().flatten(1).mean(1)

    def predict_at(
        self, labels: Tensor | None, outputs: Outputs, levels: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the network predicts there, and what it should: (n, 3, h, w) each; arguments as of :meth:`losses_at`."""
        assert isinstance(outputs, Tensor)
        images = outputs.to(self.device)
        images = images / 127.5 - 1 if images.dtype == torch.uint8 else 2 * images - 1
        levels, noise = levels.to(self.device), noise.to(self.device)
        signal = self._signal[levels].view(-1, 1, 1, 1)
        image, rest = signal.sqrt(), (1 - signal).sqrt()
        with self._autocast():
            found = self._network(image * images + rest * noise, levels, labels)
        target = noise
        if self._predicts != "epsilon":
            target = images if self._predicts == "sample" else image * noise - rest * images
        return found.to(target.dtype), target

    def lengths(self, prompts: Tensor, outputs: Outputs) -> Tensor | None:
        """None: every sample costs the same."""
        return None

    def labels(self, prompts: Tensor) -> Tensor | None:
        """The labels (n,) of prompts (n,), on the device; None for a network without labels.

        Raises:
            DataError: a prompt is not in the table of inputs.
        """
        if len(prompts) and not 0 <= int(prompts.min()) <= int(prompts.max()) < self._num_prompts:
            worst = int(prompts.min()) if int(prompts.min()) < 0 else int(prompts.max())
            raise DataError(
                f"models.{self.name}: prompt {worst} is out of range; the run has {self._num_prompts} inputs"
            )
        return None if self._labels is None else self._labels[prompts.to(self.device)]

    # --- sampling ---

    def sample(
        self,
        prompts: Tensor,
        candidates: Tensor,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        evaluating: bool = False,
        batch_size: int = 64,
        advance: Advance | None = None,
    ) -> Tensor:
        """Σ candidates images (n, 3, h, w), uint8, on the device; batches take no notice of where a prompt ends.

        Raises:
            SettingError: a temperature other than 1, which a noise-free sampler does not have.
            CrossfeedError: out of memory; names a smaller batch.
        """
        if temperature != 1.0:
            raise SettingError(
                f"models.{self.name}: a diffusion network samples at temperature 1 only, found {temperature:g}; "
                "set the sources' sampling_temperature to 1"
            )
        labels = self.labels(prompts.repeat_interleave(candidates))
        total = int(candidates.sum())
        images = torch.empty((total, *self.shape), dtype=torch.uint8, device=self.device)
        steps = self._steps(evaluating)
        with torch.inference_mode(), self._evaluation(), self._autocast():
            stock = torch.empty((0, *self.shape), device=self.device)
            for start in range(0, total, batch_size):
                part = slice(start, min(start + batch_size, total))
                while len(stock) < part.stop - start:  # in blocks, so that noise does not depend on the batch size
                    drawn = torch.randn((_BLOCK, *self.shape), generator=generator, device=generator.device)
                    stock = torch.cat([stock, drawn.to(self.device)])
                noise, stock = stock[: part.stop - start], stock[part.stop - start :]
                try:
                    found = self._ddim(noise, None if labels is None else labels[part], steps)
                except RuntimeError as error:
                    if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                        raise
                    raise CrossfeedError(
                        f"models.{self.name}: not enough memory to generate {len(noise)} images at once; "
                        f"set run.generation_batch: {max(1, len(noise) // 2)} or less"
                    ) from error
                if not bool(torch.isfinite(found).all()):
                    raise CheckFailedError(
                        f"models.{self.name}: generated images are not finite; lower train.learning_rate, set "
                        "train.gradient_clip, or use --dtype float32"
                    )
                images[part] = (found * 127.5 + 127.5).round_().clamp_(0, 255).to(torch.uint8)
                if advance is not None:
                    advance(len(noise))
        return images

    def log_prob(self, prompts: Tensor, outputs: Outputs) -> Tensor:
        """Not available: raises NotAvailableError."""
        raise NotAvailableError(f"models.{self.name}: a diffusion network has no tractable likelihood; use rsample")

    def rsample(self, prompts: Tensor, noise: Tensor, *, evaluating: bool = False) -> Tensor:
        """Images (n, 3, h, w), floats in [0, 1], at fixed start noise (n, 3, h, w): what :meth:`sample` rounds.

        Differentiable in parameters and noise, in reverse and forward mode, through every DDIM step; float32 whatever
        ``dtype`` is. Where the predicted or final image is cut to its range the derivative is zero.
        """
        with self.derivatives():
            found = self._ddim(noise.to(self.device), self.labels(prompts), self._steps(evaluating))
        return (found / 2 + 0.5).clamp(0, 1)

    @contextmanager
    def derivatives(self) -> Iterator[None]:
        """Within it, :meth:`losses` and :meth:`losses_at` have forward-mode and second derivatives too.

        They are without dropout, and float32 whatever ``dtype`` is: forward mode does not work under autocast. It costs memory (attention
        is written out), so plain training does without.
        """
        before = self._attend.plain, self._exact
        self._attend.plain = self._exact = True
        try:
            with self._evaluation():
                yield
        finally:
            self._attend.plain, self._exact = before

    @torch.no_grad()
    def probe(self) -> Tensor:
        """The noise predicted in two fixed images at two levels, flat; in float32 always, so that small steps show."""
        random = torch.Generator().manual_seed(0)
        levels = torch.tensor([len(self._signal) // 8, len(self._signal) // 2], device=self.device)
        labels = None if self._labels is None else self._labels[torch.tensor([0, -1], device=self.device)]
        with self._evaluation():
            images = torch.randn((2, *self.shape), generator=random).to(self.device)
            return self._network(images, levels, labels).flatten()

    def base_probe(self) -> None:
        """None: every parameter is trained."""
        return None

    def _network(self, images: Tensor, levels: Tensor, labels: Tensor | None) -> Tensor:
        return self.module(images, levels, class_labels=labels, return_dict=False)[0]

    def _ddim(self, x: Tensor, labels: Tensor | None, steps: int) -> Tensor:
        """Images in [−1, 1], up to what the last step overshoots, from noise; out of place, so that derivatives exist."""
        limit = self.scheduler.config.clip_sample_range
        for step in self._plan(steps):
            found = self._network(x, step.level, labels).to(x.dtype)
            if self._predicts == "epsilon":
                image, noise = (x - step.noise * found) / step.image, found
            elif self._predicts == "sample":
                image, noise = found, (x - step.image * found) / step.noise
            else:
                image, noise = step.image * x - step.noise * found, step.image * found + step.noise * x
            if self.family.clip:
                image = image.clamp(-limit, limit)
            x = step.next_image * image + step.next_noise * noise
        return x

    def _steps(self, evaluating: bool) -> int:
        return (self.family.evaluation_steps if evaluating else None) or self.family.sampling_steps

    def _plan(self, steps: int) -> list[_Step]:
        """Levels and coefficients of so many DDIM steps, as the scheduler has them; kept."""
        if steps not in self._plans:
            self.scheduler.set_timesteps(steps)
            table, stride = self.scheduler.alphas_cumprod.tolist(), len(self._signal) // steps
            plan = []
            for level in self.scheduler.timesteps.tolist():
                last = float(self.scheduler.final_alpha_cumprod)
                here, after = table[level], table[level - stride] if level >= stride else last
                ratios = [math.sqrt(value) for value in (here, 1 - here, after, 1 - after)]
                plan.append(_Step(torch.tensor(level, device=self.device), *ratios))
            self._plans[steps] = plan
        return self._plans[steps]

    def _autocast(self) -> AbstractContextManager[object]:
        lower = self.dtype == torch.bfloat16 and not self._exact
        return torch.autocast(self.device.type, self.dtype) if lower else nullcontext()

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Dropout off, and back to what it was."""
        training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(training)
