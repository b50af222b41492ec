"""The base of every spec node, and the types of names and file names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^.\[\]\s][^.\[\]\n]*$")]


class Node(BaseModel):
    """Base of every spec node: frozen, no unknown keys, arrays as read-only NumPy arrays."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, ser_json_inf_nan="strings")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            from crossfeed.describe.check import problems_of

            raise problems_of(error, type(self)) from None

    # Marks the method above as pydantic's own, so that nodes inside nodes are validated in one pass with all errors.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def beside(file: str, info: ValidationInfo) -> str:
    """A file named in a spec is beside the spec; built-in samples and names on a hub are left as they are."""
    folder = (info.context or {}).get("folder")
    return file if folder is None or file.startswith(("sample:", "hub:")) else str(Path(folder) / file)


File = Annotated[str, AfterValidator(beside)]


def hub_or_folder(name: str, info: ValidationInfo) -> str:
    """A pretrained model: the folder of that name beside the spec where there is one, else what its hub calls it."""
    folder = (info.context or {}).get("folder")
    path = None if folder is None else Path(folder) / name
    return str(path) if path is not None and path.is_dir() else name


Pretrained = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(hub_or_folder)]
