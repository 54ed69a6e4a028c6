"""`replug evaluate report`: the evaluations of one run as one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from replug_client.cli.flags import FILES


def report(
    inputs: Annotated[
        list[Path],
        typer.Option(
            "--input",
            help="What `replug evaluate lm`, `retrieval` or `qa` wrote with --output; several may follow.",
            rich_help_panel=FILES,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="The page.", rich_help_panel=FILES)],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of the training run, to be shown with it.", rich_help_panel=FILES),
    ] = None,
) -> None:
    """Show the evaluations of one run on one page: verdicts, plots with their intervals, sortable tables.

    The page needs nothing but a browser: no network, and no file beside it. Every figure says its n; what was
    left out stands above the tables, options and hashes of what was read at the end.
    """
    from replug_client.artefacts import atomic_write
    from replug_client.errors import OptionError
    from replug_client.evaluation.html_report import report_page
    from replug_client.evaluation.results import EvaluationResult
    from replug_client.evaluation.run_summary import RunSummary

    twice = sorted({str(file) for file in inputs if inputs.count(file) > 1})
    if twice:
        raise OptionError(f"--input names {', '.join(twice)} twice; expected each file once")
    results = {str(file): EvaluationResult.read(file) for file in inputs}
    page = report_page(results, None if run is None else RunSummary.read(run))
    with atomic_write(output, "w") as stream:
        stream.write(page)
    print(f"{len(results)} evaluation{'s' if len(results) > 1 else ''}: {output}", file=sys.stderr)
