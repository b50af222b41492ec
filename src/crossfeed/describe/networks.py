"""What a spec says about models that are networks: where their first inputs come from, and rules of their own."""

from __future__ import annotations

import math
from pathlib import Path

from crossfeed.describe import schema as s
from crossfeed.describe.files import check_file
from crossfeed.describe.wording import Complaint, Loc, parts, short
from crossfeed.errors import DataError, SpecError

Network = (s.Flow, s.Diffusion, s.CausalLM)
_BETAS = (0.9, 0.999)
_DECAY = 0.5


def initial_data(eco: s.Ecosystem, name: str) -> list[str]:
    """Data sets that fill a model's pool before round 1, and so give the first inputs: pretraining's, else its real sources'.

    Raises:
        SpecError: it has neither.
    """
    model = eco.models[name]
    if model.pretrain is not None and model.pretrain.data is not None:
        return [model.pretrain.data]
    found = list(dict.fromkeys(source.data for source in model.sources if isinstance(source, s.Real)))
    if not found:
        raise SpecError([_no_start(name).problem()])
    return found


def evaluation_data(eco: s.Ecosystem, name: str, evaluation: s.Evaluation | None = None) -> list[str]:
    """Data sets whose inputs are answered in an evaluation: the one it names, else the model's real data, else its first inputs'."""
    if evaluation is not None and evaluation.data is not None:
        return [evaluation.data]
    real = list(dict.fromkeys(source.data for source in eco.models[name].sources if isinstance(source, s.Real)))
    return real or initial_data(eco, name)


def _no_start(name: str) -> Complaint:
    loc: Loc = ("models", name, "pretrain", "data")
    need = "need `pretrain: {data: NAME, …}`, or a real source (its weight may be 0): the first inputs come from there"
    return Complaint(loc, f"found no real data of {short(name)}", need)


# --- the whole ------------------------------------------------------------------------------------------------------


def mixed(eco: s.Ecosystem, fitting: set[str]) -> list[Complaint]:
    """Networks and closed-form families, as far as they go with the space, do not learn from each other."""
    networks = [name for name in eco.networks if name in fitting]
    other = next((name for name in eco.models if name in fitting and name not in networks), None)
    if not networks or other is None:
        return []
    loc: Loc = ("models", other, "family", "kind")
    found = f"found the closed-form family {eco.models[other].family.kind!r} beside the network {short(networks[0])}"
    return [Complaint(loc, found, "need networks only, or none")]


def whole_complaints(eco: s.Ecosystem) -> list[Complaint]:
    """What the parts that all models share ask of networks that they do not do, or the other way round."""
    if not eco.networks:
        if eco.run != s.RunOptions():
            return [
                Complaint(("run",), "found it without networks", "need it left out: closed-form loops have no such run")
            ]
        return []
    out = []
    if isinstance(eco.space, s.Images) and eco.space.cells is not None:
        need = "need `cells` left out: networks make images, not cells of colour statistics"
        out.append(Complaint(("space", "cells"), "found cells with networks", need))
    if eco.update.steps is not None:
        need = "need it left out: `models.*.train.steps` says how far a round trains"
        out.append(Complaint(("update", "steps"), "found gradient steps of closed-form families", need))
    if eco.audit.thresholds:
        need = "need none: networks are estimated near their present settings; ask for `audit.changes` at several values instead"
        out.append(Complaint(("audit", "thresholds"), "found thresholds to look for with networks", need))
    return out


# --- one model ------------------------------------------------------------------------------------------------------


def model_complaints(eco: s.Ecosystem, name: str) -> list[Complaint]:
    """What is wrong with one model as the network, or the closed-form model, that it is."""
    model, loc = eco.models[name], ("models", name)
    if not isinstance(model.family, Network):
        return _closed_form(loc, model)
    out = [*_training(loc, model)]
    if model.ridge:
        need = "need it left out: `train.weight_decay` is its counterpart for networks"
        out.append(Complaint((*loc, "ridge"), f"found {model.ridge:g} for a network", need))
    if model.start is not None:
        need = "need it left out: a network starts from its seed, `pretrain` or `checkpoint`"
        out.append(Complaint((*loc, "start"), "found parameters for a network", need))
    if model.checkpoint is not None:
        out += _file((*loc, "checkpoint"), model.checkpoint, (".safetensors",))
    for index, source in enumerate(model.sources):
        out += _source(eco, (*loc, "sources", index), source)
    for index, evaluation in enumerate(model.evaluate or []):
        if evaluation.data in eco.data and isinstance(eco.space, s.Vectors):
            where = (*loc, "evaluate", index, "data")
            out.append(
                Complaint(where, f"found {short(evaluation.data)} for vectors", "need none: vectors have no inputs")
            )
    pretrained = eco.data.get(model.pretrain.data or "") if model.pretrain is not None else None
    if pretrained is not None:
        out += _answers((*loc, "pretrain", "data"), str(model.pretrain and model.pretrain.data), pretrained)
    try:
        initial_data(eco, name)
    except SpecError:
        out.append(_no_start(name))
    return out


