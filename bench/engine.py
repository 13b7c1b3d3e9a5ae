"""The engine's steps by themselves, on one thread of this process: expansion to opening, and renewal.

Every rate is for one core, but for the one that says otherwise. Expansion is measured in turn with SEAL's automorphisms
on the same probe, scoring several probes in one pass in turn with one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealface.cipher import product, public_key, seal, switching, wire
from sealface.cipher.distance import Metric
from sealface.cipher.evaluator import Evaluator
from sealface.cipher.layout import Layout, Shape
from sealface.cipher.parameters import for_dimension
from sealface.cipher.ring import Residues
from sealface.cipher.scheme import Ckks, Encryptor, KeyMaterial
from sealface.cipher.scheme import Opener as AnyOpener

from .search import unit_vectors

_TOGETHER = 16

Tell = Callable[[str], None]


def _ms(work: Callable[[], object], rounds: int) -> float:
    """Median of some runs after one that does not count."""
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def _in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for work, kept in zip((first, second), times, strict=True):
            started = time.perf_counter()
            work()
            if number:
                kept.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


class Bench:
    """A key, and all sides of one gallery.

    Args:
        dimension: elements of a vector.
        columns: of the sealed blocks; the most there are if 0.
    """

    def __init__(self, dimension: int, columns: int = 0) -> None:
        parameters = for_dimension(dimension)
        self.layout = Layout(parameters, dimension, Metric.COSINE)
        self.shape: Shape = self.layout.shape(columns) if columns else self.layout.sealed_shapes[-1]
        scheme = Ckks()
        self.key: KeyMaterial = scheme.generate(parameters)
        self.encryptor: Encryptor = scheme.encryptor(self.layout, self.key.public)
        self.evaluator: Evaluator = scheme.evaluator(self.layout, self.key.public, self.key.evaluation)
        self.opener: AnyOpener = scheme.opener(self.layout, self.key.secret)
        self.vectors = unit_vectors(self.shape.capacity, dimension, seed=7).astype(np.float64)
        self.probe = self.evaluator.admit_probe(self.encryptor.probe(self.vectors[0]))
        self.secret: Residues = wire.unpack(self.key.secret, 1, parameters.degree, parameters.primes)[0]

    def expansion(self, rounds: int) -> dict[str, Any]:
        """Ours and SEAL's automorphisms, from one probe to the same leaves, bit for bit."""
        tree = SealTree(self.layout, self.secret, self.shape.columns)
        evaluator = Evaluator(self.layout, self._public(), tree.rotor.keys)
        ours, theirs = _in_turn(
            lambda: evaluator.expand([self.probe], [self.shape]), lambda: tree.expand(self.probe.residues[0]), rounds
        )
        return {"expand_ms": ours, "seal_expand_ms": theirs, "ratio_expand": theirs / ours}

    def _public(self) -> Residues:
        return public_key.parse(self.layout.parameters, self.key.public)

    def sealing(self) -> dict[str, Any]:
        """A whole block from single templates."""
        one = self.evaluator.admit(self.encryptor.template(self.vectors[0]))
        templates = dict.fromkeys(range(self.shape.capacity), one)
        self.evaluator.seal(self.shape, {0: one})
        started = time.perf_counter()
        self.evaluator.seal(self.shape, templates)
        seconds = time.perf_counter() - started
        return {"seal_per_s": self.shape.capacity / seconds, "seal_block_s": seconds}

    def importing(self, rounds: int) -> tuple[dict[str, Any], bytes]:
        """A whole block encrypted as it is, at the importer's and admitted at the enrollment service's."""
        encrypted = self.encryptor.block(self.shape, self.vectors)
        encrypt = _ms(lambda: self.encryptor.block(self.shape, self.vectors), rounds)
        admit = _ms(lambda: self.evaluator.admit_block(self.shape, encrypted), rounds)
        count = self.shape.capacity
        measured = {
            "import_encrypt_per_s": count / encrypt * 1e3,
            "import_admit_per_s": count / admit * 1e3,
            "import_per_s": count / (encrypt + admit) * 1e3,
            "block_bytes": len(encrypted),
        }
        return measured, encrypted

    def scoring(self, block: bytes, blocks: int, rounds: int) -> dict[str, Any]:
        """Products of one probe and of 16 in one pass, then all that makes them results, then opening those."""
        loaded = self.evaluator.load(self.shape, block)
        words = [loaded.columns.copy() for _ in range(blocks)]
        leaves = self.evaluator.expand([self.probe] * _TOGETHER, [self.shape])[self.shape]
        primes = self.layout.parameters.data_primes
        single, many = _in_turn(
            lambda: product.scores(words, leaves.words[:1], primes),
            lambda: product.scores(words, leaves.words, primes),
            rounds,
        )
        with ThreadPoolExecutor(2) as pool:  # two threads share the memory's speed, which one probe is bound by

            def both(probes: int) -> None:
                halves = (words[: blocks // 2], words[blocks // 2 :])
                list(pool.map(lambda half: product.scores(half, leaves.words[:probes], primes), halves))

            single_2, many_2 = _in_turn(lambda: both(1), lambda: both(_TOGETHER), rounds)
        asked = np.ones(self.shape.capacity, bool)
        one = self.evaluator.expand([self.probe], [self.shape])[self.shape]
        of_block = _ms(lambda: product.scores([loaded.columns], one.words, primes), rounds)
        zero = _ms(self.evaluator.zeros.draw, rounds * 10)
        with_zero = _ms(lambda: self.evaluator.score([loaded], one, [asked]), rounds)
        result = self.evaluator.score([loaded], one, [asked])[0][0]
        opening = _ms(lambda: self.opener.open(self.shape, [result] * 32), rounds) / 32
        opened = self.opener.open(self.shape, [result])
        error = np.abs(opened.scores[0] - self.vectors @ self.vectors[0]).max()
        return {
            "score_templates_per_s": blocks * self.shape.capacity / single * 1e3,
            "score_gb_per_s": sum(block.nbytes for block in words) / single / 1e6,
            "ratio_16_probes": many / _TOGETHER / single,
            "ratio_16_probes_2_threads": many_2 / _TOGETHER / single_2,
            "zero_ms": zero,
            "finish_ms": max(0.0, with_zero - of_block - zero),
            "open_per_s": 1e3 / opening,
            "result_bytes": len(result),
            "max_abs_score_error": float(error),
        }

    def renewing(self, block: bytes, renewals: Sequence[int]) -> dict[str, Any]:
        """An imported block renewed without one more template each time: what each side takes, and what noise gathers.

        Args:
            block: a full one.
            renewals: after how many the scores are compared.
        """
        times: tuple[list[float], ...] = ([], [], [])
        leaves = self.evaluator.expand([self.probe], [self.shape])[self.shape]
        exact = self.vectors @ self.vectors[0]
        live = np.ones(self.shape.capacity, bool)
        found: dict[str, Any] = {}
        for number in range(max(renewals) + 1):
            if number in (0, *renewals):
                ((result,),) = self.evaluator.score([self.evaluator.load(self.shape, block)], leaves, [live])
                error = (self.opener.open(self.shape, [result]).scores[0] - exact)[live]
                found[f"renewed_{number}_rms_score_error"] = float(np.sqrt((error**2).mean()))
                found[f"renewed_{number}_max_score_error"] = float(np.abs(error).max())
            cleared = np.arange(self.shape.capacity) == self.shape.capacity - 1 - number
            live &= ~cleared
            started = time.perf_counter()
            blinded, blinding = self.evaluator.blind(self.shape, block)
            at_keys = time.perf_counter()
            renewed = self.opener.renew(self.shape, blinded, cleared)
            back = time.perf_counter()
            block = self.evaluator.unblind(self.shape, renewed, blinding, cleared)
            for kept, took in zip(times, (at_keys - started, back - at_keys, time.perf_counter() - back), strict=True):
                kept.append(took * 1e3)
        blind, keys, unblind = map(statistics.median, times)
        return found | {"renew_blind_ms": blind, "renew_keys_ms": keys, "renew_unblind_ms": unblind}


class SealTree:
    """The expansion as SEAL would do it: its automorphisms, additions and products with monomials.

    Args:
        layout: the gallery's layout.
        secret: the secret key, for the Galois keys.
        leaves: how many.
    """

    def __init__(self, layout: Layout, secret: Residues, leaves: int) -> None:
        n = layout.parameters.degree
        self._levels = leaves.bit_length() - 1
        self._elements = [switching.element_of_level(level, n) for level in range(self._levels)]
        self.rotor = seal.Rotor(layout.parameters, secret, self._elements)
        self._primes = layout.parameters.data_primes
        shifts = [switching.monomial(2 * n - (1 << level), n, self._primes) for level in range(self._levels)]
        self._shifts = [self.rotor.plaintext(shift) for shift in shifts]

    def expand(self, probe: Residues) -> list[Any]:
        """SEAL's objects of the leaves of a probe (2, limbs, N)."""
        inverse = np.array([pow(1 << self._levels, -1, p) for p in self._primes], np.uint64)[:, None]
        moduli = np.array(self._primes, np.uint64)[:, None]
        nodes = [self.rotor.load(probe * inverse % moduli)]
        for element, shift in zip(self._elements, self._shifts, strict=True):
            halves = [self.rotor.split(node, element, shift) for node in nodes]
            nodes = [even for even, _ in halves] + [odd for _, odd in halves]
        return nodes

    def residues(self, nodes: list[Any]) -> NDArray[np.uint64]:
        """Leaves as residues (count, 2, limbs, N)."""
        return np.stack([self.rotor.residues(node) for node in nodes])


def measure(
    dimension: int,
    rounds: int = 5,
    blocks: int = 64,
    renewals: Sequence[int] = (1, 10, 100),
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """All of it for blocks of the most columns.

    Args:
        dimension: elements of a vector.
        rounds: runs of each step.
        blocks: blocks that are scored in one pass.
        renewals: of an imported block, after which its scores are compared; no more than it has templates.
        tell: what is being done.
    """
    tell("making keys")
    bench = Bench(dimension)
    parameters, shape = bench.layout.parameters, bench.shape
    found: dict[str, Any] = {
        "dim": dimension,
        "columns": shape.columns,
        "templates_a_block": shape.capacity,
        "evaluation_key_bytes": sum(map(len, bench.key.evaluation.values())),
        "probe_bytes": len(bench.encryptor.probe(bench.vectors[0])),
        "parameter_set": parameters.name,
    }
    tell("expanding")
    found |= bench.expansion(rounds)
    tell("importing")
    imported, block = bench.importing(min(rounds, 3))
    found |= imported
    tell("scoring")
    found |= bench.scoring(block, blocks, rounds)
    tell("renewing")
    found |= bench.renewing(
        bench.evaluator.admit_block(bench.shape, block), [n for n in renewals if n < shape.capacity]
    )
    tell("sealing")
    found |= bench.sealing()
    return found
