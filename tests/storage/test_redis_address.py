"""Addresses of Redis as URLs: what is meant, what is refused, and that no password shows."""

import pytest

from sealface.storage.redis_address import RedisAddress, WrongRedisAddress


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "service", "options"),
    [
        ("redis://localhost", "", [("localhost", 6379)], "", {}),
        ("redis://10.0.0.1:7000/3", "", [("10.0.0.1", 7000)], "", {"db": 3}),
        ("redis://[::1]:7000", "", [("::1", 7000)], "", {}),
        (
            "redis://ann:p%40ss%3Aw%2Frd@h:1/0",
            "",
            [("h", 1)],
            "",
            {"username": "ann", "password": "p@ss:w/rd"},
        ),
        ("redis://:secret@h", "", [("h", 6379)], "", {"password": "secret"}),
        ("rediss://h", "", [("h", 6379)], "", {"ssl": True}),
        ("redis+cluster://a:1,b,[::1]:3", "cluster", [("a", 1), ("b", 6379), ("::1", 3)], "", {}),
        ("rediss+cluster://:s@a:1/", "cluster", [("a", 1)], "", {"ssl": True, "password": "s"}),
        ("redis+sentinel://a:1,b/faces", "sentinel", [("a", 1), ("b", 26379)], "faces", {}),
        ("redis+sentinel://:s@a/faces/2", "sentinel", [("a", 26379)], "faces", {"password": "s", "db": 2}),
    ],
)
def test_an_address_is_understood(url, kind, nodes, service, options):
    address = RedisAddress.parse(url)
    assert (address.kind, list(address.nodes), address.service) == (kind, nodes, service)
    assert address.options == options


def test_files_and_what_sentinels_want_to_know_are_in_the_query(tmp_path):
    authority, own = tmp_path / "root crt", tmp_path / "own.key"
    authority.write_text("x")
    own.write_text("x")
    named = f"ssl_ca_certs={str(authority).replace(' ', '%20')}&ssl_keyfile={own}"
    address = RedisAddress.parse(
        f"rediss+sentinel://:s@a/faces?{named}&sentinel_username=eve&sentinel_password=o%26ther"
    )
    tls = {"ssl": True, "ssl_ca_certs": str(authority), "ssl_keyfile": str(own)}
    assert address.options == tls | {"password": "s"}
    assert address.sentinel_options == tls | {"username": "eve", "password": "o&ther"}
    assert sorted(address.files) == sorted([str(authority), str(own)])
    assert RedisAddress.parse("rediss://h").files == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://h",
        "unix:///tmp/redis.sock",
        "redis://",
        "redis://:pa55word@",
        "redis://:pa55word@a,b",
        "redis://:pa55word@h:port",
        "redis://:pa55word@h:99999",
        "redis://:pa55word@h/x",
        "redis://:pa55word@h/-1",
        "redis://:pa55word@h/0/1",
        "redis://:pa55word@h/0#x",
        "redis://:pa55word@h?ssl_cert_reqs=none",
        "rediss://:pa55word@h?ssl_cert_reqs=none",
        "rediss://:pa55word@h?ssl_check_hostname=false",
        "rediss://:pa55word@h?ssl_ca_certs=/nowhere/at/all",
        "redis://:pa55word@h?ssl_ca_certs=/etc/hosts",
        "redis://:pa55word@h?sentinel_password=x",
        "redis://:pa55word@h?db=1",
        "redis://:pa55word@h?nothing",
        "redis+cluster://:pa55word@h/1",
        "redis+cluster://:pa55word@a,,b",
        "redis+sentinel://:pa55word@h",
        "redis+sentinel://:pa55word@h/",
        "redis+sentinel://:pa55word@h/faces/x",
        "redis+other://:pa55word@h",
    ],
)
def test_anything_else_is_refused_without_being_repeated(url):
    with pytest.raises(WrongRedisAddress) as caught:
        RedisAddress.parse(url)
    for told in (str(caught.value), repr(caught.value), str(caught.value.metadata)):
        assert "pa55word" not in told and "nowhere" not in told
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_password_shows():
    address = RedisAddress.parse("redis+sentinel://ann:pa55word@h/faces?sentinel_password=0ther")
    for shown in (repr(address), str(address)):
        assert "pa55word" not in shown and "0ther" not in shown


def test_connecting_asks_nobody_yet():
    RedisAddress.parse("redis://203.0.113.1:1").connect().close()
    RedisAddress.parse("redis+sentinel://203.0.113.1:1/faces").connect().close()
