"""A gallery moved to another key version by blinded round trips through the key holder, while it is searched.

Threat model, rule 7; docs/adr/0019. Compute never sees a template, the key holder opens uniform values: what is sent is
randomised and blinded, and what comes back is unblinded and randomised again. Templates go in batches, in random order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from secrets import SystemRandom

import numpy as np
import structlog

from sealface.cipher.scheme import Evaluator, Scheme
from sealface.enrollment.asked import Ask, Asked, awaited
from sealface.enrollment.leases import Lease
from sealface.enrollment.operations import Operation, Operations
from sealface.enrollment.versions import Versions
from sealface.storage.evaluators import Evaluators
from sealface.storage.galleries import Galleries, Gallery

_log = structlog.get_logger("sealface.rotation")
_TEMPLATES_AT_ONCE = 128
_TURN_S = 10.0  # then whatever else there is to do for the gallery has its turn


class Rotator:
    """Moves galleries.

    Args:
        galleries: the record.
        versions: ciphertexts by key version.
        operations: where it is noted how far a rotation is.
        scheme: the cipher.
    """

    def __init__(self, galleries: Galleries, versions: Versions, operations: Operations, scheme: Scheme) -> None:
        self._galleries = galleries
        self._versions = versions
        self._operations = operations
        self._evaluators = Evaluators(galleries, scheme)

    def run(
        self,
        operation: Operation,
        gallery: Gallery,
        lease: Lease,
        pause: Callable[[], None],
        ask: Ask,
        turn_s: float = _TURN_S,
    ) -> bool:
        """Go on with a rotation, for a while or until it is done; whether to go on.

        Raises:
            GalleryNotFound, LeaseLost, TemplateDamaged, MalformedCiphertext: see there; and what the key holder says.
        """
        target, done, after = operation.detail["key_version"], operation.done, 0
        until = time.monotonic() + turn_s
        while True:
            slots = self._versions.missing_templates(gallery, target, after, _TEMPLATES_AT_ONCE)
            block = None if slots else self._versions.missing_block(gallery, target)
            if slots:
                moved = self._templates(gallery, lease, pause, ask, target, slots)
                after = slots[-1]
            elif block is not None:
                moved = self._block(gallery, lease, pause, ask, target, *block)
            elif self._versions.move(gallery, lease, operation, done):
                _log.info("rotated", gallery=gallery.id, ciphertexts=done, key_version=target)
                return False
            elif self._galleries.get(gallery.id).identity != gallery.identity:
                return False  # made anew
            else:
                after, moved = 0, 0  # something came since it was looked
            done += moved
            if not self._operations.progress(operation, lease, done, max(done, operation.total)):
                return False
            pause()
            if time.monotonic() > until:
                return True

    def _templates(
        self, gallery: Gallery, lease: Lease, pause: Callable[[], None], ask: Ask, target: str, slots: list[int]
    ) -> int:
        """Move some templates; returns how many ciphertexts that were."""
        held = list(self._galleries.ciphertexts(gallery.id, slots, gallery.key_version))
        SystemRandom().shuffle(held)  # which of a batch is which slot's is nothing that the key holder sees
        if not held:
            return 0
        group, count = gallery.layout.group, len(held)
        blinded, blinding = self._evaluators.of(gallery).blind(group, b"".join(data for _, data in held), count)
        asked = Asked(gallery.key_version, 1, blinded, target_version=target, templates=count)
        answer = awaited(ask(asked), pause)
        nobody = np.zeros(group.capacity, np.bool_)
        fresh = self._of_target(gallery, target).unblind(group, answer, blinding, nobody, count)
        size = len(fresh) // count
        moved = {slot: fresh[i * size : (i + 1) * size] for i, (slot, _) in enumerate(held)}
        self._versions.add_templates(gallery, lease, target, moved)
        return count * gallery.layout.parts

    def _block(
        self,
        gallery: Gallery,
        lease: Lease,
        pause: Callable[[], None],
        ask: Ask,
        target: str,
        number: int,
        columns: int,
    ) -> int:
        """Move a block; returns how many ciphertexts it has."""
        found = self._galleries.block(gallery.id, number, gallery.key_version)
        if found is None:  # replaced since it was looked
            return 0
        slots, ciphertext = found
        shape = gallery.layout.shape(columns)
        blinded, blinding = self._evaluators.of(gallery).blind(shape, ciphertext)
        answer = awaited(ask(Asked(gallery.key_version, columns, blinded, target_version=target)), pause)
        nobody = np.zeros(shape.capacity, np.bool_)
        fresh = self._of_target(gallery, target).unblind(shape, answer, blinding, nobody)
        self._versions.add_block(gallery, lease, target, number, columns, slots.astype("<u4").tobytes(), fresh)
        return shape.ciphertexts

    def _of_target(self, gallery: Gallery, target: str) -> Evaluator:
        return self._evaluators.of(replace(gallery, key_version=target))
