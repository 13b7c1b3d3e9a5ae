"""`sealface keys`: keys, policies and callers."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from sealface.cli import callers, held_keys, key_versions
from sealface.cli.output import Json, State, console, print_json, reporting
from sealface.protocol import convert
from sealface_client import Client
from sealface_protos.keys.v1 import key_pb2

app = typer.Typer(help="Keys, policies and callers.", no_args_is_help=True)
KeyId = Annotated[str, typer.Argument(help="Id of the key.")]
for module in (key_versions, held_keys, callers):
    for command in module.COMMANDS:
        app.command(name=command.__name__.strip("_").replace("_", "-"))(command)


def _describe(key: key_pb2.Key) -> dict[str, Any]:
    return {
        "key": key.name.removeprefix("keys/"),
        "version": key.primary_version,
        "custody": key_pb2.Custody.Name(key.custody).removeprefix("CUSTODY_").lower(),
        "parameter_set": key.parameter_set,
        "public_key_sha256": key.public_key_digest.hex(),
        "policy": asdict(convert.policy_from_proto(key.policy)),
    }


@app.command(name="list")
@reporting
def list_(state: State = None, as_json: Json = False) -> None:
    """List all keys."""
    with Client.connect(state) as client:
        found = [_describe(key) for key in client.list_keys()]
    if as_json:
        print_json({"keys": found})
        return
    table = Table("key", "version", "custody", "parameter set", "public key SHA-256")
    for key in found:
        row = (key["key"], key["version"], key["custody"], key["parameter_set"], key["public_key_sha256"][:16] + "…")
        table.add_row(*row)
    console.print(table)


@app.command()
@reporting
def policy(
    key: KeyId,
    threshold: Annotated[float | None, typer.Option(help="New verification threshold.")] = None,
    identification_threshold: Annotated[float | None, typer.Option(help="New largest distance of searches.")] = None,
    fpir: Annotated[float | None, typer.Option(help="New share of non-mated searches that name anybody.")] = None,
    max_candidates: Annotated[int | None, typer.Option(min=1, max=10, help="New largest k.")] = None,
    disclose: Annotated[float | None, typer.Option(help="New step of told distances; 0 tells none.")] = None,
    decisions: Annotated[int | None, typer.Option(min=1, help="New budget: decisions a caller and hour.")] = None,
    comparisons: Annotated[int | None, typer.Option(min=1, help="New budget: comparisons a caller and hour.")] = None,
    of_version: Annotated[
        int | None, typer.Option(min=1, help="New budget: decisions a caller and key version; then rotate.")
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show a key's policy, or change it."""
    changes: dict[str, Any] = {
        "verification_threshold": threshold,
        "identification_threshold": identification_threshold,
        "target_fpir": fpir,
        "max_candidates": max_candidates,
        "disclosure_step": disclose,
    }
    budget: dict[str, Any] = {
        "decisions_per_hour": decisions,
        "comparisons_per_hour": comparisons,
        "decisions_per_version": of_version,
    }
    changes, budget = ({n: v for n, v in named.items() if v is not None} for named in (changes, budget))
    with Client.connect(state) as client:
        current = client.policy(key)
        if changes or budget:
            changed = replace(current, **changes, budget=replace(current.budget, **budget))
            current = client.update_policy(key, changed)
    if as_json:
        print_json(asdict(current))
        return
    table = Table(show_header=False)
    for name, value in asdict(current).items():
        table.add_row(name, str(value))
    console.print(table)


@app.command()
@reporting
def usage(key: KeyId, state: State = None, as_json: Json = False) -> None:
    """Show what callers have spent of a key, within the hour and of each key version."""
    with Client.connect(state) as client:
        found = client.usage(key)
    rows = [
        {
            "caller": one.caller,
            "key_version": one.key_version,
            "decisions": one.decisions,
            "comparisons": one.comparisons,
            "decisions_of_version": one.decisions_of_version,
            "comparisons_of_version": one.comparisons_of_version,
        }
        for one in found.spent
    ]
    if as_json:
        print_json({"budget": asdict(found.budget), "usage": rows})
        return
    budget = found.budget
    caption = (
        f"budget of each: {budget.decisions_per_hour:,} decisions and {budget.comparisons_per_hour:,} comparisons an "
        f"hour, {budget.decisions_per_version:,} decisions of a version"
    )
    table = Table("caller", "key version", "decisions", "comparisons", "of version", "", caption=caption)
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    console.print(table)


@app.command()
@reporting
def alarms(state: State = None, as_json: Json = False) -> None:
    """List alarms: callers that ask as no person at a door does, and versions in quarantine."""
    with Client.connect(state) as client:
        found = client.alarms()
    if as_json:
        print_json({"alarms": [{"time_us": e.time_us, "caller": e.resource, **e.detail} for e in found]})
        return
    table = Table("when", "caller", "alarm", "key version", "decisions")
    for entry in found:
        when = datetime.fromtimestamp(entry.time_us / 1e6, UTC).isoformat(timespec="seconds")
        detail = [str(entry.detail[name]) for name in ("alarm", "key_version", "decisions")]
        table.add_row(when, entry.resource, *detail)
    console.print(table)
