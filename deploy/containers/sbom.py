"""What is installed beside the interpreter that runs this, as CycloneDX JSON: `python deploy/containers/sbom.py`.

From `importlib.metadata` alone, so that it runs in an image that has nothing else. It has no time and no serial number:
the same tree gives the same bytes. Libraries that a wheel brings along inside itself are not taken apart.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from importlib.metadata import Distribution, distributions
from typing import Any

_OWN = "sealface"


def _component(distribution: Distribution) -> dict[str, Any]:
    name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
    purl = f"pkg:pypi/{name}@{distribution.version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": distribution.version,
        "purl": purl,
    }
    stated = distribution.metadata.json
    if expression := stated.get("license_expression"):
        return component | {"licenses": [{"expression": expression}]}
    named = str(stated.get("license", ""))
    if named and "\n" not in named:  # some have the whole text there
        return component | {"licenses": [{"license": {"name": named}}]}
    return component


def bill() -> dict[str, Any]:
    """The bill of materials of this interpreter's environment."""
    found = {component["purl"]: component for component in map(_component, distributions())}
    own = next(component for component in found.values() if component["name"] == _OWN)
    del found[own["purl"]]
    python = platform.python_version()
    interpreter = {"type": "platform", "bom-ref": f"pkg:generic/python@{python}", "name": "python", "version": python}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own | {"type": "application"}},
        "components": [interpreter, *(found[purl] for purl in sorted(found))],
        "dependencies": [{"ref": own["purl"], "dependsOn": [interpreter["bom-ref"], *sorted(found)]}],
    }


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=2)
    sys.stdout.write("\n")