def _closed_form(loc: Loc, model: s.Model) -> list[Complaint]:
    kind = model.family.kind
    keys: list[Loc] = [
        (key,) for key in ("train", "pretrain", "checkpoint", "per_round") if getattr(model, key) is not None
    ]
    for index, evaluation in enumerate(model.evaluate or []):
        keys += [("evaluate", index, key) for key in ("data", "samples") if getattr(evaluation, key) is not None]
    for index, source in enumerate(model.sources):
        if isinstance(source, (s.Raw, s.Curated)) and source.inputs is not None:
            keys.append(("sources", index, "inputs"))
    need = "need it left out: it is for networks (flow, diffusion, causal_lm)"
    return [Complaint((*loc, *key), f"found it for the closed-form family {kind!r}", need) for key in keys]


def _training(loc: Loc, model: s.Model) -> list[Complaint]:
    if model.train is None:
        need = "need `train: {steps: …}` here: how a round trains the network"
        return [Complaint((*loc, "train"), "found no `train`", need)]
    out = []
    for key, training in (("train", model.train), ("pretrain", model.pretrain)):
        if training is None:
            continue
        at: Loc = (*loc, key)
        if training.warmup > training.steps:
            out.append(
                Complaint((*at, "warmup"), f"found {training.warmup:,}", f"need at most {training.steps:,}, the steps")
            )
        if training.optimizer == "adamw" and training.momentum:
            found = f"found {training.momentum:g} with adamw"
            out.append(Complaint((*at, "momentum"), found, "need it left out (adamw has `betas`), or `optimizer: sgd`"))
        if training.optimizer == "sgd" and training.betas != _BETAS:
            need = "need them left out (sgd has `momentum`), or `optimizer: adamw`"
            out.append(Complaint((*at, "betas"), "found betas with sgd", need))
        if training.decay_from is None and training.decay != _DECAY:
            found = f"found {training.decay:g} without `decay_from`"
            out.append(Complaint((*at, "decay"), found, "need `decay_from: ROUND`, or no `decay`"))
        if key == "pretrain" and training.decay_from is not None:
            need = "need it left out: pretraining has no rounds; `schedule` lowers its rate"
            out.append(Complaint((*at, "decay_from"), f"found {training.decay_from}", need))
    return out


def _source(eco: s.Ecosystem, at: Loc, source: s.Source) -> list[Complaint]:
    if isinstance(source, s.Real):
        return _answers((*at, "data"), source.data, eco.data.get(source.data), picks=True)
    if isinstance(source, s.Picks):
        return []
    out = []
    if source.inputs is not None and isinstance(eco.space, s.Vectors):
        need = "need none: vectors have no inputs"
        out.append(Complaint((*at, "inputs"), f"found {short(source.inputs)} for vectors", need))
    producer = eco.models.get(source.producer)
    if producer is not None and isinstance(producer.family, (s.Flow, s.Diffusion)) and source.sampling_temperature != 1:
        found = f"found {source.sampling_temperature:g} for outputs of a {producer.family.kind}"
        need = "need 1: of networks, only language models have a sampling temperature"
        out.append(Complaint((*at, "sampling_temperature"), found, need))
    for depth, stage in enumerate(source.stages if isinstance(source, s.Curated) else []):
        number = stage.candidates
        if math.isinf(number) and stage.temperature == 0:  # which is wrong for every family
            continue
        if math.isinf(number) or number != int(number):
            found = f"found {'inf' if math.isinf(number) else format(number, 'g')} candidates of a network"
            where = (*at, *["then"] * depth, "candidates")
            out.append(Complaint(where, found, "need a whole number: each of them is generated"))
    return out


def _answers(loc: Loc, name: str, data: s.Data | None, picks: bool = False) -> list[Complaint]:
    """Training needs answers; picks that people made are a source of their own kind."""
    if isinstance(data, s.TextsData) and data.answer_column is None:
        need = f"need `data.{name}.answer_column`, or a data set with answers"
        return [Complaint(loc, f"found {short(name)}, which has inputs and no answers", need)]
    if picks and isinstance(data, s.PreferencesData):
        need = "need `kind: picks` for this source, or other data"
        return [Complaint(loc, f"found {short(name)}, which holds picks", need)]
    return []


# --- families and text files ----------------------------------------------------------------------------------------


def family_complaints(loc: Loc, family: s.Family, space: s.Space) -> list[Complaint]:
    """What is wrong with the sizes and the origin of a network."""
    if isinstance(family, s.Diffusion) and isinstance(space, s.Images):
        return _diffusion(loc, family, space)
    return _language(loc, family) if isinstance(family, s.CausalLM) else []


