import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

CODE = """
import logging, structlog
from sealface.runtime import logs
logs.configure("keys")
structlog.get_logger("a").info("said", method="/m")
structlog.get_logger("a").debug("not said")
logging.getLogger("library").info("not said either")
"""


def test_a_line_is_one_json_object_on_standard_error_with_service_level_and_time():
    run = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    said = json.loads(line)
    assert said.pop("timestamp").endswith("Z")
    assert said == {"event": "said", "method": "/m", "level": "info", "service": "keys"}


def test_a_line_is_one_write_so_that_processes_may_share_a_log(tmp_path: Path) -> None:
    program = (
        "import structlog; from sealface.runtime.logs import configure; configure('keys')\n"
        "for number in range(2000): structlog.get_logger('test').info('called', number=number)"
    )
    with open(tmp_path / "log", "a") as log:
        for process in [subprocess.Popen([sys.executable, "-c", program], stderr=log) for _ in range(3)]:
            assert process.wait(60) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert Counter(line["number"] for line in lines) == dict.fromkeys(range(2000), 3)
