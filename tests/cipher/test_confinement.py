"""Public material holds no secret, and cannot stand in for one."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import kernels, public_key, seal, wire
from sealface.cipher.kernels import integers_to_ntt
from sealface.cipher.parameters import N4096
from sealface.cipher.ring import Residues
from sealface.cipher.scheme import Ckks
from tests.cipher.conftest import Sides, asked, key, sides


def coefficients(made: Sides) -> NDArray[np.int64]:
    p = made.primes[0]
    values = kernels.intt(made.secret[0], p).astype(np.int64)
    return np.where(values > p // 2, values - p, values)


def traces(made: Sides) -> list[bytes]:
    """The secret in every form that occurs: packed, as words, as small coefficients."""
    small = coefficients(made)
    found = [made.key.secret, made.secret.tobytes(), small.astype(np.int8).tobytes(), small.tobytes()]
    for limb, p in zip(made.secret, N4096.primes, strict=True):
        found += [limb.tobytes(), wire.pack(limb[None], (p,)), limb.astype(np.uint32).tobytes()]
    for p in made.primes:
        found.append((small % p).astype(np.uint64).tobytes())
    # a fragment would be as bad: 15 bytes hold 4 residues
    return [form[start : start + 60] for form in found for start in range(0, len(form) - 60, len(form) // 5)]


def reachable(root: object) -> Iterator[object]:
    """Everything that an object refers to, code and modules aside."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(value))
        yield value
        waiting += gc.get_referents(value)
        if isinstance(value, np.ndarray) and value.base is not None:
            waiting.append(value.base)
        if hasattr(value, "__dict__"):
            waiting += vars(value).values()


def holds_secret(root: object, made: Sides) -> bool:
    needles = traces(made)
    for value in reachable(root):
        data = value.tobytes() if isinstance(value, np.ndarray) and value.dtype != object else value
        if isinstance(data, bytes | bytearray) and any(needle in data for needle in needles):
            return True
    return False


def test_the_search_itself_finds_a_secret() -> None:
    made = sides()
    assert holds_secret(made.opener, made)
    assert holds_secret({"nested": [made.key.secret]}, made)


def test_public_material_does_not_contain_the_secret() -> None:
    made = sides()
    public = [made.key.public, *made.key.evaluation.values()]
    assert len(public) == 8
    for data in public:
        assert not holds_secret(data, made)
    for number, data in enumerate(public):  # unpacked too, since packing shifts bits
        parts = public_key.parse(N4096, data) if number == 0 else wire.unpack(data, 4, 4096, N4096.primes)
        assert not holds_secret(parts, made)


def test_computes_and_the_edges_objects_hold_no_secret() -> None:
    made = sides()
    scheme = Ckks()
    evaluator = scheme.evaluator(made.layout, made.key.public, made.key.evaluation)
    encryptor = scheme.encryptor(made.layout, made.key.public)
    template = evaluator.admit(encryptor.template(np.ones(128)))
    group, probe = evaluator.assemble({0: template}), evaluator.admit_probe(encryptor.probe(np.ones(128)))
    shape = made.layout.shape(8)
    block = evaluator.load(shape, evaluator.seal(shape, {0: template}))
    leaves = evaluator.expand([probe], [group.shape, shape])
    results = [evaluator.score([b], leaves[b.shape], [asked(b.shape, [0])]) for b in (group, block)]
    evaluator.zeros.add_one()
    for thing in (evaluator, encryptor, template, group, block, probe, leaves, results):
        assert not holds_secret(thing, made)


def opens(made: Sides, secret: Residues) -> float:
    """Largest error of SEAL's decryption of x^0 times the scale, under something used as a secret."""
    plain = np.zeros(4096, np.int64)
    plain[0] = 1 << 27
    scale = N4096.template_scale
    ciphertext = seal.Encryptor(N4096, made.public).encrypt(integers_to_ntt(plain, made.primes), scale)
    p = made.primes[0]
    opened = kernels.intt(seal.decrypt(N4096, secret, ciphertext)[0], p).astype(np.int64)
    return float(np.abs(np.where(opened > p // 2, opened - p, opened) - plain).max() / scale)


def test_nothing_public_decrypts() -> None:
    made = sides()
    assert opens(made, made.secret) < 1e-5
    candidates = [*made.public, *(limbs for limbs in _evaluation(made))]
    assert len(candidates) == 2 + 7 * 4
    assert min(opens(made, candidate) for candidate in candidates) > 1


def _evaluation(made: Sides) -> Iterator[Residues]:
    for data in key(N4096).evaluation.values():
        yield from wire.unpack(data, 4, 4096, N4096.primes)
