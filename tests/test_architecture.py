"""Rules about the source as a whole, read from its syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from setuptools import find_packages  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("services", "clients/python")
SERVICES = {"keys", "enrollment", "matching", "edge"}


def sources() -> list[Path]:
    found = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    found = [path for path in found if "build" not in path.relative_to(ROOT).parts]
    assert len(found) > 20
    return found


def module_name(path: Path) -> str:
    for folder in FOLDERS:
        if path.is_relative_to(ROOT / folder):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return path.stem


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(code: ast.AST, module: str = "", package: bool = False) -> Iterator[str]:
    """Full names that a module imports, also inside functions and through importlib."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                up = parts[: len(parts) - node.level + (1 if package else 0)]
                base = ".".join([*up, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).rsplit(".", 1)[-1]
            first = node.args[0]
            if name in {"import_module", "__import__", "load"} and isinstance(first, ast.Constant):
                yield str(first.value)


def imported(path: Path) -> set[str]:
    return set(imports(tree(path), module_name(path), path.name == "__init__.py"))


def part(name: str) -> str:
    """The unit that the arrows speak of: `cipher`, `keys`, ... or the top-level package."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "sealface" and len(pieces) > 1 else pieces[0]


def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        own = part(module_name(path))
        for name in imported(path):
            if name.split(".")[0] in {"sealface", "sealface_client"} and part(name) != own:
                found[own].add(part(name))
    return found


# --- randomness (threat model, rule 3)


def generators(code: ast.AST) -> list[str]:
    """Uses of a random generator that is not the operating system's."""
    forbidden = re.compile(r"^(random|numpy\.random|torch|tensorflow\.random|numba\.random)(\.|$)")
    found = [name for name in imports(code) if forbidden.match(name)]
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute):
            name = re.sub(r"^np\.", "numpy.", ast.unparse(node))
            if re.fullmatch(r"(numpy|numba)\.random|uuid\.uuid1|random\.\w+", name):
                found.append(name)
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import random",
        "from random import Random",
        "import numpy.random",
        "from numpy import random",
        "from numpy.random import default_rng",
        "import numpy as np\nnp.random.default_rng().integers(3)",
        "import numpy\nnumpy.random.seed(1)",
        "def f():\n    from random import choice",
        "import importlib\nimportlib.import_module('random')",
        "import uuid\nuuid.uuid1()",
    ],
)
def test_the_search_finds_other_generators(code: str) -> None:
    assert generators(ast.parse(code))


@pytest.mark.parametrize("code", ["import secrets\nsecrets.token_bytes(8)", "import os\nos.urandom(8)"])
def test_the_operating_systems_generator_is_allowed(code: str) -> None:
    assert not generators(ast.parse(code))


def test_no_other_random_generator() -> None:
    found = {str(path.relative_to(ROOT)): generators(tree(path)) for path in sources()}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_other_random_generator_in_a_browser() -> None:
    scripts = [
        path
        for pattern in ("*.ts", "*.tsx", "*.js", "*.mjs")
        for path in (ROOT / "clients").rglob(pattern)
        if not {"node_modules", "dist"} & set(path.parts)
    ]
    assert [str(path) for path in scripts if "Math.random" in path.read_text()] == []


# --- who imports whom


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("tenseal", "cipher"),
        ("numba", "cipher"),
        ("llvmlite", "cipher"),
        ("deepface", "recognition"),
        ("ray", "workers"),
        ("redis", "storage"),
        ("hvac", "keys"),
    ],
)
def test_a_library_has_one_home(library: str, home: str) -> None:
    users = {
        part(module_name(path)) for path in sources() if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users == {home}


def test_the_domain_knows_no_metrics() -> None:
    users = {
        module_name(path)
        for path in sources()
        if any(name.split(".")[0] == "prometheus_client" for name in imported(path))
    }
    assert users
    assert {name for name in users if part(name) != "runtime"} <= {
        f"sealface.{service}.{module}" for service in SERVICES for module in ("metrics", "server")
    }


def test_cipher_imports_nothing_but_errors() -> None:
    assert arrows()["cipher"] <= {"errors"}


def test_runtime_knows_no_domain() -> None:
    assert arrows()["runtime"] & {*SERVICES, "storage", "cipher", "recognition", "cli", "sealface_client"} == set()


def test_below_the_services_nothing_looks_up() -> None:
    found = arrows()
    above = {*SERVICES, "cli", "sealface_client"}
    for lower in ("errors", "cipher", "recognition", "storage", "runtime", "protocol"):
        assert found[lower] & above == set(), lower
    assert found["errors"] == set()
    assert found["recognition"] <= {"errors"}
    assert "recognition" not in found["storage"]


def test_services_do_not_import_each_other() -> None:
    found = arrows()
    for service in SERVICES:
        assert found[service] & (SERVICES - {service}) == set(), service
        assert "cli" not in found[service], service
        if service != "edge":  # compute and keys never see an image
            assert found[service] & {"recognition", "sealface_client"} == set(), service


def test_clients_import_no_service() -> None:
    found = arrows()["sealface_client"]
    assert found & {*SERVICES, "storage", "cli"} == set()
    assert found  # or the folder moved and this test sees nothing


def test_no_circle() -> None:
    found = arrows()

    def walk(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " -> ".join((*trail, node))
        for following in sorted(found.get(node, ())):
            walk(following, (*trail, node))

    for node in sorted(found):
        walk(node, ())


# --- the scheme without encryption stays in the tests


def mentions(code: ast.AST) -> list[str]:
    """Places outside docstrings and comments that could reach tests/plain.py."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(code)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    pattern = re.compile(r"\btests?[./]plain\b|\bPlain\b|\bplain\.py\b")
    found = [name for name in imports(code) if pattern.search(name) or name.split(".")[0] == "tests"]
    for node in ast.walk(code):
        text = None
        if isinstance(node, ast.Name):
            text = node.id
        elif isinstance(node, ast.Attribute):
            text = node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            text = node.value
        if text is not None and pattern.search(text):
            found.append(text)
    return found


@pytest.mark.parametrize(
    "code",
    [
        "from tests.plain import Plain",
        "import tests.plain as scheme",
        "from tests import plain",
        "import importlib\nimportlib.import_module('tests.plain')",
        "schemes = {'x': 'tests/plain.py'}",
        "scheme = Plain()",
        "scheme = module.Plain()",
    ],
)
def test_the_search_finds_mentions(code: str) -> None:
    assert mentions(ast.parse(code))


def test_nothing_installed_mentions_the_plain_scheme() -> None:
    found = {str(path.relative_to(ROOT)): mentions(tree(path)) for path in sources()}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_package_does_not_contain_it() -> None:
    declared = (ROOT / "setup.py").read_text()
    roots = re.findall(r'find_packages\("([^"]+)"\)', declared)
    assert sorted(roots) == ["build/stubs", "clients/python", "services"]
    packages = [name for root in roots for name in find_packages(str(ROOT / root))]
    assert {"sealface", "sealface.cipher", "sealface_client"} <= set(packages)
    assert not [name for name in packages if {"tests", "plain"} & set(name.split("."))]
    assert not [path for path in sources() if path.stem == "plain"]


def test_an_installed_sealface_cannot_import_it(tmp_path: Path) -> None:
    code = (
        "import sealface, importlib.util as u\n"
        "try:\n    found = u.find_spec('tests.plain')\nexcept ModuleNotFoundError:\n    found = None\n"
        "assert found is None, found"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
