import csv
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sealface.errors import InvalidInput
from sealface.recognition import (
    Embedder,
    FaceRule,
    ModelNotLoaded,
    NoFace,
    NotAnImage,
    Pipeline,
    SeveralFaces,
    SpoofSuspected,
    UnknownDetector,
    UnknownModel,
    UnknownNormalization,
    WeightsMissing,
    confidence,
    distance,
    threshold,
)
from sealface.recognition.models import detector_names, model_names

from .conftest import FACES

pytestmark = pytest.mark.faces
Photo = Callable[[str], bytes]


def pairs() -> list[tuple[str, str, bool]]:
    with (FACES / "pairs.csv").open(newline="") as lines:
        return [(row["file_x"], row["file_y"], row["Decision"] == "Yes") for row in csv.DictReader(lines)]


@pytest.fixture(scope="module")
def embeddings(photo: Photo, largest: Embedder) -> dict[str, np.ndarray]:
    """By name, made as they are asked for: a photograph takes seconds."""

    class Embeddings(dict[str, np.ndarray]):
        def __missing__(self, name: str) -> np.ndarray:
            self[name] = largest.embed(photo(name))[0].embedding
            return self[name]

    return Embeddings()


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("SEALFACE_SOAK"), reason="make soak; tests/system/test_accuracy.py has them too")
def test_all_300_pairs_are_decided_as_deepface_decides_them(embeddings: dict[str, np.ndarray]) -> None:
    limit = threshold("Dlib", "cosine")
    matched = [
        (same, distance("cosine", embeddings[first], embeddings[second]) <= limit) for first, second, same in pairs()
    ]
    assert len(matched) == 300
    assert sum(same for same, _ in matched) == 38
    assert sum(match for same, match in matched if same) == 37
    assert sum(match for same, match in matched if not same) == 0


