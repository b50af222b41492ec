"""One mistake a spec: one problem, at the right line and path, with the right words; in Python and on the command line."""

# ruff: noqa: E501  (one case a line)

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from specs import IMAGES, OUTCOMES, REGRESSION, VALID, VECTORS

from crossfeed.describe.load import load
from crossfeed.errors import SpecError


@dataclass(frozen=True)
class Bad:
    """A valid spec with ``old`` replaced by ``new``; the problem is ``down`` lines below the replaced text."""

    name: str
    base: str
    old: str
    new: str
    path: str
    says: str
    down: int = 0
    need: str = ""

    def write(self, folder: Path) -> tuple[Path, int]:
        assert self.base.count(self.old) >= 1, f"{self.name}: nothing to replace"
        before, after = self.base.split(self.old, 1)
        spec = folder / "spec.yaml"
        spec.write_text(before + self.new + after, encoding="utf-8")
        return spec, before.count("\n") + 1 + self.down


FAMILY_P = "family: {kind: categorical}"
REAL_P = "{kind: real, data: web, weight: 0.5}"
WARM = "{kind: table, values: [1, 0, -1]}"
CROSS = "{kind: curated, producer: q, weight: 0.2, candidates: 4, curator: cool}"
OWN = "{kind: curated, producer: p, weight: 0.3}"
ORDER = "{kind: sequential, models: [p, q]}"
CHANGE = "{path: p.curation, to: 0.6}"
THRESHOLD = "{path: p.cross_share, low: 0, high: 0.9, affected: q, intervened: p}"
TILT = "{kind: curated, producer: p, weight: 0.4, candidates: inf, noise: 0.1}"
CYCLE = "[[[p, q]], [[p], [q]]]"
TOP = "models:\n  p:\n"

YAML = [
    Bad("tab", OUTCOMES, "  kind: outcomes", "\tkind: outcomes", "", "found invalid YAML", need="spaces, not tabs"),
    Bad("bracket", OUTCOMES, "[good, fine, bad]\n", "[good, fine, bad\n", "", "noticed in line 4"),
    Bad("quote", OUTCOMES, "reward: warm", "reward: 'warm", "", "noticed in line"),
    Bad("colon", OUTCOMES, "kind: outcomes", "kind: out: comes", "", "mapping values are not allowed"),
    Bad("dedent", OUTCOMES, "    reward: warm", "   reward: warm", "", "found invalid YAML"),
    Bad("twice", OUTCOMES, "    reward: warm", "    reward: warm\n    reward: cool", "models.p.reward", "this key twice, first in line 14", 1),
    Bad("top twice", OUTCOMES, "update:", "rewards: {}\nupdate:", "rewards", "this key twice, first in line 8"),
    Bad("model twice", OUTCOMES, "  q:\n", "  p:\n", "models.p", "this key twice, first in line 12"),
    Bad("number key", OUTCOMES, "  web:", "  7:", "data", "the key 7, which is not text", need="in quotes"),
    Bad("null key", OUTCOMES, "  web:", "  ~:", "data", "the key ~, which is not text"),
    Bad("list key", OUTCOMES, "  web:", "  [web]:", "data", "a mapping or list as a key"),
    Bad("true key", OUTCOMES, "  web:", "  true:", "data", "the key true, which is not text"),
    Bad("object tag", OUTCOMES, "update:", "seed: !!python/object/apply:os.getpid []\nupdate:", "seed", "the tag '!!python/object/apply:os.getpid'", need="runs no code"),
    Bad("name tag", OUTCOMES, "reward: warm", "reward: !!python/name:os.system x", "models.p.reward", "the tag '!!python/name:os.system'"),
    Bad("own tag", OUTCOMES, "update: {", "update: !mine {", "update", "the tag '!mine'"),
    Bad("no anchor", OUTCOMES, "reward: warm", "reward: *warm", "models.p.reward", "*warm, which nothing names"),
    Bad("loop", OUTCOMES, "labels: [good, fine, bad]", "labels: &l [good, *l]", "space.labels[1]", "*l, inside the value it names"),
    Bad("bad merge", OUTCOMES, "update: {", "update: {<<: 3, ", "update.<<", "found 3 under `<<`"),
    Bad("second document", OUTCOMES, "update:", "---\nupdate:", "", "a second document"),
    Bad("deep", OUTCOMES, "rows: [good, fine, fine, bad]", f"rows: {'[' * 99}{']' * 99}", "data.web.rows[0]", "more than 40 levels"),
    Bad("control", OUTCOMES, "reward: warm", "reward: wa\x08rm", "", "the control character U+0008"),
    Bad("huge float", OUTCOMES, "weight: 0.5", "weight: 1e400", "models.p.sources[0].weight", "found 1e400, which is too large"),
    Bad("huge int", OUTCOMES, "weight: 0.5", f"weight: {'9' * 5000}", "models.p.sources[0].weight", "a whole number of 5,000 digits"),
    Bad("bomb", OUTCOMES, "data:\n", "x: &a [" + "1," * 2000 + "1]\ny: &b [" + "*a," * 2000 + "*a]\ndata:\n", "y[1498]", "more than 3,000,000 values", 1),
]  # fmt: skip

