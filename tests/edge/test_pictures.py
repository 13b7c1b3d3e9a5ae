"""Pictures of faces, through DeepFace with model Dlib."""

from __future__ import annotations

import asyncio
import gc
import io
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from sealface.edge.faces import OneAtATime, TooManyPictures
from sealface.recognition import FaceRule, Limits, Pipeline
from tests.edge.zones import Zones, embedding, refused

pytestmark = [pytest.mark.faces]

Photo = Callable[[str], bytes]


def picture(*photos: bytes, side: int = 300) -> bytes:
    """Photographs beside each other as one PNG; none gives a grey square."""
    from PIL import Image

    whole = Image.new("RGB", (side * max(1, len(photos)), side), (128, 128, 128))
    for place, data in enumerate(photos):
        whole.paste(Image.open(io.BytesIO(data)).convert("RGB").resize((side, side)), (place * side, 0))
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.data
async def test_people_are_recognised(real_zones: Zones, photo: Photo) -> None:
    zones = real_zones
    await zones.start_edge(warm=True)
    await zones.enroll("p0", photo("img5.jpg"))
    await zones.enroll("p1", photo("img21.jpg"))
    assert await zones.verify("p0", photo("img6.jpg")) == "DECISION_MATCH"
    assert await zones.verify("p0", photo("img25.jpg")) == "DECISION_NO_MATCH"
    assert list((await zones.identify(photo("img6.jpg"))).subject_ids) == ["p0"]
    assert list((await zones.identify(photo("img12.jpg"))).subject_ids) == []


async def test_models_are_loaded_before_it_is_ready(zones: Zones) -> None:
    await zones.create_gallery("hall", edge=True, largest_face=True)
    await zones.start_edge(warm=True)
    embedders = zones.servers["edge"]._client.faces._embedders  # type: ignore[attr-defined]
    assert {pipeline.several: embedder._warm for pipeline, embedder in embedders.items()} == {
        FaceRule.REFUSE: True,
        FaceRule.LARGEST: True,
    }


@pytest.mark.data
async def test_a_picture_and_its_embedding_are_the_same(zones: Zones, photo: Photo) -> None:
    values = await OneAtATime().embed(photo("img5.jpg"), Pipeline())
    await zones.enroll("p0", values)
    assert await zones.verify("p0", photo("img5.jpg")) == "DECISION_MATCH"


async def _all_refuse(zones: Zones, data: bytes, code: grpc.StatusCode, reason: str) -> None:
    await zones.enroll("p0", embedding(0))
    for call in (zones.enroll("p1", data), zones.verify("p0", data), zones.identify(data)):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (code, reason)
    assert (await zones.client.gallery("door")).info.templates == 1


async def test_no_face(zones: Zones) -> None:
    await _all_refuse(zones, picture(), grpc.StatusCode.INVALID_ARGUMENT, "NO_FACE")


@pytest.mark.data
async def test_several_faces(zones: Zones, photo: Photo) -> None:
    both = picture(photo("img5.jpg"), photo("img21.jpg"))
    await _all_refuse(zones, both, grpc.StatusCode.INVALID_ARGUMENT, "SEVERAL_FACES")


@pytest.mark.data
async def test_the_gallery_says_what_to_do_with_several_faces(zones: Zones, photo: Photo) -> None:
    await zones.create_gallery("hall", edge=True, largest_face=True)
    await zones.enroll("p0", picture(photo("img5.jpg"), photo("img21.jpg")), gallery="hall")


@pytest.mark.parametrize("data", [b"", b"no picture", b"GIF89a" + bytes(100)])
async def test_not_an_image(zones: Zones, data: bytes) -> None:
    await _all_refuse(zones, data, grpc.StatusCode.INVALID_ARGUMENT, "NOT_AN_IMAGE")


