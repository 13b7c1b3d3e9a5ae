"""What may be opened with a secret key, and by whom: every path in the source, and nothing else (threat model, rule 4).

Three shapes may be: scores, blocks and templates that are renewed or rotated, and, once there is a use for them,
refreshes of encrypted inference. A path that is added fails here until somebody has thought about it.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.test_architecture import module_name, sources, tree

SCORES, RENEWAL, EXPORT, WARM = "scores", "renewal", "export", "warm"
EXPECTED = {
    # module, function, what it calls
    ("sealface.cipher.scheme", "Ckks.warm", "opener"): WARM,  # with keys of ones
    ("sealface.cipher.scheme", "Ckks.warm", "open"): WARM,
    ("sealface.cipher.scheme", "Ckks.warm", "renew"): WARM,
    ("sealface.cipher.opening", "Opener.renew", "renew"): RENEWAL,
    ("sealface.protocol.scores", "open_results", "open"): SCORES,
    ("sealface.keys.judge", "Hearing.hear", "open_results"): SCORES,
    ("sealface.keys.judge", "Judge.admit", "opener"): SCORES,
    ("sealface.keys.keyring", "Keyring.opener", "opener"): SCORES,  # for both
    ("sealface.keys.keyring", "Keyring.opener", "secret"): SCORES,
    ("sealface.keys.lifecycle", "Lifecycle.export", "secret"): EXPORT,  # sealed to an operator, of an exportable key
    ("sealface.keys.renewal", "Renewal.expect", "opener"): RENEWAL,
    ("sealface.keys.renewal", "Renewal.renew", "renew"): RENEWAL,
    ("sealface_client.held_keys", "LocalJudge.__init__", "opener"): SCORES,  # the caller's own key
    ("sealface_client.held_keys", "LocalJudge.distances", "open_results"): SCORES,
    ("sealface_client.renewal", "_renewed", "renew"): RENEWAL,
    ("sealface_client.lifecycle", "_fits", "opener"): SCORES,  # a score of its own making, to know a secret by
    ("sealface_client.lifecycle", "_fits", "open"): SCORES,
    ("sealface_client.aio", "AsyncClient.opener", "opener"): RENEWAL,  # the caller's own key, old and new
    ("sealface_client.gallery", "AsyncGallery.rotate", "opener"): RENEWAL,
}
_CALLS = {"opener", "open_results", "renew", "secret"}


def opening(path: Path) -> set[tuple[str, str, str]]:
    """(module, function, what it calls) of every call that leads to a secret key."""
    found = set()

    def walk(node: ast.AST, within: tuple[str, ...]) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            within = (*within, node.name)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            called = name.rsplit(".", 1)[-1]
            opens = called == "open" and name.rsplit(".", 2)[-2].lstrip("_") == "opener" if "." in name else False
            if called in _CALLS or opens:
                found.add((module_name(path), ".".join(within[:2]), called))
        for child in ast.iter_child_nodes(node):
            walk(child, within)

    walk(tree(path), ())
    return found


def test_every_path_that_opens_anything_is_known() -> None:
    # compute has no secret key, which other tests look for in its memory; what it calls so are calls to who has one
    of_keys = [path for path in sources() if not module_name(path).startswith("sealface.enrollment")]
    found = set().union(*map(opening, of_keys))
    assert found - set(EXPECTED) == set(), "something is opened in a new place: is it scores, or a renewal?"
    assert set(EXPECTED) - found == set(), "these places open nothing any more: forget them"


def test_the_search_finds_what_it_should(tmp_path: Path) -> None:
    code = "class A:\n    def f(self):\n        return self._opener.open(1), keyring.opener(2), path.open(3)\n"
    (tmp_path / "x.py").write_text(code)
    assert {call for _, _, call in opening(tmp_path / "x.py")} == {"open", "opener"}
