"""`sealface bench`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
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


@app.command()
@reporting
def search(
    templates: Annotated[int, typer.Option(min=1, help="Templates in the gallery.")] = 10_000,
    dim: Annotated[int, typer.Option(help="Elements of a template, as a DeepFace model has them.")] = 128,
    probes: Annotated[int, typer.Option(min=1, help="Searches.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the matching service and of numpy.")] = 2,
    batch: Annotated[int, typer.Option(min=1, max=16, help="Probes in one call.")] = 1,
    compare: Annotated[
        bool, typer.Option("--compare", help="A table over sizes: this engine, TenSEAL dot products, plaintext.")
    ] = False,
    largest: Annotated[int, typer.Option(help="With --compare: leave out larger galleries.")] = 1_000_000,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Search a gallery of random unit vectors, beside numpy's plaintext product in the same run.

    Services named by --state must run with as many threads (`sealface serve --threads`).
    """
    from sealface_bench import search as benchmark

    os.environ["SEALFACE_THREADS"] = str(threads)
    if compare:
        _compare(state, largest, probes, threads, as_json)
        return
    with progress.status("starting") as status, services_at(state, lambda line: progress.print(line)) as where:
        found = asyncio.run(
            benchmark.measure(
                where,
                templates=templates,
                dimension=dim,
                probes=max(probes, batch),
                threads=threads,
                batch=batch,
                tell=status.update,
            )
        )
    if as_json:
        print_json(found)
        return
    console.print(_rows(found, f"{templates:,} encrypted templates of {dim} elements"))


def _compare(state: Path | None, largest: int, probes: int, threads: int, as_json: bool) -> None:
    from sealface_bench import compare as benchmark

    sizes = [size for size in benchmark.SIZES if size[0] <= largest]
    with progress.status("starting") as status, services_at(state, lambda line: progress.print(line)) as where:
        rows = asyncio.run(benchmark.compare(where, sizes, probes=probes, threads=threads, tell=status.update))
    if as_json:
        print_json({"rows": rows})
        return
    table = Table(title="one search, milliseconds (CipherFace's way: pairs measured, carried on to the size)")
    for heading in ("templates", "elements", "encrypted", "of it scoring", "plaintext", "ratio", "CipherFace's way"):
        table.add_column(heading, justify="right")
    for row in rows:
        scored = (row["total_ms"], row["score_ms"], row["plain_ms"], row["ratio_to_plain"], row["cipherface_ms"])
        table.add_row(f"{row['templates']:,}", str(row["dim"]), *(f"{value:,.3g}" for value in scored))
    console.print(table)


