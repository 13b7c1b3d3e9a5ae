"""`python -m tests.system.chaos`: the long form; ends with one JSON line, and 0 if no fault was found."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import json
import random
import sys
import time
from pathlib import Path

from tests.system.chaos.model import Findings
from tests.system.chaos.scenario import SCENARIOS, run

_LONGEST_S = 3600.0


def main() -> int:
    """Run the scenarios one after the other, and print what came of them together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="At least so many in all.")
    parser.add_argument("--seed", type=int, default=0, help="Of what is left to chance; 0 to draw one.")
    parser.add_argument("--scenario", choices=[scenario.name for scenario in SCENARIOS], help="Only this one.")
    parser.add_argument("--state", type=Path, help="Keep the services' folders below this one.")
    asked = parser.parse_args()
    faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
    begun = time.monotonic()
    seed = asked.seed or random.SystemRandom().randrange(1, 1 << 30)
    chosen = [scenario for scenario in SCENARIOS if asked.scenario in (None, scenario.name)]
    total = Findings()
    for scenario in chosen:
        _tell(f"{scenario.name}: seed {seed}")
        state = asked.state / scenario.name if asked.state else None
        findings = asyncio.run(run(scenario, -(-asked.kills // len(chosen)), seed, state))
        _tell(f"{scenario.name}: {json.dumps(findings.fields())}", *findings.details)
        total.add(findings)
    print(json.dumps({**total.fields(), "seconds": round(time.monotonic() - begun, 1)}))
    return 0 if total.clean else 1


def _tell(*lines: str) -> None:
    print(*lines, sep="\n  ", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
