"""`sealface certify`: certificates for services on several machines, where there is no authority that issues them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from sealface.cli.authority import CA_FILE, Authority
from sealface.cli.output import Json, console, fail, print_json, reporting
from sealface.protocol.zones import Zone
from sealface.runtime.tls import Tls


@reporting
def certify(
    zone: Annotated[Zone, typer.Argument(help="Whose process it is for.")],
    folder: Annotated[Path, typer.Argument(help="Where its files are written, in place of older ones.")],
    authority: Annotated[
        Path, typer.Option(help="Folder of the authority, made if it is none; keep it away from every zone.")
    ] = Path("authority"),
    days: Annotated[int, typer.Option(min=1, max=825, help="How long it is good.")] = 30,
    as_json: Json = False,
) -> None:
    """Issue a certificate with a fresh key for a process of a zone. One that runs takes it up by itself."""
    files = Tls(folder / "tls.pem", folder / "tls.key", folder / CA_FILE)
    try:
        Authority.at(authority).certify(files, zone, timedelta(days=days))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}: name folders that can be written")
    if as_json:
        print_json({"cert": str(files.certificate), "key": str(files.key), "ca": str(files.authority)})
        return
    console.print(
        f"{zone.identity}, good for {days} days: set SEALFACE_TLS_CERT={files.certificate} "
        f"SEALFACE_TLS_KEY={files.key} SEALFACE_TLS_CA={files.authority}"
    )
