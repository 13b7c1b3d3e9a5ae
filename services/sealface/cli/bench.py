"""`sealface bench`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sealface.cli.evaluate import read_embeddings
from sealface.cli.output import Json, State, console, print_json, progress, reporting
from sealface.cli.processes import services_at

app = typer.Typer(help="Benchmarks, each printing JSON.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Benchmarks, each printing JSON."""


@app.command()
@reporting
def verify(
    rounds: Annotated[int, typer.Option(min=1, help="How often each way verifies.")] = 30,
    embeddings: Annotated[
        Path | None, typer.Option(help="NPZ with `names` and `emb`; random vectors if left out.")
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Compare 1:1 verification with CipherFace's way (TenSEAL's encrypted vectors), in turns in one run."""
    from sealface_bench import verify as benchmark

    faces = benchmark.real(read_embeddings(embeddings), rounds) if embeddings else benchmark.synthetic(rounds)
    with services_at(state, lambda line: progress.print(line)) as where:
        found = asyncio.run(benchmark.compare(where, faces, rounds, tell=lambda line: progress.print(line)))
    if as_json:
        print_json(found)
    else:
        console.print(_table(found))


def _table(found: dict[str, Any]) -> Table:
    table = Table(title=f"1:1 verification, {found['dim']} elements, medians of {found['rounds']} rounds")
    for heading in ("", "Sealface", "CipherFace N=8192", "CipherFace N=16384"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, ours, theirs in (
        ("server, ms (ours: whole call)", "server_ms_p50", "ms_p50"),
        ("arithmetic alone, ms (ours: with opening)", "compute_ms_p50", "ms_p50"),
        ("encrypt, ms", "encrypt_ms_p50", "encrypt_ms_p50"),
        ("open, ms (ours: the sealed decision)", "open_ms_p50", "open_ms_p50"),
        ("sent, bytes (ours: whole request)", "bytes", "bytes"),
        ("answer, bytes", "result_bytes", "result_bytes"),
        ("stored template, bytes", "template_bytes", "template_bytes"),
        ("evaluation keys, bytes (ours: not used 1:1)", "evaluation_key_bytes", "evaluation_key_bytes"),
        ("largest score error", "max_abs_score_error", "max_abs_score_error"),
    ):
        cells = (ours, f"cipherface_{theirs}", f"cipherface_16384_{theirs}")
        table.add_row(label, *(_cell(found[name]) for name in cells))
    return table


def _cell(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
