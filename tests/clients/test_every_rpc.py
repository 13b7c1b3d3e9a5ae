"""Every method of the services answers rightly once; a method added to the contract fails here until it does."""

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sealface.cipher.parameters import N4096
from sealface.protocol import convert, sealing
from sealface.protocol.audit import check
from sealface.protocol.policy import Policy
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as enrollment
from sealface_protos.enrollment.v1 import gallery_pb2, operation_pb2
from sealface_protos.keys.v1 import audit_pb2, caller_pb2, key_pb2, key_service_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as matching
from tests.conftest import POLICY, both_schemes, person
from tests.enrollment.conftest import (
    create_gallery,
    description,
    enroll_request,
    import_data,
    import_header,
    import_messages,
)
from tests.keys.conftest import ask, create_key, new_key
from tests.matching.conftest import identify_request, verify_request

DESCRIPTORS = [
    key_service_pb2.DESCRIPTOR.services_by_name["KeyService"],
    enrollment.DESCRIPTOR.services_by_name["EnrollmentService"],
    matching.DESCRIPTOR.services_by_name["MatchingService"],
    operation_pb2.DESCRIPTOR.services_by_name["OperationService"],
]
METHODS = {method.name for service in DESCRIPTORS for method in service.methods}
CALLER = caller_pb2.Caller(verifying_key=bytes(32), role=caller_pb2.CALLER_ROLE_VERIFIER)
GRANT = caller_pb2.Grant(role=caller_pb2.GALLERY_ROLE_ENROLLER, gallery="galleries/door")


async def stream(call):
    return [part async for part in call]


async def answer_audit(call, client):
    """The methods for operators; something was decided under the key `door`."""
    keys = client.keys
    spent = await call("ListUsage", keys.ListUsage(audit_pb2.ListUsageRequest(parent="keys/door")))
    assert [(one.caller, one.decisions) for one in spent.usage] == [("callers/operator", 1)]
    head = await call("GetAuditHead", keys.GetAuditHead(audit_pb2.GetAuditHeadRequest()))
    found = await call("ExportAudit", stream(client.audit.lines()))
    assert check(found[: head.number]).last == head.digest
    asked = audit_pb2.GetPseudonymRequest(gallery="galleries/door", slot=1)
    assert len((await call("GetPseudonym", keys.GetPseudonym(asked))).pseudonym) == 32


async def answer_versions(call, keys, public):
    """The methods of key versions; the keys `door` and `safe` are there, and stay."""
    k = key_service_pb2
    other = new_key(exportable=True)
    await keys.CreateKey(k.CreateKeyRequest(key_id="other", key=other))
    first, second = "keys/other/versions/1", "keys/other/versions/2"
    rotated = await call("RotateKey", keys.RotateKey(k.RotateKeyRequest(name="keys/other", primary_version=first)))
    assert rotated.primary_version == second
    held = k.RegisterKeyVersionRequest(name="keys/safe", primary_version="keys/safe/versions/1", public_key=public)
    registered = await call("RegisterKeyVersion", keys.RegisterKeyVersion(held))
    assert registered.primary_version == "keys/safe/versions/2"
    receiver = X25519PrivateKey.generate()
    export = k.ExportKeyVersionRequest(name=second, hpke_public_key=receiver.public_key().public_bytes_raw())
    exported = await call("ExportKeyVersion", keys.ExportKeyVersion(export))
    assert sealing.open_secret(exported.box, second, receiver)
    updated = await call("UpdateKey", keys.UpdateKey(k.UpdateKeyRequest(name="keys/other", oldest_version=2)))
    assert updated.oldest_version == 2
    disabled = k.UpdateKeyVersionRequest(name=first, state=key_pb2.KEY_VERSION_STATE_DISABLED)
    version = await call("UpdateKeyVersion", keys.UpdateKeyVersion(disabled))
    assert version.state == key_pb2.KEY_VERSION_STATE_DISABLED
    version = await call("DestroyKeyVersion", keys.DestroyKeyVersion(k.DestroyKeyVersionRequest(name=first)))
    assert version.state == key_pb2.KEY_VERSION_STATE_DESTROY_SCHEDULED
    version = await call("RestoreKeyVersion", keys.RestoreKeyVersion(k.RestoreKeyVersionRequest(name=first)))
    assert version.state == key_pb2.KEY_VERSION_STATE_DISABLED
    version = await call("GetKeyVersion", keys.GetKeyVersion(k.GetKeyVersionRequest(name=second)))
    assert (version.exported, version.security_bits, version.quantum_secure) == (True, 128, True)
    listed = await call("ListKeyVersions", keys.ListKeyVersions(k.ListKeyVersionsRequest(parent="keys/other")))
    assert [version.name for version in listed.versions] == [second, first]


