"""Exit code 0 if the running environment holds this checkout, what it requires and the versions in constraints.txt.

`make` asks this before it installs, so that an environment made by hand, or without network, is used as it is.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def wanted() -> dict[str, str]:
    """Package and version for all that must be there; an empty version where any will do."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = project["dependencies"] + [text for texts in extras.values() for text in texts]
    versions = {re.split(r"[^\w.-]", text, maxsplit=1)[0].lower(): "" for text in required}
    versions.pop("crossfeed", None)  # an extra that names other extras
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("#")[0].strip().partition("==")
        if name:
            versions[name.lower()] = version
    return versions


def problems() -> list[str]:
    found = []
    for name, version in wanted().items():
        try:
            there = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{name} is not installed; need {version or 'it'}")
            continue
        if version and there.partition("+")[0] != version:  # a local build such as +cpu is the same version
            found.append(f"{name} {there} is installed; need {version}")
    spec = find_spec("crossfeed")
    if spec is None or spec.origin is None or ROOT not in Path(spec.origin).resolve().parents:
        found.append(f"crossfeed is not installed from {ROOT}")
    return found


if __name__ == "__main__":
    found = problems()
    for problem in found:
        print(f"{sys.prefix}: {problem}", file=sys.stderr)
    sys.exit(bool(found))
