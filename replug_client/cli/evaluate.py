"""`replug evaluate ...`: one module a command."""

from __future__ import annotations

import typer

from replug_client.cli.evaluate_lm import lm
from replug_client.cli.evaluate_qa import qa
from replug_client.cli.evaluate_report import report
from replug_client.cli.evaluate_retrieval import retrieval

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
for command in (lm, retrieval, qa, report):
    app.command(command.__name__)(command)
