"""An edge service applies its galleries' transforms: it has their seeds, and none of the secret keys beside them."""

from pathlib import Path

import grpc

from sealface_client.transform import export_transform
from tests.edge.zones import Zones, embedding, refused

PASSPHRASE = "correct horse battery staple"


async def test_the_service_applies_the_transform_of_its_gallery(zones: Zones) -> None:
    await zones.create_gallery("turned", edge=True, transform=True)
    await zones.create_gallery("held", client_held=True)
    await zones.start_edge()
    await zones.enroll("p0", embedding(0), "turned")
    assert await zones.verify("p0", embedding(0, 1), "turned") == "DECISION_MATCH"
    assert await zones.verify("p0", embedding(1), "turned") == "DECISION_NO_MATCH"
    assert list((await zones.identify(embedding(0, 2), "turned")).subject_ids) == ["p0"]
    # who enrolled by hand, with the same seed, and who enrolled by the service find one another
    assert (await (await zones.client.gallery("turned")).verify("p0", embedding(0, 3))).match
    (seed,) = (zones.state / "edge-service" / "keys").iterdir()
    assert seed.name.startswith("galleries-turned-transforms-")
    assert seed.stat().st_mode & 0o777 == 0o600


async def test_without_the_seed_it_enrols_nobody_until_it_is_there(zones: Zones) -> None:
    await zones.create_gallery("turned", edge=True, transform=True)
    found = await refused(zones.enroll("p0", embedding(0), "turned"))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "TRANSFORM_MISSING")
    assert "keys import" in found.message
    assert (await zones.client.gallery("turned")).info.templates == 0
    info = (await zones.client.gallery("turned")).info
    file = export_transform(zones.client.key_folder, info, PASSPHRASE)
    other = zones.client.connect(zones.state, keys=Path(zones.state / "edge-service" / "keys"), scheme=zones.scheme)
    await other.lifecycle.receive(file, PASSPHRASE)
    await other.close()
    await zones.enroll("p0", embedding(0), "turned")
    assert await zones.verify("p0", embedding(0, 1), "turned") == "DECISION_MATCH"
