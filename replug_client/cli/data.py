"""`replug data ...`: data sets as files that the other commands read; one module a command."""

from __future__ import annotations

from collections.abc import Callable

import typer

from replug_client.cli.data_beir import beir
from replug_client.cli.data_codesearchnet import codesearchnet
from replug_client.cli.data_folder import folder
from replug_client.cli.data_jsonl import jsonl
from replug_client.cli.data_msmarco import msmarco
from replug_client.cli.data_overlap import overlap
from replug_client.cli.data_stdlib import stdlib
from replug_client.cli.data_wikipedia import wikipedia
from replug_client.cli.data_wikitext import wikitext

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Published data sets": {
        "wikitext": wikitext,
        "wikipedia": wikipedia,
        "msmarco": msmarco,
        "beir": beir,
        "codesearchnet": codesearchnet,
    },
    "Your own texts": {"folder": folder, "jsonl": jsonl, "stdlib": stdlib},
    "Checks": {"overlap": overlap},
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