@pytest.mark.data
async def test_a_truncated_image(zones: Zones, photo: Photo) -> None:
    data = photo("img5.jpg")
    await _all_refuse(zones, data[: len(data) // 2], grpc.StatusCode.INVALID_ARGUMENT, "NOT_AN_IMAGE")


async def test_more_than_20_mib(zones: Zones) -> None:
    data = picture() + bytes(20 << 20)
    await _all_refuse(zones, data, grpc.StatusCode.RESOURCE_EXHAUSTED, "IMAGE_TOO_LARGE")


async def test_20_mib_pass(zones: Zones) -> None:
    data = picture()
    refusal = await refused(zones.identify(data + bytes((20 << 20) - len(data))))
    assert refusal.reason == "NO_FACE"  # it was looked at


def _bitmap(width: int, height: int) -> bytes:
    """A PGM, whose size its header declares."""
    return b"P5 %d %d 255\n" % (width, height) + bytes(width * height)


async def test_more_than_12_megapixels(zones: Zones) -> None:
    data = _bitmap(4001, 3000)
    await _all_refuse(zones, data, grpc.StatusCode.RESOURCE_EXHAUSTED, "IMAGE_TOO_LARGE")


async def test_the_limit_of_pixels_is_configurable(zones: Zones) -> None:
    assert (await refused(zones.identify(_bitmap(300, 200)))).reason == "NO_FACE"
    await zones.start_edge(Limits(max_pixels=300 * 200))
    assert (await refused(zones.identify(_bitmap(300, 200)))).reason == "NO_FACE"
    assert (await refused(zones.identify(_bitmap(300, 201)))).reason == "IMAGE_TOO_LARGE"


# --- one at a time


class Slow(OneAtATime):
    """Counts the pictures under way; embeds them as before, at leisure."""

    def __init__(self, most_waiting: int = 16) -> None:
        super().__init__(most_waiting=most_waiting)
        self.now = self.most = self.done = 0

    def _embed(self, face: object, pipeline: Pipeline) -> NDArray[np.float64]:
        import time

        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.2)
        try:
            return super()._embed(face, pipeline)  # type: ignore[arg-type]
        finally:
            self.now -= 1
            self.done += 1


async def until(happened: Callable[[], object]) -> None:
    while not happened():
        await asyncio.sleep(0.01)


@pytest.mark.data
async def test_pictures_take_turns(photo: Photo) -> None:
    faces, data = Slow(), photo("img5.jpg")
    found = await asyncio.gather(*(faces.embed(data, Pipeline()) for _ in range(3)))
    assert (faces.most, faces.done) == (1, 3)
    assert len({values.tobytes() for values in found}) == 1


@pytest.mark.data
async def test_a_turn_lasts_as_long_as_the_work_of_a_caller_who_hung_up(photo: Photo) -> None:
    faces, data = Slow(), photo("img5.jpg")
    hung_up = asyncio.create_task(faces.embed(data, Pipeline()))
    await until(lambda: faces.now)
    hung_up.cancel()
    await faces.embed(data, Pipeline())
    assert (faces.most, faces.done) == (1, 2)


async def test_an_error_that_nobody_waits_for_is_dropped() -> None:
    heard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    faces = Slow()
    hung_up = asyncio.create_task(faces.embed(b"no picture", Pipeline()))
    await until(lambda: faces.now)
    hung_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung_up
    await until(lambda: faces.done)
    await asyncio.sleep(0.05)
    gc.collect()  # a future says at its end that nobody asked for its error
    assert heard == []


@pytest.mark.data
async def test_few_pictures_wait(photo: Photo) -> None:
    faces, data = Slow(most_waiting=1), photo("img5.jpg")
    running = asyncio.create_task(faces.embed(data, Pipeline()))
    await until(lambda: faces.now)
    waiting = asyncio.create_task(faces.embed(data, Pipeline()))
    await asyncio.sleep(0.01)
    with pytest.raises(TooManyPictures, match="try again"):
        await faces.embed(data, Pipeline())
    assert (await faces.embed(embedding(0), Pipeline())).size  # an embedding waits for nobody
    await asyncio.gather(running, waiting)
    assert faces.done == 2
    await faces.embed(data, Pipeline())
