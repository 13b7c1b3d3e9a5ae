"""The forms: each takes bytes, and returns or refuses them with an error of ours; whatever else is raised is a bug.

A form is what the service does with the bytes, from the message's parser down to what opens ciphertexts; the gRPC in
between, the signatures and the database are tests/keys/test_fuzz.py's. `samples` are right ones to begin from.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sealface.cipher.parameters import N4096
from sealface.cipher.scheme import Ckks
from sealface.errors import SealfaceError
from sealface.keys import messages, wrapping
from sealface.keys.budgets import Account
from sealface.keys.judge import Hearing
from sealface.keys.keyring import Keyring
from sealface.keys.providers import FileKey
from sealface.keys.renewal import Announced, Renewal
from sealface.protocol import convert, names, sealing, signing
from sealface.protocol.policy import Policy
from sealface.protocol.scores import result_from_wire
from sealface.protocol.signing import Credential
from sealface.runtime.interceptors import parsed
from sealface.storage.schema import KEYS
from sealface_protos.keys.v1 import decision_pb2, key_pb2
from sealface_protos.keys.v1 import key_service_pb2 as service

POLICY = Policy(0.4, 0.3, curve=((0.01, 1e-3), (0.02, 1e-2)), target_fpir=0.01)
FORMAT = key_pb2.ScoreFormat(dimension=128, metric=key_pb2.METRIC_COSINE)


@dataclass(frozen=True)
class Form:
    """A form: what is done with its bytes, and right ones to begin from."""

    feed: Callable[[bytes], Any]
    samples: tuple[bytes, ...]

    def try_(self, data: bytes) -> bool:
        """Whether the bytes were taken; they are refused by an error of ours, or this raises."""
        try:
            self.feed(data)
        except SealfaceError as error:
            assert error.reason
            assert len(error.message) < 400
            return False
        return True


class Forms:
    """All forms of one key service, with a key `door` of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sealface-fuzz-")
        folder = Path(self._folder.name)
        FileKey.create(folder / "key")
        self.provider = wrapping.KeyEncryption(FileKey(folder / "key"))
        self.scheme = Ckks()
        self.keyring = Keyring(KEYS.open_file(folder / "keys.db"), self.scheme, self.provider)
        self.layout = convert.layout_from_proto(N4096.name, FORMAT)
        self.keyring.create("door", self.layout, POLICY)
        self.material = self.scheme.generate(N4096)
        self.public = self.keyring.public_key("door", 1)
        self.credential = Credential.generate("callers/alice")
        self.receiver = X25519PrivateKey.generate()

    def close(self) -> None:
        self._folder.cleanup()

    @cached_property
    def all(self) -> dict[str, Form]:
        key = key_pb2.Key(custody=1, score_format=FORMAT, policy=convert.policy_to_proto(POLICY))
        create = service.CreateKeyRequest(key_id="new", key=key).SerializeToString()
        register = service.RegisterKeyRequest(key_id="new", key=key, public_key=self.material.public)
        element, evaluation = next(iter(self.material.evaluation.items()))
        upload = service.UploadEvaluationKeyRequest(
            key_version="keys/door/versions/1", galois_element=element, evaluation_key=evaluation
        )
        version = service.UpdateKeyVersionRequest(name="keys/door/versions/1", state=2).SerializeToString()
        secret = wrapping.wrap(self.provider, b"secret" * 9, "keys/door/versions/1")
        sealed = self._sealed()
        return {
            "decision request": Form(messages.request_from_proto, (self._request().SerializeToString(),)),
            "results": Form(self._results, (self._decide(),)),
            "renewal": Form(self._renewal, (self._renew_header(),)),
            "renewed block": Form(self._block, (self._blinded(),)),
            "key": Form(self._key, (create,)),
            "public key": Form(self._public, (register.SerializeToString(),)),
            "evaluation key": Form(self._evaluation, (upload.SerializeToString(),)),
            "key version": Form(self._version, (version,)),
            "caller": Form(self._caller, (service.DeleteCallerRequest(name="callers/a").SerializeToString(),)),
            "wrapped secret": Form(self._unwrap, (secret,)),
            "sealed decision": Form(self._open, (sealed,)),
            "signature": Form(self._verify, (self.credential.sign_decision_request(b"x"),)),
        }

    def _request(self) -> decision_pb2.DecisionRequest:
        request = decision_pb2.DecisionRequest(
            request_id="r",
            nonce=os.urandom(32),
            caller="callers/alice",
            gallery="galleries/door",
            key_version="keys/door/versions/1",
            operation=decision_pb2.OPERATION_IDENTIFY,
            max_candidates=3,
            probe_digest=hashlib.sha256(b"probe").digest(),
            hpke_public_key=self.receiver.public_key().public_bytes_raw(),
        )
        request.expire_time.FromSeconds(int(time.time()) + 60)
        return request

    def _decide(self) -> bytes:
        evaluator = self.scheme.evaluator(self.layout, self.public)
        encryptor = self.scheme.encryptor(self.layout, self.public)
        group, vector = self.layout.group, np.eye(1, 128)[0]
        block = evaluator.assemble({0: evaluator.admit(encryptor.template(vector))})
        leaves = evaluator.expand([evaluator.admit_probe(encryptor.probe(vector))], {group})[group]
        ((data,),) = evaluator.score([block], leaves, [np.arange(group.capacity) == 0])
        slots = np.zeros(group.capacity, "<u4")
        slots[0] = 1
        result = decision_pb2.ScoreResult(columns=1, ciphertext=data, slots=slots.tobytes())
        links = [decision_pb2.SlotLink(slot=1, lead=1)]
        return service.DecideRequest(results=[result], links=links, share_searched=1).SerializeToString()

    def _results(self, data: bytes) -> None:
        message = parsed(service.DecideRequest.FromString, data)
        request = messages.request_from_proto(self._request().SerializeToString())
        account = Account("alice", "door", 1)
        hearing = Hearing(request, account, 1, self.keyring.get("door"), self.keyring.opener("door", 1))
        hearing.hear([result_from_wire(item.columns, item.ciphertext, item.slots) for item in message.results])
        links = np.array([(link.slot, link.lead) for link in message.links], np.uint32).reshape(-1, 2)
        messages.decision_to_proto(hearing.verdict(links), message.share_searched)

    def _renew_header(self) -> bytes:
        shape = self.layout.sealed_shapes[0]
        header = service.RenewBlockHeader(
            key_version="keys/door/versions/1", columns=shape.columns, cleared=bytes(shape.capacity // 8)
        )
        return service.RenewBlockRequest(header=header).SerializeToString()

    def _expect(self, data: bytes) -> Renewal:
        header = parsed(service.RenewBlockRequest.FromString, data).header
        announced = Announced(
            header.key_version, header.columns, header.cleared, header.target_version, header.templates
        )
        return Renewal.expect(self.keyring, announced)

    def _renewal(self, data: bytes) -> None:
        self._expect(data).check_size(len(data))

    def _blinded(self) -> bytes:
        shape = self.layout.sealed_shapes[0]
        evaluator = self.scheme.evaluator(self.layout, self.public)
        block = self.scheme.encryptor(self.layout, self.public).block(shape, np.eye(1, 128))
        return evaluator.blind(shape, block)[0]

    def _block(self, data: bytes) -> None:
        renewal = self._expect(self._renew_header())
        renewal.check_size(len(data))
        assert len(renewal.renew(data)) == len(data)

    @staticmethod
    def _key(data: bytes) -> None:
        message = parsed(service.CreateKeyRequest.FromString, data)
        names.check_id(message.key_id, "key_id")
        convert.layout_from_proto(message.key.parameter_set, message.key.score_format)
        policy = convert.policy_from_proto(message.key.policy)
        assert policy.search_threshold(1000) <= max(policy.identification_threshold, 0)

    def _public(self, data: bytes) -> None:
        message = parsed(service.RegisterKeyRequest.FromString, data)
        self.scheme.check_public(N4096, message.public_key)

    def _evaluation(self, data: bytes) -> None:
        message = parsed(service.UploadEvaluationKeyRequest.FromString, data)
        names.key_version(message.key_version)
        self.scheme.check_evaluation(N4096, message.evaluation_key)

    def _version(self, data: bytes) -> None:
        message = parsed(service.UpdateKeyVersionRequest.FromString, data)
        self.keyring.version(*names.key_version(message.name))

    @staticmethod
    def _caller(data: bytes) -> None:
        names.id_of(parsed(service.DeleteCallerRequest.FromString, data).name, "callers")

    def _unwrap(self, data: bytes) -> None:
        wrapping.unwrap(self.provider, data, "keys/door/versions/1")

    def _sealed(self) -> bytes:
        return sealing.seal(b"decision", b"binding", self.receiver.public_key().public_bytes_raw())

    def _open(self, data: bytes) -> None:
        sealing.open_box(data, b"binding", self.receiver)

    def _verify(self, data: bytes) -> None:
        signing.verify_decision_request(self.credential.verifying_key, b"x", data)