VALUES = [
    Bad("text", OUTCOMES, "weight: 0.5", 'weight: "0.5"', "models.p.sources[0].weight", "found the text '0.5'", need="without quotes"),
    Bad("word", OUTCOMES, "weight: 0.5", "weight: half", "models.p.sources[0].weight", "found the text 'half'"),
    Bad("comma", OUTCOMES, "weight: 0.5", "weight: '0,5'", "models.p.sources[0].weight", "found the text '0,5'"),
    Bad("nan", OUTCOMES, "weight: 0.5", "weight: .nan", "models.p.sources[0].weight", "found nan", need="finite"),
    Bad("inf", OUTCOMES, "weight: 0.5", "weight: .inf", "models.p.sources[0].weight", "found inf", need="finite"),
    Bad("negative", OUTCOMES, "weight: 0.5", "weight: -0.5", "models.p.sources[0].weight", "found -0.5", need="≥ 0"),
    Bad("above 1", OUTCOMES, "weight: 0.5", "weight: 1.5", "models.p.sources[0].weight", "found 1.5", need="≤ 1"),
    Bad("bool", OUTCOMES, "weight: 0.5", "weight: true", "models.p.sources[0].weight", "found true", need="number"),
    Bad("null", OUTCOMES, "weight: 0.5", "weight: ~", "models.p.sources[0].weight", "found nothing", need="number"),
    Bad("list", OUTCOMES, "weight: 0.5", "weight: [0.5]", "models.p.sources[0].weight", "found a list of 1", need="number"),
    Bad("mapping", OUTCOMES, "weight: 0.5", "weight: {a: 1}", "models.p.sources[0].weight", "a mapping with the keys a"),
    Bad("big int", OUTCOMES, "weight: 0.5", f"weight: {'9' * 390}", "models.p.sources[0].weight", "about 390 digits"),
    Bad("bool count", VECTORS, "dim: 2", "dim: true", "space.dim", "found true", need="number"),
    Bad("half count", VECTORS, "dim: 2", "dim: 2.5", "space.dim", "found 2.5", need="whole number"),
    Bad("zero count", VECTORS, "dim: 2", "dim: 0", "space.dim", "found 0", need="≥ 1"),
    Bad("infinite count", VECTORS, "dim: 2", "dim: .inf", "space.dim", "found inf", need="finite"),
    Bad("seed", OUTCOMES, "update:", "seed: -1\nupdate:", "seed", "found -1", need="≥ 0"),
    Bad("seed text", OUTCOMES, "update:", "seed: '1'\nupdate:", "seed", "found the text '1'", need="without quotes"),
    Bad("version", OUTCOMES, "update:", "crossfeed: 2\nupdate:", "crossfeed", "found 2", need="need 1"),
    Bad("number name", OUTCOMES, "update:", "name: 12\nupdate:", "name", "found 12", need="in quotes"),
    Bad("long name", OUTCOMES, "update:", f"name: {'n' * 300}\nupdate:", "name", "found 'nnn", need="at most 200"),
    Bad("dotted name", OUTCOMES, "  web:", "  web.site:", "data.web.site", "the name 'web.site'", need="without dots"),
    Bad("empty name", OUTCOMES, "  web:", "  '':", "data.an empty text", "an empty text", need="1 to 200"),
    Bad("unknown key", OUTCOMES, "reward: warm", "rewrad: warm\n    reward: warm", "models.p.rewrad", "unknown key 'rewrad'", need="did you mean 'reward'?"),
    Bad("unknown top key", OUTCOMES, "update:", "udpate:", "udpate", "unknown key 'udpate'", need="did you mean 'update'?"),
    Bad("key of another kind", OUTCOMES, REAL_P, "{kind: real, data: web, weight: 0.5, producer: q}", "models.p.sources[0].producer", "unknown key 'producer'"),
    Bad("odd key", OUTCOMES, "update:", '"a\\nb": 1\nupdate:', "'a\\nb'", "unknown key 'a\\nb'"),
    Bad("missing", OUTCOMES, REAL_P, "{kind: real, weight: 0.5}", "models.p.sources[0].data", "found no `data`", need="Name under `data`"),
    Bad("missing section", OUTCOMES, "space:\n  kind: outcomes\n  labels: [good, fine, bad]\n  coordinates: [[1, 0], [0, 0], [0, 1]]\n", "", "space", "found no `space`"),
    Bad("unknown kind", OUTCOMES, FAMILY_P, "family: {kind: categoric}", "models.p.family.kind", "found 'categoric'", need="did you mean 'categorical'?"),
    Bad("no kind", OUTCOMES, REAL_P, "{data: web, weight: 0.5}", "models.p.sources[0].kind", "found no `kind`", need="real, raw, curated"),
    Bad("kind is a list", OUTCOMES, FAMILY_P, "family: {kind: [categorical]}", "models.p.family.kind", "found a list of 1"),
    Bad("only a kind", OUTCOMES, FAMILY_P, "family: categorical", "models.p.family", "found 'categorical'", need="a mapping with `kind`"),
    Bad("unknown order", OUTCOMES, ORDER, "{kind: sequental}", "update.order.kind", "found 'sequental'", need="did you mean 'sequential'?"),
    Bad("order word", OUTCOMES, ORDER, "sequential", "update.order", "found 'sequential'", need="a mapping with `kind`"),
    Bad("unknown choice", OUTCOMES, "update:", "samples: {regime: replce}\nupdate:", "samples.regime", "found 'replce'", need="did you mean 'replace'?"),
    Bad("no sources", OUTCOMES, "    sources:\n      - {kind: real, data: poll, weight: 0.6}\n      - {kind: raw, producer: p, weight: 0.4, name: theirs}", "    sources: []", "models.q.sources", "an empty list", need="at least 1"),
    Bad("sources mapping", OUTCOMES, "    sources:\n      - {kind: real, data: poll, weight: 0.6}\n      - {kind: raw, producer: p, weight: 0.4, name: theirs}", "    sources: {kind: real}", "models.q.sources", "a mapping with the keys kind", need="a list"),
    Bad("models list", OUTCOMES, OUTCOMES[OUTCOMES.index("models:") : OUTCOMES.index("update:")], "models: [p, q]\n", "models", "a list of 2", need="a mapping"),
    Bad("no models", OUTCOMES, OUTCOMES[OUTCOMES.index("models:") : OUTCOMES.index("update:")], "models: {}\n", "models", "an empty mapping", need="at least 1"),
    Bad("empty model", VECTORS, "  p:\n", "  r:\n  p:\n", "models.r", "found nothing", need="a mapping"),
    Bad("label numbers", OUTCOMES, "labels: [good, fine, bad]", "labels: [good, 2, bad]", "space.labels[1]", "found 2", need="in quotes"),
    Bad("candidates half", OUTCOMES, "candidates: 4", "candidates: 2.5", "models.p.sources[2].candidates", "found 2.5", need="whole number of candidates"),
    Bad("candidates none", OUTCOMES, "candidates: 4", "candidates: 0", "models.p.sources[2].candidates", "found 0"),
    Bad("candidates true", OUTCOMES, "candidates: 4", "candidates: true", "models.p.sources[2].candidates", "found true"),
    Bad("candidates nan", OUTCOMES, "candidates: 4", "candidates: .nan", "models.p.sources[2].candidates", "found nan"),
    Bad("candidates minus", OUTCOMES, "candidates: 4", "candidates: -.inf", "models.p.sources[2].candidates", "found -inf"),
    Bad("candidates word", OUTCOMES, "candidates: 4", "candidates: many", "models.p.sources[2].candidates", "found 'many'"),
    Bad("temperature", OUTCOMES, "candidates: 4", "temperature: -1", "models.p.sources[2].temperature", "found -1", need="≥ 0"),
    Bad("sampling", OUTCOMES, "candidates: 4", "sampling_temperature: 0", "models.p.sources[2].sampling_temperature", "found 0", need="> 0"),
    Bad("then", OUTCOMES, "candidates: 4", "then: {noise: 2}", "models.p.sources[2].then.noise", "found 2", need="≤ 1"),
    Bad("ridge", OUTCOMES, "reward: warm", "ridge: -1\n    reward: warm", "models.p.ridge", "found -1", need="≥ 0"),
    Bad("confidence", OUTCOMES, "audit:", "audit:\n  confidence: 1", "audit.confidence", "found 1", 1, need="< 1"),
    Bad("rounds", OUTCOMES, "audit:", "audit:\n  rounds: 0", "audit.rounds", "found 0", 1, need="≥ 1"),
    Bad("band of one", IMAGES, "[0, 0.17]", "[0.17]", "rewards.warm.bands[0]", "a list of 1", need="one entry more"),
    Bad("band of three", IMAGES, "[0, 0.17]", "[0, 0.1, 0.2]", "rewards.warm.bands[0]", "a list of 3", need="at most 2"),
    Bad("band beyond", IMAGES, "[0.92, 1]", "[0.92, 1.2]", "rewards.warm.bands[1][1]", "found 1.2", need="≤ 1"),
    Bad("statistic", IMAGES, "[mean, label]", "[mean, labels]", "models.p.family.features[1]", "found 'labels'", need="did you mean 'label'?"),
    Bad("cell", IMAGES, "{hue: 4}", "{hues: 4}", "space.cells.hues", "the name 'hues'", need="did you mean 'hue'?"),
    Bad("function", VECTORS, "far: {kind: linear, vector: [1, 0]}", "far: {kind: callable, function: 'os.system'}", "rewards.far.function", "found 'os.system'", need="`module:function`"),
]  # fmt: skip

