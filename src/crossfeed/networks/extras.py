"""Optional libraries, imported where they are used, with an error that says how to install them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from crossfeed.errors import NotAvailableError


def need(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: What to import, e.g. ``transformers``.
        extra: The extra of this package that brings it, e.g. ``lm``.

    Returns:
        The module.

    Raises:
        NotAvailableError: it is not installed, or it is but cannot be imported; says what to do.

    Example:
        >>> need("json", "lm").dumps([1])
        '[1]'
    """
    top = module.split(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == top:
            message = f"this spec needs {top}; install it with `pip install 'crossfeed[{extra}]'`"
        else:
            message = f"{top} needs {error.name}, which is not installed; `pip install 'crossfeed[{extra}]'` brings it"
        raise NotAvailableError(message) from error
    except Exception as error:  # a library that does not fit the others may raise anything on import
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        message = f"this spec needs {module}, whose import fails ({reason}); reinstall with `pip install 'crossfeed[{extra}]'`"
        raise NotAvailableError(message) from error
