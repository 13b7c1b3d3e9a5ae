"""A ciphertext from outside to a stored template."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sealface.cipher.evaluator import block_size
from sealface.cipher.layout import UnknownShape
from sealface.cipher.scheme import Scheme
from sealface.enrollment.record import Record
from sealface.enrollment.rows import Enrolled, import_name
from sealface.errors import InvalidInput
from sealface.protocol import names
from sealface.storage.evaluators import Evaluators, check_encryption
from sealface.storage.galleries import Galleries


class WrongSubjects(InvalidInput):
    """A block has no subjects, or more than positions."""


@dataclass(frozen=True)
class NewTemplate:
    """A template as it arrives; see `EnrollRequest` in the contract."""

    gallery: str
    subject: str
    ciphertext: bytes
    key_version: str
    parameter_set: str
    request_id: str


@dataclass(frozen=True)
class NewBlock:
    """A block as it is announced; see `ImportBlockHeader` in the contract.

    Attributes:
        operation: id of the import that it is part of, if it is.
        size: bytes it must have; known once it is expected.
    """

    gallery: str
    columns: int
    subjects: tuple[str, ...]
    key_version: str
    parameter_set: str
    request_id: str
    operation: str = ""
    size: int = 0


class Enroller:
    """Admits and stores templates."""

    def __init__(self, galleries: Galleries, record: Record, scheme: Scheme) -> None:
        self._galleries = galleries
        self._record = record
        self._evaluators = Evaluators(galleries, scheme)

    def enroll(self, new: NewTemplate) -> Enrolled:
        """Check, randomise and store a template.

        Raises:
            InvalidName, GalleryNotFound, WrongKeyVersion, WrongParameterSet, MalformedCiphertext, RequestIdReused,
            TooManyTemplates: see there.
        """
        names.check_opaque(new.subject, "subject_id")
        names.check_opaque(new.request_id, "request_id")
        gallery = self._galleries.get(new.gallery)
        known = self._record.known_request(gallery.id, new.request_id, new.subject)
        if known is not None:
            return known
        check_encryption(gallery, new.key_version, new.parameter_set)
        admitted = self._evaluators.of(gallery).admit(new.ciphertext)
        return self._record.enroll(gallery.id, gallery.key_version, new.subject, admitted, new.request_id)

    def expect(self, new: NewBlock) -> NewBlock:
        """Check what is said of a block before its bytes arrive.

        Raises:
            InvalidName, GalleryNotFound, WrongKeyVersion, WrongParameterSet, UnknownShape, WrongSubjects: see there.
        """
        names.check_opaque(new.request_id, "request_id")
        gallery = self._galleries.get(new.gallery)
        check_encryption(gallery, new.key_version, new.parameter_set)
        shape = gallery.layout.shape(new.columns)
        if not shape.sealed:
            raise UnknownShape("a group is no sealed block: use more columns", columns=new.columns)
        if not 1 <= len(new.subjects) <= shape.capacity:
            raise WrongSubjects(f"a block of this shape holds 1 to {shape.capacity} templates", limit=shape.capacity)
        for subject in new.subjects:
            names.check_opaque(subject, "subject_id")
        return replace(new, size=block_size(shape))

    def import_block(self, new: NewBlock, ciphertext: bytes) -> Enrolled:
        """Check, randomise and store a block; returns its first slot.

        Raises:
            MalformedCiphertext, RequestIdReused, TooManyTemplates, OperationNotFound, OperationEnded: see there.
        """
        gallery = self._galleries.get(new.gallery)
        known = self._record.known_request(gallery.id, new.request_id, import_name(new.subjects))
        if known is not None:
            return known
        check_encryption(gallery, new.key_version, new.parameter_set)
        shape = gallery.layout.shape(new.columns)
        admitted = self._evaluators.of(gallery).admit_block(shape, ciphertext)
        return self._record.import_block(
            gallery.id,
            gallery.key_version,
            new.subjects,
            new.columns,
            shape.capacity,
            admitted,
            new.request_id,
            new.operation,
        )