ARRAYS = [
    Bad("array text", OUTCOMES, WARM, "{kind: table, values: [1, two, 3]}", "rewards.warm.values[1]", "found 'two'", need="a number"),
    Bad("array bool", OUTCOMES, WARM, "{kind: table, values: [1, true, 3]}", "rewards.warm.values[1]", "found true"),
    Bad("array null", OUTCOMES, WARM, "{kind: table, values: [1, ~, 3]}", "rewards.warm.values[1]", "found nothing"),
    Bad("array nan", OUTCOMES, WARM, "\n    kind: table\n    values:\n      - 1\n      - .nan\n      - 3", "rewards.warm.values[1]", "found nan at [1]", 4),
    Bad("array mapping", OUTCOMES, WARM, "{kind: table, values: [1, {a: 2}, 3]}", "rewards.warm.values[1]", "the keys a"),
    Bad("array word", OUTCOMES, WARM, "{kind: table, values: warm}", "rewards.warm.values", "found 'warm'"),
    Bad("array huge", OUTCOMES, WARM, f"{{kind: table, values: [1, {'9' * 390}, 3]}}", "rewards.warm.values", "a list of 3", need="ordinary size"),
    Bad("array empty", OUTCOMES, WARM, "{kind: table, values: []}", "rewards.warm.values", "shape (0,)", need="(3,)"),
    Bad("ragged", OUTCOMES, "[[1, 0], [0, 1], [0, 0]]", "[[1, 0], [0], [0, 0]]", "models.q.family.features[1]", "[0] has 2 entries, [1] has 1 entries"),
    Bad("mixed depth", OUTCOMES, "[[1, 0], [0, 1], [0, 0]]", "[[1, 0], 1, [0, 0]]", "models.q.family.features[1]", "[1] has a single value"),
    Bad("table short", OUTCOMES, WARM, "{kind: table, values: [1, 0]}", "rewards.warm.values", "shape (2,)", need="(3,)"),
    Bad("table deep", OUTCOMES, WARM, "{kind: table, values: [[1, 0, 1]]}", "rewards.warm.values", "shape (1, 3)"),
    Bad("linear short", OUTCOMES, "vector: [0, 1]", "vector: [0, 1, 2]", "rewards.cool.vector", "shape (3,)", need="(2,)"),
    Bad("features rows", OUTCOMES, "[[1, 0], [0, 1], [0, 0]]", "[[1, 0], [0, 1]]", "models.q.family.features", "shape (2, 2)", need="(3, d)"),
    Bad("base", OUTCOMES, "features: [[1, 0], [0, 1], [0, 0]]", "features: [1, 0, 2]\n      base: [1, 0, 1]", "models.q.family.base[1]", "found 0", 1, need="positive"),
    Bad("base short", OUTCOMES, "features: [[1, 0], [0, 1], [0, 0]]", "features: [1, 0, 2]\n      base: [1, 1]", "models.q.family.base", "shape (2,)", 1),
    Bad("row label", OUTCOMES, "rows: [good, fine, fine, bad]", "rows: [good, finee]", "data.web.rows[1]", "found 'finee'", need="did you mean 'fine'?"),
    Bad("row mixed", OUTCOMES, "rows: [good, fine, fine, bad]", "rows: [good, 1]", "data.web.rows[0]", "found 'good'", need="labels only"),
    Bad("row beyond", OUTCOMES, "rows: [good, fine, fine, bad]", "rows: [0, 3, 4]", "data.web.rows[1]", "found 3 (2 such entries)", need="0 to 2"),
    Bad("row half", OUTCOMES, "rows: [good, fine, fine, bad]", "rows: [0, 1.5]", "data.web.rows[1]", "found 1.5", need="whole numbers"),
    Bad("row minus", OUTCOMES, "rows: [good, fine, fine, bad]", "rows: [0, -1]", "data.web.rows[1]", "found -1"),
    Bad("rows none", OUTCOMES, "rows: [good, fine, fine, bad]", "rows: []", "data.web.rows", "shape (0,)"),
    Bad("masses zero", OUTCOMES, "weights: [3, 2, 1]", "weights: [0, 0, 0]", "data.poll.weights", "only zeros", need="not all 0"),
    Bad("masses minus", OUTCOMES, "weights: [3, 2, 1]", "weights: [3, 2, -1]", "data.poll.weights[2]", "found -1", need="≥ 0"),
    Bad("masses short", OUTCOMES, "weights: [3, 2, 1]", "weights: [3, 2]", "data.poll.weights", "shape (2,)", need="(3,)"),
    Bad("start outcomes", OUTCOMES, "reward: warm", "reward: warm\n    start: [0, 0, 0]", "models.p.start", "shape (3,)", 1, need="(2,)"),
    Bad("start", VECTORS, "start: [0, 1]", "start: [0, 1, 2]", "models.p.start", "shape (3,)", need="(2,)"),
    Bad("start gaussian", VECTORS, "    reward: far", "    start: [0, 0]\n    reward: far", "models.q.start", "shape (2,)", need="(5,)"),
    Bad("start number", VECTORS, "start: [0, 1]", "start: 0", "models.p.start", "a single number"),
    Bad("vectors rows", VECTORS, "[[0, 0], [1, 1], [2, 0]]", "[[0, 0, 1], [1, 1, 1]]", "data.web.rows", "shape (2, 3)", need="(n, 2)"),
    Bad("vectors labels", VECTORS, "[[0, 0], [1, 1], [2, 0]]", "[a, b]", "data.web.rows", "found labels"),
    Bad("mean", VECTORS, "mean: [0, 0]", "mean: [0]", "data.law.mean", "shape (1,)", need="(2,)"),
    Bad("cov minus", VECTORS, "cov: [1, 2]", "cov: [1, -2]", "data.law.cov", "smallest variance of -2"),
    Bad("cov zero", VECTORS, "cov: [1, 2]", "cov: 0", "data.law.cov", "smallest variance of 0", need="positive"),
    Bad("cov shape", VECTORS, "cov: [1, 2]", "cov: [1, 2, 3]", "data.law.cov", "shape (3,)", need="(2, 2)"),
    Bad("cov skew", VECTORS, "[[1, 0.2], [0.2, 1]]", "[[1, 0.2], [0.3, 1]]", "models.p.family.cov", "not symmetric"),
    Bad("cov indefinite", VECTORS, "[[1, 0.2], [0.2, 1]]", "[[1, 2], [2, 1]]", "models.p.family.cov", "smallest eigenvalue of -1"),
    Bad("quadratic skew", VECTORS, "matrix: -0.2", "matrix: [[1, 2], [3, 4]]", "rewards.near.matrix", "not symmetric"),
    Bad("quadratic shape", VECTORS, "matrix: -0.2", "matrix: [1, 2, 3]", "rewards.near.matrix", "shape (3,)"),
    Bad("map matrix", VECTORS, "matrix: 0.9", "matrix: [[1, 0, 0]]", "models.p.sources[1].map.matrix", "shape (1, 3)"),
    Bad("map shift", VECTORS, "shift: [0, 1]", "shift: 1", "models.p.sources[1].map.shift", "a single number", need="(2,)"),
    Bad("pairs rows", REGRESSION, "y: [1, 2]", "y: [1, 2, 3]", "data.seen.y", "3 rows and 2 of x"),
    Bad("pairs width", REGRESSION, "x: [[1, 0], [0, 1]]", "x: [1, 2]", "data.seen.x", "shape (2, 1)", need="(n, 2)"),
    Bad("teacher", REGRESSION, "matrix: [[1, 2]]", "matrix: [1, 2]", "data.law.matrix", "shape (2,)", need="(1, 2)"),
    Bad("points weights", REGRESSION, "weights: [1, 2]", "weights: [1, 2, 3]", "domains.few.weights", "shape (3,)", need="(2,)"),
    Bad("domain cov", REGRESSION, "cov: [1, 0]", "cov: [1, -1]", "domains.wide.cov", "smallest variance of -1", need="none below 0"),
    Bad("regression reward", REGRESSION, "vector: [1]", "vector: [1, 2]", "rewards.high.vector", "shape (2,)", need="(1,) or (3,)"),
    Bad("noise", REGRESSION, "noise: 0.5", "noise: 0", "models.p.family.noise", "smallest variance of 0"),
]  # fmt: skip

