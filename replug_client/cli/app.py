"""The `replug` command: one Typer application, shared by the console script and the top-level files."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import typer
from typer.main import get_command

from replug_client import __version__
from replug_client.errors import ReplugError

# replug draws its own bars, and none where nobody looks. tqdm reads this once, when a library first imports it,
# which is after this module and before any command runs.
os.environ.setdefault("TQDM_DISABLE", "1")

_COMMANDS: dict[str, tuple[str, str]] = {
    "embed": ("Pipeline", "replug_client.cli.embed"),
    "train": ("Pipeline", "replug_client.cli.train"),
    "compare": ("Pipeline", "replug_client.cli.compare"),
    "answer": ("Use", "replug_client.cli.answer"),
    "score": ("Tools", "replug_client.cli.score"),
    "demo": ("Tools", "replug_client.cli.demo"),
}

# Commands that are groups: name to panel, help, and the module whose `app` they are.
_GROUPS: dict[str, tuple[str, str, str]] = {
    "evaluate": (
        "Evaluation",
        "Does it help? The LM's side, retrieval, and questions.",
        "replug_client.cli.evaluate",
    ),
    "data": (
        "Data",
        "Corpora and data sets, as files that the other commands read.",
        "replug_client.cli.data",
    ),
}

# Flags that take all values up to the next flag; where another command has one of that name, it takes one.
_SEVERAL_VALUES = {"--conditions", "--combinations", "--datasets", "--input", "--metrics", "--retrievers"}
_ONE_VALUE = {("score", "--input")}
_IN_THE_WAY = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def canonical(arguments: Sequence[str]) -> list[str]:
    """Spell every long flag with underscores: ``--n-docs=3`` becomes ``--n_docs=3``.

    Values are left alone, and so is everything after a bare ``--``.
    """
    result: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[position:]]
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            argument = "--" + flag[2:].replace("-", "_") + equals + value
        result.append(argument)
    return result


def spread_out(arguments: Sequence[str]) -> list[str]:
    """Give each value its flag, where several may stand behind one: ``--conditions none base`` becomes
    ``--conditions none --conditions base``. After :func:`canonical`.
    """
    result: list[str] = []
    flag: str | None = None
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[position:]]
        if argument.startswith("-"):
            several = argument in _SEVERAL_VALUES and (arguments[0], argument) not in _ONE_VALUE
            flag = argument if several else None
        elif flag is not None and result[-1] != flag:
            result.append(flag)
        result.append(argument)
    return result


def build(arguments: Sequence[str] = ()) -> typer.Typer:
    """The application with its commands; each command's module is imported here and nowhere else.

    Where ``arguments`` begin with the name of a command, with this one alone: others would import much in vain.
    """
    first = arguments[0] if arguments else ""

    def asked(name: str) -> bool:
        return first == name or (first != "--version" and first not in (*_COMMANDS, *_GROUPS))

    app = typer.Typer(
        name="replug",
        help="Tune a dense retriever to a black-box language model (REPLUG LSR), and see what it gives.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_root)
    for name, (panel, module) in filter(lambda item: asked(item[0]), _COMMANDS.items()):
        app.command(name, rich_help_panel=panel)(getattr(import_module(module), name))
    for name, (panel, text, module) in filter(lambda item: asked(item[0]), _GROUPS.items()):
        app.add_typer(import_module(module).app, name=name, rich_help_panel=panel, help=text)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"replug {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    # The version is printed by its own callback: without a command after it, this function is never called.
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `replug`. A ``ReplugError`` is printed without a traceback and decides the exit status."""
    read = _read(sys.argv[1:] if arguments is None else arguments)
    _invoke(get_command(build(read)), read, "replug")


def run(command: str) -> None:
    """Run one command as a program of its own, as the top-level files do."""
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="rich")
    _, module = _COMMANDS[command]
    single.command(command)(getattr(import_module(module), command))
    _invoke(get_command(single), _read(sys.argv[1:]), sys.argv[0])


def _read(arguments: Sequence[str]) -> list[str]:
    return spread_out(canonical(arguments))


def _invoke(command: Callable[..., object], arguments: list[str], program: str) -> None:
    try:
        command(args=arguments, prog_name=program)
    except ReplugError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        # What stands in the way of a file, or a full disk: no defect that a traceback would help to find.
        if not isinstance(error, _IN_THE_WAY) and error.errno not in _FULL:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {place}{error.strerror}. Give another place, or clear this one.", file=sys.stderr)
        sys.exit(1)
