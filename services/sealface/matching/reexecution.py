"""An auditor without keys computes searches again, bit for bit, and compares them with what was decided on.

The key service's audit log names, for each decision, the probe that its caller signed and the results that were decided
on. From a search's transcript and the record the auditor computes the results again. A compute zone that was broken
into can encrypt a score of its own; it cannot name blocks, a probe and a seed from which that score comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sealface.cipher.scheme import Scheme
from sealface.errors import NotFound, SealfaceError
from sealface.matching.transcripts import Transcripts
from sealface.protocol.audit import BEGUN, DECIDE, Entry
from sealface.protocol.scores import Result, result_digest, results_digest
from sealface.storage.galleries import Galleries
from sealface.workers.task import BlockGone, Part, Task
from sealface.workers.worker import Worker


@dataclass(frozen=True)
class Decided:
    """A decision, as the key service's audit log has it.

    Attributes:
        gallery: id of the gallery.
        request_id: the caller's.
        probe_digest: SHA-256 of the probe that the caller signed.
        results: digest of the results that were decided on; see `results_digest`.
    """

    gallery: str
    request_id: str
    probe_digest: bytes
    results: bytes


def decisions(lines: Iterable[bytes]) -> Iterator[Decided]:
    """The decisions that an exported audit log has.

    Raises:
        AuditLogBroken: a line is no entry.
    """
    begun: dict[int, Entry] = {}
    for entry in map(Entry.parse, lines):
        if entry.act == DECIDE and entry.outcome == BEGUN:
            begun[entry.number] = entry
        elif entry.act == DECIDE and entry.begun in begun and "results" in entry.detail:
            asked = begun.pop(entry.begun).detail
            yield Decided(
                str(asked["gallery"]).removeprefix("galleries/"),
                str(asked["request_id"]),
                bytes.fromhex(str(asked["probe"])),
                bytes.fromhex(str(entry.detail["results"])),
            )


class Finding(StrEnum):
    """What came of computing a search again."""

    EQUAL = "equal"  # bit for bit
    DIFFERENT = "different"  # the results were not computed from the signed probe and the record
    MISSING = "missing"  # compute has no transcript
    CHANGED = "changed"  # blocks were replaced, or templates erased, since: it cannot be said


class Reexecution:
    """Computes searches again.

    Args:
        galleries: the record.
        scheme: the cipher.
        transcripts: of the matching service.
        threads: how many compute at once.
    """

    def __init__(self, galleries: Galleries, scheme: Scheme, transcripts: Transcripts, threads: int = 1) -> None:
        self._galleries = galleries
        self._worker = Worker(galleries, scheme, threads)
        self._transcripts = transcripts

    def check(self, decided: Decided) -> Finding:
        """Whether a decision was made on the results that its probe and the record give.

        Raises:
            TemplateDamaged, RecordUnavailable: see there.
        """
        task = self._transcripts.find(decided.gallery, decided.request_id)
        if task is None:
            return Finding.MISSING
        if not task.seed or len(task.probes) != 1 or hashlib.sha256(task.probes[0]).digest() != decided.probe_digest:
            return Finding.DIFFERENT
        try:
            digests = [result_digest(result) for result in self._results(task)]
        except (BlockGone, NotFound):
            return Finding.CHANGED
        except SealfaceError as error:
            if error.reason != "MALFORMED_CIPHERTEXT":
                raise
            return Finding.DIFFERENT
        finally:
            self._worker.store.forget(task.gallery)  # what is erased is not held here
        return Finding.EQUAL if results_digest(digests) == decided.results else Finding.DIFFERENT

    def _results(self, task: Task) -> list[Result]:
        slots = {place: self._slots(task, part) for place, part in enumerate(task.parts)}
        return [
            Result(task.parts[place].columns, data, slots[place])
            for tile in self._worker.begin(task).tiles
            for place, data in zip(tile.places, tile.results[0], strict=True)
        ]

    def _slots(self, task: Task, part: Part) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        if part.columns == 1:
            held = np.frombuffer(part.slots, "<u4").astype(np.uint32)
        else:
            found = self._galleries.block_slots(task.gallery, part.number)
            if found is None:
                raise BlockGone("a block was replaced since")
            held = found
        requested = np.zeros(held.size, np.bool_) if part.requested is None else part.requested
        return np.where(requested, held, np.uint32(0))
