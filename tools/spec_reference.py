"""Write docs/spec.md: every node and key of a spec, from the JSON Schema, with an example each.

python tools/spec_reference.py           write docs/spec.md
python tools/spec_reference.py --check   fail when it is stale
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from crossfeed.describe import schema as spec
from crossfeed.describe.load import schema as json_schema

schema = cache(json_schema)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "spec.md"

INTRO = """\
# The spec

An ecosystem is described in one YAML (or JSON) file: what an outcome is, the real data, what people like, and the
models with what each is trained on. `crossfeed validate SPEC` checks it without running it and names the file, the
line and the path of every problem. `crossfeed schema` prints the JSON Schema that this page is made from.

- Names are yours: 1 to 200 characters, without dots and square brackets, not starting with a space.
- **array**: a number, a list, nested lists, or `{file: data.npz, key: a}` with .npz, .npy, .csv or .parquet beside the
  spec; `columns: [a, b]` picks the columns of a table, and one column is a list. Numbers are finite; pickles are never
  read.
- Plain words follow YAML 1.2: `no` and `on` are text, `1e-3` is a number, `"0.5"` in quotes is none.
- Keys without a default are needed. `kind` says which node it is.

**Settings by path.** Changes, thresholds and `crossfeed sweep --vary` name a number of the spec by its path:
`p.curation` (the share of curated data of model p; what is not curated, or what `gives_way`, shrinks), `p.cross_share`
(the share of p's curated data that other models made), `p.ridge`, `p.sources.NAME.weight` (the other sources give way
in proportion), and of one source `sampling_temperature`, `candidates`, `temperature`, `noise`, `other_share`, and of a
later stage `then.temperature` and so on. Picks from a file count as curated, and as nobody's outputs.

**Networks.** Models of the families `flow` (vectors), `diffusion` (images) and `causal_lm` (text) are trained, sampled and
retrained by `crossfeed run`; all models are networks, or none. They need `train`; their first inputs are those of
`pretrain.data`, or of their real sources. `ridge`, `start`, `update.steps`, `candidates: inf` and `audit.thresholds` are for
closed-form families only; keys that say "Networks" for networks only.

**Scales.** `scales` holds named sets of changes, applied by `--scale NAME`; `--set PATH=VALUE` changes one more place, or a
setting. A path is keys joined by dots with entries of lists in brackets; `*` is every key or entry:
`models.*.train.steps`, `models.p.sources[0].weight`, `run.rounds`. After a `*` only what is written changes, up to the
last key.

**Hubs.** `hub:NAME:SPLIT` or `hub:NAME:CONFIG:SPLIT` as a file is a data set on a hub, read by the `datasets` library; a
model's `pretrained` is a folder beside the spec, or a name on a hub.
"""

SECTIONS = {
    "The whole": "The file itself.",
    "Space": "Under `space`: what an outcome is.",
    "Data": "Under `data`, by name: fixed real data.",
    "Domains": "Under `domains`, by name: where inputs come from; for a regression only.",
    "Rewards": "Under `rewards`, by name: what people like. A model's people pick by its `reward`.",
    "Models": "Under `models`, by name.",
    "Families": "Under `family` of a model.",
    "Sources": "In the list `sources` of a model.",
    "Update": "Under `update`: who is retrained when, and how far.",
    "Training and running": "Of networks: under `train` and `pretrain` of a model, and under `run`.",
    "Samples and audit": "Under `samples` and `audit`.",
}

EXAMPLES = {
    "Ecosystem": """\
name: one model and its people
space: {kind: outcomes, labels: [plain, pretty]}
data:
  web: {kind: distribution, weights: [3, 1]}
rewards:
  beauty: {kind: table, values: [0, 1]}
models:
  p:
    family: {kind: categorical}
    reward: beauty
    sources:
      - {kind: real, data: web, weight: 0.5}
      - {kind: curated, producer: p, weight: 0.5, candidates: 4}
