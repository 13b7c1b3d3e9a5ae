"""`sealface keys generate`, `export`, `import`, `protect`, `unprotect`: secrets on this side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealface.cipher.distance import Metric
from sealface.cli.key_versions import parse
from sealface.cli.output import Json, State, console, fail, print_json, reporting
from sealface.cli.passphrase import PassphraseFile, chosen, connect
from sealface.protocol import names
from sealface.protocol.signing import write_private
from sealface_client.policies import DEFAULT_FPIR, default_layout, default_policy
from sealface_client.secret_file import LARGEST_FILE


@reporting
def generate(
    key: Annotated[str, typer.Argument(help="Id of the key and of its gallery: 1 to 64 of [a-z0-9-], a letter first.")],
    model: Annotated[str, typer.Option(help="Recognition model, as DeepFace names it.")] = "Dlib",
    metric: Annotated[Metric, typer.Option(help="Distance.")] = Metric.COSINE,
    threshold: Annotated[float | None, typer.Option(help="Verification threshold; default DeepFace's.")] = None,
    identification_threshold: Annotated[
        float | None, typer.Option(help="Largest distance a search names; default from --fpir.")
    ] = None,
    fpir: Annotated[float, typer.Option(help="Wanted share of non-mated searches that name anybody.")] = DEFAULT_FPIR,
    max_candidates: Annotated[int, typer.Option(min=1, max=10, help="Most subjects a search names.")] = 5,
    largest_norm: Annotated[float | None, typer.Option(help="Bound on an embedding's length (euclidean only).")] = None,
    security_bits: Annotated[
        int, typer.Option(help="128, 192 or 256, against quantum computers; above 128 all is twice as large.")
    ] = 128,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a key here, keep its secret here, and register its public material.

    `gallery create KEY --client-held` with the same options makes its gallery then.
    """
    policy = default_policy(
        model,
        metric,
        verification_threshold=threshold,
        identification_threshold=identification_threshold,
        target_fpir=fpir,
        max_candidates=max_candidates,
    )
    layout = default_layout(model, metric, policy, largest_norm, security_bits)
    with connect(state) as client:
        made = client.lifecycle.create(key, layout, policy, client_held=True)
    if as_json:
        print_json({"key_version": made.primary_version, "public_key_sha256": made.public_key_digest.hex()})
    else:
        console.print(
            f"{made.primary_version} made and registered; its secret is in the key folder, and nowhere else: "
            "export it to a safe place (`sealface keys export`)"
        )


@reporting
def export(
    key: Annotated[str, typer.Argument(help="KEY, or KEY/N for another version than the one that encrypts.")],
    file: Annotated[Path, typer.Argument(help="Where it is written.")],
    passphrase_file: PassphraseFile = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Write a secret key to a file under a passphrase: one that is held here, or a managed one that is exportable."""
    if file.exists():
        fail(f"{file}: is there already: name another")
    with connect(state) as client:
        version = parse(key) if "/" in key else names.key_version(client.lifecycle.get(key).primary_version)
        data = client.lifecycle.export(*version, chosen(passphrase_file, new=True))
    _write(file, data)
    name = f"keys/{version[0]}/versions/{version[1]}"
    if as_json:
        print_json({"key_version": name, "file": str(file)})
    else:
        console.print(f"{name} written to {file}")


@reporting
def import_(
    file: Annotated[Path, typer.Argument(help="What `keys export` or `gallery export-transform` wrote.")],
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask the key service whether it is the right one.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Key folder; default the one in the state folder. The edge service has its own.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Take a secret out of a file into the key folder."""
    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST_FILE + 1)
    except OSError as error:
        fail(f"{file}: {error.strerror}: name a file that was exported")
    with connect(state, keys=folder) as client:
        name = client.lifecycle.receive(data, chosen(passphrase_file), check=not offline)
    if as_json:
        print_json({"name": name})
    else:
        console.print(f"{name} is in the key folder")


@reporting
def protect(passphrase_file: PassphraseFile = None, state: State = None, as_json: Json = False) -> None:
    """Put all secrets of the key folder under a passphrase, or under another than before.

    Afterwards every command that needs one of them needs the passphrase: SEALFACE_PASSPHRASE, a file that
    SEALFACE_PASSPHRASE_FILE names, or asked for at the terminal. The one before comes from there, too.
    """
    with connect(state) as client:
        changed = client.key_folder.protect(chosen(passphrase_file, new=True))
    if as_json:
        print_json({"secrets": changed})
    else:
        console.print(f"{changed} secrets are under the passphrase")


@reporting
def unprotect(state: State = None, as_json: Json = False) -> None:
    """Have the secrets of the key folder without a passphrase again."""
    with connect(state) as client:
        changed = client.key_folder.unprotect()
    if as_json:
        print_json({"secrets": changed})
    else:
        console.print(f"{changed} secrets are without a passphrase")


COMMANDS = (generate, export, import_, protect, unprotect)


def _write(file: Path, data: bytes) -> None:
    try:
        write_private(file, data)
    except OSError as error:
        fail(f"{file}: {error.strerror}: name another place")