@app.command()
@reporting
def rotation(
    templates: Annotated[int, typer.Option(min=100, help="Templates in the gallery.")] = 100_000,
    enrolled: Annotated[int, typer.Option(min=0, help="Of these, enrolled singly.")] = 1_000,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Move a gallery to a new version of its key while it is searched: how long it takes, what searches notice."""
    from sealface_bench import rotation as benchmark

    with progress.status("starting") as status, services_at(state, lambda line: progress.print(line)) as where:
        made = benchmark.measure(where, templates=templates, enrolled=enrolled, tell=status.update)
        found = asyncio.run(made)
    if as_json:
        print_json(found)
        return
    taken = {name: value for name, value in found.items() if not isinstance(value, dict)}
    searches = {
        f"{when}: {name}": value for when in ("before", "during", "after") for name, value in found[when].items()
    }
    console.print(_rows(taken | searches, f"{templates:,} templates moved to a new key version"))


@app.command()
@reporting
def engine(
    dim: Annotated[int, typer.Option(min=2, max=4096, help="Elements of a template.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="How often each step runs.")] = 5,
    as_json: Json = False,
) -> None:
    """Measure the engine's steps on one thread: expansion beside SEAL's, sealing, import, opening, renewal."""
    from sealface_bench import engine as benchmark

    with progress.status("starting") as status:
        found = benchmark.measure(dim, rounds, tell=status.update)
    if as_json:
        print_json(found)
    else:
        console.print(_rows(found, f"the engine's steps, {dim} elements, one thread"))


@app.command()
@reporting
def identification(
    templates: Annotated[int, typer.Option(min=16, help="Templates in the gallery.")] = 10_000,
    probes: Annotated[int, typer.Option(min=2, help="Searches.")] = 400,
    fpir: Annotated[float, typer.Option(help="Target of the policy.")] = 0.01,
    threshold: Annotated[float | None, typer.Option(help="A fixed threshold in its place.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="NPZ with `names` and `emb` of model Dlib; random vectors if left out.")
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """FPIR and FNIR of a gallery, encrypted and in plaintext, and whether all answers agree rank by rank."""
    from sealface_bench import identification as benchmark

    real = read_embeddings(embeddings) if embeddings else None
    with progress.status("starting") as status, services_at(state, lambda line: progress.print(line)) as where:
        found = asyncio.run(
            benchmark.measure(
                where,
                real,
                templates=templates,
                probes=probes,
                target_fpir=fpir,
                threshold=threshold,
                tell=status.update,
            )
        )
    if as_json:
        print_json(found)
    else:
        console.print(_rows(found, f"identification among {templates:,} encrypted templates"))


def _rows(found: dict[str, Any], title: str) -> Table:
    table = Table(show_header=False, title=title)
    for name, value in found.items():
        table.add_row(name, value if isinstance(value, str) else "" if value is None else _cell(value))
    return table


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


@app.command()
@reporting
def workers(
    templates: Annotated[int, typer.Option(min=1, help="Templates in the gallery.")] = 200_000,
    dim: Annotated[int, typer.Option(help="Elements of a template.")] = 128,
    batch: Annotated[int, typer.Option(min=1, max=16, help="Probes in one pass.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Passes of each.")] = 9,
    ray: Annotated[
        bool, typer.Option("--ray", help="Compare with Ray actors, on a cluster begun and ended here.")
    ] = False,
    ray_address: Annotated[str, typer.Option(help="The same on one that runs: host:port, two free CPUs.")] = "",
    as_json: Json = False,
) -> None:
    """Compare one worker process with two, and processes with Ray actors, one thread each."""
    from sealface_bench import workers as benchmark

    with progress.status("starting") as status, benchmark.cluster(ray, ray_address) as address:
        found = benchmark.measure(
            templates=templates,
            dimension=dim,
            batch=batch,
            rounds=rounds,
            ray_address=address,
            tell=status.update,
        )
    if as_json:
        print_json(found)
        return
    table = Table("", "1 worker", "2 workers", "speed-up", title=f"{templates:,} x {dim}, {batch} probes a pass, ms")
    for name, label in (
        ("multiply", "scoring alone"),
        ("pass", "and finishing"),
        ("expand", "expansion"),
        ("wall", "all"),
    ):
        one, two = found[f"local_1_{name}_ms"], found[f"local_2_{name}_ms"]
        table.add_row(label, f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}")
    table.add_row("scoring, fastest passes", "", "", f"{found['speedup_score_best']:.2f}")
    one, two = found["cpu_1_score_ms"], found["cpu_2_score_ms"]
    table.add_row("scoring, processor time", f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}")
    console.print(table)
    if address:
        table = Table("", "ms", title="one probe, two workers, scatter to last result (medians)")
        table.add_row("local processes", f"{found['local_single_ms']:.1f}")
        table.add_row("Ray actors", f"{found['ray_single_ms']:.1f}")
        table.add_row("what Ray adds", f"{found['ray_adds_ms']:.1f}")
        console.print(table)


@app.command()
@reporting
def scatter(
    templates: Annotated[int, typer.Option(min=1, help="Templates in the gallery.")] = 100_000_000,
    dim: Annotated[int, typer.Option(help="Elements of a template.")] = 128,
    workers: Annotated[int, typer.Option(min=2, help="Workers that share it.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each.")] = 4,
    gbit: Annotated[float, typer.Option(help="Network of the matching service, Gbit/s each way.")] = 25.0,
    relays: Annotated[int, typer.Option(min=1, help="Processes that pass results on; one is what is built.")] = 1,
    openers: Annotated[int, typer.Option(min=1, help="Processes that open results; one is what is built.")] = 1,
    sigma: Annotated[float, typer.Option(min=0, help="Spread of a worker's time, of its logarithm.")] = 0.1,
    slow: Annotated[float, typer.Option(min=0, max=1, help="Probability of a worker's slow mode.")] = 0.01,
    slow_factor: Annotated[float, typer.Option(min=1, help="How slow that is.")] = 5.0,
    lost: Annotated[float, typer.Option(min=0, max=1, help="Probability that a worker is lost in a search.")] = 1e-4,
    hedge_ms: Annotated[float, typer.Option(min=0, help="When to ask again; 0: a worker's 95th percentile.")] = 0.0,
    searches: Annotated[int, typer.Option(min=1, help="Searches drawn.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 1,
    as_json: Json = False,
) -> None:
    """Simulate searches over many workers with stragglers and losses, with and without a second copy of each block."""
    from sealface_bench import scatter as benchmark

    plant = benchmark.Plant(templates, dim, workers, threads, gbit, relays, openers)
    stragglers = benchmark.Stragglers(sigma, slow, slow_factor, lost, hedge_ms=hedge_ms)
    found = benchmark.simulate(plant, benchmark.Costs(plan_ms=benchmark.planning(plant)), stragglers, searches, seed)
    if as_json:
        print_json(found)
        return
    policies = {
        "one_copy": "one copy, losses done again",
        "two_copies": "two copies, losses done again",
        "hedged": f"and asked again after {found['hedge_ms']:.0f} ms (not built)",
    }
    names = tuple(benchmark.QUANTILES)
    title = f"{templates:,} x {dim} over {workers} workers of {threads} threads, ms: pass alone, whole search"
    table = Table("", *names, *names, title=title)
    for policy, label in policies.items():
        cells = [f"{found[policy][what][name]:,.0f}" for what in ("pass", "search") for name in names]
        table.add_row(label, *cells)
    console.print(table)
    table = Table("one search", "bytes", "ms", title=f"what all results take, at {gbit:g} Gbit/s")
    table.add_row("placed and named to workers", "", f"{found['plan_ms']:,.0f}")
    table.add_row("undisturbed pass", "", f"{found['undisturbed_ms']:,.0f}")
    table.add_row("probe and names of blocks to workers", f"{found['scatter_bytes']:,}", f"{found['scatter_ms']:,.0f}")
    table.add_row("results to the matching service", f"{found['gather_bytes']:,}", f"{found['gather_ms']:,.0f}")
    table.add_row("passed on by its processes", "", f"{found['matching_ms']:,.0f}")
    table.add_row("with slots to the key service", f"{found['decide_bytes']:,}", f"{found['decide_ms']:,.0f}")
    table.add_row("opened there", "", f"{found['opening_ms']:,.0f}")
    console.print(table)


@app.command()
@reporting
def cold(
    templates: Annotated[int, typer.Option(min=1, help="Templates in the gallery.")] = 100_000,
    dim: Annotated[int, typer.Option(help="Elements of a template.")] = 128,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes, one thread each.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="How often each way is taken, in turns.")] = 3,
    as_json: Json = False,
) -> None:
    """Load a gallery into new workers: from PostgreSQL, through an empty Redis, from a full one. From a checkout."""
    from sealface_bench import cold as benchmark

    with progress.status("starting") as status:
        found = benchmark.measure(
            templates=templates, dimension=dim, workers=workers, rounds=rounds, tell=status.update
        )
    if as_json:
        print_json(found)
        return
    flat = {name: value for name, value in found.items() if not isinstance(value, dict)}
    parts = [(name, value) for name, value in found.items() if isinstance(value, dict)]
    flat |= {f"{name}: {step}": value for name, steps in parts for step, value in steps.items()}
    console.print(_rows(flat, f"{templates:,} templates of {dim} elements into {workers} workers"))


@app.command()
@reporting
def unlinkability(
    embeddings: Annotated[Path, typer.Option(help="NPZ with `names` and `emb`, by person.")],
    picture: Annotated[Path | None, typer.Option(help="Where histograms are written, as SVG.")] = None,
    as_json: Json = False,
) -> None:
    """Tell people across two galleries by their embeddings: plain, and under each gallery's own transform."""
    from sealface_bench import unlinkability as benchmark

    faces = read_embeddings(embeddings)
    found, scores = benchmark.measure(list(faces), np.stack(list(faces.values())))
    if picture is not None:
        picture.write_text(benchmark.picture(scores))
    if as_json:
        print_json(found)
        return
    table = Table("", "figure")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
    console.print(table)
