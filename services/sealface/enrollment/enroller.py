"""A ciphertext from outside to a stored template."""

from __future__ import annotations

from dataclasses import dataclass

from sealface.cipher.scheme import Scheme
from sealface.enrollment.record import Enrolled, Record
from sealface.protocol import names
from sealface.storage.evaluators import Evaluators, check_encryption
from sealface.storage.galleries import Galleries


@dataclass(frozen=True)
class NewTemplate:
    """A template as it arrives; see `EnrollRequest` in the contract."""

    gallery: str
    subject: str
    ciphertext: bytes
    key_version: str
    parameter_set: str
    request_id: str


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