PLACES = [
    Bad("weights", OUTCOMES, "    sources:\n      - {kind: real, data: web, weight: 0.5}", "    sources:\n      - {kind: real, data: web, weight: 0.4}", "models.p.sources", "weights that sum to 0.9", need="divide each by 0.9, or give 'curated_q' 0.3"),
    Bad("weights zero", OUTCOMES, "    sources:\n      - {kind: real, data: poll, weight: 0.6}\n      - {kind: raw, producer: p, weight: 0.4, name: theirs}", "    sources:\n      - {kind: real, data: poll, weight: 0}", "models.q.sources", "weights that sum to 0", need="give at least one"),
    Bad("reward", OUTCOMES, "reward: warm", "reward: wrm", "models.p.reward", "the unknown name 'wrm'", need="did you mean 'warm'?"),
    Bad("data name", OUTCOMES, "data: web", "data: wbe", "models.p.sources[0].data", "the unknown name 'wbe'", need="did you mean 'web'?"),
    Bad("producer", OUTCOMES, "producer: q", "producer: r", "models.p.sources[2].producer", "the unknown name 'r'", need="p, q"),
    Bad("curator", OUTCOMES, "curator: cool", "curator: cold", "models.p.sources[2].curator", "the unknown name 'cold'", need="did you mean 'cool'?"),
    Bad("curator twice", OUTCOMES, "curator: cool", "curator: cold, then: {curator: cold}", "models.p.sources[2].curator", "'cold' (also at models.p.sources[2].then.curator)"),
    Bad("other curator", OUTCOMES, "curator: cool", "other_curator: cold, other_share: 0.1", "models.p.sources[2].other_curator", "the unknown name 'cold'"),
    Bad("other curator alone", OUTCOMES, "curator: cool", "other_curator: warm", "models.p.sources[2].other_curator", "'warm' without `other_share`"),
    Bad("other share alone", OUTCOMES, "curator: cool", "other_share: 0.1", "models.p.sources[2].other_share", "found 0.1 without `other_curator`"),
    Bad("shares", OUTCOMES, "curator: cool", "noise: 0.6, other_curator: warm, other_share: 0.5", "models.p.sources[2].other_share", "noise + other_share = 1.1", need="at most 1"),
    Bad("inf at 0", OUTCOMES, "candidates: 4", "candidates: inf, temperature: 0", "models.p.sources[2].temperature", "0 with infinitely many candidates"),
    Bad("best quadratic", VECTORS, TILT, "{kind: curated, producer: p, weight: 0.4, temperature: 0}", "models.p.sources[2].temperature", "by a quadratic reward", need="temperature > 0"),
    Bad("best in stages", VECTORS, "then: {curator: near}", "then: {temperature: 0, curator: far}", "models.q.sources[1].then.temperature", "in several stages", need="temperature > 0"),
    Bad("best by other", VECTORS, "then: {curator: near}", "curator: far, temperature: 0, other_curator: near, other_share: 0.1", "models.q.sources[1].temperature", "by a quadratic reward"),
    Bad("tilting", VECTORS, "candidates: inf", "candidates: inf, curator: steep", "models.p.sources[2].candidates", "exp(r/τ) outgrows", need="higher temperature"),
    Bad("tilting warm", VECTORS, "candidates: inf", "sampling_temperature: 0.3, candidates: inf, curator: steep, temperature: 0.5", "models.p.sources[2].candidates", "exp(r/τ) outgrows"),
    Bad("tilting later", VECTORS, "then: {curator: near}", "then: {curator: steep, candidates: inf}", "models.q.sources[1].then.candidates", "exp(r/τ) outgrows"),
    Bad("gives way", OUTCOMES, "reward: warm", "gives_way: reel\n    reward: warm", "models.p.gives_way", "the unknown source 'reel'", need="did you mean 'real'?"),
    Bad("gives way curated", OUTCOMES, "reward: warm", "gives_way: curated_q\n    reward: warm", "models.p.gives_way", "the curated source 'curated_q'"),
    Bad("source name", OUTCOMES, REAL_P, "{kind: real, name: a, data: web, weight: 0.3}\n      - {kind: raw, name: a, producer: q, weight: 0.2}", "models.p.sources[1].name", "'a' a second time", 1),
    Bad("proportional", OUTCOMES, REAL_P, "{kind: real, name: proportional, data: web, weight: 0.5}", "models.p.sources[0].name", "which `gives_way` uses"),
    Bad("family", OUTCOMES, FAMILY_P, "family: {kind: gaussian}", "models.p.family.kind", "'gaussian', which does not go with a set of outcomes", need="categorical, loglinear"),
    Bad("family of vectors", VECTORS, "family: {kind: gaussian}", "family: {kind: categorical}", "models.q.family.kind", "'categorical', which does not go with a space of vectors"),
    Bad("data kind", OUTCOMES, "{kind: distribution, weights: [3, 2, 1]}", "{kind: moments, mean: [0], cov: 1}", "data.poll.kind", "'moments', which does not go"),
    Bad("reward kind", VECTORS, "{kind: linear, vector: [1, 0]}", "{kind: table, values: [1, 0]}", "rewards.far.kind", "'table', which does not go"),
    Bad("hue band", OUTCOMES, WARM, "{kind: hue_band, bands: [[0, 0.2]]}", "rewards.warm.kind", "'hue_band', which does not go"),
    Bad("linear on images", IMAGES, "{kind: hue_band, bands: [[0, 0.17], [0.92, 1]]}", "{kind: linear, vector: [1]}", "rewards.warm.kind", "'linear', which does not go"),
    Bad("no coordinates", OUTCOMES, "  coordinates: [[1, 0], [0, 0], [0, 1]]\n", "", "rewards.cool.kind", "outcomes without coordinates", 5),
    Bad("statistics", OUTCOMES, "features: [[1, 0], [0, 1], [0, 0]]", "features: [mean]", "models.q.family.features", "names of image statistics"),
    Bad("statistic twice", IMAGES, "[mean, label]", "[mean, mean]", "models.p.family.features[1]", "'mean' twice"),
    Bad("band order", IMAGES, "[0.92, 1]", "[0.92, 0.1]", "rewards.warm.bands[1]", "found [0.92, 0.1]", need="low before high"),
    Bad("labels twice", OUTCOMES, "labels: [good, fine, bad]", "labels: [good, fine, fine]", "space.labels[2]", "'fine' twice"),
    Bad("sizes", OUTCOMES, "labels: [good, fine, bad]", "labels: [good, fine, bad, awful]", "space.coordinates", "3 coordinates and labels of 4", 1),
    Bad("count", OUTCOMES, "  labels:", "  count: 5\n  labels:", "space.labels", "3 labels and count of 5", 1),
    Bad("no size", IMAGES, "{kind: images, file: 'sample:cifar10', cells: {hue: 4}}", "{kind: outcomes}", "space", "unknown size"),
    Bad("coordinates", OUTCOMES, "[[1, 0], [0, 0], [0, 1]]", "1", "space.coordinates", "a single number"),
    Bad("sample", IMAGES, "sample:cifar10", "sample:cifar100", "space.file", "found sample:cifar100", need="sample:cifar10"),
    Bad("no image file", IMAGES, "sample:cifar10", "photos.parquet", "space.file", "which does not exist"),
    Bad("image kind", IMAGES, "sample:cifar10", "photos.zip", "space.file", "photos.zip", need=".parquet"),
    Bad("image labels", IMAGES, "{kind: images}", "{kind: images, labels: []}", "data.all.labels", "an empty list"),
    Bad("map on outcomes", OUTCOMES, "name: theirs", "map: {shift: [1]}", "models.q.sources[1].map", "a map of outcomes"),
    Bad("domain without regression", OUTCOMES, "reward: warm", "domain: home\n    reward: warm", "models.p.domain", "'home' with a space of outcomes"),
    Bad("domains without regression", VECTORS, "rewards:", "domains: {d: {kind: gaussian, mean: [0], cov: 1}}\nrewards:", "domains", "domains with a space of vectors"),
    Bad("domain", REGRESSION, "domain: few, temp", "domain: fwe, temp", "models.p.sources[1].domain", "the unknown name 'fwe'", need="did you mean 'few'?"),
    Bad("teacher domain", REGRESSION, "domain: wide}", "domain: wild}", "data.law.domain", "the unknown name 'wild'", need="did you mean 'wide'?"),
    Bad("no domain", REGRESSION, "    domain: wide\n", "", "models.p.domain", "no domain, which its evaluation needs", -3),
    Bad("producer domain", REGRESSION, "weight: 0.5, domain: few,", "weight: 0.5,", "models.q.domain", "no domain, which models.p.sources[1] needs", 4),
    Bad("real domain", REGRESSION, "{kind: real, data: law, weight: 1}", "{kind: real, data: law, weight: 1, domain: few}", "models.q.sources[0].domain", "for real data"),
    Bad("evaluations", REGRESSION, "{name: away", "{name: home", "models.p.evaluate[1].name", "'home' a second time"),
    Bad("evaluation reward", REGRESSION, "reward: close", "reward: closed", "models.p.evaluate[1].reward", "the unknown name 'closed'", need="did you mean 'close'?"),
    Bad("no evaluation", REGRESSION, "    evaluate:\n      - {name: home, domain: few}\n", "    evaluate: []\n", "models.q.evaluate", "an empty list"),
    Bad("order unknown", OUTCOMES, "models: [p, q]", "models: [p, r]", "update.order.models[1]", "the unknown name 'r'"),
    Bad("order missing", OUTCOMES, "models: [p, q]", "models: [q]", "update.order.models", "found no 'p'", need="every model once"),
    Bad("order twice", OUTCOMES, "models: [p, q]", "models: [p, p]", "update.order.models[1]", "'p' a second time"),
    Bad("cycle unknown", VECTORS, CYCLE, "[[[p, q]], [[p], [r]]]", "update.order.rounds[1][1][0]", "the unknown name 'r'"),
    Bad("cycle missing", VECTORS, CYCLE, "[[[p]]]", "update.order.rounds", "found no 'q'", need="at least one round"),
    Bad("cycle twice", VECTORS, CYCLE, "[[[p, q, p]]]", "update.order.rounds[0][0][2]", "'p' twice in one step"),
    Bad("cycle empty round", VECTORS, CYCLE, "[[[p, q]], []]", "update.order.rounds[1]", "an empty list"),
    Bad("cycle empty step", VECTORS, CYCLE, "[[[p, q], []]]", "update.order.rounds[0][1]", "an empty list"),
    Bad("cycle flat", VECTORS, CYCLE, "[[p, q]]", "update.order.rounds[0][0]", "found 'p'", need="a list"),
    Bad("change path", OUTCOMES, "path: p.curation", "path: p.curaton", "audit.changes[0].path", "no such setting", need="did you mean 'curation'?"),
    Bad("change model", OUTCOMES, "path: p.curation", "path: r.curation", "audit.changes[0].path", "no model 'r'"),
    Bad("change source", OUTCOMES, "path: p.curation", "path: p.sources.reel.weight", "audit.changes[0].path", "no source 'reel'", need="did you mean 'real'?"),
    Bad("change fixed", OUTCOMES, "path: p.curation", "path: q.curation", "audit.changes[0].path", "no curated source"),
    Bad("change value", OUTCOMES, "to: 0.6", "to: 1.6", "audit.changes[0].to", "found 1.6", need="from 0 to 1"),
    Bad("change tilting", VECTORS, "update:", "audit: {changes: [{path: p.sources.curated_p.temperature, to: 0}]}\nupdate:", "audit.changes[0].to", "found 0", need="another rule"),
    Bad("threshold path", OUTCOMES, "path: p.cross_share", "path: p.crossshare", "audit.thresholds[0].path", "no such setting", need="did you mean 'cross_share'?"),
    Bad("threshold order", OUTCOMES, "high: 0.9", "high: 0", "audit.thresholds[0].high", "not above low", need="low < high"),
    Bad("threshold beyond", OUTCOMES, "high: 0.9", "high: 1.1", "audit.thresholds[0].high", "found 1.1", need="from 0 to 1"),
    Bad("threshold model", OUTCOMES, "affected: q", "affected: qq", "audit.thresholds[0].affected", "the unknown name 'qq'"),
    Bad("threshold fixed", OUTCOMES, "intervened: p", "intervened: q", "audit.thresholds[0].intervened", "curation cannot rise"),
    Bad("callable", VECTORS, "{kind: linear, vector: [1, 0]}", "{kind: callable, function: 'os:system'}", "rewards.far.function", "the Python function 'os:system'", need="--allow-code"),
]  # fmt: skip


