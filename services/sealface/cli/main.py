"""The entry point."""

from __future__ import annotations

import typer

from sealface.cli import audit, backup, bench, certify, doctor, evaluate, faces, gallery, key_zone, keys, record, serve

app = typer.Typer(
    help="Face recognition that never sees a face.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve.serve)
app.command()(certify.certify)
app.command()(record.migrate)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(doctor.doctor)
app.add_typer(gallery.app, name="gallery")
app.command()(faces.enroll)
app.command()(faces.verify)
app.command()(faces.identify)
app.command()(faces.erase)
keys.app.command()(key_zone.rewrap)
keys.app.command()(key_zone.backup)
keys.app.command()(key_zone.restore)
keys.app.command()(key_zone.recover)
keys.app.command()(key_zone.recovery_key)
keys.app.command()(key_zone.encryption_key)
keys.app.command()(key_zone.operator_key)
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(bench.app, name="bench")
app.command()(evaluate.evaluate)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
