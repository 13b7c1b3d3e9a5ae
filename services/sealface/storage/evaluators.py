"""Evaluators of galleries, by their stored public keys."""

from __future__ import annotations

import threading
from collections import OrderedDict

from sealface.cipher.scheme import Evaluator, Scheme
from sealface.errors import InvalidInput
from sealface.storage.galleries import Galleries, Gallery


class WrongKeyVersion(InvalidInput):
    """A ciphertext is under another key version than the gallery's."""


class WrongParameterSet(InvalidInput):
    """A ciphertext is under another parameter set than the gallery's."""


def wrong_key_version(expected: str) -> WrongKeyVersion:
    """The error for a ciphertext that is not under the gallery's."""
    return WrongKeyVersion("encrypted under another key version: encrypt under the gallery's", expected=expected)


def check_encryption(gallery: Gallery, key_version: str, parameter_set: str) -> None:
    """Whether a ciphertext says it is encrypted as the gallery's are.

    Raises:
        WrongKeyVersion, WrongParameterSet: it is not.
    """
    if key_version != gallery.key_version:
        raise wrong_key_version(gallery.key_version)
    if parameter_set != gallery.layout.parameters.name:
        raise WrongParameterSet(
            "encrypted under another parameter set: encrypt under the gallery's",
            expected=gallery.layout.parameters.name,
        )


class Evaluators:
    """Evaluators by gallery: public and evaluation keys parsed once.

    Args:
        galleries: the record.
        scheme: the cipher.
        threads: how many an expansion may use.
        most: evaluators held.
    """

    def __init__(self, galleries: Galleries, scheme: Scheme, threads: int = 1, most: int = 64) -> None:
        self._galleries = galleries
        self._scheme = scheme
        self._threads = threads
        self._most = most
        self._held: OrderedDict[tuple[str, int, str], Evaluator] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, gallery: Gallery) -> Evaluator:
        """The evaluator of a gallery under its key version.

        Raises:
            GalleryNotFound: it has no more to do with that version.
            TemplateDamaged: a key does not match its digest.
        """
        name = gallery.identity
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
                return self._held[name]
        evaluator = self._scheme.evaluator(
            gallery.layout,
            self._galleries.public_key(gallery.id, gallery.key_version),
            self._galleries.evaluation_keys(gallery.id, gallery.key_version),
            self._threads,
        )
        with self._lock:
            self._held[name] = evaluator
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return evaluator