def _npy(array: object) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def _npz(**arrays: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def _zip(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


def _parquet(**columns: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


GOOD = [1.0, 0.0, -1.0]
FILES: list[tuple[str, str, Callable[[], bytes], str, str]] = [
    # name, what stands in the spec, the file's content, fragment of found, fragment of need
    ("no file", "{file: b.npy}", lambda: _npy(GOOD), "'b.npy', which does not exist", "relative names start at the spec's folder"),
    ("near file", "{file: aa.npy}", lambda: _npy(GOOD), "'aa.npy', which does not exist", "did you mean 'a.npy'?"),
    ("folder", "{file: .}", lambda: b"", "the file '.'", "ends in .npz"),
    ("kind", "{file: a.xlsx}", lambda: b"x", "the file 'a.xlsx'", ".npz, .npy, .csv, .parquet"),
    ("number", "{file: 3}", lambda: b"x", "`file: 3`", "`file: NAME`"),
    ("key only", "{key: a}", lambda: b"x", "a mapping without `file`", "`file: NAME`"),
    ("extra", "{file: a.npy, keys: a}", lambda: _npy(GOOD), "an unknown key 'keys'", "did you mean 'key'?"),
    ("key of npy", "{file: a.npy, key: a}", lambda: _npy(GOOD), "`key` with the file 'a.npy'", "for .npz only"),
    ("columns of npy", "{file: a.npy, columns: [a]}", lambda: _npy(GOOD), "`columns` with the file 'a.npy'", ".csv and .parquet"),
    ("npy empty", "{file: a.npy}", lambda: b"", "'a.npy', which is empty", "numbers"),
    ("npy text", "{file: a.npy}", lambda: b"1, 2, 3\n", "no readable .npy file", "whole NumPy file"),
    ("npy cut", "{file: a.npy}", lambda: _npy(GOOD)[:-5], "no readable .npy file", "whole NumPy file"),
    ("npy objects", "{file: a.npy}", lambda: _npy(np.array([1, None, {}], dtype=object)), "Python objects in 'a.npy'", "pickles are never read"),
    ("npy pickle", "{file: a.npy}", lambda: b"\x80\x04cos\nsystem\n.", "no readable .npy file", "whole NumPy file"),
    ("npy complex", "{file: a.npy}", lambda: _npy(np.array([1j, 2, 3])), "array of complex128", "a number, a list"),
    ("npy bool", "{file: a.npy}", lambda: _npy(np.array([True, False, True])), "array of bool", "a number, a list"),
    ("npy words", "{file: a.npy}", lambda: _npy(np.array(["a", "b", "c"])), "array of <U1", "a number, a list"),
    ("npy nan", "{file: a.npy}", lambda: _npy([1, np.nan, np.inf]), "nan at [1] (2 such entries) in 'a.npy'", "finite"),
    ("npy shape", "{file: a.npy}", lambda: _npy(np.zeros((3, 2))), "shape (3, 2)", "(3,)"),
    ("npy dates", "{file: a.npy}", lambda: _npy(np.zeros(3, "datetime64[s]")), "array of datetime64[s]", "a number, a list"),
    ("npy long", "{file: a.npy}", lambda: _npy(GOOD).replace(b"(3,)", b"(9,)"), "no readable .npy file", "whole NumPy file"),
    ("npz without key", "{file: a.npz}", lambda: _npz(a=GOOD, b=GOOD), "'a.npz' without `key`", "one of a, b"),
    ("npz other key", "{file: a.npz, key: warm}", lambda: _npz(warmth=GOOD, b=GOOD), "no array 'warm' in 'a.npz'", "did you mean 'warmth'?"),
    ("npz key number", "{file: a.npz, key: 1}", lambda: _npz(a=GOOD), "`key: 1`", "as text"),
    ("npz objects", "{file: a.npz, key: a}", lambda: _npz(a=np.array([{}], dtype=object)), "Python objects in 'a.npz'", "never read"),
    ("npz text", "{file: a.npz, key: a}", lambda: b"not a zip", "no readable .npz file", "whole NumPy file"),
    ("npz cut", "{file: a.npz, key: a}", lambda: _npz(a=GOOD)[:-30], "no readable .npz file", "whole NumPy file"),
    ("npz of text", "{file: a.npz, key: a}", lambda: _zip("a.npy", b"hello"), "no readable .npz file", "whole NumPy file"),
    ("csv empty", "{file: a.csv}", lambda: b"", "'a.csv', which is empty", "numbers"),
    ("csv blank", "{file: a.csv}", lambda: b"\n\n", "no numbers in 'a.csv'", "at least one line"),
    ("csv header", "{file: a.csv}", lambda: b"x\n", "no numbers in 'a.csv'", "at least one line"),
    ("csv text", "{file: a.csv}", lambda: b"x\n1\ntwo\n3\n", "'two' in 'a.csv', line 3, column 'x'", "a number"),
    ("csv hole", "{file: a.csv, columns: [y]}", lambda: b"x,y\n1,1\n2,\n3,3\n", "an empty cell in 'a.csv', line 3, column 'y'", "a number"),
    ("csv ragged", "{file: a.csv}", lambda: b"x,y\n1,2\n3\n", "1 cells in 'a.csv', line 3", "2, as in its first line"),
    ("csv semicolons", "{file: a.csv}", lambda: b"x\n1;2\n", "'1;2' in 'a.csv', line 2", "a number"),
    ("csv column", "{file: a.csv, columns: [z]}", lambda: b"x,y\n1,2\n", "no column 'z' in 'a.csv'", "one of x, y"),
    ("csv same columns", "{file: a.csv, columns: [x, x]}", lambda: b"x,y\n1,2\n", "the column 'x' twice", "each column once"),
    ("csv twin columns", "{file: a.csv, columns: [x]}", lambda: b"x,x\n1,2\n", "more than one column 'x'", "x, x"),
    ("csv no header", "{file: a.csv, columns: [x]}", lambda: b"1,2\n3,4\n", "no header line", "`columns` is given"),
    ("csv columns empty", "{file: a.csv, columns: []}", lambda: b"x\n1\n", "`columns: an empty list`", "column names"),
    ("csv latin", "{file: a.csv}", lambda: b"caf\xe9\n1\n", "not UTF-8", "saved as UTF-8"),
    ("csv quotes", "{file: a.csv}", lambda: b'x\n"1"2\n', "no CSV", "comma-separated"),
    ("csv nan", "{file: a.csv}", lambda: b"x\n1\nnan\n3\n", "nan at [1] in 'a.csv'", "finite"),
    ("csv rows", "{file: a.csv}", lambda: b"x\n1\n2\n", "shape (2,)", "(3,)"),
    ("parquet text", "{file: a.parquet}", lambda: b"hello world", "no readable Parquet file", "whole Parquet file"),
    ("parquet cut", "{file: a.parquet}", lambda: _parquet(x=GOOD)[:-9], "no readable Parquet file", "whole Parquet file"),
    ("parquet column", "{file: a.parquet, columns: [vale]}", lambda: _parquet(value=GOOD), "no column 'vale'", "did you mean 'value'?"),
    ("parquet nulls", "{file: a.parquet}", lambda: _parquet(x=[1.0, None, None]), "2 nulls in the column 'x'", "a value in every row"),
    ("parquet words", "{file: a.parquet}", lambda: _parquet(x=["a", "b", "c"]), "values of type string", "numbers"),
    ("parquet bools", "{file: a.parquet}", lambda: _parquet(x=[True, False, True]), "values of type bool", "numbers"),
    ("parquet no rows", "{file: a.parquet}", lambda: _parquet(x=pa.array([], pa.float64())), "no rows in 'a.parquet'", "at least one"),
    ("parquet lists", "{file: a.parquet}", lambda: _parquet(x=[[1.0], [1.0, 2.0], [1.0]]), "lists of different lengths", "one length"),
    ("parquet mixed", "{file: a.parquet}", lambda: _parquet(x=[[1.0], [1.0], [1.0]], y=GOOD), "lists in the column 'x'", "that column alone"),
]  # fmt: skip


CASES = [*YAML, *VALUES, *ARRAYS, *PLACES]


def _only(spec: Path, line: int | None, path: str, says: str, need: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(spec)
    problems = caught.value.problems
    assert len(problems) == 1, str(caught.value)
    problem = problems[0]
    assert (problem.path, problem.line, problem.file) == (path, line, str(spec)), str(problem)
    assert problem.found.startswith("found ")
    assert problem.need.startswith("need ")
    assert says in problem.found, str(problem)
    assert need in problem.need, str(problem)
    assert "\n" not in str(problem)
    assert len(str(problem)) < 500 + len(str(spec))


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_one_mistake_is_one_problem_at_its_place(bad: Bad, tmp_path: Path) -> None:
    spec, line = bad.write(tmp_path)
    _only(spec, line, bad.path, bad.says, bad.need)


@pytest.mark.parametrize(("name", "entry", "content", "says", "need"), FILES, ids=[row[0] for row in FILES])
def test_one_bad_file_is_one_problem_at_its_place(
    name: str, entry: str, content: Callable[[], bytes], says: str, need: str, tmp_path: Path
) -> None:
    spec = _with_file(tmp_path, entry, content())
    _only(spec, 9, "rewards.warm.values", says, need)


def _with_file(folder: Path, entry: str, content: bytes) -> Path:
    suffix = entry.partition("file: a.")[2].partition("}")[0].partition(",")[0] or "npy"
    (folder / f"a.{suffix}").write_bytes(content)
    spec = folder / "spec.yaml"
    spec.write_text(OUTCOMES.replace("values: [1, 0, -1]", f"values: {entry}"))
    return spec


WHOLE: list[tuple[str, bytes, int | None, str]] = [
    ("empty", b"", 1, "an empty file"),
    ("comment", b"# nothing\n", 1, "an empty file"),
    ("word", b"hello\n", 1, "found 'hello'"),
    ("list", b"- space\n- rewards\n", 1, "a list of 2"),
    ("number", b"3\n", 1, "found 3"),
    ("latin", b"name: x\n# caf\xe9\n", 2, "not UTF-8"),
    ("utf16", "name: x\n".encode("utf-16"), 1, "not UTF-8"),
    ("binary", bytes(range(256)), 2, "not UTF-8"),
    ("zeros", b"\0" * 64, 1, "the control character U+0000"),
    ("deep", b"[" * 100_000, 1, "more than 40 levels"),
    ("deep blocks", b"- " * 5_000 + b"x", 1, "more than 40 levels"),
    ("aliases", b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
        b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(9)
    ), 7, "more than 3,000,000 values"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "line", "says"), WHOLE, ids=[row[0] for row in WHOLE])
def test_files_that_are_no_spec(name: str, content: bytes, line: int | None, says: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load(spec)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].line == line
    assert says in caught.value.problems[0].found


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(OUTCOMES)
    os.mkfifo(tmp_path / "pipe.yaml")
    too_big = tmp_path / "big.yaml"
    with too_big.open("wb") as file:
        file.truncate(1 << 26)
    for path, says, need in [
        (tmp_path, "a folder", "big.yaml, pipe.yaml, spec.yaml"),
        (tmp_path / "spce.yaml", "no such file", "did you mean 'spec.yaml'?"),
        (tmp_path / "spec.yaml" / "x", "no such file", "spec file"),
        (tmp_path / "pipe.yaml", "no ordinary file", "spec file"),
        (tmp_path / ("x" * 300), "cannot be read", "readable"),
        (too_big, "67,108,864 bytes", "beside the spec"),
    ]:
        with pytest.raises(SpecError) as caught:
            load(path)
        assert str(caught.value).startswith(
            f"{path}: spec: found {says}" if says != "cannot be read" else f"{path}: spec:"
        )
        assert says in caught.value.problems[0].found
        assert need in caught.value.problems[0].need


def test_there_are_enough_of_them() -> None:
    names = [bad.name for bad in CASES] + [row[0] for row in FILES]
    assert len(names) == len(set(names)) >= 200


@pytest.mark.parametrize("name", VALID)
def test_the_unbroken_specs_load(name: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(VALID[name])
    assert load(spec).num_models >= 1


def _complains(spec: Path, capsys: pytest.CaptureFixture[str]) -> str:
    from crossfeed.cli import main

    assert main(["validate", str(spec)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_the_command_line_says_it_in_one_line(bad: Bad, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, line = bad.write(tmp_path)
    error = _complains(spec, capsys)
    assert error.count("\n") == 1
    assert f"{spec}:{line}: {bad.path or 'spec'}: found " in error
    assert bad.says in error


@pytest.mark.parametrize(("name", "entry", "content", "says", "need"), FILES, ids=[row[0] for row in FILES])
def test_the_command_line_names_the_bad_file(
    name: str,
    entry: str,
    content: Callable[[], bytes],
    says: str,
    need: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = _with_file(tmp_path, entry, content())
    error = _complains(spec, capsys)
    assert error.count("\n") == 1
    assert f"{spec}:9: rewards.warm.values: found " in error
    assert says in error
