"""CipherFace's on-premise flow: the key is made and stays on premise, the cloud compares what it cannot read.

Two folders stand for two machines. Runs services of its own unless told of running ones:

    python clients/python/examples/on_premise.py [--state STATE] [--premise FOLDER] [--cloud FOLDER]
"""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sealface.cli.processes import local_services
from sealface_client import Client
from sealface_client.key_folder import KeyFolder


def run(state: Path, premise: Path, gallery_id: str = "on-premise") -> tuple[float, float]:
    """Distances of a face to its own template and of a stranger's to it.

    Args:
        state: of the services, "the cloud".
        premise: folder of this side's secrets.
        gallery_id: of the gallery that is made.
    """
    anna, stranger, change = np.frombuffer(os.urandom(3 * 8 * 128), "<i8").reshape(3, 128) / 2.0**63
    anna_again = anna + 0.1 * change
    with Client.connect(state=state, keys=premise) as client:
        # On premise: a key, of which the cloud gets the public half, and a secret transform beside it.
        gallery = client.create_gallery(gallery_id, client_held=True, transform=True)
        # To the cloud: ciphertexts. In the cloud: the comparison. On premise again: its result is opened.
        gallery.enroll("anna", anna)
        return gallery.distance("anna", anna_again), gallery.distance("anna", stranger)


def main() -> None:
    """Run it and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--state", type=Path, help="state folder of running services; left out: services of its own")
    parser.add_argument("--premise", type=Path, help="folder of secrets; left out: a temporary one")
    parser.add_argument("--cloud", type=Path, help="state folder of its own services; left out: a temporary one")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="sealface-premise-") as temporary:
        premise = options.premise or Path(temporary) / "secrets"
        services = nullcontext(None) if options.state else local_services(options.cloud)
        with services as own:
            near, far = run(options.state or own.state, premise)
        held = ", ".join(KeyFolder(premise).names())
    print(f"held on premise alone: {held}")
    print(f"the same face: distance {near:.4f}; a stranger's: {far:.4f}; opened on premise")


if __name__ == "__main__":
    main()
