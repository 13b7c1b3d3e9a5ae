"""What commands print: tables for people, one JSON object for programs, one line of error for both."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import grpc
import typer
from rich.console import Console
from rich.progress import Progress

from sealface.errors import InvalidInput, SealfaceError

_P = ParamSpec("_P")
_T = TypeVar("_T")

console = Console()
progress = Console(stderr=True)

State = Annotated[
    Path | None,
    typer.Option("--state", envvar="SEALFACE_STATE", help="State folder of `sealface serve`.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    NO = 1
    USAGE = 2
    FAILED = 3


def progress_bar() -> Progress:
    """A bar for people; a program that reads standard error finds nothing of it there."""
    return Progress(console=progress, transient=True, disable=not progress.is_terminal)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    """One line on standard error, and out."""
    sys.stderr.write(f"sealface: {' '.join(message.split())}\n")
    raise typer.Exit(code)


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except SealfaceError as error:
        refused = getattr(error, "code", None)  # a service's answer, even of bad input, is not a matter of usage
        local = isinstance(error, InvalidInput) and not isinstance(refused, grpc.StatusCode)
        fail(f"{error.message} [{error.reason}]", Exit.USAGE if local else Exit.FAILED)
    except KeyboardInterrupt:
        fail("interrupted")
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if os.environ.get("SEALFACE_DEBUG"):
            raise
        fail(f"{type(error).__name__}, which should not happen: set SEALFACE_DEBUG=1 and report what it prints")


def reporting(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """A command whose errors are one line."""

    @wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with _reported():
            return command(*args, **kwargs)

    return wrapped