@pytest.mark.data
def test_deepface_verify_gives_the_same_distance_decision_and_confidence(
    embeddings: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    from deepface import DeepFace

    quick = {f"img{number}.jpg" for number in (5, 8, 10, 11, 12, 14, 16, 17, 20, 21, 25)}
    sample = [pair for pair in pairs() if {pair[0], pair[1]} <= quick]
    chosen = [pair for pair in sample if pair[2]][:4] + [pair for pair in sample if not pair[2]][:4]
    assert {same for _, _, same in chosen} == {True, False}
    for first, second, _ in chosen:
        for metric in ("cosine", "euclidean_l2"):
            theirs = DeepFace.verify(str(FACES / first), str(FACES / second), "Dlib", "dlib", distance_metric=metric)
            ours = distance(metric, embeddings[first], embeddings[second])
            assert ours == theirs["distance"]
            assert (ours <= threshold("Dlib", metric)) == theirs["verified"]
            assert confidence("Dlib", metric, ours) == theirs["confidence"]


@pytest.mark.data
def test_a_face_has_embedding_area_and_confidence(photo: Photo) -> None:
    (face,) = Embedder().embed(photo("img25.jpg"))
    assert face.embedding.shape == (128,)
    assert face.embedding.dtype == np.float64
    x, y, width, height = face.area
    assert 0 <= x < x + width <= 400
    assert 0 <= y < y + height <= 400
    assert width * height > 10_000
    assert 0 < face.detection_confidence <= 1
    assert repr(face) == "Face(128 numbers)"


@pytest.mark.data
@pytest.mark.parametrize(
    "pipeline",
    [
        Pipeline(align=False),
        Pipeline(detector="opencv"),
        Pipeline(expand_percentage=20),
        Pipeline(normalization="VGGFace2"),
    ],
    ids=["unaligned", "opencv", "expanded", "normalized"],
)
def test_every_setting_reaches_deepface(pipeline: Pipeline, photo: Photo, largest: Embedder) -> None:
    from deepface.modules.representation import represent

    (theirs,) = represent(
        str(FACES / "img25.jpg"),
        model_name=pipeline.model,
        detector_backend=pipeline.detector,
        align=pipeline.align,
        expand_percentage=pipeline.expand_percentage,
        normalization=pipeline.normalization,
    )
    (ours,) = Embedder(pipeline).embed(photo("img25.jpg"))
    np.testing.assert_array_equal(ours.embedding, theirs["embedding"])
    (default,) = largest.embed(photo("img25.jpg"))
    assert not np.array_equal(ours.embedding, default.embedding)


@pytest.mark.data
def test_without_a_detector_the_whole_image_is_the_face(photo: Photo) -> None:
    from deepface import DeepFace

    embedder = Embedder(Pipeline(detector="skip"))
    first, second = (embedder.embed(photo(name))[0] for name in ("img25.jpg", "img10.jpg"))
    theirs = DeepFace.verify(str(FACES / "img25.jpg"), str(FACES / "img10.jpg"), "Dlib", "skip")
    assert distance("cosine", first.embedding, second.embedding) == theirs["distance"]
    assert first.area == (0, 0, 399, 399)
    assert first.detection_confidence == 0


def test_every_model_and_detector_of_deepface_is_accepted() -> None:
    for model in model_names():
        assert Embedder(Pipeline(model=model)).dimension > 0
    for detector in detector_names():
        Embedder(Pipeline(detector=detector))


@pytest.mark.parametrize(
    ("pipeline", "error"),
    [
        (Pipeline(model="Nobody"), UnknownModel),
        (Pipeline(detector="nobody"), UnknownDetector),
        (Pipeline(normalization="nothing"), UnknownNormalization),
        (Pipeline(expand_percentage=-1), InvalidInput),
    ],
)
def test_what_deepface_lacks_is_refused(pipeline: Pipeline, error: type[Exception]) -> None:
    with pytest.raises(error):
        Embedder(pipeline)


def test_no_face(largest: Embedder, encode: Callable[..., bytes]) -> None:
    from PIL import Image

    noise = np.random.default_rng(3).integers(0, 256, (200, 200, 3), np.uint8)
    for image in (Image.fromarray(noise), Image.new("RGB", (200, 200)), Image.new("L", (32, 32), 255)):
        with pytest.raises(NoFace, match="send a sharp"):
            largest.embed(encode(image))


@pytest.mark.data
def test_two_people_where_one_is_wanted(two_people: bytes) -> None:
    with pytest.raises(SeveralFaces) as caught:
        Embedder().embed(two_people)
    assert caught.value.metadata == {"faces": "2"}


@pytest.mark.data
def test_all_faces_come_largest_first(two_people: bytes, largest: Embedder, photo: Photo) -> None:
    faces = Embedder(Pipeline(several=FaceRule.ALL)).embed(two_people)
    assert len(faces) == 2
    assert faces[0].area[2] * faces[0].area[3] > faces[1].area[2] * faces[1].area[3]
    assert faces[0].area[0] >= 200 > faces[1].area[0]
    (one,) = largest.embed(two_people)
    np.testing.assert_array_equal(one.embedding, faces[0].embedding)
    (alone,) = largest.embed(photo("img21.jpg"))
    assert distance("cosine", one.embedding, alone.embedding) < 0.03


def test_a_face_that_is_not_live_is_refused() -> None:
    live = {"facial_area": {"x": 0, "y": 0, "w": 9, "h": 9}, "confidence": 1.0, "is_real": True}
    flat = {"facial_area": {"x": 0, "y": 0, "w": 5, "h": 5}, "confidence": 1.0, "is_real": False}
    with pytest.raises(SpoofSuspected):
        Embedder(Pipeline(several=FaceRule.ALL))._choose([live, flat])
    assert Embedder(Pipeline(several=FaceRule.LARGEST))._choose([flat, live]) == [live]


@pytest.mark.data
def test_a_truncated_photograph(largest: Embedder, photo: Photo) -> None:
    image = photo("img25.jpg")
    with pytest.raises(NotAnImage):
        largest.embed(image[: len(image) // 2])


@pytest.mark.parametrize(
    ("pipeline", "file"),
    [
        (Pipeline(model="SFace"), "face_recognition_sface_2021dec.onnx"),
        (Pipeline(detector="yunet"), "face_detection_yunet_2023mar.onnx"),
        (Pipeline(anti_spoofing=True), "2.7_80x80_MiniFASNetV2"),
    ],
    ids=["model", "detector", "anti-spoofing"],
)
def test_missing_weights_are_named_and_never_fetched(
    pipeline: Pipeline, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepface.commons import weight_utils

    downloader = weight_utils.download_weights_if_necessary
    for name in ("shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"):
        link_weights(name, tmp_path)
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    with pytest.raises(WeightsMissing, match=r"python -m sealface\.recognition\.weights") as caught:
        Embedder(pipeline).warm()
    assert caught.value.metadata["file"].startswith(file)
    assert str(tmp_path) not in caught.value.message
    assert not list(tmp_path.rglob("*.onnx"))
    assert weight_utils.download_weights_if_necessary is downloader


def link_weights(name: str, home: Path) -> None:
    from sealface.recognition.weights import weights_folder

    target = weights_folder(home) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(weights_folder().resolve() / name)


def test_damaged_weights_give_no_text_of_deepface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / ".deepface" / "weights"
    weights.mkdir(parents=True)
    (weights / "face_recognition_sface_2021dec.onnx").write_bytes(b"rubbish")
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    with pytest.raises(ModelNotLoaded) as caught:
        Embedder(Pipeline(model="SFace")).warm()
    assert str(tmp_path) not in caught.value.message
    assert caught.value.__suppress_context__


@pytest.mark.data
def test_threads_get_what_one_caller_gets(photo: Photo, largest: Embedder) -> None:
    names = ["img25.jpg", "img12.jpg", "img10.jpg"]
    alone = {name: largest.embed(photo(name))[0].embedding for name in names}
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda name: largest.embed(photo(name))[0].embedding, names * 2))
    for name, embedding in zip(names * 2, together, strict=True):
        np.testing.assert_array_equal(embedding, alone[name])


WATCHED = """
import os, sys
from sealface.recognition import Embedder
embedder = Embedder()
embedder.warm()
image = open(sys.argv[1], "rb").read()
def watch(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        os.write(2, b"wrote a file")
    if event in ("os.mkdir", "os.rename", "socket.connect", "subprocess.Popen"):
        os.write(2, event.encode())
sys.addaudithook(watch)
embedder.embed(image)
"""


@pytest.mark.data
def test_embedding_writes_nothing_says_nothing_and_calls_nobody(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", WATCHED, str(FACES / "img25.jpg")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.data
def test_an_embedding_does_not_change_from_run_to_run(photo: Photo, largest: Embedder) -> None:
    first, second = (largest.embed(photo("img25.jpg"))[0].embedding for _ in range(2))
    assert hashlib.sha256(first.tobytes()).digest() == hashlib.sha256(second.tobytes()).digest()
