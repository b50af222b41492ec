"""One round of two diffusion models: the library against a loop written as published scripts work.

python -m benchmarks.diffusion_loop [--quick] [--threads T] [--device cuda]

The other loop does the same work with diffusers' own parts: a scheduler object asked step by step in float32, images that go to the
CPU for their rewards and back for training, candidates for every row of the training set, real ones too, and one prompt's K
candidates at a time. Its shortcomings are taken away one by one, so that the table says what each is worth. Every line is a
process of its own, starts from the same untrained networks, and trains and evaluates both models as much.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import ROOT, machine, timed
from crossfeed.describe.images import CIFAR10_MEAN, CIFAR10_STD
from crossfeed.describe.load import load
from crossfeed.describe.schema import Curated, Ecosystem, HueBandReward, Real
from crossfeed.networks.build import build
from crossfeed.networks.world import World, open_world
from crossfeed.retraining.counts import rows_per_round, source_counts

SPEC = ROOT / "examples" / "diffusion" / "A4.yaml"
SIDES = {
    "published": "as published scripts work: every row, one prompt at a time, float32",
    "batched": "· in batches that take no notice of prompts",
    "used": "· and only candidates that somebody picks from",
    "float32": "library, float32",
    "bfloat16": "library, bfloat16 autocast",
}


def measure(threads: int, quick: bool, device: str = "cpu") -> dict[str, Any]:
    """A round of two diffusion models (setting A4), against a loop written as published scripts work."""
    raw = {}
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.diffusion_loop", "--side", side, "--device", device]
        found = timed(command + ["--quick"] * quick, threads)
        if found["code"]:
            raise RuntimeError(f"{side} ended with code {found['code']}: {found['complaint']}")
        raw[side] = json.loads(found["output"].splitlines()[-1])
    rows, base = [], raw["published"]
    for side, words in SIDES.items():
        one = raw[side]
        rows.append({"what": words, "seconds": one["seconds"], "peak_mb": one["peak_mb"]})
        rows[-1] |= {"number": f"{base['seconds'] / one['seconds']:.2f}×", "of": "faster than the first line"}
    parts = {side: " + ".join(f"{value:.3g} {name}" for name, value in raw[side]["stages"].items()) for side in raw}
    notes = [
        f"{base['what']}. CPU seconds: "
        + ", ".join(
            f"{side} {one['cpu_seconds']:.3g} ({base['cpu_seconds'] / one['cpu_seconds']:.2f}×)"
            for side, one in raw.items()
        )
        + ".",
        "Seconds by stage: " + "; ".join(f"{side}: {words}" for side, words in parts.items()) + ".",
    ]
    return {"rows": rows, "notes": notes, "raw": raw}


def ecosystem(device: str, quick: bool) -> Ecosystem:
    """Setting A4 for one round: small on a CPU, the paper's networks on a GPU; the same share of every kind of work as there."""
    if device == "cpu":
        steps, rows = (4, 16) if quick else (48, 192)
        scale, size = "cpu", {"models.*.train.steps": steps, "samples.per_round": rows, "run.evaluation_samples": rows}
    else:
        steps, rows = (20, 100) if quick else (200, 1000)
        scale, size = (
            "bench",
            {"models.*.train.steps": steps, "samples.per_round": rows, "run.evaluation_samples": rows},
        )
    return load(SPEC, scale=scale, overrides=size | {"models.*.pretrain": None, "run.rounds": 1})


def side(name: str, device: str, quick: bool) -> dict[str, Any]:
    """One line of the table."""
    eco = ecosystem(device, quick)
    if name in ("float32", "bfloat16"):
        seconds, cpu_seconds, stages = by_library(eco, name, device)
    else:
        loop = Loop(open_world(eco), torch.device(device), name == "published", name != "used")
        stages = {}
        begin, cpu = time.perf_counter(), time.process_time()
        loop.round(stages)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    p, run = eco.models["p"], eco.run
    assert p.train is not None
    what = (
        f"A round: 2 models, {rows_per_round(eco, 'p'):,} rows each, K = 6, {p.train.steps} steps of {p.train.batch_size}, "
        f"{run.evaluation_samples:,} images to evaluate each; networks of {list(p.family.channels)} channels, "  # type: ignore[union-attr]
        f"{eco.space.size or 32} × {eco.space.size or 32} pixels"  # type: ignore[union-attr]
    )
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "stages": stages, "what": what}


def by_library(eco: Ecosystem, dtype: Any, device: str) -> tuple[float, float, dict[str, float]]:
    """Round 1 of a run with everything that belongs to it, its record included."""
    from crossfeed.retraining.run import run_networks

    marks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        done = run_networks(
            eco,
            f"{folder}/run",
            device=device,
            dtype=dtype,
            report=lambda _: marks.append((time.perf_counter(), time.process_time())),
        )
    return marks[1][0] - marks[0][0], marks[1][1] - marks[0][1], done.summaries[1].seconds


