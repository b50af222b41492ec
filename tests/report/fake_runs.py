"""Runs that look real without training anything: records of vectors, pictures and texts, of 1, 2 or many models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.schema import Ecosystem
from crossfeed.networks.base import Outputs
from crossfeed.networks.world import World, open_world
from crossfeed.record.folder import Metric, RoundRecord, RunFolder, Shown
from crossfeed.record.pool import Pool, concatenate

NAMES = ["summariser", "paraphraser", "coder", "tutor", "critic", "translator"]
NAMES += ["draughtsman", "novelist", "archivist", "planner", "reviewer", "clerk"]
ANSWERS = (
    "A small tool that lists the files in an archive and prints their sizes.",
    "Library to read and write tables, with bindings for several languages.",
    "Fast network scanner.",
    "This package contains the documentation. It is not needed to run the program, but it explains every option in full.",
    "Plays music from the command line and can follow playlists.",
)
INPUTS = 12


def names_of(count: int) -> list[str]:
    return ["p", "q", "r"][:count] if count <= 3 else NAMES[:count]


def spec(kind: str, count: int, folder: Path, **more: Any) -> dict[str, Any]:
    """A spec as plain values; files it needs are written to ``folder``."""
    names = names_of(count)
    space: dict[str, Any]
    data: dict[str, Any]
    rewards: dict[str, Any]
    evaluate: dict[str, list[dict[str, Any]] | None] = dict.fromkeys(names)
    if kind == "vectors":
        space = {"kind": "vectors", "dim": more.pop("dim", 2)}
        dim = space["dim"]
        ring = [
            [
                2 * math.cos(k * math.pi / 4) if d == 0 else 2 * math.sin(k * math.pi / 4) if d == 1 else 0.0
                for d in range(dim)
            ]
            for k in range(8)
        ]
        data = {"ring": {"kind": "mixture", "means": ring, "std": 0.2}}
        rewards = {
            f"{n}_people": {"kind": "linear", "vector": [1.0 if k % 2 else -1.0] + [0.0] * (dim - 1)}
            for k, n in enumerate(names)
        }
        family: dict[str, Any] = {"kind": "flow"}
    elif kind == "images":
        space = {"kind": "images", "file": "sample:cifar10"}
        data = {"photographs": {"kind": "images"}}
        bands = [[[0.92, 1.0], [0.0, 0.17]], [[0.5, 0.72]]]
        rewards = {f"{n}_people": {"kind": "hue_band", "bands": bands[k % 2]} for k, n in enumerate(names)}
        family = {"kind": "diffusion", "channels": [16, 32], "norm_groups": 8}
    else:
        folder.mkdir(parents=True, exist_ok=True)
        space, data = {"kind": "text"}, {}
        for n in names:
            lines = [
                json.dumps(
                    {
                        "input": f"Describe package number {i} of {n} in one line, please.",
                        "answer": ANSWERS[i % len(ANSWERS)],
                    }
                )
                for i in range(INPUTS)
            ]
            (folder / f"{n}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            data[f"{n}_pairs"] = {"kind": "texts", "file": str(folder / f"{n}.jsonl"), "answer_column": "answer"}
        rewards = {f"{n}_people": {"kind": "summary" if k % 2 == 0 else "paraphrase"} for k, n in enumerate(names)}
        family = {"kind": "causal_lm", "fresh": {"width": 16, "layers": 1, "heads": 2}}
        for k, n in enumerate(names):
            other = names[(k + 1) % count]
            evaluate[n] = [{"name": "own", "data": f"{n}_pairs"}]
            if other != n:
                evaluate[n] += [{"name": f"on {other}", "data": f"{other}_pairs"}]  # type: ignore[operator]
    models = {}
    for k, n in enumerate(names):
        other = names[(k + 1) % count]
        real = f"{n}_pairs" if kind == "text" else next(iter(data))
        sources: list[dict[str, Any]] = [
            {"kind": "real", "data": real, "weight": 0.5},
            {"kind": "curated", "producer": n, "weight": 0.3, "candidates": 4},
        ]
        sources += [{"kind": "curated" if k % 2 == 0 and other != n else "raw", "producer": other, "weight": 0.2}]
        models[n] = {
            "family": family,
            "reward": f"{n}_people",
            "sources": sources,
            "train": {"steps": 50, "batch_size": 32},
            "evaluate": evaluate[n],
        }
    return {
        "name": {"vectors": "eight islands", "images": "two painters", "text": "a summariser and a paraphraser"}[kind],
        "description": "A made-up run for looking at its page.",
        "space": space,
        "data": data,
        "rewards": rewards,
        "models": models,
        "samples": {"per_round": 60},
        "run": {"rounds": 10, "evaluation_samples": 40},
        **more,
    }


def picture(tint: Tensor, pull: float, real: Tensor, generator: torch.Generator) -> Tensor:
    """Real pictures pulled towards a tint: (n, 3, h, w) uint8."""
    noise = 6 * torch.randn(real.shape, generator=generator)
    mixed = (1 - pull) * real.float() + pull * tint[None, :, None, None] * 255 + noise
    return mixed.clamp(0, 255).to(torch.uint8)


def outputs_of(world: World, model: int, pull: float, prompts: Tensor, generator: torch.Generator) -> Outputs:
    """What a model makes of these prompts; ``pull`` is how far its people have pulled it."""
    n = len(prompts)
    if world.medium == "text":
        pick = torch.randint(len(ANSWERS), (n,), generator=generator).tolist()
        asked = [world.prompts.inputs[i] for i in prompts.tolist()]
        return [ANSWERS[p] + ("" if pull < 0.3 else " In short: " + a) for p, a in zip(pick, asked, strict=True)]
    real = next(iter(world.data.values())).draw(n, generator)[2]
    assert isinstance(real, Tensor)
    if world.medium == "images":
        tint = torch.tensor([0.9, 0.5, 0.2] if model % 2 == 0 else [0.2, 0.45, 0.9])
        return picture(tint, pull, real, generator)
    shift = torch.zeros(world.shape[0])
    shift[0] = (1.0 if model % 2 else -1.0) * 2 * pull
    return (1 - pull) * real + shift


def _rewards(n: int, pull: float, generator: torch.Generator) -> list[float]:
    return (pull + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)).tolist()


def pool(world: World, name: str, t: int, pull: float, size: int, generator: torch.Generator, candidates: bool) -> Pool:
    """A training set by the model's mixture, with lineage."""
    from crossfeed.describe.schema import source_names

    eco = world.eco
    model = eco.models[name]
    columns: dict[str, list[Any]] = {
        k: [] for k in ["source", "kind", "producer", "producer_round", "data", "row", "parent"]
    }
    offers: dict[str, list[Any]] = {k: [] for k in ["num_candidates", "rewards", "picked", "picker", "why"]}
    outputs, prompts, offered = [], [], []
    for source, called in zip(model.sources, source_names(model), strict=True):
        n = round(size * source.weight) if t else size if source.kind == "real" else 0
        if n == 0:
            continue
        producer = getattr(source, "producer", None)
        who = eco.names.index(producer or name)
        k = 4 if source.kind == "curated" else 0
        if producer is None:
            rows, asked, made = world.data[source.data].draw(n, generator)  # type: ignore[union-attr]
        else:
            rows = [None] * n
            asked = next(iter(world.data.values())).draw(n, generator)[1]
            made = outputs_of(world, who, pull, asked, generator)
        outputs.append(made)
        prompts.append(asked)
        if k:
            kept = outputs_of(world, who, pull, asked.repeat_interleave(k), generator)
            offered.append(kept)
        columns["source"] += [called] * n
        columns["kind"] += [source.kind] * n
        columns["producer"] += [producer] * n
        columns["producer_round"] += [None if producer is None else t - 1] * n
        columns["data"] += [getattr(source, "data", None)] * n
        columns["row"] += rows
        columns["parent"] += [None if producer is None else f"r{t - 1:04d}-{producer}-{i % size:06d}" for i in range(n)]
        values = torch.tensor(_rewards(n * max(k, 1), pull, generator)).reshape(n, -1)
        noisy = values + 0.2 * torch.randn(values.shape, generator=generator)
        offers["num_candidates"] += [k] * n
        offers["rewards"] += [v if k else [] for v in values.tolist()]
        offers["picked"] += noisy.argmax(1).tolist() if k else [-1] * n
        offers["picker"] += [eco.models[producer].reward if k else None] * n if producer else [None] * n
        offers["why"] += ["Plackett–Luce, τ = 1" if k else None] * n
    n = len(columns["kind"])
    return Pool(
        ids=[f"r{t:04d}-{name}-{i:06d}" for i in range(n)],
        prompts=torch.cat(prompts),
        outputs=concatenate(outputs),
        candidates=concatenate(offered) if offered and candidates else None,
        **columns,
        **offers,
    )


