"""Real faces through three encrypted services: `make demo`.

Starts the services as processes on this machine, enrols people from photographs, verifies and identifies them with
photographs that were not enrolled, tries an impostor, and compares every encrypted decision with the plaintext one.
Exits 0 only if all are right.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from photographs import Person, local_people, public_people
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sealface.cli.processes import local_services
from sealface.recognition import models, weights
from sealface_client import Client, Gallery

ROOT = Path(__file__).resolve().parents[3]
LOCAL_FACES = ROOT.parent / "shared" / "data" / "faces"
console = Console(width=None if sys.stdout.isatty() else 132)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    probe: str
    asked: str
    answer: str
    distance: float
    plaintext: bool
    encrypted: bool
    right: bool
    ms: float
    bytes_sent: int


class Plaintext:
    """The same decisions on embeddings that are not encrypted, computed here for comparison."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._metric = "cosine"
        self._embeddings: dict[Path, NDArray[np.float64]] = {}

    def embed(self, photographs: Iterable[Path]) -> None:
        """Embed all photographs once, with progress."""
        for photograph in track(list(photographs), "detecting and embedding faces", console=console, transient=True):
            self._embeddings[photograph] = self._gallery.embed(photograph)

    def embedding(self, photograph: Path) -> NDArray[np.float64]:
        """The embedding (128,) of a photograph."""
        return self._embeddings[photograph]

    def distance(self, probe: Path, person: Person) -> float:
        """Distance to the nearest of a person's enrolled photographs."""
        q = self.embedding(probe)
        return min(models.distance(self._metric, q, self.embedding(t)) for t in person.enrolled)


def verify(gallery: Gallery, plaintext: Plaintext, probe: Path, claimed: Person, genuine: bool) -> Row:
    """Claim to be somebody."""
    distance = plaintext.distance(probe, claimed)
    expected = distance <= gallery.policy.verification_threshold
    result = gallery.verify(claimed.id, plaintext.embedding(probe))
    answer = "MATCH" if result.match else "NO MATCH"
    asked = f"is it {claimed.id}?" + ("" if genuine else " (impostor)")
    # an impostor must be refused; a genuine photograph must get what plaintext gives it
    right = result.match == expected and (genuine or not result.match)
    return Row(probe.name, asked, answer, distance, expected, result.match, right, result.ms, result.bytes_sent)


def identify(gallery: Gallery, plaintext: Plaintext, probe: Path, people: list[Person], templates: int) -> Row:
    """Ask who somebody is."""
    distances = {person.id: plaintext.distance(probe, person) for person in people}
    nearest = min(distances, key=distances.__getitem__)
    expected = nearest if distances[nearest] <= gallery.policy.search_threshold(templates) else None
    result = gallery.identify(plaintext.embedding(probe), most=1)
    found = result.candidates[0].subject if result.candidates else None
    return Row(
        probe.name,
        "who is it?",
        found or "nobody",
        distances[nearest],
        expected is not None,
        found is not None,
        found == expected,
        result.ms,
        result.bytes_sent,
    )


def run(gallery: Gallery, people: list[Person], stranger: Person | None) -> list[Row]:
    """Enrol, verify, identify."""
    plaintext = Plaintext(gallery)
    plaintext.embed(
        photograph for person in [*people, *([stranger] if stranger else [])] for photograph in person.photographs
    )
    templates = 0
    for person in track(people, "encrypting and enrolling", console=console, transient=True):
        for photograph in person.enrolled:
            gallery.enroll(person.id, plaintext.embedding(photograph))
            templates += 1
    console.print(f"enrolled {len(people)} people from {templates} photographs")
    rows = []
    probes = [(person, probe) for person in people for probe in person.probes]
    for number, (person, probe) in enumerate(track(probes, "verifying", console=console, transient=True)):
        impostor = people[(people.index(person) + 1 + number) % len(people)]
        rows.append(verify(gallery, plaintext, probe, person, genuine=True))
        if impostor is not person:
            rows.append(verify(gallery, plaintext, probe, impostor, genuine=False))
        rows.append(identify(gallery, plaintext, probe, people, templates))
    if stranger is not None:
        rows.append(identify(gallery, plaintext, stranger.photographs[0], people, templates))
    return rows


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table(title="decisions: encrypted against plaintext", caption="distance: plaintext, computed on this side")
    for name in ("probe", "asked", "encrypted decision", "plaintext", "distance", "ms", "bytes sent", ""):
        table.add_column(name, justify="right" if name in ("distance", "ms", "bytes sent") else "left")
    for row in rows:
        table.add_row(
            row.probe,
            row.asked,
            f"[{'green' if row.encrypted else 'yellow'}]{row.answer}[/]",
            "match" if row.plaintext else "no match",
            f"{row.distance:.4f}",
            f"{row.ms:.0f}",
            f"{row.bytes_sent:,}",
            "[green]right[/]" if row.right else "[red]WRONG[/]",
        )
    console.print(table)


def main(**environment: str) -> int:
    """Run the demo, on services that are told of an environment; 0 if every decision is right."""
    console.rule("Sealface: face recognition that never sees a face")
    weights.provision(progress=lambda line: console.print(line))
    people = public_people(ROOT / "build" / "demo", lambda line: console.print(line))
    people += local_people(LOCAL_FACES)
    # with enough people, one of them stays out of the gallery
    stranger = people.pop() if len(people) > 2 else None
    with (
        console.status("starting the key, enrollment and matching services"),
        local_services(**environment) as services,
    ):
        console.print(f"services: {', '.join(f'{name} at {at}' for name, at in services.addresses.items())}")
        with Client.connect(services.state) as client:
            gallery = client.create_gallery("demo", largest_face=True)
            with console.status("loading the recognition model"):
                gallery.warm()
            rows = run(gallery, people, stranger)
            templates = client.gallery("demo").info.templates
    show(rows)
    wrong = sum(not row.right for row in rows)
    photographs = sum(len(person.photographs) for person in people)
    console.print(
        f"[bold]edge[/]     saw {photographs} photographs and their embeddings, in memory only\n"
        f"[bold]compute[/]  saw {templates} templates and {len(rows)} probes as ciphertexts of 61,440 bytes,\n"
        "         opaque ids, and whom a verification claimed; no face, score or decision\n"
        f"[bold]keys[/]     saw {len(rows)} signed requests, encrypted scores and slot numbers; no template, no id"
    )
    console.print(f"{len(rows) - wrong} of {len(rows)} decisions right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
