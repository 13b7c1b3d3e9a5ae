import pytest

from sealface.errors import InvalidInput
from sealface.protocol import names

GOOD_IDS = ["a", "door", "door-2", "a" * 64]
BAD_IDS = ["", "A", "2door", "-a", "a_b", "a/b", "a" * 65, "door\n", "dör", "a b", "..", "\0"]
GOOD_OPAQUE = ["a", "A.b_c-9", "0", "." * 64]
BAD_OPAQUE = ["", "a/b", "a b", "x" * 65, "a\n", "é", "a\0"]


@pytest.mark.parametrize("value", GOOD_IDS)
def test_an_id_of_the_form_is_taken(value):
    assert names.check_id(value, "key_id") == value
    assert names.id_of(f"keys/{value}", "keys") == value
    assert names.key_version(f"keys/{value}/versions/17") == (value, 17)


@pytest.mark.parametrize("value", BAD_IDS)
def test_another_id_is_refused_and_the_field_named(value):
    with pytest.raises(names.InvalidName) as caught:
        names.check_id(value, "key_id")
    assert caught.value.metadata == {"field": "key_id"}
    assert isinstance(caught.value, InvalidInput)
    for name in (f"keys/{value}", f"keys/{value}/versions/1", f"galleries/{value}/subjects/x"):
        with pytest.raises(names.InvalidName):
            (names.key_version if "versions" in name else names.subject)(name)
    with pytest.raises(names.InvalidName):
        names.id_of(f"keys/{value}", "keys")


@pytest.mark.parametrize("value", GOOD_OPAQUE)
def test_an_opaque_id_of_the_form_is_taken(value):
    assert names.check_opaque(value, "subject_id") == value
    assert names.subject(f"galleries/door/subjects/{value}") == ("door", value)


@pytest.mark.parametrize("value", BAD_OPAQUE)
def test_another_opaque_id_is_refused(value):
    with pytest.raises(names.InvalidName):
        names.check_opaque(value, "subject_id")
    with pytest.raises(names.InvalidName):
        names.subject(f"galleries/door/subjects/{value}")
    with pytest.raises(names.InvalidName):
        names.operation(f"galleries/door/operations/{value}")


@pytest.mark.parametrize(
    "name", ["", "door", "keys/", "/door", "galleries/door", "keys/door/", "keys//door", "Keys/door"]
)
def test_a_name_of_another_collection_is_refused(name):
    with pytest.raises(names.InvalidName):
        names.id_of(name, "keys")
    with pytest.raises(names.InvalidName):
        names.operation(name)


@pytest.mark.parametrize("number", ["0", "01", "-1", "", "1e3", "1/2", "9999999999", "１"])
def test_a_version_is_a_positive_number(number):
    with pytest.raises(names.InvalidName):
        names.key_version(f"keys/door/versions/{number}")
