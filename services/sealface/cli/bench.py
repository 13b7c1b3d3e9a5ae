"""`sealface bench`."""

import typer

app = typer.Typer(help="Benchmarks, each printing JSON.", no_args_is_help=True)
