"""Opening language models and tokenizers by name or folder: safetensors or GGUF, never pickle, never their own code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossfeed.errors import DataError
from crossfeed.networks.extras import need

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def open_pretrained(where: str, name: str, gguf_file: str | None, attention: str) -> tuple[Any, Any]:
    """A causal language model, float32 on the CPU, and its tokenizer.

    A GGUF file is dequantised once and kept as safetensors in the user's cache folder (``CROSSFEED_CACHE``, else
    ``XDG_CACHE_HOME/crossfeed``, else ``~/.cache/crossfeed``), under the SHA-256 of its content.

    Args:
        where: The family in the spec, e.g. ``models.p.family``, for errors.
        name: Name on a hub, or a folder.
        gguf_file: GGUF file in it.
        attention: ``sdpa`` or ``eager``.

    Raises:
        DataError: there is no such model, its weights are pickled, it needs code of its own, it is no causal language model,
            or it keeps no keys and values.
    """
    transformers = need("transformers", "lm")
    check_folder(where, name, gguf_file)
    folder = name if gguf_file is None else str(_converted(where, name, gguf_file))
    with quiet():
        config = opened(where, name, lambda: transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False))
        if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
            raise DataError(
                f"{where}.pretrained: {name!r} is a {config.model_type!r} model, no causal language model; need one that "
                "transformers opens by AutoModelForCausalLM"
            )
        tokenizer = opened(
            where, name, lambda: transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        )
        model = opened(
            where,
            name,
            lambda: transformers.AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, attn_implementation=attention, dtype="float32"
            ),
        )
    check_causal(where, name, model)
    return model, tokenizer


def check_causal(where: str, name: str, model: Any) -> None:
    """Refuse networks that look at later tokens, or that keep no keys and values.

    Raises:
        DataError: it is one of those.
    """
    import torch

    if getattr(model, "_is_stateful", False):
        raise DataError(
            f"{where}.pretrained: {name!r} ({model.config.model_type}) keeps a recurrent state instead of keys and values, which "
            "sampling here does not support; need a transformer"
        )
    with torch.inference_mode():
        ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]]) % model.config.get_text_config().vocab_size
        first, second = model.eval()(input_ids=ids).logits[:, :3]
    if float((first - second).abs().max()) > 1e-4 * float(first.std()):
        raise DataError(
            f"{where}.pretrained: {name!r} ({model.config.model_type}) is no causal language model: what it predicts depends on "
            "later tokens; need a model that reads from left to right"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers on stderr."""
    log = need("transformers", "lm").utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def check_folder(where: str, name: str, gguf_file: str | None) -> None:
    """Refuse local folders that cannot be a model, before a hub is asked.

    Raises:
        DataError: says what is missing.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise DataError(
                f"{where}.pretrained: found {name!r}, which is no folder; need a folder with a model in it (relative names "
                "start at the working directory), or a name on a hub"
            )
        return
    if gguf_file is not None:
        if not (path / gguf_file).is_file():
            there = sorted(p.name for p in path.glob("*.gguf"))[:5]
            raise DataError(
                f"{where}.gguf_file: found no {gguf_file!r} in {name!r}; "
                + (f"need one of {', '.join(there)}" if there else "need a folder with a .gguf file")
            )
        return
    if not (path / "config.json").is_file():
        there = sorted(p.name for p in path.glob("*.gguf"))[:1]
        more = f", or `gguf_file: {there[0]}`" if there else ""
        raise DataError(f"{where}.pretrained: found no config.json in the folder {name!r}; need a model's folder{more}")
    if not any(any(path.glob(pattern)) for pattern in _WEIGHTS):
        pickled = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(kind))[:1]
        found = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
        raise DataError(
            f"{where}.pretrained: found {found} in {name!r}; need model.safetensors (pickle is never read; "
            "`save_pretrained` of a model you trust writes safetensors)"
        )


def opened(where: str, name: str, work: Any) -> Any:
    """What ``work`` gives; whatever the libraries raise becomes one clear error.

    Raises:
        DataError: names the model and the reason.
    """
    try:
        return work()
    except Exception as error:  # hubs, parsers and model code raise many kinds
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason or "execute the" in reason:
            found, need_ = (
                f"{name!r} needs code of its own, which is never run",
                "need a model that transformers has itself",
            )
        elif "safetensors" in reason and not Path(name).expanduser().is_dir():
            found = f"{name!r} has no safetensors weights ({reason[:160]})"
            need_ = "need a repository with model.safetensors; pickle is never read"
        elif isinstance(error, OSError) and not Path(name).expanduser().is_dir():
            found = f"found no model {name!r}, neither as a folder nor on the hub ({reason[:160]})"
            need_ = "check the name and the connection, or download it and give the folder"
        else:
            found, need_ = f"{name!r} cannot be opened ({type(error).__name__}: {reason[:200]})", "need a whole model"
        raise DataError(f"{where}.pretrained: {found}; {need_}") from None


def _converted(where: str, name: str, gguf_file: str) -> Path:
    """Folder with a GGUF file's weights as safetensors and its tokenizer; made once."""
    transformers = need("transformers", "lm")
    need("gguf", "lm")
    path = Path(name).expanduser()
    if path.is_dir():
        file = path / gguf_file
    else:
        hub = need("huggingface_hub", "lm")
        with quiet():
            file = Path(opened(where, name, lambda: hub.hf_hub_download(name, gguf_file)))
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    folder = cache_folder() / "gguf" / digest
    if (folder / "config.json").is_file():
        return folder

    def convert(into: str) -> None:
        quantization = {}
        if hasattr(transformers, "GgufConfig"):  # older versions always dequantise
            quantization["quantization_config"] = transformers.GgufConfig(dequantize=True)
        source, kind = str(file.parent), {"gguf_file": file.name}
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, dtype="float32", **kind, **quantization
        )
        if getattr(model.config, "quantization_config", None) is not None:
            del model.config.quantization_config
        transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False, **kind).save_pretrained(into)
        model.save_pretrained(into)

    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the conversion draws a bar of its own
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = tempfile.mkdtemp(prefix=".partial-", dir=folder.parent)
        except OSError as error:
            raise DataError(
                f"{folder.parent}: cannot be written ({error.strerror}); need room for the converted {gguf_file}; set "
                "CROSSFEED_CACHE to a folder you can write"
            ) from None
        try:
            opened(where, f"{name}/{gguf_file}", lambda: convert(partial))
            os.chmod(partial, 0o755)
            try:
                os.replace(partial, folder)
            except OSError:  # another process was quicker
                if not (folder / "config.json").is_file():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def cache_folder() -> Path:
    """Where converted models are kept.

    Example:
        >>> import os
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, {"CROSSFEED_CACHE": "/scratch/models"}):
        ...     cache_folder().as_posix()
        '/scratch/models'
    """
    chosen = os.environ.get("CROSSFEED_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crossfeed"