def _diffusion(loc: Loc, family: s.Diffusion, space: s.Images) -> list[Complaint]:
    out = []
    if family.conditional and space.label_column is None:
        need = "need `space.label_column`, or `conditional: false`"
        out.append(Complaint((*loc, "conditional"), "found true for images without labels", need))
    for key in ("sampling_steps", "evaluation_steps"):
        steps = getattr(family, key)
        if family.pretrained is None and steps is not None and steps > family.noise_levels:
            need = f"need at most {family.noise_levels:,}, the noise levels"
            out.append(Complaint((*loc, key), f"found {steps:,}", need))
    if family.pretrained is not None:
        fresh, keys = s.Diffusion(), ("channels", "layers_per_block", "attention", "head_dim", "norm_groups")
        given = next((key for key in keys if getattr(family, key) != getattr(fresh, key)), None)
        if given is not None:
            found, need = f"found {given} beside `pretrained`", "need one of them: the checkpoint has its own sizes"
            out.append(Complaint((*loc, given), found, need))
        return [*out, *_folder((*loc, "pretrained"), family.pretrained)]
    return out + _unet(loc, family, space)


def _unet(loc: Loc, family: s.Diffusion, space: s.Images) -> list[Complaint]:
    channels, levels = family.channels, len(family.channels)
    for index, number in enumerate(channels):
        if number % family.norm_groups:
            need = f"need multiples of `norm_groups`, {family.norm_groups}"
            return [Complaint((*loc, "channels", index), f"found {number}", need)]
    if family.attention is not None and len(family.attention) != levels:
        found = f"found {len(family.attention)} entries and {levels} levels of channels"
        return [Complaint((*loc, "attention"), found, "need one entry a level")]
    divisor = 2 ** (levels - 1)
    if space.size is not None and space.size % divisor:
        found = f"found {levels} levels, which halve images of {space.size} × {space.size} {levels - 1} times"
        return [Complaint((*loc, "channels"), found, f"need fewer levels, or a `space.size` that {divisor} divides")]
    return []


def _language(loc: Loc, family: s.CausalLM) -> list[Complaint]:
    if (family.pretrained is None) == (family.fresh is None):
        found = "found neither `pretrained` nor `fresh`" if family.fresh is None else "found `pretrained` and `fresh`"
        need = "need one of them: a name or folder, or `fresh: {}` for a small new network"
        return [Complaint((*loc, "pretrained"), found, need)]
    out = []
    if family.gguf_file is not None and family.pretrained is None:
        out.append(
            Complaint((*loc, "gguf_file"), "found it without `pretrained`", "need the folder or name it lies in")
        )
    if family.adapter is not None:
        out += _adapter((*loc, "adapter"), family)
    if family.fresh is not None:
        if family.fresh.width % (2 * family.fresh.heads):
            need = f"need a multiple of 2 · heads = {2 * family.fresh.heads}: each head has an even width"
            out.append(Complaint((*loc, "fresh", "width"), f"found {family.fresh.width}", need))
        if family.chat:
            out.append(
                Complaint((*loc, "chat"), "found true for a fresh network", "need it left out: it has no chat template")
            )
    if family.system is not None and (family.fresh is not None or family.chat is False):
        need = "need it left out: a system message is part of a chat template; put the words into the data's `template`"
        out.append(Complaint((*loc, "system"), "found a system message without a chat template", need))
    return out + ([] if family.pretrained is None else _folder((*loc, "pretrained"), family.pretrained))


def _adapter(loc: Loc, family: s.CausalLM) -> list[Complaint]:
    path = Path(family.adapter or "").expanduser()
    if family.lora is None:
        return [
            Complaint(
                loc,
                "found an adapter without `lora`",
                "need `lora: {…}` with its rank: adapters are trained, not the base",
            )
        ]
    if not (path / "adapter_config.json").is_file():
        found = "found no such folder" if not path.is_dir() else "found a folder without adapter_config.json"
        return [Complaint(loc, f"{found}: {short(path.name)}", "need a folder that peft saved")]
    return []


def _folder(loc: Loc, name: str) -> list[Complaint]:
    """A name that can only be a folder must be one."""
    path = Path(name).expanduser()
    if not name.startswith((".", "/", "~")) or path.is_dir():
        return []
    return [
        Complaint(loc, f"found {short(name)}, which is no folder", "need the folder of a model, or its name on a hub")
    ]


def text_complaints(loc: Loc, data: s.TextsData | s.PreferencesData) -> list[Complaint]:
    """What is wrong with a table of texts, as far as its node and its file's name tell."""
    if isinstance(data, s.TextsData) and "{input}" not in data.template:
        need = "need `{input}` in it, where the input stands"
        return [Complaint((*loc, "template"), f"found {short(data.template)}", need)]
    kinds = (".parquet", ".jsonl", ".ndjson", ".csv")
    return _file((*loc, "file"), data.file, kinds)


def _file(loc: Loc, file: str, kinds: tuple[str, ...]) -> list[Complaint]:
    from crossfeed.describe.hub import HUB, hub_parts

    if file.startswith(HUB) and ".safetensors" not in kinds:
        if hub_parts(file) is None:
            return [Complaint(loc, f"found {short(file)}", "need hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT")]
        return []
    path = Path(file).expanduser()
    if path.suffix.lower() not in kinds:
        return [Complaint(loc, f"found {short(path.name)}", f"need a file that ends in {', '.join(kinds)}")]
    try:
        check_file(path, file, "something in it")
    except DataError as error:
        return [Complaint(loc, *parts(str(error)))]
    return []
