"""`sealface keys caller|token|identity|grant|callers|withdraw`: who may do what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sealface.cli.output import Exit, Json, State, console, fail, print_json, reporting
from sealface.protocol import convert, names, tokens
from sealface.protocol.rights import ALL, Grant, Role
from sealface_client import Client, Credential
from sealface_protos.keys.v1 import caller_pb2

CallerId = Annotated[str, typer.Argument(help="Id of the caller: 1 to 64 of [a-z0-9-], a letter first.")]
Grants = Annotated[
    list[str] | None,
    typer.Option(
        "--grant", help="ROLE:GALLERY, ROLE alone for all galleries; admin, enroller, verifier or auditor. Repeatable."
    ),
]


def _grants(given: list[str] | None, default: tuple[Grant, ...] = ()) -> tuple[Grant, ...]:
    if given is None:
        return default
    found = []
    for one in given:
        role, _, gallery = one.partition(":")
        if role not in set(Role) or (gallery not in ("", ALL) and names.check_id(gallery, "--grant") != gallery):
            fail(f"--grant {one}: say ROLE or ROLE:GALLERY, with {', '.join(Role)}", Exit.USAGE)
        found.append(Grant(Role(role), gallery or ALL))
    return tuple(found)


def _said(grants: tuple[Grant, ...]) -> list[str]:
    return [f"{grant.role}:{grant.gallery}" for grant in grants]


@reporting
def caller(
    caller_id: CallerId,
    folder: Annotated[Path, typer.Argument(help="Where its credential file is written.")],
    grant: Grants = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a signing credential for a caller, and register it: to verify in all galleries, unless --grant says else."""
    grants = _grants(grant, (Grant(Role.VERIFIER, ALL),))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # first: an id is not registered twice
    except OSError as error:
        fail(f"{folder}: {error.strerror}: name a folder")
    credential = Credential.generate(f"callers/{caller_id}")
    with Client.connect(state) as client:
        client.create_caller(caller_id, credential.verifying_key, grants)
    path = credential.save(folder)
    if as_json:
        print_json({"caller": credential.caller, "file": str(path)})
    else:
        console.print(f"{credential.caller} registered; its credential is {path}: set SEALFACE_CREDENTIAL to use it")


@reporting
def token(caller_id: CallerId, grant: Grants = None, state: State = None, as_json: Json = False) -> None:
    """Register a caller that has a static token, and print that: once, it is stored nowhere.

    With a token galleries and subjects are worked on, and the edge service is called. It has no decisions of its own:
    who asks the key service has a signing credential (`sealface keys caller`).
    """
    grants, (made, digest) = _grants(grant), tokens.new_static()
    with Client.connect(state) as client:
        client.create_caller(caller_id, grants=grants, token_digest=digest)
    if as_json:
        print_json({"caller": f"callers/{caller_id}", "token": made, "grants": _said(grants)})
    else:
        console.print(made, soft_wrap=True)


@reporting
def identity(
    caller_id: CallerId,
    issuer: Annotated[str, typer.Option(help="The OpenID Connect issuer, as its tokens have it in `iss`.")],
    subject: Annotated[str, typer.Option(help="Whom it calls so, as its tokens have it in `sub`.")],
    grant: Grants = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Register a caller that has tokens of an OpenID Connect issuer (`serve --issuers`)."""
    grants = _grants(grant)
    with Client.connect(state) as client:
        client.create_caller(caller_id, grants=grants, issuer=issuer, subject=subject)
    if as_json:
        print_json({"caller": f"callers/{caller_id}", "grants": _said(grants)})
    else:
        console.print(f"callers/{caller_id} registered")


@reporting
def grant(
    caller_id: CallerId,
    grants: Annotated[
        list[str] | None, typer.Argument(help="ROLE:GALLERY, or ROLE for all galleries; nothing to take all away.")
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Replace what a caller may do with galleries; in force within seconds."""
    given = _grants(grants or [])
    with Client.connect(state) as client:
        client.grant(caller_id, given)
    if as_json:
        print_json({"caller": f"callers/{caller_id}", "grants": _said(given)})
    else:
        console.print(f"callers/{caller_id}: {', '.join(_said(given)) or 'nothing'}")


@reporting
def callers(state: State = None, as_json: Json = False) -> None:
    """List callers, by what they are known, and what they may do."""
    with Client.connect(state) as client:
        found = [_described(one) for one in client.callers()]
    if as_json:
        print_json({"callers": found})
        return
    table = Table("caller", "known by", "may")
    for one in found:
        table.add_row(str(one["caller"]), ", ".join(one["known_by"]), ", ".join(one["grants"]))
    console.print(table)


@reporting
def withdraw(caller_id: CallerId, state: State = None, as_json: Json = False) -> None:
    """Withdraw a caller's credentials; in force within seconds."""
    with Client.connect(state) as client:
        client.delete_caller(caller_id)
    if as_json:
        print_json({"caller": f"callers/{caller_id}", "withdrawn": True})
    else:
        console.print(f"callers/{caller_id} withdrawn")


def _described(one: caller_pb2.Caller) -> dict[str, str | list[str]]:
    known = {
        "signing key": bool(one.verifying_key),
        "token": bool(one.token_digest),
        f"{one.oidc.subject} of {one.oidc.issuer}": bool(one.oidc.issuer),
    }
    return {
        "caller": one.name,
        "known_by": [by for by, there in known.items() if there],
        "grants": _said(tuple(convert.grant_from_proto(grant) for grant in one.grants)),
    }


COMMANDS = (caller, token, identity, grant, callers, withdraw)
