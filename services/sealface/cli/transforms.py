"""`sealface gallery export-transform`, `renew-transform`: the secret matrix of a gallery's embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sealface.cli.output import Json, State, console, fail, print_json, reporting
from sealface.cli.passphrase import PassphraseFile, chosen, connect
from sealface.protocol.signing import write_private
from sealface_client.transform import export_transform as sealed_seed
from sealface_protos.enrollment.v1 import gallery_pb2
from sealface_protos.keys.v1 import key_pb2

GalleryId = Annotated[str, typer.Argument(help="Id of the gallery.")]


@reporting
def export_transform(
    gallery: GalleryId,
    file: Annotated[Path, typer.Argument(help="Where it is written.")],
    passphrase_file: PassphraseFile = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Write the seed of a gallery's transform to a file under a passphrase; `keys import` takes it in elsewhere."""
    if file.exists():
        fail(f"{file}: is there already: name another")
    with connect(state) as client:
        info = client.gallery(gallery).info
        data = sealed_seed(client.key_folder, info, chosen(passphrase_file, new=True))
    try:
        write_private(file, data)
    except OSError as error:
        fail(f"{file}: {error.strerror}: name another place")
    if as_json:
        print_json({"gallery": gallery, "transform_digest": info.transform_digest.hex(), "file": str(file)})
    else:
        console.print(f"the transform of {gallery} is written to {file}")


@reporting
def renew_transform(
    gallery: GalleryId,
    new: Annotated[str, typer.Argument(help="Id of the gallery that takes its place.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a gallery beside another, with the same settings, a key of its own and a fresh transform.

    Embeddings under the old transform cannot be turned into the new one without being read: people are enrolled again,
    from pictures or from embeddings that you keep. Then callers are told of the new one, and the old one is deleted.
    """
    with connect(state) as client:
        old = client.gallery(gallery)
        info, recognition = old.info, old.info.recognition
        made = client.create_gallery(
            new,
            model=recognition.model,
            detector=recognition.detector,
            metric=old.layout.metric,
            policy=replace(old.policy, version=1),
            client_held=info.custody == key_pb2.CUSTODY_CLIENT_HELD,
            largest_face=recognition.face_rule == gallery_pb2.FACE_RULE_LARGEST,
            align=not recognition.unaligned,
            anti_spoofing=recognition.anti_spoofing,
            largest_norm=old.layout.largest_norm,
            edge=info.privacy_level == gallery_pb2.PRIVACY_LEVEL_EDGE,
            retention=info.retention.ToTimedelta() if info.HasField("retention") else None,
            exportable=client.lifecycle.get(gallery).exportable,
            transform=True,
            security_bits=old.layout.parameters.security_bits,
        )
    steps = [
        f"sealface enroll {new} SUBJECT PICTURES, or sealface gallery import {new} EMBEDDINGS, for all of {gallery}",
        f"sealface gallery export-transform {new} FILE, and sealface keys import FILE where callers run",
        f"let callers use {new} in place of {gallery}",
        f"sealface gallery delete {gallery}, and sealface keys destroy {gallery}/N for each version",
    ]
    if as_json:
        digest = made.info.transform_digest.hex()
        print_json({"gallery": new, "replaces": gallery, "transform_digest": digest, "next": steps})
        return
    console.print(f"{new} is made beside {gallery}, with a fresh transform. Now:")
    for number, step in enumerate(steps, 1):
        console.print(f"  {number}. {step}", markup=False)


COMMANDS = (export_transform, renew_transform)
