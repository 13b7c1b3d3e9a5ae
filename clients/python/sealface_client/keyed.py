"""A gallery under one version of its key: what is encrypted, asked and opened with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from sealface.cipher.scheme import Encryptor
from sealface_client.held_keys import LocalJudge
from sealface_protos.enrollment.v1 import gallery_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as matching


@dataclass(frozen=True)
class Keyed:
    """It never changes, and a call holds one from its encryption to its answer.

    So what is encrypted under a version is called so, and opened under that, though the gallery is moved meanwhile.

    Attributes:
        info: the gallery as it was when it was fetched.
        encryptor: under the version that it was under.
        make_judge: of the holder of the key; fails for others.
    """

    info: gallery_pb2.Gallery
    encryptor: Encryptor
    make_judge: Callable[[], LocalJudge]

    @cached_property
    def judge(self) -> LocalJudge:
        """Opens scores and decides, for the holder of the key.

        Raises:
            SecretKeyMissing: the key is not held here.
        """
        return self.make_judge()

    def probe(self, ciphertext: bytes) -> matching.Probe:
        """An encrypted probe with the name of what it is encrypted under."""
        return matching.Probe(
            ciphertext=ciphertext, key_version=self.info.key_version, parameter_set=self.info.parameter_set
        )
