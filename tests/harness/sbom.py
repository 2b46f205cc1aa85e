"""The software bill of materials that the wheel and the images carry, from the lock of the serving install.

    python -m tests.harness.sbom        # part of `make lock`

CycloneDX 1.6 (ECMA-424): each package with its version and package URL. The hashes of its files are in the lock.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SBOM = ROOT / "gateway" / "sbom.cdx.json"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


def bill_of_materials(lock: str, project: Mapping[str, Any]) -> dict[str, Any]:
    """The bill of a lock's packages; `project` is the table of pyproject.toml."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _component("application", project["name"], project["version"])},
        "components": [_component("library", name, version) for name, version in _PIN.findall(lock)],
    }


def _component(kind: str, name: str, version: str) -> dict[str, str]:
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def written() -> str:
    """The file as it must be."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    made = bill_of_materials((ROOT / "requirements" / "serve.lock").read_text(), project)
    return json.dumps(made, indent=1) + "\n"


if __name__ == "__main__":
    SBOM.write_text(written())