@dataclass
class Loop:
    """A round written as published scripts work.

    Args:
        world: Data and prompts.
        device: Where the networks are.
        by_prompt: One prompt's K candidates at a time.
        every_row: Candidates for rows that are not picked as well.
    """

    world: World
    device: torch.device
    by_prompt: bool
    every_row: bool

    def __post_init__(self) -> None:
        self.eco = self.world.eco
        networks = build(self.world, self.device)
        self.models: dict[str, Any] = {name: network.module for name, network in networks.items()}  # type: ignore[attr-defined]
        self.schedulers = {name: network.scheduler for name, network in networks.items()}  # type: ignore[attr-defined]
        from diffusers.models.attention_processor import Attention, AttnProcessor2_0

        for module in self.models.values():
            for part in module.modules():
                if isinstance(part, Attention):
                    part.set_processor(AttnProcessor2_0())

    def round(self, stages: dict[str, float]) -> None:
        """Build both training sets, train both models, evaluate both."""
        sets = {name: self._timed(stages, "generation", lambda n=name: self.training_set(n)) for name in self.models}
        for name, (images, labels) in sets.items():
            self._timed(stages, "training", lambda n=name, x=images, y=labels: self.train(n, x, y))
        for name in self.models:
            self._timed(stages, "evaluation", lambda n=name: self.evaluate(n))

    def _timed(self, stages: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        found = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        stages[name] = stages.get(name, 0.0) + time.perf_counter() - begin
        return found

    @torch.no_grad()
    def generate(self, name: str, labels: Tensor, steps: int) -> Tensor:
        """Images in [0, 1], on the CPU, by asking the scheduler step by step."""
        scheduler, model = self.schedulers[name], self.models[name].eval()
        scheduler.set_timesteps(steps)
        x = torch.randn((len(labels), *self.world.shape), device=self.device)
        labels = labels.to(self.device)
        for t in scheduler.timesteps:
            noise = model(x, t, class_labels=labels).sample
            x = scheduler.step(noise, t, x, eta=0.0).prev_sample
        return (x / 2 + 0.5).clamp(0, 1).cpu()

    def training_set(self, name: str) -> tuple[Tensor, Tensor]:
        """Rows of every source, on the CPU."""
        model = self.eco.models[name]
        counts = source_counts([s.weight for s in model.sources], rows_per_round(self.eco, name), "fixed", 0)
        images, labels = [], []
        for source, count in zip(model.sources, counts, strict=True):
            real = self.world.data["photographs"].draw(count, torch.Generator().manual_seed(0))
            producer = source.producer if isinstance(source, Curated) else name
            picked = None
            if isinstance(source, Curated) or self.every_row:
                picked = self.picks(producer, real[1], 6)
            if isinstance(source, Real) or picked is None:
                picked = real[2].float() / 255  # type: ignore[union-attr]
            images.append(picked)
            labels.append(real[1])
        return torch.cat(images), torch.cat(labels)

    def picks(self, producer: str, labels: Tensor, num: int) -> Tensor:
        """One of K candidates a label."""
        steps = self.eco.models[producer].family.sampling_steps  # type: ignore[union-attr]
        size = num if self.by_prompt else self.eco.run.generation_batch // num * num
        images = [self.generate(producer, part, steps) for part in labels.repeat_interleave(num).split(size)]
        rewards = torch.cat([self.reward(producer, part.to(self.device)).cpu() for part in images])
        chosen = torch.distributions.Categorical(logits=rewards.view(-1, num)).sample()
        return torch.cat(images).view(-1, num, *self.world.shape)[torch.arange(len(labels)), chosen]

    def reward(self, name: str, images: Tensor) -> Tensor:
        """Hue band and realism in float32, a batch at a time."""
        node = self.eco.rewards[self.eco.models[name].reward]
        assert isinstance(node, HueBandReward)
        top, low = images.amax(1), images.amin(1)
        span = torch.where(top > low, top - low, 1.0)
        r, g, b = images.unbind(1)
        hue = (
            torch.where(top == r, (g - b) / span, torch.where(top == g, 2 + (b - r) / span, 4 + (r - g) / span)) / 6 % 1
        )
        inside = torch.stack([(hue >= a) & (hue <= z) for a, z in node.bands]).any(0)
        band = (inside * ((top - low) / top.clamp(min=1e-8)) ** 1.5).mean((1, 2))
        mean, std = (torch.tensor(v, dtype=torch.float32, device=images.device) for v in (CIFAR10_MEAN, CIFAR10_STD))
        off = (images.mean((2, 3)) - mean).norm(dim=1) + (images.std((2, 3)) - std).norm(dim=1)
        return node.band_weight * band - node.realism_weight * off

    def train(self, name: str, images: Tensor, labels: Tensor) -> None:
        """Noise prediction in float32; each batch comes from the CPU, each loss goes there."""
        how, model, scheduler = self.eco.models[name].train, self.models[name].train(), self.schedulers[name]
        assert how is not None
        optimizer = torch.optim.AdamW(model.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
        order = torch.cat([torch.randperm(len(images)) for _ in range(-(-how.steps * how.batch_size // len(images)))])
        for step in range(how.steps):
            index = order[step * how.batch_size : (step + 1) * how.batch_size]
            x, y = (images[index] * 2 - 1).to(self.device), labels[index].to(self.device)
            noise = torch.randn_like(x)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x),), device=self.device)
            loss = functional.mse_loss(model(scheduler.add_noise(x, noise, t), t, class_labels=y).sample, noise)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()

    def evaluate(self, name: str) -> float:
        """Mean reward of fresh images."""
        family, run = self.eco.models[name].family, self.eco.run
        labels = torch.randint(self.world.num_classes or 1, (run.evaluation_samples,))
        steps = family.evaluation_steps or family.sampling_steps  # type: ignore[union-attr]
        found = [self.generate(name, part, steps) for part in labels.split(run.generation_batch)]
        return float(torch.cat([self.reward(name, part.to(self.device)).cpu() for part in found]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diffusion_loop", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--side", choices=SIDES, help="one line only, as JSON")
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(side(chosen.side, chosen.device, chosen.quick)))
        return
    print(json.dumps(machine(chosen.threads) | {"device": chosen.device}))
    found = measure(chosen.threads, chosen.quick, chosen.device)
    for line in found["rows"]:
        print(f"{line['what']:75s} {line['seconds']:8.2f} s {line['peak_mb']:7.0f} MB {line['number']}")
    print(*found["notes"], sep="\n")


if __name__ == "__main__":
    main()