def records(
    eco: Ecosystem, rounds: int, *, size: int = 20, candidates: bool = True, shown: int | None = None
) -> list[RoundRecord]:
    """Round 0 to ``rounds``; every second model's alignment falls, diversity shrinks."""
    world, out = open_world(eco), []
    for t in range(rounds + 1):
        generator = torch.Generator().manual_seed(1000 + t)
        record = RoundRecord(round=t, seconds={"generate": 1.5 + t, "curate": 0.3, "train": 4.0, "evaluate": 1.0})
        for k, name in enumerate(eco.names):
            slope = (1.0 if k % 2 == 0 else -0.5) / (1 + k // 2)
            pull = 0.6 * (1 - math.exp(-t / 4)) / (1 + k // 3)
            sizes = eco.run.evaluation_samples
            for e in eco.models[name].evaluate or [None]:  # type: ignore[list-item]
                cross = e is not None and e.name != "own"
                level = 0.2 + 0.1 * k + (0.25 if cross else 1.0) * slope * pull + 0.01 * math.sin(3 * t + k)
                kept = sizes if shown is None else shown
                source = next(iter(world.data.values())) if e is None or e.data is None else world.data[e.data]
                asked = (
                    source.inputs()[torch.arange(kept) % len(source.inputs())]
                    if len(source.inputs())
                    else torch.zeros(kept, dtype=torch.int64)
                )
                if world.medium == "images":
                    asked = torch.arange(kept) % (world.num_classes or 1)
                rewards = [level + 0.2 * math.sin(17 * i) + 0.1 * math.sin(13 * i + 7 * t) for i in range(kept)]
                mean = sum(rewards) / kept if shown is None else level
                domain = "own" if e is None else e.name
                record.metrics.append(Metric(name, "alignment", domain, mean, 0.05 / math.sqrt(sizes)))
                outputs = outputs_of(world, k, pull, asked, generator)
                record.shown.append(Shown(name, domain, asked, outputs, rewards))
            record.metrics += [
                Metric(name, "diversity", None, 2.0 * (1 - pull) ** (2 + k % 2), None),
                Metric(name, "distance_to_data", None, 0.02 + pull**2, 0.01),
            ]
            if world.medium == "text":
                record.metrics.append(Metric(name, "words", None, 14 - 4 * pull, 0.4))
            if t:
                record.metrics += [
                    Metric(name, "delta", None, 0.3 * math.exp(-t / 3) / (1 + k), None),
                    Metric(name, "loss", "first", 1.4 - 0.1 * k, 0.02),
                    Metric(name, "loss", "last", 1.1 - 0.04 * t, 0.02),
                    Metric(name, "gradient_norm", None, 2.0 / t, None),
                ]
            record.pools[name] = pool(world, name, t, pull, size, generator, candidates)
            record.parameters[name] = {"weight": torch.full((4, 3), float(t + k))}
        out.append(record)
    return out


def made(
    kind: str,
    count: int,
    folder: Path,
    rounds: int = 10,
    *,
    result: str | None = "finished",
    reason: str = "all rounds done",
    more: dict[str, Any] | None = None,
    **options: Any,
) -> RunFolder:
    """A run on disk of ``count`` models: ``rounds`` rounds after the start, −1 for none at all."""
    eco = Ecosystem(**spec(kind, count, folder / "data", **(more or {})))
    return written(eco, records(eco, rounds, **options), folder / "run", result, reason)


def written(eco: Ecosystem, rounds: list[RoundRecord], folder: Path, result: str | None, reason: str = "") -> RunFolder:
    """Records on disk."""
    run = RunFolder.create(
        folder,
        eco,
        spec_file="two.yaml",
        command="crossfeed run two.yaml --scale smoke",
        options={"rounds": eco.run.rounds, "device": "cpu", "dtype": "float32", "regime": "replace"},
    )
    with run.writing():
        for record in rounds:
            run.commit(record)
    if result is not None:
        run.finish(result, reason)
    return RunFolder.open(folder)


HOSTILE = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=2">',
    "</script><script>window.hacked=3</script><!--",
    "</p></dd></dl></main><style>body{display:none}</style>",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07 and \x9b31m",
    "\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\ \x1b]52;c;aGFja2Vk\x07",
    "safe\u202etxt.exe \u2066isolated\u2069 \u200fmark",
    "zero\x00byte and \x7f delete",
    "half \ud800 a pair \udfff",
    "x" * 5_000_000,
    "",
    " \n\t  \n",
    "\u200b\u200d\ufeff\u2060",
    "zero\u200bwidth\ufeff joined\u00ad",
    "שלום עולם, مرحبا بالعالم",
    "Z" + "\u0351\u0346\u035b" * 400,
    "[red]rich[/red] [link=file:///etc/passwd]x[/link] [/]",
    "# heading\n**bold** [a](javascript:alert(1)) ![i](http://example.org/x.png)",
    "private \ue000helps \U000f0000",
    "a\u2028b\u2029c\rd\r\ne",
    "{{style}} ${x} %s datum.value'); window.hacked=4; ('",
]


def hostile(folder: Path) -> RunFolder:
    """A run whose answers, inputs, names and notes are all out to do harm."""
    plain = spec("text", 2, folder / "data")
    evil = '</script><img src=x onerror="hacked=5">\u202e'
    names = {"p": f"p{evil}", "q": "q \x1b31m <b>x</b>"}
    plain["name"] = f"a run {evil}"
    plain["description"] = f"about {evil}"
    lines = [
        json.dumps(
            {"input": HOSTILE[i % len(HOSTILE)][:2000].encode("utf-8", "replace").decode() or "-", "answer": "fine"}
        )
        for i in range(INPUTS)
    ]
    (folder / "data" / "p.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain["models"] = {names[n]: model for n, model in plain["models"].items()}
    for model in plain["models"].values():
        for source in model["sources"]:
            if "producer" in source:
                source["producer"] = names[source["producer"]]
    eco = Ecosystem(**plain)
    rounds = records(eco, 3, size=3 * len(HOSTILE))
    for record in rounds:
        record.info["note"] = evil
        record.shown = [
            replace(
                entry,
                outputs=[
                    HOSTILE[(3 * (4 * number + record.round) + i) % len(HOSTILE)] for i in range(len(entry.rewards))
                ],
            )
            for number, entry in enumerate(record.shown)
        ]
        for name, found in record.pools.items():
            made_up = replace(
                found,
                outputs=[HOSTILE[i % len(HOSTILE)] for i in range(len(found))],
                picker=[p and evil for p in found.picker],
                why=[w and "\x1b[31mwhy [red]" for w in found.why],
                candidates=None
                if found.candidates is None
                else [HOSTILE[i % 9] for i in range(sum(found.num_candidates))],
            )
            record.pools[name] = made_up
    return written(eco, rounds, folder / "run", "diverged", f"the reason {evil}\x1b]0;x\x07")
