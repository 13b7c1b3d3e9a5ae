"""The table of needs: complete, and what the docs say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealface.protocol.rights import ALL, EVERYTHING, NEEDS, Grant, NotAllowed, Right, Role, granted
from sealface_protos.enrollment.v1 import enrollment_service_pb2 as enrollment
from sealface_protos.enrollment.v1 import operation_pb2
from sealface_protos.matching.v1 import matching_service_pb2 as matching

SERVICES = [
    enrollment.DESCRIPTOR.services_by_name["EnrollmentService"],
    operation_pb2.DESCRIPTOR.services_by_name["OperationService"],
    matching.DESCRIPTOR.services_by_name["MatchingService"],
]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}


def test_every_method_of_computes_services_has_its_need():
    assert set(NEEDS) == set(METHODS)


@pytest.mark.parametrize("method", sorted(NEEDS))
def test_every_field_that_names_a_gallery_is_there(method):
    need, described = NEEDS[method], METHODS[method].input_type
    for name in filter(None, need.field.split(".")):
        assert name in described.fields_by_name, f"{described.name} has no {name}"
        described = described.fields_by_name[name].message_type


@pytest.mark.parametrize(
    ("method", "message", "gallery"),
    [
        ("Enroll", enrollment.EnrollRequest(gallery="galleries/door"), "door"),
        ("EraseSubject", enrollment.EraseSubjectRequest(name="galleries/door/subjects/ada"), "door"),
        ("CreateGallery", enrollment.CreateGalleryRequest(gallery_id="door"), "door"),
        ("ListGalleries", enrollment.ListGalleriesRequest(), ALL),
        ("ImportBlock", enrollment.ImportBlockRequest(data=b"x"), ""),
        ("Enroll", enrollment.EnrollRequest(), ""),
    ],
)
def test_a_message_names_its_gallery(method, message, gallery):
    assert NEEDS[f"/sealface.enrollment.v1.EnrollmentService/{method}"].gallery(message) == gallery


def test_a_grant_is_for_its_gallery_and_an_admin_may_everything():
    one = [Grant(Role.VERIFIER, "door")]
    assert granted(one, [Role.VERIFIER], "door")
    assert not granted(one, [Role.VERIFIER], "hall")
    assert not granted(one, [Role.ENROLLER], "door")
    assert not granted(one, [Role.VERIFIER], ALL)
    assert granted([Grant(Role.VERIFIER, ALL)], [Role.VERIFIER], "hall")
    assert granted([Grant(Role.ADMIN, "door")], [Role.ENROLLER], "door")
    assert granted(EVERYTHING, [Role.AUDITOR], "hall")
    assert not granted([], list(Role), "door")


def test_what_is_not_granted_is_refused_with_what_would_be_needed():
    need = NEEDS["/sealface.enrollment.v1.EnrollmentService/Enroll"]
    with pytest.raises(NotAllowed, match="role enroller for this gallery"):
        Right("callers/a", (Grant(Role.VERIFIER, "door"),)).check(
            need, enrollment.EnrollRequest(gallery="galleries/door")
        )


def test_the_docs_have_the_table():
    text = (Path(__file__).parents[2] / "docs" / "authorisation.md").read_text()
    rows = []
    for method, need in NEEDS.items():
        may = " | ".join("yes" if granted([Grant(role, ALL)], need.roles, ALL) else "" for role in Role)
        service, name = method.split("/")[1:]
        rows.append(f"| `{service.split('.')[-1]}.{name}` | {may} |")
    table = "\n".join(["| method | " + " | ".join(Role) + " |", "|---" * 5 + "|", *rows])
    assert table in text, f"docs/authorisation.md is behind; it needs\n{table}"
