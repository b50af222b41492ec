"""Specs of networks: what goes with what, one mistake one problem at its line, and settings, round trips and refusals."""

# ruff: noqa: E501  (one case a line)

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from specs import VALID

import crossfeed
from crossfeed.describe import settings
from crossfeed.describe.load import load
from crossfeed.describe.networks import evaluation_data, initial_data
from crossfeed.describe.schema import Ecosystem
from crossfeed.dynamics.run import run
from crossfeed.errors import NotAvailableError, SettingError, SpecError

ROOT = Path(__file__).parents[2]

FLOWS = """\
space: {kind: vectors, dim: 2}
data:
  ring: {kind: mixture, means: [[1, 0], [0, 1]], std: 0.1, weights: [1, 3]}
  rows: {kind: rows, rows: [[0, 0], [1, 1]]}
rewards:
  right: {kind: linear, vector: [1, 0]}
  near: {kind: quadratic, matrix: -1}
models:
  p:
    family: {kind: flow, width: 8}
    reward: right
    sources:
      - {kind: real, data: ring, weight: 0.5}
      - {kind: curated, producer: p, weight: 0.3, candidates: 4, temperature: 0, then: {curator: near, temperature: 0}}
      - {kind: raw, producer: q, weight: 0.2, map: {matrix: 0.9}}
    train: {steps: 10, learning_rate: 1e-3}
    evaluate: [{name: own, samples: 64}]
  q:
    family: {kind: flow}
    reward: near
    sources:
      - {kind: curated, producer: p, weight: 1, candidates: 2}
    train: {steps: 10}
    pretrain: {steps: 5, data: rows}
    per_round: 100
run: {rounds: 3}
"""

IMAGES = """\
space: {kind: images, file: sample:cifar10, rows: 40, size: 16}
data:
  all: {kind: images}
  cats: {kind: images, labels: [3]}
rewards:
  warm: {kind: hue_band, bands: [[0, 0.17]]}
models:
  p:
    family: {kind: diffusion, channels: [8, 16, 16], norm_groups: 8, head_dim: 8}
    reward: warm
    sources:
      - {kind: real, data: all, weight: 0.5}
      - {kind: curated, producer: p, weight: 0.5, candidates: 6}
    train: {steps: 10}
    pretrain: {steps: 5}
    evaluate: [{name: cats, data: cats}]
"""

TEXT = """\
space: {kind: text}
data:
  news: {kind: texts, file: news.jsonl, input_column: article, answer_column: summary, template: "Summarise: {input}"}
  asks: {kind: texts, file: news.jsonl, input_column: article}
  votes: {kind: preferences, file: votes.parquet}
rewards:
  brief: {kind: summary}
  formal: {kind: paraphrase, copy_target: 0.1}
models:
  p:
    family: {kind: causal_lm, fresh: {width: 16, heads: 2}}
    reward: brief
    sources:
      - {kind: real, data: news, weight: 0.4}
      - {kind: picks, data: votes, weight: 0.2}
      - {kind: curated, producer: p, weight: 0.3, sampling_temperature: 0.9}
      - {kind: raw, producer: q, weight: 0.1}
    train: {steps: 10}
    evaluate: [{name: own}, {name: asked, data: asks, reward: formal}]
  q:
    family: {kind: causal_lm, pretrained: some/model, lora: {rank: 4}, system: Be brief.}
    reward: formal
    sources: [{kind: curated, producer: p, weight: 1, candidates: 4}]
    train: {steps: 10}
    pretrain: {steps: 5, data: news}
"""

