"""Sealface from Python: faces are embedded and encrypted here, on the caller's side.

    import sealface_client as sealface

    with sealface.Client.connect(state=".state") as client:
        door = client.create_gallery("door", model="Dlib")
        door.enroll("4711", "photo.jpg")
        door.verify("4711", "another.jpg").match

`AsyncClient` is the same with `await`. A face is a path, the bytes of a picture, or an embedding. Neither picture nor
embedding leaves the process, except towards an edge service that the caller named.
"""

from sealface.errors import SealfaceError
from sealface.protocol.decision import Candidate
from sealface.protocol.policy import Policy
from sealface.protocol.signing import Credential
from sealface_client.aio import AsyncClient
from sealface_client.endpoints import Endpoints
from sealface_client.errors import ServiceError
from sealface_client.gallery import AsyncGallery
from sealface_client.results import Enrolled, Erasure, Identification, Imported, Verification
from sealface_client.sync import Client, Gallery

__all__ = [
    "AsyncClient",
    "AsyncGallery",
    "Candidate",
    "Client",
    "Credential",
    "Endpoints",
    "Enrolled",
    "Erasure",
    "Gallery",
    "Identification",
    "Imported",
    "Policy",
    "SealfaceError",
    "ServiceError",
    "Verification",
]
