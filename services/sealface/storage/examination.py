"""Whether a gallery's rows are whole, and fit each other: digests, sizes, residues, slots, blocks, counters.

The same examination stands before a backup, before a restore, and behind the doctor. It keeps some 40 bytes a template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from sealface.cipher import evaluator, public_key, switching
from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout, UnknownShape
from sealface.cipher.scheme import Ckks
from sealface.cipher.wire import MalformedCiphertext
from sealface.errors import InvalidInput
from sealface.protocol import names
from sealface.storage import record
from sealface.storage.contents import TABLES, Row, key_of, misfits
from sealface.storage.digests import block_digest, sha256, subject_digest
from sealface.storage.findings import Damage, Finding
from sealface.storage.galleries import MOST_TEMPLATES
from sealface.storage.residents import Residents
from sealface_protos.enrollment.v1 import gallery_pb2

_LAST_SLOT = 2**32 - 1


class Examination:
    """Takes a gallery's rows in the order of `contents.read`, and tells what is wrong with them.

    Args:
        gallery_id: the gallery.

    Attributes:
        checked: how many rows of each table.
    """

    def __init__(self, gallery_id: str) -> None:
        self.checked: Counter[str] = Counter()
        self._id = gallery_id
        self._gallery: Row = {}
        self._layout: Layout | None = None
        self._elements: set[int] = set()
        self._held = Residents()
        self._lost: set[int] = set()
        self._last: tuple[int, Any] = (-1, None)
        self._judges = {
            record.galleries: self._judge_gallery,
            record.evaluation_keys: self._judge_evaluation_key,
            record.tombstones: self._judge_tombstone,
            record.templates: self._judge_template,
            record.blocks: self._judge_block,
            record.requests: self._judge_request,
        }

    def take(self, table: sa.Table, rows: Sequence[Row]) -> Iterator[Finding]:
        """What is wrong with some rows, as far as can be said by now."""
        for row in rows:
            self.checked[table.name] += 1
            wrong = misfits(table, row) or self._misordered(table, row)
            if wrong:
                yield self._found(Damage.ROW_MALFORMED, detail=f"{table.name}: {', '.join(wrong)}", **_place(row))
            elif table is record.galleries or self._gallery:
                yield from self._judges[table](row)

    def finish(self) -> Iterator[Finding]:
        """What is wrong with all rows together."""
        if not self._gallery:
            yield self._found(Damage.GALLERY_MALFORMED, detail="its row is damaged or missing")
            return
        yield from self._missing_keys()
        for slot in self._held.present_but_erased():
            yield self._found(Damage.ERASED_BUT_PRESENT, slot=slot)
        for slot in self._held.wrong_leads(MOST_TEMPLATES):
            yield self._found(Damage.SUBJECT_INCONSISTENT, slot=slot)
        for number, healable in self._held.homeless():
            yield self._found(Damage.BLOCK_MISSING, block=number, healable=healable)
        for slot in self._held.placed_twice():
            yield self._found(Damage.BLOCK_INCONSISTENT, slot=slot, detail="the slot lies in two blocks")
        for slot in sorted(self._lost):
            yield self._found(Damage.TEMPLATE_LOST, slot=slot)

    def _misordered(self, table: sa.Table, row: Row) -> list[str]:
        """Each table once, in their order, and each key once, in theirs: so no slot is there twice."""
        key = key_of(table)
        here = (TABLES.index(table), row[key])
        before, self._last = self._last, here
        in_order = here[0] > before[0] or (here[0] == before[0] and here[1] > before[1])
        return [] if in_order else [key]

    def _found(self, what: Damage, **place: Any) -> Finding:
        return Finding(what, self._id, **place)

    # --- the gallery and its keys

    def _judge_gallery(self, row: Row) -> Iterator[Finding]:
        self._gallery = row
        wrong = []
        try:
            self._layout = Layout.of(row["parameter_set"], row["dimension"], Metric(row["metric"]), row["largest_norm"])
            names.check_id(row["id"], "id")
            names.key_version(row["key_version"])
            gallery_pb2.Recognition.FromString(row["recognition"])
        except InvalidInput as error:
            wrong.append(error.message)
        except Exception:  # an unknown metric; protobuf's DecodeError differs between its implementations
            wrong.append("metric or recognition")
        if row["id"] != self._id or row["custody"] not in ("managed", "client_held"):
            wrong.append("id or custody")
        if not row["privacy_level"] or row["privacy_level"] not in gallery_pb2.PrivacyLevel.values():
            wrong.append("privacy level")
        if not row["fusion"] or row["fusion"] not in gallery_pb2.Fusion.values():
            wrong.append("fusion")
        for detail in wrong:
            yield self._found(Damage.GALLERY_MALFORMED, detail=detail)
        if row["first_epoch"] > row["epoch"] or not 1 <= row["next_slot"] <= _LAST_SLOT + 1 or not row["next_block"]:
            yield self._found(Damage.COUNTER_BEHIND, detail="epochs, next slot or next block")
        if self._layout is not None and (
            sha256(row["public_key"]) != row["public_key_digest"]
            or _malformed(lambda layout: public_key.parse(layout.parameters, row["public_key"]), self._layout)
        ):
            yield self._found(Damage.PUBLIC_KEY_DAMAGED)

    def _judge_evaluation_key(self, row: Row) -> Iterator[Finding]:
        self._elements.add(row["galois_element"])
        material = row["material"]
        if sha256(material) != row["digest"] or (
            self._layout is not None
            and _malformed(lambda layout: Ckks().check_evaluation(layout.parameters, material), self._layout)
        ):
            yield self._found(Damage.EVALUATION_KEY_DAMAGED, detail=f"Galois element {row['galois_element']}")

    def _missing_keys(self) -> Iterator[Finding]:
        """Sealed blocks need a key for each level of the tree; a gallery may have none and seal nothing."""
        if self._layout is None or not (self._elements or self.checked[record.blocks.name]):
            return
        levels = self._layout.sealed_shapes[-1].columns.bit_length() - 1
        for level in range(levels):
            element = switching.element_of_level(level, self._layout.parameters.degree)
            if element not in self._elements:
                yield self._found(Damage.EVALUATION_KEY_MISSING, detail=f"Galois element {element}")

    # --- templates and tombstones

    def _judge_tombstone(self, row: Row) -> Iterator[Finding]:
        yield from self._counted(row)
        self._held.bury(row["slot"])

    def _judge_template(self, row: Row) -> Iterator[Finding]:
        yield from self._counted(row)
        slot, data = row["slot"], row["ciphertext"]
        try:
            names.check_opaque(row["subject"], "subject")
        except names.InvalidName:
            yield self._found(Damage.SUBJECT_INCONSISTENT, slot=slot)
        intact = data is not None and row["digest"] == sha256(data) and not self._no_template(data)
        if not intact and (data is not None or row["digest"] is not None or row["block"] is None):
            yield self._found(Damage.TEMPLATE_DAMAGED, slot=slot)
        self._held.add(row, subject_digest(self._id, row["subject"]), intact)

    def _no_template(self, data: bytes) -> bool:
        return self._layout is not None and _malformed(lambda layout: evaluator.parse(data, layout), self._layout)

    def _counted(self, row: Row) -> Iterator[Finding]:
        """Whether slot and epoch lie within the gallery's counters."""
        gallery = self._gallery
        if not 1 <= row["slot"] < gallery["next_slot"] or not gallery["first_epoch"] < row["epoch"] <= gallery["epoch"]:
            yield self._found(Damage.COUNTER_BEHIND, slot=row["slot"])

    # --- blocks

    def _judge_block(self, row: Row) -> Iterator[Finding]:
        number, ciphertext = row["number"], row["ciphertext"]
        if not 1 <= number < self._gallery["next_block"]:
            yield self._found(Damage.COUNTER_BEHIND, block=number)
        damaged = row["digest"] != block_digest(row["columns"], row["slots"], ciphertext) or self._no_block(row)
        slots = np.frombuffer(b"" if damaged else row["slots"], "<u4").astype(np.int64)
        place = self._held.place(number, slots[slots > 0])
        if damaged:
            yield self._found(Damage.BLOCK_DAMAGED, block=number, healable=place.intact)
        elif not place.consistent or not (place.none_own if row["imported"] else place.all_own):
            yield self._found(Damage.BLOCK_INCONSISTENT, block=number, healable=place.intact)
        elif not len(place.unknown) and row["erased"] != place.erased:
            yield self._found(Damage.ERASED_COUNT_WRONG, block=number, healable=True)
        else:
            self._lost.update(place.unknown.tolist())

    def _no_block(self, row: Row) -> bool:
        def parse(layout: Layout) -> None:
            shape = layout.shape(row["columns"])
            if not shape.sealed or len(row["slots"]) != 4 * shape.capacity:
                raise UnknownShape("no block of that many columns or slots")
            evaluator.parse(row["ciphertext"], layout, shape.ciphertexts)

        return self._layout is not None and _malformed(parse, self._layout)

    # --- requests

    def _judge_request(self, row: Row) -> Iterator[Finding]:
        """A request names the template that it stored, or the first of a block that was imported."""
        try:
            names.check_opaque(row["request_id"], "request_id")
        except names.InvalidName:
            yield self._found(Damage.REQUEST_INCONSISTENT, slot=row["slot"])
        found = list(self._counted(row))
        yield from found
        if found:
            return
        stored = self._held.stored(row["slot"])
        if stored is None:
            if not self._held.erased(row["slot"]):
                self._lost.add(row["slot"])
        elif stored.epoch != row["epoch"] or (stored.own and stored.subject != row["subject_digest"][:16]):
            yield self._found(Damage.REQUEST_INCONSISTENT, slot=row["slot"], detail="subject or epoch differs")


def _malformed(parse: Any, layout: Layout) -> bool:
    try:
        parse(layout)
    except (MalformedCiphertext, UnknownShape):
        return True
    return False


def _place(row: Row) -> dict[str, int]:
    found = {"slot": row.get("slot"), "block": row.get("number")}
    return {name: at for name, at in found.items() if type(at) is int}