audit:
  changes:
    - {path: p.curation, to: 0.6}
""",
    "Outcomes": "kind: outcomes\nlabels: [plain, pretty]\ncoordinates: [[0, 0], [0, 1]]\n",
    "Images": "kind: images\nfile: sample:cifar10\ncells: {hue: 8, brightness: 4}\n",
    "Text": "kind: text\n",
    "Vectors": "kind: vectors\ndim: 24\n",
    "Regression": "kind: regression\ninputs: 3\noutputs: 1\n",
    "RowsData": "kind: rows\nrows: [[0.1, 0.2], [0.3, 0.4]]\n",
    "MomentsData": "kind: moments\nmean: [0, 0]\ncov: [[1, 0.2], [0.2, 1]]\n",
    "MixtureData": "kind: mixture\nmeans: [[1, 0], [-1, 0]]\nstd: 0.1\nweights: [3, 1]\n",
    "TextsData": """\
kind: texts
file: news.parquet
input_column: article
answer_column: summary
template: "Summarise in one line: {input}"
rows: 2000
""",
    "PreferencesData": "kind: preferences\nfile: hub:trl-lib/tldr-preference:train\nrows: 1000\n",
    "DistributionData": "kind: distribution\nweights: [3, 2, 1]\n",
    "ImagesData": "kind: images\nlabels: [0, 8]\n",
    "PairsData": "kind: pairs\nx: [[1, 0], [1, 2]]\ny: [0.5, 1.5]\n",
    "TeacherData": "kind: teacher\nmatrix: [[1, -2]]\nnoise: 0.1\ndomain: wide\n",
    "PointsDomain": "kind: points\npoints: [[1, 0], [1, 1]]\nweights: [2, 1]\n",
    "GaussianDomain": "kind: gaussian\nmean: [1, 0]\ncov: [0, 1]\n",
    "LinearReward": "kind: linear\nvector: [1, 0]\n",
    "QuadraticReward": "kind: quadratic\nmatrix: -0.18\nvector: [1, 0]\n",
    "TableReward": "kind: table\nvalues: [0, 1, -1]\n",
    "HueBandReward": "kind: hue_band\nbands: [[0.92, 1], [0, 0.17]]\nrealism_weight: 0.5\n",
    "SummaryReward": "kind: summary\nlength: 12\n",
    "ParaphraseReward": "kind: paraphrase\ncopy_target: 0.2\n",
    "RewardModel": "kind: reward_model\npretrained: reward-model\n",
    "CallableReward": "kind: callable\nfunction: my_rewards:brightness\n",
    "Model": """\
family: {kind: categorical}
reward: beauty
gives_way: web
evaluate:
  - {name: own people}
  - {name: other people, reward: calm}
sources:
  - {kind: real, name: web, data: web, weight: 0.6}
  - {kind: curated, producer: q, weight: 0.4}
""",
    "Evaluation": "name: other people\nreward: calm\n",
    "Categorical": "kind: categorical\n",
    "LogLinear": "kind: loglinear\nfeatures: [[1, 0], [0, 1], [0, 0]]\n",
    "GaussianMean": "kind: gaussian_mean\ncov: 0.04\n",
    "Gaussian": "kind: gaussian\n",
    "LinearGaussian": "kind: linear_gaussian\nnoise: 0.25\n",
    "Flow": "kind: flow\nwidth: 32\n",
    "Diffusion": "kind: diffusion\nchannels: [32, 64, 64, 128]\nsampling_steps: 30\n",
    "CausalLM": """\
kind: causal_lm
pretrained: HuggingFaceTB/SmolLM2-135M-Instruct
lora: {rank: 16, alpha: 32, dropout: 0.05}
system: You write one-line summaries.
max_new_tokens: 48
""",
    "FreshLM": "width: 64\nlayers: 2\n",
    "Lora": "rank: 16\nalpha: 32\ntarget: [q_proj, v_proj]\n",
    "Picks": "kind: picks\ndata: votes\nweight: 0.1\n",
    "Training": """\
