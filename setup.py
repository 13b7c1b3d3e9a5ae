"""Generates the gRPC stubs into build/stubs before setuptools looks for packages; the rest is pyproject.toml."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "protos"))
from generate import generate  # noqa: E402

generate(ROOT / "build" / "stubs" / "sealface_protos")
setup(
    packages=[
        *find_packages("services"),
        *find_packages("clients/python"),
        *find_packages("build/stubs"),
        "sealface_bench",
        "sealface_deploy",
    ],
    package_dir={
        "sealface": "services/sealface",
        "sealface_bench": "bench",
        "sealface_deploy": "deploy",
        "sealface_client": "clients/python/sealface_client",
        "sealface_protos": "build/stubs/sealface_protos",
    },
    package_data={name: ["py.typed", "**/*.pyi"] for name in ("sealface", "sealface_client", "sealface_protos")},
)
