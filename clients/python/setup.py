"""Builds the light distribution from the same sources as the whole; the rest is pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SERVICES = Path(os.path.relpath(ROOT / "services" / "sealface", HERE))
sys.path.insert(0, str(ROOT / "protos"))
from generate import generate  # noqa: E402

generate(HERE / "build" / "stubs" / "sealface_protos")
setup(
    packages=[
        "sealface_client",
        "sealface",
        "sealface.cipher",
        "sealface.protocol",
        "sealface.recognition",
        *find_packages("build/stubs"),
    ],
    package_dir={"sealface": str(SERVICES), "sealface_protos": "build/stubs/sealface_protos"},
    package_data={name: ["py.typed", "**/*.pyi"] for name in ("sealface", "sealface_client", "sealface_protos")},
)