NETWORKS = {"flows": FLOWS, "images": IMAGES, "text": TEXT}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"article": f"a long story {i}", "summary": f"story {i}"} for i in range(5)]
    (tmp_path / "news.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    votes = pa.table({"prompt": ["why?"], "chosen": ["because"], "rejected": ["no"]})
    pq.write_table(votes, tmp_path / "votes.parquet")
    return tmp_path


def _write(folder: Path, text: str) -> Path:
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return folder / "spec.yaml"


def _load(folder: Path, text: str) -> Ecosystem:
    return load(_write(folder, text))


@pytest.mark.parametrize("name", NETWORKS)
def test_valid_specs_load_and_survive_json(name: str, folder: Path) -> None:
    eco = _load(folder, NETWORKS[name])
    assert eco.networks == eco.names
    text = eco.model_dump_json()
    assert Ecosystem(**json.loads(text)).model_dump_json() == text


@pytest.mark.parametrize("file", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_at_every_scale_survives_json(file: Path) -> None:
    for scale in (None, *load(file).scales):
        text = load(file, scale=scale).model_dump_json()
        assert Ecosystem(**json.loads(text)).model_dump_json() == text


def test_infinity_survives_json_also_inside_a_scale() -> None:
    plain = yaml.safe_load(VALID["vectors"]) | {"scales": {"big": {"models.p.sources[2].candidates": float("inf")}}}
    text = Ecosystem(**plain).model_dump_json()
    again = Ecosystem(**json.loads(text))
    assert again.model_dump_json() == text
    assert again.models["p"].sources[2].candidates == float("inf")
    assert again.scales["big"] == {"models.p.sources[2].candidates": "Infinity"}


# --- what does not go -----------------------------------------------------------------------------------------------

P_FLOW = "family: {kind: flow, width: 8}"
P_TRAIN = "train: {steps: 10, learning_rate: 1e-3}"
UNET = "{kind: diffusion, channels: [8, 16, 16], norm_groups: 8, head_dim: 8}"
FRESH = "{kind: causal_lm, fresh: {width: 16, heads: 2}}"
LORA = "{kind: causal_lm, pretrained: some/model, lora: {rank: 4}, system: Be brief.}"
PICKS = "{kind: picks, data: votes, weight: 0.2}"
NEWS = "file: news.jsonl, input_column: article, answer_column: summary"

BAD = [
    (FLOWS, P_FLOW, "family: {kind: gaussian}", "models.p.family.kind", "the closed-form family 'gaussian' beside the network 'q'", "networks only"),
    (FLOWS, P_TRAIN, "ridge: 0", "models.p.train", "no `train`", "`train: {steps: …}`"),
    (FLOWS, P_TRAIN, "ridge: 0.1\n    train: {steps: 1}", "models.p.ridge", "0.1 for a network", "train.weight_decay"),
    (FLOWS, P_TRAIN, "start: [1, 2]\n    train: {steps: 1}", "models.p.start", "parameters for a network", "checkpoint"),
    (FLOWS, P_TRAIN, "train: {steps: 10, warmup: 11}", "models.p.train.warmup", "11", "at most 10"),
    (FLOWS, P_TRAIN, "train: {steps: 10, momentum: 0.9}", "models.p.train.momentum", "0.9 with adamw", "optimizer: sgd"),
    (FLOWS, P_TRAIN, "train: {steps: 10, optimizer: sgd, betas: [0, 0]}", "models.p.train.betas", "betas with sgd", "momentum"),
    (FLOWS, P_TRAIN, "train: {steps: 10, betas: [0.9, 1]}", "models.p.train.betas[1]", "1", "< 1"),
    (FLOWS, P_TRAIN, "train: {steps: 10, decay: 0.9}", "models.p.train.decay", "without `decay_from`", "decay_from: ROUND"),
    (FLOWS, "{steps: 5, data: rows}", "{steps: 5, data: rows, decay_from: 3}", "models.q.pretrain.decay_from", "3", "no rounds"),
    (FLOWS, "{steps: 5, data: rows}", "{steps: 5, data: rwos}", "models.q.pretrain.data", "unknown name 'rwos'", "did you mean 'rows'?"),
    (FLOWS, "pretrain: {steps: 5, data: rows}", "pretrain: {steps: 5}", "models.q.pretrain.data", "no real data of 'q'", "weight may be 0"),
    (FLOWS, "per_round: 100", "checkpoint: q.pt", "models.q.checkpoint", "'q.pt'", ".safetensors"),
    (FLOWS, "per_round: 100", "checkpoint: q.safetensors", "models.q.checkpoint", "which does not exist", "a file"),
    (FLOWS, "weight: 1, candidates: 2", "weight: 1, candidates: inf", "models.q.sources[0].candidates", "inf candidates of a network", "each of them is generated"),
    (FLOWS, "producer: q, weight: 0.2,", "producer: q, weight: 0.2, sampling_temperature: 0.5,", "models.p.sources[2].sampling_temperature", "0.5 for outputs of a flow", "need 1"),
    (FLOWS, "samples: 64}", "data: ring}", "models.p.evaluate[0].data", "'ring' for vectors", "no inputs"),
    (FLOWS, "samples: 64}", "data: rnig}", "models.p.evaluate[0].data", "unknown name 'rnig'", "did you mean 'ring'?"),
    (FLOWS, "means: [[1, 0], [0, 1]]", "means: [[1, 0, 2]]", "data.ring.means", "shape (1, 3)", "rows of 2"),
    (FLOWS, "weights: [1, 3]", "weights: [1]", "data.ring.weights", "shape (1,)", "(2,)"),
    (FLOWS, "{kind: quadratic, matrix: -1}", "{kind: summary}", "rewards.near.kind", "'summary'", "one of linear, quadratic"),
    (FLOWS, "{kind: raw, producer: q, weight: 0.2, map: {matrix: 0.9}}", "{kind: picks, data: rows, weight: 0.2}", "models.p.sources[2].kind", "'picks' with a space of vectors", "a space of text"),
    (FLOWS, "run: {rounds: 3}", "update: {steps: {count: 1, size: 1}}", "update.steps", "gradient steps", "models.*.train.steps"),
    (FLOWS, "run: {rounds: 3}", "audit: {thresholds: [{path: p.curation, low: 0, high: 1}]}", "audit.thresholds", "with networks", "audit.changes"),
    (FLOWS, "run: {rounds: 3}", "run: {rounds: 0}", "run.rounds", "0", "≥ 1"),
    (IMAGES, "size: 16}", "size: 16, cells: {hue: 2}}", "space.cells", "cells with networks", "left out"),
    (IMAGES, "size: 16}", "size: 18}", "models.p.family.channels", "3 levels, which halve images of 18 × 18 2 times", "that 4 divides"),
    (IMAGES, "size: 16}\ndata:\n  all: {kind: images}\n  cats: {kind: images, labels: [3]}", "label_column: null}\ndata:\n  all: {kind: images}\n  cats: {kind: images}", "models.p.family.conditional", "true for images without labels", "conditional: false"),
    (IMAGES, "file: sample:cifar10", "file: hub:some/photographs", "space.file", "hub:some/photographs", "hub:NAME:SPLIT"),
    (IMAGES, "{kind: images, labels: [3]}", "{kind: distribution, weights: [1]}", "data.cats.kind", "which networks cannot use", "images"),
    (IMAGES, "{kind: hue_band, bands: [[0, 0.17]]}", "{kind: table, values: [1]}", "rewards.warm.kind", "which networks cannot use", "one of hue_band, callable"),
    (IMAGES, UNET, "{kind: diffusion, channels: [8, 12], norm_groups: 8}", "models.p.family.channels[1]", "12", "multiples of `norm_groups`, 8"),
    (IMAGES, UNET, "{kind: diffusion, channels: [8, 16], norm_groups: 8, attention: [true]}", "models.p.family.attention", "1 entries and 2 levels", "one entry a level"),
    (IMAGES, UNET, "{kind: diffusion, pretrained: some/model, channels: [8, 16]}", "models.p.family.channels", "channels beside `pretrained`", "one of them"),
    (IMAGES, UNET, "{kind: diffusion, pretrained: ./nowhere}", "models.p.family.pretrained", "which is no folder", "its name on a hub"),
    (IMAGES, UNET, "{kind: diffusion, channels: [32], sampling_steps: 30, noise_levels: 20}", "models.p.family.sampling_steps", "30", "at most 20"),
    (IMAGES, UNET, "{kind: flow}", "models.p.family.kind", "'flow', which does not go with a space of images", "diffusion"),
    (TEXT, FRESH, "{kind: causal_lm}", "models.p.family.pretrained", "neither `pretrained` nor `fresh`", "fresh: {}"),
    (TEXT, FRESH, "{kind: causal_lm, pretrained: a/b, fresh: {}}", "models.p.family.pretrained", "`pretrained` and `fresh`", "one of them"),
    (TEXT, FRESH, "{kind: causal_lm, fresh: {width: 18, heads: 4}}", "models.p.family.fresh.width", "18", "a multiple of 2 · heads = 8"),
    (TEXT, FRESH, "{kind: causal_lm, fresh: {}, chat: true}", "models.p.family.chat", "true for a fresh network", "no chat template"),
    (TEXT, FRESH, "{kind: causal_lm, fresh: {}, system: Hi}", "models.p.family.system", "without a chat template", "`template`"),
    (TEXT, FRESH, "{kind: causal_lm, fresh: {}, gguf_file: a.gguf}", "models.p.family.gguf_file", "without `pretrained`", "the folder"),
    (TEXT, LORA, "{kind: causal_lm, pretrained: a/b, adapter: tuned}", "models.q.family.adapter", "without `lora`", "`lora: {…}`"),
    (TEXT, LORA, "{kind: causal_lm, pretrained: a/b, lora: {}, adapter: tuned}", "models.q.family.adapter", "no such folder: 'tuned'", "peft saved"),
    (TEXT, FRESH, "{kind: categorical}", "models.p.family.kind", "'categorical', which does not go with a space of text", "causal_lm"),
    (TEXT, PICKS, "{kind: picks, data: news, weight: 0.2}", "models.p.sources[1].data", "'news', which is of kind 'texts'", "kind 'preferences'"),
    (TEXT, PICKS, "{kind: picks, data: vots, weight: 0.2}", "models.p.sources[1].data", "unknown name 'vots'", "did you mean 'votes'?"),
    (TEXT, PICKS, "{kind: real, data: votes, weight: 0.2}", "models.p.sources[1].data", "'votes', which holds picks", "kind: picks"),
    (TEXT, PICKS, "{kind: real, data: asks, weight: 0.2}", "models.p.sources[1].data", "'asks', which has inputs and no answers", "answer_column"),
    (TEXT, "{steps: 5, data: news}", "{steps: 5, data: asks}", "models.q.pretrain.data", "'asks', which has inputs and no answers", "answer_column"),
    (TEXT, PICKS, "{kind: picks, data: votes, weight: 0.2, domain: x}", "models.p.sources[1].domain", "'x' with a space of text", "no domain"),
    (TEXT, "reward: brief\n", "gives_way: picks\n    reward: brief\n", "models.p.gives_way", "the curated source 'picks'", "not curated"),
    (TEXT, "Summarise: {input}", "Summarise", "data.news.template", "'Summarise'", "`{input}`"),
    (TEXT, NEWS, NEWS.replace("news.jsonl", "nws.jsonl"), "data.news.file", "which does not exist", "did you mean 'news.jsonl'?"),
    (TEXT, NEWS, NEWS.replace("news.jsonl", "news.txt"), "data.news.file", "'news.txt'", ".jsonl"),
    (TEXT, NEWS, NEWS.replace("news.jsonl", "hub:news"), "data.news.file", "'hub:news'", "hub:NAME:CONFIG:SPLIT"),
    (TEXT, "{kind: summary}", "{kind: linear, vector: [1]}", "rewards.brief.kind", "'linear'", "summary"),
    (VALID["vectors"], "    reward: near\n", "    reward: near\n    train: {steps: 3}\n", "models.p.train", "for the closed-form family 'gaussian_mean'", "left out"),
    (VALID["vectors"], "    reward: near\n", "    reward: near\n    evaluate: [{name: a, samples: 3}]\n", "models.p.evaluate[0].samples", "for the closed-form family", "left out"),
    (VALID["vectors"], "space:", "run: {rounds: 3}\nspace:", "run", "it without networks", "left out"),
    (VALID["vectors"], "{kind: rows, rows: [[0, 0], [1, 1], [2, 0]]}", "{kind: mixture, means: [[0, 0]], std: 1}", "data.web.kind", "which only networks can use", "one of rows, moments"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "old", "new", "path", "says", "need"), BAD, ids=lambda v: None)
def test_one_mistake_is_one_problem_at_its_line(
    base: str, old: str, new: str, path: str, says: str, need: str, folder: Path
) -> None:
    assert old in base
    spec = _write(folder, base.replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        load(spec)
    assert len(caught.value.problems) == 1, str(caught.value)
    problem = caught.value.problems[0]
    assert problem.path == path
    assert says in problem.found
    assert need in problem.need
    assert problem.file == str(spec)
    lines = spec.read_text().split("\n")
    keys = [key for key in path.replace("]", "").replace("[", ".").split(".") if not key.isdigit()]
    near = "\n".join(lines[max(0, (problem.line or 1) - 1) : (problem.line or 1) + 1])
    written = keys[-1] in new or keys[-1] in base  # a key that nobody wrote: the line of what it belongs to
    assert keys[-1 if written and keys[-1] in near else -2] in near or "found no" in problem.found, (
        f"line {problem.line}: {near}"
    )


def test_a_folder_beside_the_spec_is_a_pretrained_model(folder: Path) -> None:
    (folder / "tuned").mkdir()
    eco = _load(folder, TEXT.replace("some/model", "tuned"))
    assert eco.models["q"].family.pretrained == str(folder / "tuned")  # type: ignore[union-attr]
    assert _load(folder, TEXT).models["q"].family.pretrained == "some/model"  # type: ignore[union-attr]


# --- first inputs, settings, verbs ------------------------------------------------------------------------------------


def test_first_inputs_are_pretraining_datas_or_the_real_sources(folder: Path) -> None:
    eco = _load(folder, TEXT)
    assert initial_data(eco, "p") == ["news"]
    assert initial_data(eco, "q") == ["news"]
    own, asked = eco.models["p"].evaluate or []
    assert evaluation_data(eco, "p", own) == evaluation_data(eco, "p") == ["news"]
    assert evaluation_data(eco, "p", asked) == ["asks"]
    bare = eco.models["q"].model_copy(update={"pretrain": None})
    with pytest.raises(SpecError, match="no real data of 'q'"):
        initial_data(eco.model_copy(update={"models": {"q": bare}}), "q")


def test_picks_count_as_curated_and_not_as_a_models_outputs(folder: Path) -> None:
    eco = _load(folder, TEXT)
    assert settings.get(eco, "p.curation") == pytest.approx(0.5)
    moved = settings.put(eco, "p.curation", 0.75)
    assert [s.weight for s in moved.models["p"].sources] == pytest.approx([0.2, 0.3, 0.45, 0.05])
    assert settings.get(eco, "p.cross_share") == 0.0  # only p's own outputs are picked anew
    assert "p.cross_share" not in settings.paths(eco)
    assert "p.sources.picks.weight" in settings.paths(eco)
    assert not any(path.endswith("ridge") for path in settings.paths(eco))
    with pytest.raises(SettingError, match="no such setting"):
        settings.put(eco, "p.ridge", 1.0)


@pytest.mark.parametrize("verb", ["compile_ecosystem", "sweep", "run"])
def test_closed_form_verbs_say_that_networks_are_run(verb: str, folder: Path) -> None:
    eco = _load(folder, FLOWS)
    more = {"sweep": [{"p.curation": [0.1, 0.2]}]}.get(verb, [])
    with pytest.raises(NotAvailableError, match=r"the models 'p', 'q', of a kind .*`crossfeed run`"):
        (run if verb == "run" else getattr(crossfeed, verb))(eco, *more)
