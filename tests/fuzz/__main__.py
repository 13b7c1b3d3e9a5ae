"""Feeds every form with inputs that atheris (libFuzzer) makes, guided by the coverage of our code, and reports on each.

    python -m tests.fuzz --inputs 1000000

Each form is fed by a process of its own, so that a crash, a leak or a hang of one is seen and the others go on. A form
that raises anything but an error of ours, an input that takes over a second, or memory that grows by more than 64 MiB
after the first tenth fails the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SLOWEST_S = 1.0
GROWTH_MIB = 64


def resident_mib() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / (1 << 20)


def feed(name: str, inputs: int) -> None:
    """Feed one form, in this process; prints one JSON line. Ends with the process."""
    import atheris

    import sealface.cipher.scheme  # noqa: F401 - before: numba cannot compile kernels that are instrumented

    with atheris.instrument_imports(include=["sealface"]):
        from tests.fuzz.forms import Forms
    form = Forms().all[name]
    counts = {"inputs": 0, "taken": 0}
    slowest, before = 0.0, 0.0

    def one(data: bytes) -> None:
        nonlocal slowest, before
        started = time.perf_counter()
        counts["taken"] += form.try_(data)
        slowest = max(slowest, time.perf_counter() - started)
        counts["inputs"] += 1
        if counts["inputs"] == max(1, inputs // 10):
            before = resident_mib()
        if counts["inputs"] == inputs:
            grown = max(0.0, resident_mib() - before)
            print(json.dumps({"form": name, **counts, "slowest_ms": slowest * 1e3, "grown_mib": grown}), flush=True)

    with tempfile.TemporaryDirectory(prefix="sealface-corpus-") as corpus:
        for number, sample in enumerate(form.samples):
            Path(corpus, str(number)).write_bytes(sample)
        largest = max(map(len, form.samples)) + 64
        options = ["fuzz", f"-runs={inputs}", f"-max_len={largest}", "-timeout=5", "-rss_limit_mb=4096", "-verbosity=0"]
        atheris.Setup([*options, corpus], one)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all forms together")
    parser.add_argument("--form", help="feed this one alone, in this process")
    arguments = parser.parse_args()
    if arguments.form:
        feed(arguments.form, arguments.inputs)
        return
    from tests.fuzz.test_forms import NAMES

    # what parses whole ciphertexts costs milliseconds, what parses messages microseconds
    heavy = {"results", "renewed block", "public key", "evaluation key"}
    share = arguments.inputs // (10 * (len(NAMES) - len(heavy)) + len(heavy))
    failed, total = [], 0
    for name in NAMES:
        inputs = share if name in heavy else 10 * share + 10
        command = [sys.executable, "-m", "tests.fuzz", "--form", name, "--inputs", str(inputs)]
        run = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
        found = json.loads(lines[-1]) if lines else {"form": name, "inputs": 0}
        sound = found["inputs"] == inputs and found["slowest_ms"] < SLOWEST_S * 1e3 and found["grown_mib"] < GROWTH_MIB
        total += found["inputs"]
        print(json.dumps(found | {"sound": sound}), flush=True)
        if not sound:
            failed.append(name)
            print(run.stderr[-4000:], file=sys.stderr)
    print(json.dumps({"inputs": total, "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
