import json
import subprocess
import sys

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