@both_schemes
async def test_every_method_of_the_contract_answers(suite, client):
    keys, records, searches = client.keys, client.enrollment, client.matching
    made = client.scheme.generate(N4096)
    element, evaluation = next(iter(made.evaluation.items()))
    answered = {}

    async def call(method, awaitable):
        answered[method] = await awaitable
        return answered[method]

    k = key_service_pb2
    held = new_key(custody=key_pb2.CUSTODY_CLIENT_HELD)
    await call("CreateKey", create_key(client))
    await call("RegisterKey", keys.RegisterKey(k.RegisterKeyRequest(key_id="safe", key=held, public_key=made.public)))
    await call(
        "UploadEvaluationKey",
        keys.UploadEvaluationKey(
            k.UploadEvaluationKeyRequest(
                key_version="keys/safe/versions/1", galois_element=element, evaluation_key=evaluation
            )
        ),
    )
    assert (await call("GetKey", keys.GetKey(k.GetKeyRequest(name="keys/safe")))).custody == key_pb2.CUSTODY_CLIENT_HELD
    assert len((await call("ListKeys", keys.ListKeys(k.ListKeysRequest()))).keys) == 2
    rule = convert.policy_to_proto(Policy(0.4, 0.3, max_candidates=4))
    updated = await call("UpdatePolicy", keys.UpdatePolicy(k.UpdatePolicyRequest(name="keys/door", policy=rule)))
    assert updated.policy.max_candidates == 4
    await answer_versions(call, keys, client.scheme.generate(N4096).public)
    rewrapped = await call("RewrapKeys", keys.RewrapKeys(k.RewrapKeysRequest()))
    assert (rewrapped.current, rewrapped.rewrapped) == (5, 0)
    request = k.GetMaterialRequest(key_version="keys/safe/versions/1")
    assert b"".join(c.data for c in await call("GetMaterial", stream(keys.GetMaterial(request)))) == made.public
    await call("CreateCaller", keys.CreateCaller(k.CreateCallerRequest(caller_id="bob", caller=CALLER)))
    assert len((await call("ListCallers", keys.ListCallers(k.ListCallersRequest()))).callers) == 2
    granted = k.UpdateCallerRequest(name="callers/bob", grants=[GRANT])
    assert [*(await call("UpdateCaller", keys.UpdateCaller(granted))).grants] == [GRANT]
    found = await call("FindCaller", keys.FindCaller(k.FindCallerRequest(name="callers/bob")))
    assert [*found.grants] == [GRANT]
    await call("DeleteCaller", keys.DeleteCaller(k.DeleteCallerRequest(name="callers/bob")))
    identity = await call("GetServiceIdentity", keys.GetServiceIdentity(k.GetServiceIdentityRequest()))
    asked = ask(suite.operator, b"probe")
    sealed = await call("Decide", keys.Decide(iter([k.DecideRequest(request=asked.signed)])))
    assert asked.read(sealed).outcome == 2
    await answer_audit(call, client)
    layout = convert.layout_from_proto("ckks-n4096-v1", answered["CreateKey"].score_format)
    shape, version = layout.sealed_shapes[0], "keys/door/versions/1"
    door_public = b"".join(c.data for c in await stream(keys.GetMaterial(k.GetMaterialRequest(key_version=version))))
    evaluator, encryptor = (make(layout, door_public) for make in (client.scheme.evaluator, client.scheme.encryptor))
    blinded, _ = evaluator.blind(shape, encryptor.block(shape, person(1)[None]))
    header = k.RenewBlockHeader(key_version=version, columns=shape.columns, cleared=bytes(shape.capacity // 8))
    parts = [k.RenewBlockRequest(header=header), k.RenewBlockRequest(data=blinded)]
    renewed = await call("RenewBlock", stream(keys.RenewBlock(iter(parts))))
    assert len(b"".join(part.data for part in renewed)) == len(blinded)

    e = enrollment
    await call("CreateGallery", create_gallery(client, "door", description()))
    door = await client.gallery("door")
    await call("GetGallery", records.GetGallery(e.GetGalleryRequest(name="galleries/door")))
    assert len((await call("ListGalleries", records.ListGalleries(e.ListGalleriesRequest()))).galleries) == 1
    assert (await call("Enroll", records.Enroll(enroll_request(door, "ann", person(1))))).template.slot == 1
    item = e.BatchEnrollRequest(request=enroll_request(door, "bob", person(2)))
    (result,) = await call("BatchEnroll", stream(records.BatchEnroll(iter([item]))))
    assert result.enrolled.template.slot == 2
    parts = import_messages(import_header(door, ["cyd", "dan"]), import_data(door, [person(3), person(4)]))
    assert (await call("ImportBlock", records.ImportBlock(iter(parts)))).first_slot == 3
    ann = "galleries/door/subjects/ann"
    assert len((await call("GetSubject", records.GetSubject(e.GetSubjectRequest(name=ann)))).templates) == 1
    listed = await call("ListSubjects", records.ListSubjects(e.ListSubjectsRequest(parent="galleries/door")))
    assert len(listed.subjects) == 4
    changes = e.ListSlotChangesRequest(gallery="galleries/door")
    (part,) = await call("ListSlotChanges", stream(records.ListSlotChanges(changes)))
    assert len(part.changes) == 4

    request, pending = verify_request(door, person(1), [1])
    verified = await call("Verify", searches.Verify(request))
    assert pending.read(verified.decision, identity.verifying_key)[0].candidates[0].slot == 1
    request, pending = identify_request(door, person(2))
    (found,) = await call("Identify", stream(searches.Identify(request)))
    assert pending.read(found.decision, identity.verifying_key)[0].candidates[0].slot == 2
    request, pending = identify_request(door, person(2))
    item = matching.BatchIdentifyRequest(request=request)
    first, last = await call("BatchIdentify", stream(searches.BatchIdentify(iter([item]))))
    assert pending.read(first.response.decision, identity.verifying_key)[0].candidates[0].slot == 2
    assert last.last

    request, pending = verify_request(door, person(4), [4])
    verified = await searches.Verify(request)
    assert pending.read(verified.decision, identity.verifying_key)[0].candidates[0].slot == 4

    o, long = operation_pb2, client.operations
    retained = e.UpdateGalleryRequest(gallery=gallery_pb2.Gallery(name="galleries/door"))
    retained.gallery.retention.seconds = 86_400
    retained.update_mask.paths.append("retention")
    assert (await call("UpdateGallery", records.UpdateGallery(retained))).retention.seconds == 86_400
    begin = o.BeginImportRequest(gallery="galleries/door", operation_id="i", templates=5)
    assert (await call("BeginImport", long.BeginImport(begin))).total == 5
    begin = o.BeginCompactionRequest(gallery="galleries/door", operation_id="c")
    assert (await call("BeginCompaction", long.BeginCompaction(begin))).kind == o.OPERATION_KIND_COMPACTION
    begin = o.BeginErasureRequest(name="galleries/door/subjects/bob", operation_id="e")
    assert (await call("BeginErasure", long.BeginErasure(begin))).kind == o.OPERATION_KIND_ERASURE
    begin = o.BeginRotationRequest(gallery="galleries/door", operation_id="r")
    rotation = await call("BeginRotation", long.BeginRotation(begin))
    assert (rotation.state, rotation.rotated.key_version) == (o.OPERATION_STATE_DONE, "keys/door/versions/1")
    looked = await call("GetOperation", long.GetOperation(o.GetOperationRequest(name="galleries/door/operations/i")))
    assert looked.state == o.OPERATION_STATE_RUNNING
    listed = await call("ListOperations", long.ListOperations(o.ListOperationsRequest(parent="galleries/door")))
    assert {one.name.rpartition("/")[2] for one in listed.operations} == {"i", "c", "e", "r"}
    ended = o.CancelOperationRequest(name="galleries/door/operations/i")
    assert (await call("CancelOperation", long.CancelOperation(ended))).state == o.OPERATION_STATE_CANCELLED
    checked = matching.CheckErasureRequest(gallery="galleries/door", slots=[2])
    assert (await call("CheckErasure", searches.CheckErasure(checked))).workers == 1

    renewal = records.RenewBlocks(iter([e.RenewBlocksRequest(gallery="galleries/door")]))
    with pytest.raises(grpc.aio.AioRpcError, match="by itself"):  # the key is managed
        await stream(renewal)
    answered["RenewBlocks"] = None

    erased = await call("EraseSubject", records.EraseSubject(e.EraseSubjectRequest(name=ann)))
    assert erased.templates == 1
    gone = await call("DeleteGallery", records.DeleteGallery(e.DeleteGalleryRequest(name="galleries/door")))
    assert gone.templates == 2
    assert set(answered) == METHODS


async def test_the_client_offers_no_method_that_the_contract_has_not(client):
    assert POLICY.version == 1
    stubs = (client.keys, client.enrollment, client.matching, client.operations)
    for stub, descriptor in zip(stubs, DESCRIPTORS, strict=True):
        offered = {name for name in vars(stub) if name[0].isupper()}
        assert offered == {method.name for method in descriptor.methods}
    with pytest.raises(AttributeError):
        client.keys.ExportKey  # noqa: B018
