"""What no zone may hold is in none of its files and none of its memory: searched for, byte by byte."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray

from sealface.cipher import public_key, wire
from sealface.cipher.parameters import N4096
from sealface.cipher.ring import Residues, intt
from sealface.cli.processes import SERVICES, LocalServices, local_services
from sealface.errors import SealfaceError
from sealface.keys import wrapping
from sealface.keys.providers import FileKey
from sealface.protocol.policy import Policy
from sealface.storage import keys as tables
from sealface_client import Client
from tests.system.conftest import POLICY, People, Vector, cosine, logs
from tests.system.search import Patterns, memory

SUBJECT = "Subject.7f3a9c51-e2d0"
RUN = 3
COMPUTE = ("enrollment", "matching")
LOG_FIELDS = {"event", "service", "level", "timestamp", "message", "method", "code", "reason", "ms", "request_id"}


def runs(values: NDArray[np.generic]) -> Iterator[bytes]:
    """Every run of some consecutive elements."""
    for start in range(len(values) - RUN + 1):
        yield values[start : start + RUN].tobytes()


def forms(face: Vector) -> dict[str, list[bytes]]:
    """An embedding in every form in which it occurs on its way into a ciphertext."""
    unit = face / np.linalg.norm(face)
    scaled = np.rint(unit * 2**28).astype(np.int64)
    p, q = N4096.data_primes
    shapes = {
        "raw float64": face,
        "raw float32": face.astype(np.float32),
        "unit float64": unit,
        "unit float32": unit.astype(np.float32),
        "scaled int64": scaled,
        "scaled int32": scaled.astype(np.int32),
        "residues of the first prime, 64 bits": (scaled % p).astype(np.uint64),
        "residues of the first prime, 32 bits": (scaled % p).astype(np.uint32),
        "residues of the second prime, 64 bits": (scaled % q).astype(np.uint64),
        "scaled, reversed": scaled[::-1].copy(),
        "scaled, as a probe": -scaled[::-1],
        "scaled float64": np.rint(unit * 2**28),
    }
    return {f"{name}": list(runs(shape)) for name, shape in shapes.items()}


def numbers(name: str, value: float) -> dict[str, list[bytes]]:
    """A number as bytes and as text. A float32 of it, 4 bytes, would be found by chance."""
    return {f"{name} as float64": [np.float64(value).tobytes()], f"{name} as text": [f"{value:.9f}"[:10].encode()]}


def fragments(data: bytes, count: int = 40, size: int = 45) -> list[bytes]:
    """Short pieces from all over a large object: any copy of a larger part of it holds one of them."""
    steps = np.linspace(0, len(data) - size, count).astype(int)
    return [data[at - at % 15 : at - at % 15 + size] for at in steps]


def pieces(values: NDArray[np.generic], count: int = 40, size: int = 64) -> list[bytes]:
    """The same of an array, at whole elements and where they vary."""
    starts = np.linspace(0, values.size - size, count).astype(int)
    return [values.ravel()[at : at + size].tobytes() for at in starts]


def secret_forms(name: str, packed: bytes) -> dict[str, list[bytes]]:
    """A secret key in every form in which it could be kept."""
    residues: Residues = wire.unpack(packed, 1, N4096.degree, N4096.primes)[0]
    p = N4096.primes[0]
    small = intt(residues[0], p).astype(np.int64)
    ternary = np.where(small > p // 2, small - p, small)
    assert set(np.unique(ternary)) == {-1, 0, 1}
    shapes = {
        "words": residues,
        "halves": residues[:2].astype(np.uint32),
        "its square": residues[0] * residues[0] % np.uint64(p),
    }
    small_shapes = {"coefficients": small, "ternary": ternary, "ternary, 8 bits": ternary.astype(np.int8)}
    found = {f"{name}: {shape}": pieces(values) for shape, values in shapes.items()}
    found |= {f"{name}: {shape}": pieces(values, count=2) for shape, values in small_shapes.items()}
    return found | {f"{name}: packed": fragments(packed)}


def unwrapped(state: Path, key_id: str) -> bytes:
    """A managed secret, as only the key service can have it."""
    provider = wrapping.KeyEncryption(FileKey(state / "keys" / "key-encryption.key"))
    engine = sa.create_engine(f"sqlite:///{state / 'keys' / 'keys.db'}")
    try:
        with engine.begin() as transaction:
            query = sa.select(tables.versions.c.wrapped_secret).where(tables.versions.c.key == key_id)
            wrapped = transaction.execute(query).scalar_one()
    finally:
        engine.dispose()
    return wrapping.unwrap(provider, wrapped, f"keys/{key_id}/versions/1")


def pids(services: LocalServices, name: str) -> list[int]:
    """The processes of a service."""
    workers = services.worker_pids() if name == "matching" else []
    assert workers or name != "matching"
    return [services.pid(name), *workers]


def stored_public_key(state: Path, gallery_id: str) -> bytes:
    connection = sqlite3.connect(state / "compute" / "record.db")
    try:
        query = "SELECT public_key FROM gallery_versions WHERE gallery = ?"
        return bytes(connection.execute(query, (gallery_id,)).fetchone()[0])
    finally:
        connection.close()


@dataclass(frozen=True)
class Lived:
    """Services through which a face has gone, and everything about it that none of them may keep."""

    services: LocalServices
    faces: dict[str, Vector]
    told: dict[str, float]
    """Numbers that only an edge may know, by what they are."""

    @property
    def state(self) -> Path:
        return self.services.state

    def files(self, *zones: str) -> list[Path]:
        """All files, but for the secrets that lie in the edge zone by right."""
        roots = [self.state / zone for zone in zones] or [self.state]
        found = [path for root in roots for path in root.rglob("*") if path.is_file()]
        return [path for path in found if path.parent != self.state / "edge" / "keys"]

    scanned: dict[str, set[str]] = field(default_factory=dict)

    def in_memory(self, name: str) -> set[str]:
        """What a process holds of all that is looked for anywhere; read once."""
        if name not in self.scanned:
            patterns = Patterns(self.private() | self.keys() | subject())
            try:
                self.scanned[name] = set()
                for pid in pids(self.services, name):
                    self.scanned[name] |= patterns.found_in_parts(memory(pid))
            except PermissionError:
                pytest.skip(f"the memory of the {name} service may not be read here: run as root")
        return self.scanned[name]

    def keys(self) -> dict[str, list[bytes]]:
        """Public and secret keys."""
        wanted = secret_forms("managed", unwrapped(self.state, "managed"))
        wanted |= secret_forms("held", (self.state / "edge" / "keys" / "keys-held-versions-1.secret").read_bytes())
        for gallery in ("managed", "held"):
            packed = stored_public_key(self.state, gallery)
            wanted[f"{gallery}: public key, packed"] = fragments(packed)
            wanted[f"{gallery}: public key, words"] = pieces(public_key.parse(N4096, packed))
        return wanted

    def private(self) -> dict[str, list[bytes]]:
        wanted: dict[str, list[bytes]] = {}
        for name, face in self.faces.items():
            wanted |= {f"{name}: {form}": patterns for form, patterns in forms(face).items()}
        for name, value in self.told.items():
            wanted |= numbers(name, value)
        return wanted


@pytest.fixture(scope="module")
def lived() -> Iterator[Lived]:
    people = People(7)
    face, probe, impostor, held_face = (people.somebody() for _ in range(4))
    probe = people.again(face)
    with local_services() as services, Client.connect(services.state) as client:
        managed = client.create_gallery("managed", policy=POLICY)
        telling = client.create_gallery("telling", policy=Policy(0.3, 0.3, max_candidates=2, disclosure_step=0.001))
        held = client.create_gallery("held", policy=POLICY, client_held=True)
        told = {}
        for gallery in (managed, telling, held):
            gallery.enroll(SUBJECT, face)
            gallery.enroll("somebody-else", held_face)
        for gallery in (managed, held):
            assert gallery.verify(SUBJECT, probe).match
            assert not gallery.verify(SUBJECT, impostor).match
            assert [named.subject for named in gallery.identify(probe).candidates] == [SUBJECT]
            assert not gallery.identify(impostor).match
        told["the score of the match, opened"] = held.distance(SUBJECT, probe)
        told["the score of the impostor, opened"] = held.distance(SUBJECT, impostor)
        told["the exact distance of the match"] = cosine(face, probe)
        told["the exact distance of the impostor"] = cosine(face, impostor)
        told["the exact score of the match"] = 1 - cosine(face, probe)
        told["the exact score of the impostor"] = 1 - cosine(face, impostor)
        with pytest.MonkeyPatch.context() as patch:  # told to the caller alone; its confidence would need DeepFace
            patch.setattr("sealface.recognition.models.confidence", lambda *_: 50.0)
            for name, picture in (("match", probe), ("impostor", impostor)):
                distance = telling.verify(SUBJECT, picture).distance
                assert distance == pytest.approx(cosine(face, picture), abs=1e-3)
                told[f"the disclosed distance of the {name}"] = distance
        for broken in (np.full(128, np.nan), face[:64], np.zeros(128)):
            with pytest.raises(SealfaceError):
                managed.enroll(SUBJECT, broken)
        with pytest.raises(SealfaceError):
            managed.verify("nobody", face)
        with pytest.raises(SealfaceError):
            client.gallery("nowhere")
        faces = {"template": face, "probe": probe, "impostor": impostor, "other": held_face}
        yield Lived(services, faces, told)


def subject() -> dict[str, list[bytes]]:
    return {"subject": [SUBJECT.encode(), SUBJECT.encode("utf-16-le")]}


def test_the_search_finds_what_is_there(lived: Lived, tmp_path: Path) -> None:
    """Otherwise finding nothing elsewhere would prove nothing."""
    patterns = Patterns(lived.private())
    everything = {*forms(lived.faces["template"])}
    shapes = np.frombuffer(b"".join(b"".join(found[:5]) for found in forms(lived.faces["template"]).values()), np.uint8)
    for odd in range(3):
        (tmp_path / "leak").write_bytes(b"\1" * odd + shapes.tobytes() + b"end")
        found = patterns.found_in_files([tmp_path / "leak"])[str(tmp_path / "leak")]
        assert found == {f"template: {form}" for form in everything}

    code = (
        "import numpy, sys; face = numpy.frombuffer(bytes.fromhex(sys.stdin.readline()), 'f8') + 0; "
        "unit = face / numpy.linalg.norm(face); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(lived.faces["probe"].tobytes().hex().encode() + b"\n")
        process.stdin.flush()
        process.stdout.readline()
        try:
            found = patterns.found_in_parts(memory(process.pid))
        except PermissionError:
            pytest.skip("the memory of another process may not be read here: run as root")
        finally:
            process.stdin.close()
    assert {"probe: raw float64", "probe: unit float64"} <= found


def test_no_file_holds_an_embedding_or_a_score(lived: Lived) -> None:
    files = lived.files()
    assert {"record.db-wal", "keys.db-wal", "matching.log", "operator.pem"} <= {path.name for path in files}
    assert Patterns(lived.private()).found_in_files(files) == {}


@pytest.mark.parametrize("name", COMPUTE)
def test_computes_memory_holds_no_embedding_and_no_score(lived: Lived, name: str) -> None:
    assert lived.in_memory(name) & lived.private().keys() == set()


def test_the_key_services_memory_holds_no_embedding(lived: Lived) -> None:
    """A score it may hold, that is its task; a template never reaches it."""
    embeddings = {f"{name}: {form}" for name, face in lived.faces.items() for form in forms(face)}
    assert lived.in_memory("keys") & embeddings == set()


def test_compute_holds_public_keys_and_no_secret_key(lived: Lived) -> None:
    keys = lived.keys()
    patterns = Patterns(keys)
    packed = {"managed: public key, packed", "held: public key, packed"}
    words = {"managed: public key, words", "held: public key, words"}

    in_files: set[str] = set().union(*patterns.found_in_files(lived.files("compute")).values())
    assert in_files == packed  # which also shows that the search finds such things
    for name in COMPUTE:
        assert (lived.in_memory(name) & keys.keys()) - packed == words, name
    at_home = lived.in_memory("keys") & keys.keys()
    assert {"managed: words", "managed: its square"} <= at_home
    assert not any(found.startswith("held: ") and "public" not in found for found in at_home)
    at_rest: set[str] = set().union(*patterns.found_in_files(lived.files("keys")).values())
    assert at_rest == packed, "secrets are stored wrapped"


def test_the_key_zone_knows_no_subject(lived: Lived) -> None:
    patterns = Patterns(subject())
    assert patterns.found_in_files(lived.files("compute")), "compute stores subject ids"
    assert "subject" in lived.in_memory("enrollment")
    assert patterns.found_in_files(lived.files("keys")) == {}
    assert "subject" not in lived.in_memory("keys")


def entries(text: str) -> Iterable[dict[str, object]]:
    return (json.loads(line) for line in text.splitlines())


def test_logs_hold_method_code_reason_and_time(lived: Lived) -> None:
    for name, text in logs(lived.services).items():
        for entry in entries(text):
            assert entry.keys() <= LOG_FIELDS, (name, entry)
        assert any(entry.get("method") for entry in entries(text))
        for word in (SUBJECT, "somebody-else", "MATCH", "candidate", "distance", "score", "galleries/", "keys/"):
            assert word not in text, (name, word)


def test_computes_record_of_a_match_is_that_of_no_match(lived: Lived) -> None:
    """One call of each kind: what the compute zone wrote differs in nothing but times."""

    drawn = ("ms", "timestamp", "request_id")

    def written() -> dict[str, list[object]]:
        return {
            name: [{key: value for key, value in entry.items() if key not in drawn} for entry in found]
            for name in COMPUTE
            if (found := list(entries(logs(lived.services)[name])))
        }

    def changed(face: Vector) -> dict[str, list[object]]:
        before = written()
        gallery.verify(SUBJECT, face)
        gallery.identify(face)
        after = written()
        return {name: after[name][len(before[name]) :] for name in COMPUTE}

    def stored() -> list[tuple[object, ...]]:
        connection = sqlite3.connect(lived.state / "compute" / "record.db")
        try:
            names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return [row for name in sorted(names) for row in connection.execute(f"SELECT * FROM {name}")]  # noqa: S608
        finally:
            connection.close()

    with Client.connect(lived.state) as client:
        gallery = client.gallery("managed")
        gallery.identify(lived.faces["other"])  # the first call brings the slot table up to date
        before = stored()
        match, impostor = changed(lived.faces["probe"]), changed(lived.faces["impostor"])
        assert match == impostor
        assert match["matching"], "nothing was logged"
        assert stored() == before


def test_files_are_their_owners_alone(lived: Lived) -> None:
    for zone in ("keys", "compute", "edge"):
        assert (lived.state / zone).stat().st_mode & 0o777 == 0o700
    for path in lived.state.rglob("*"):
        if "numba" in path.parts:
            continue  # compiled code, below a folder of mode 0700
        assert path.stat().st_mode & 0o077 == 0, path


def test_no_process_has_a_file_of_another_zone_open(lived: Lived) -> None:
    zones = {"keys": "keys", "enrollment": "compute", "matching": "compute"}
    for name in SERVICES:
        for pid in pids(lived.services, name):
            opened = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
            mapped = {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
            inside = {path for path in opened | mapped if path.startswith(str(lived.state))}
            assert any(path.endswith(".db") for path in inside)
            assert all(path.startswith(str(lived.state / zones[name])) for path in inside), (name, inside)
            environment = Path(f"/proc/{pid}/environ").read_text()
            assert not any(word in environment for word in ("key-encryption", "operator.pem")), name
