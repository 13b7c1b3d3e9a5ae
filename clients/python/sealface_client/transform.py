"""Secret orthogonal transforms: an embedding of one gallery is of no use in another (docs/adr/0020).

A gallery may have a matrix Q of its own, secret and orthogonal; x is encrypted as x Q, templates and probes alike.
Inner products and norms are kept, so every metric gives what it gave; whoever gets hold of x Q learns nothing of x but
its length, without Q. Q is drawn uniformly (Haar) from a seed of 32 bytes: the QR decomposition of a matrix of
independent normal deviates with the signs of R's diagonal moved into Q (Mezzadri 2007, How to generate random matrices
from the classical compact groups). The deviates come from SHAKE-256 by the transform of Box and Muller, in the order
of rows: everywhere the same, up to rounding.

The gallery holds a digest of the seed, which tells callers whether they hold the right one.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from sealface.cipher.layout import Layout, Shape
from sealface.cipher.scheme import Encryptor
from sealface.errors import InvalidInput, NotFound, WrongState
from sealface_client import secret_file
from sealface_client.key_folder import KeyFolder, SecretKeyMissing
from sealface_protos.enrollment.v1 import gallery_pb2

SEED_BYTES = 32
_DIGEST, _MATRIX = b"sealface transform v1\0", b"sealface transform matrix v1\0"
_NAME = re.compile(r"galleries/([a-z][a-z0-9-]{0,63})/transforms/([0-9a-f]{16})")


class TransformMissing(NotFound):
    """The gallery has a transform, and its seed is not on this machine."""


class TransformLeft(WrongState):
    """The gallery has no transform, and a seed of one for it is on this machine."""


class WrongSeed(InvalidInput):
    """A seed is not that of its transform."""


class Transform:
    """The transform of a gallery.

    Args:
        gallery_id: the gallery; the same seed gives another matrix in another gallery.
        seed: 32 random bytes.
    """

    def __init__(self, gallery_id: str, seed: bytes) -> None:
        self._gallery_id = gallery_id
        self.seed = seed

    @classmethod
    def generate(cls, gallery_id: str) -> Transform:
        """A fresh one."""
        return cls(gallery_id, os.urandom(SEED_BYTES))

    @cached_property
    def digest(self) -> bytes:
        """What the gallery tells of it, 32 bytes."""
        return hashlib.sha256(_DIGEST + self._gallery_id.encode() + b"\0" + self.seed).digest()

    @property
    def name(self) -> str:
        """What its seed is kept under: `galleries/{gallery}/transforms/{start of the digest}`."""
        return _name(self._gallery_id, self.digest)

    def matrix(self, dimension: int) -> NDArray[np.float64]:
        """Q, (dimension, dimension), to be multiplied from the right. It takes 5 s at 4,096, and is kept."""
        return _matrix(self._gallery_id, self.seed, dimension)


def check_seed(name: str, seed: bytes) -> None:
    """Whether a seed is what its name says.

    Raises:
        WrongSeed: it is not.
    """
    match = _NAME.fullmatch(name)
    if match is None or len(seed) != SEED_BYTES or Transform(match[1], seed).name != name:
        raise WrongSeed("the file holds no seed of a transform by its name: export it again", name=name)


def export_transform(folder: KeyFolder, gallery: gallery_pb2.Gallery, passphrase: str) -> bytes:
    """The seed of a gallery's transform as a file (`secret_file`); `AsyncLifecycle.receive` takes it in elsewhere.

    Raises:
        TransformMissing: it is not here, or the gallery has no transform.
        PassphraseTooShort, PassphraseNeeded, WrongPassphrase, SecretFileDamaged: see there.
    """
    if not gallery.transform_digest:
        raise TransformMissing("the gallery has no transform: there is nothing to export")
    seed = _seed(folder, gallery)
    return secret_file.seal(_name(gallery.name.removeprefix("galleries/"), gallery.transform_digest), seed, passphrase)


def refuse_left(folder: KeyFolder, gallery_id: str) -> None:
    """Refuse a gallery without a transform where one for it is kept.

    Compute says whether a gallery has one. If it took that away, callers would encrypt embeddings as they are.

    Raises:
        TransformLeft: there is one.
    """
    for name in folder.names():
        match = _NAME.fullmatch(name)
        if match and match[1] == gallery_id:
            raise TransformLeft(
                "a transform for a gallery of that name is kept here, and the gallery has none: enrol nobody, ask its "
                "operator; if it was made anew, move the transform's file out of the key folder",
                name=name,
            )


def transformed(encryptor: Encryptor, folder: KeyFolder, gallery: gallery_pb2.Gallery, layout: Layout) -> Encryptor:
    """An encryptor that applies the gallery's transform first; without one it is the same.

    The seed is read when the first embedding is encrypted, and not before: what needs no embedding needs no seed.
    """
    if not gallery.transform_digest and not folder.names():
        return encryptor
    gallery_id = gallery.name.removeprefix("galleries/")

    def load() -> NDArray[np.float64] | None:
        """The matrix; None if the gallery has no transform.

        Raises:
            TransformMissing, TransformLeft, WrongSeed: see there.
        """
        if not gallery.transform_digest:
            refuse_left(folder, gallery_id)
            return None
        return Transform(gallery_id, _seed(folder, gallery)).matrix(layout.dimension)

    return _Transformed(encryptor, layout, load)


class _Transformed:
    """See `transformed`. For one thread at a time."""

    def __init__(self, inner: Encryptor, layout: Layout, load: Callable[[], NDArray[np.float64] | None]) -> None:
        self._inner = inner
        self._layout = layout
        self._load = load

    @cached_property
    def _matrix(self) -> NDArray[np.float64] | None:
        return self._load()

    def template(self, embedding: NDArray[np.float64]) -> bytes:
        """See `Encryptor`."""
        return self._inner.template(self._apply(embedding)[0])

    def probe(self, embedding: NDArray[np.float64]) -> bytes:
        """See `Encryptor`."""
        return self._inner.probe(self._apply(embedding)[0])

    def block(self, shape: Shape, embeddings: NDArray[np.float64]) -> bytes:
        """See `Encryptor`."""
        return self._inner.block(shape, self._apply(*embeddings))

    def _apply(self, *embeddings: NDArray[np.float64]) -> NDArray[np.float64]:
        vectors = np.stack([self._layout.checked(embedding) for embedding in embeddings])
        if self._matrix is None:
            return vectors
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused where it is encrypted
            return vectors @ self._matrix


def _seed(folder: KeyFolder, gallery: gallery_pb2.Gallery) -> bytes:
    gallery_id = gallery.name.removeprefix("galleries/")
    name = _name(gallery_id, gallery.transform_digest)
    try:
        seed = folder.load(name)
    except SecretKeyMissing:
        raise TransformMissing(
            "the gallery's embeddings are transformed, and the seed is not on this machine: import it "
            "(`sealface keys import`)",
            name=name,
        ) from None
    if Transform(gallery_id, seed).digest != gallery.transform_digest:
        raise WrongSeed("the seed that is kept here is not that of the gallery's transform: import it", name=name)
    return seed


def _name(gallery_id: str, digest: bytes) -> str:
    return f"galleries/{gallery_id}/transforms/{digest.hex()[:16]}"


@lru_cache(maxsize=4)
def _matrix(gallery_id: str, seed: bytes, dimension: int) -> NDArray[np.float64]:
    context = _MATRIX + gallery_id.encode() + b"\0" + struct.pack(">I", dimension) + seed
    count = dimension * dimension
    words = np.frombuffer(hashlib.shake_256(context).digest(16 * ((count + 1) // 2)), "<u8")
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53  # never 0
    radius, angle = np.sqrt(-2.0 * np.log(uniform[0::2])), 2.0 * np.pi * uniform[1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:count]
    q, r = np.linalg.qr(normal.reshape(dimension, dimension))
    matrix: NDArray[np.float64] = q * np.sign(np.diag(r))
    matrix.flags.writeable = False
    return matrix