steps: 4000
batch_size: 64
accumulate: 4
learning_rate: 0.0002
weight_decay: 0.0005
decay_from: 40
""",
    "Pretraining": "data: photographs\nsteps: 80000\nbatch_size: 256\n",
    "RunOptions": "rounds: 55\nevaluation_samples: 2000\nstop: {collapse: 0.05}\n",
    "Stop": "collapse: 0.05\npatience: 3\n",
    "Real": "kind: real\ndata: web\nweight: 0.5\n",
    "Raw": "kind: raw\nproducer: q\nweight: 0.2\nsampling_temperature: 0.9\n",
    "Curated": """\
kind: curated
producer: q
weight: 0.3
candidates: 6
temperature: 0.5
other_curator: rivals
other_share: 0.05
then: {curator: calm, candidates: 2}
""",
    "Pick": "curator: calm\ncandidates: inf\nnoise: 0.1\n",
    "Affine": "matrix: 0.9\nshift: [0, 1]\n",
    "Update": "order: {kind: sequential, models: [q, p]}\nsteps: {count: 5, size: 0.1}\n",
    "Simultaneous": "kind: simultaneous\n",
    "Sequential": "kind: sequential\nmodels: [q, p]\n",
    "Cycle": "kind: cycle\nrounds: [[[p, q]], [[p], [q]]]\n",
    "RandomOrder": "kind: random\nprobability: 0.5\nseed: 1\n",
    "GradientSteps": "count: 5\nsize: 0.1\n",
    "Samples": "per_round: 8000\ncounts: fixed\nregime: accumulate\n",
    "AuditOptions": "confidence: 0.9\nchanges: [{path: p.curation, to: 0.6}]\n",
    "Change": "path: p.curation\nto: 0.6\n",
    "ThresholdQuery": "path: p.cross_share\nlow: 0\nhigh: 1\naffected: q\n",
}

_ORDER = {
    "The whole": ["Ecosystem"],
    "Space": ["Outcomes", "Images", "Vectors", "Regression", "Text"],
    "Data": [
        "RowsData",
        "DistributionData",
        "MomentsData",
        "MixtureData",
        "ImagesData",
        "PairsData",
        "TeacherData",
        "TextsData",
        "PreferencesData",
    ],
    "Domains": ["PointsDomain", "GaussianDomain"],
    "Rewards": [
        "LinearReward",
        "QuadraticReward",
        "TableReward",
        "HueBandReward",
        "SummaryReward",
        "ParaphraseReward",
        "RewardModel",
        "CallableReward",
    ],
    "Models": ["Model", "Evaluation"],
    "Families": [
        "Categorical",
        "LogLinear",
        "GaussianMean",
        "Gaussian",
        "LinearGaussian",
        "Flow",
        "Diffusion",
        "CausalLM",
        "FreshLM",
        "Lora",
    ],
    "Sources": ["Real", "Raw", "Curated", "Picks", "Pick", "Affine"],
    "Update": ["Update", "Simultaneous", "Sequential", "Cycle", "RandomOrder", "GradientSteps"],
    "Training and running": ["Training", "Pretraining", "RunOptions", "Stop"],
    "Samples and audit": ["Samples", "AuditOptions", "Change", "ThresholdQuery"],
}


def nodes() -> dict[str, type[spec.Node]]:
    """Every node of the spec by name, in the order of the page."""
    names = {"Ecosystem", *schema()["$defs"]}
    listed = [name for section in _ORDER.values() for name in section]
    if names != set(listed) or names != set(EXAMPLES) or len(listed) != len(names):
        odd = ", ".join(sorted(names ^ set(listed) | names ^ set(EXAMPLES)))
        raise SystemExit(
            f"spec_reference: found {odd}; need every node of the schema in _ORDER and EXAMPLES, and no others"
        )
    return {name: getattr(spec, name) for name in listed}


def page() -> str:
    """The whole page."""
    whole = schema()
    definitions = {"Ecosystem": {k: v for k, v in whole.items() if k != "$defs"}, **whole["$defs"]}
    nodes()
    out = [INTRO]
    for section, names in _ORDER.items():
        out.append(f"## {section}\n\n{SECTIONS[section]}\n")
        out += [_node(name, definitions[name]) for name in names]
    return "\n".join(out).rstrip() + "\n"


def _node(name: str, definition: dict[str, Any]) -> str:
    properties = definition.get("properties", {})
    kind = properties.get("kind", {}).get("const")
    meaning = " ".join(definition.get("description", "").split()).replace("``", "`")
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    needed = definition.get("required", [])
    for key, entry in properties.items():
        default = (
            ""
            if key in needed
            else f"`{json.dumps(entry['default'], ensure_ascii=False)}`"
            if "default" in entry
            else "empty"
        )
        meant = entry.get("description") or _target(entry).get("description", "")
        text = "which node this is" if key == "kind" else " ".join(meant.split())
        rows.append(f"| `{key}` | {_cell(_type(entry))} | {default} | {_cell(text)} |")
    title = f"### {name}" + (f" (`kind: {kind}`)" if kind else "")
    return f"{title}\n\n{meaning}\n\n" + "\n".join(rows) + f"\n\n```yaml\n{EXAMPLES[name]}```\n"


def _target(entry: dict[str, Any]) -> dict[str, Any]:
    """The node that an entry is, where it is one."""
    node: dict[str, Any] = schema()["$defs"].get(entry.get("$ref", "").rsplit("/", 1)[-1], {})
    return node


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _type(entry: dict[str, Any]) -> str:
    """A JSON Schema type in words."""
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "$ref" in entry:
        name = entry["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{_anchor(name)})"
    branches = entry.get("anyOf") or entry.get("oneOf")
    if branches:
        refs = [branch["$ref"].rsplit("/", 1)[1] for branch in branches if "$ref" in branch]
        for section, names in _ORDER.items():
            if len(refs) > 1 and len(refs) == len(branches) and set(refs) <= set(names):
                return f"one of [{section}](#{section.lower()})"
        if any(branch.get("properties", {}).get("file") for branch in branches):
            return "array"
        return " or ".join(dict.fromkeys("null" if b.get("type") == "null" else _type(b) for b in branches))
    kind = entry.get("type")
    if kind == "array":
        if "prefixItems" in entry:
            return "[" + ", ".join(_type(item) for item in entry["prefixItems"]) + "]"
        return f"list of {_type(entry['items'])}" if "items" in entry else "list"
    if kind == "object":
        allowed = entry.get("propertyNames", {}).get("enum")
        inner = entry.get("additionalProperties") or next(iter(entry.get("patternProperties", {"": {}}).values()))
        if not isinstance(inner, dict) or not inner:
            return "mapping"
        return f"{', '.join(f'`{key}`' for key in allowed) if allowed else 'name'}: {_type(inner)}"
    words = {"integer": "whole number", "string": "text", "boolean": "true or false"}
    return words.get(str(kind), str(kind)) + _range(entry)


def _range(entry: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    parts = [
        f"{sign} {'2^63' if entry[key] == 2**63 else format(entry[key], 'g')}"
        for key, sign in signs.items()
        if key in entry
    ]
    return f" {' and '.join(parts)}" if parts else ""


def _anchor(name: str) -> str:
    kinds = schema()["$defs"].get(name, {}).get("properties", {}).get("kind", {}).get("const")
    return name.lower() + (f"-kind-{kinds}" if kinds else "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the spec reference from the JSON Schema.")
    parser.add_argument("--check", action="store_true", help="fail when the page is stale; write nothing")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args(argv)
    text = page()
    if not options.check:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
        return 0
    if options.out.is_file() and options.out.read_text(encoding="utf-8") == text:
        return 0
    print(f"{options.out} is stale; run: python tools/spec_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
