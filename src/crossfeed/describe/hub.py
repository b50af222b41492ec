"""Data sets on a hub, by the names that specs give them: ``hub:NAME:SPLIT`` or ``hub:NAME:CONFIG:SPLIT``."""

from __future__ import annotations

import re
from typing import Any

from crossfeed.describe.wording import data_error, short
from crossfeed.errors import NotAvailableError

HUB = "hub:"
_NAME = re.compile(r"hub:(?P<name>[^:]+):(?:(?P<config>[^:\[\]]+):)?(?P<split>[^:\[\]]+(?:\[[^\]]*\])?)")


def hub_parts(file: str) -> tuple[str, str | None, str] | None:
    """Name, configuration and split; None where the text is none of the two forms.

    Example:
        >>> hub_parts("hub:uoft-cs/cifar10:train[:100]")
        ('uoft-cs/cifar10', None, 'train[:100]')
    """
    found = _NAME.fullmatch(file)
    return None if found is None else (found["name"], found["config"], found["split"])


def open_hub(file: str) -> Any:
    """The data set, through the ``datasets`` library; code of the data set's own is never run.

    Raises:
        NotAvailableError: the library is not installed.
        DataError: the data set cannot be had; says what the library says.
    """
    parts = hub_parts(file)
    if parts is None:
        raise data_error(short(file), "hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT")
    try:
        import datasets
    except ImportError as error:
        message = f"{file} needs datasets; install it with `pip install 'crossfeed[data]'`"
        raise NotAvailableError(message) from error
    name, config, split = parts
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # network, names, formats: the library raises many kinds
        reason = " ".join(str(error).replace(";", ",").split())[:300] or type(error).__name__
        need = "a data set, configuration and split that are there, and a connection or a copy in the cache"
        raise data_error(f"{file!r}, which cannot be loaded ({reason})", need) from None
