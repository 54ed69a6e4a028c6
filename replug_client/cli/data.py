"""`replug data ...`: placeholder of the scaffold, replaced by helper F."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def _root() -> None:
    pass
