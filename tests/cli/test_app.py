"""The command line around the commands: spellings, help, versions, and errors without a traceback."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replug_client import __version__
from replug_client.cli import app
from replug_client.cli.app import canonical, main, spread_out
from replug_client.errors import OptionError, ReplugError, StaleArtefactError

LARGE = ("torch", "transformers", "sentence_transformers", "faiss")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["--n-docs", "3"], ["--n_docs", "3"]),
        (["--n_docs", "3"], ["--n_docs", "3"]),
        (["--n-docs=3"], ["--n_docs=3"]),
        (["--query-prompt=a-b --c-d"], ["--query_prompt=a-b --c-d"]),
        (["--output-dir", "a-b/c-d"], ["--output_dir", "a-b/c-d"]),
        (["-h", "-1", "embed-it"], ["-h", "-1", "embed-it"]),
        (["--no-bf16", "--", "--n-docs"], ["--no_bf16", "--", "--n-docs"]),
    ],
)
def test_both_spellings_of_a_flag_are_one_and_values_are_left_alone(
    typed: list[str], read: list[str]
) -> None:
    assert canonical(typed) == read


@given(st.lists(st.text()))
def test_spelling_twice_changes_nothing_more(arguments: list[str]) -> None:
    once = canonical(arguments)
    assert canonical(once) == once
    assert len(once) == len(arguments)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--conditions none base --json", "--conditions none --conditions base --json"),
        (
            "--conditions none --conditions base tuned",
            "--conditions none --conditions base --conditions tuned",
        ),
        ("--passages a b --combinations first", "--passages a b --combinations first"),
        ("--conditions=none base", "--conditions=none base"),
        ("--conditions --json", "--conditions --json"),
        ("evaluate report --input a b", "evaluate report --input a --input b"),
        ("score --input a b --output c", "score --input a b --output c"),
        ("--conditions a b -- c d", "--conditions a --conditions b -- c d"),
    ],
)
def test_several_values_behind_one_flag_get_it_each(typed: str, read: str) -> None:
    assert spread_out(typed.split()) == read.split()


def end_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("--version") == 0
    assert capsys.readouterr().out == f"replug {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("--help") == 0
    text = capsys.readouterr().out
    assert all(f" {command} " in text for command in ("embed", "train", "compare", "score", "demo"))


@pytest.mark.parametrize("command", ["embed", "train", "compare", "score", "demo"])
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(command, "--help") == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["embed", "train", "compare", "score", "answer", "evaluate lm", "data folder"]
)
def test_help_does_not_wait_for_large_libraries(command: str) -> None:
    program = f"""
import sys
from replug_client.cli.app import main
try:
    main({[*command.split(), "--help"]!r})
except SystemExit:
    print("loaded:", *sorted({LARGE!r} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stderr.splitlines()[-1].strip() == "loaded:"


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("train", "--learning_rat", "1") == 2
    assert "--learning_rat" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [OptionError("--seed: expected [a] number"), StaleArtefactError("other weights"), ReplugError("no")],
)
def test_an_error_is_printed_alone_and_decides_the_exit_status(
    error: ReplugError, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**_: object) -> None:
        raise error

    monkeypatch.setattr(app, "get_command", lambda _: failing)
    for begin in (lambda: main(["embed"]), lambda: app.run("embed")):
        monkeypatch.setattr(sys, "argv", ["program"])
        with pytest.raises(SystemExit) as end:
            begin()
        assert end.value.code == error.exit_code
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", f"error: {error}\n")


def test_a_file_in_the_way_is_named_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()

    def failing(**_: object) -> None:
        (tmp_path / "file" / "shard").mkdir()

    monkeypatch.setattr(app, "get_command", lambda _: failing)
    assert end_of("embed") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'file' / 'shard'}: Not a directory. Give another place")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "error: No space left on device. Give another place",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), None),
        (OSError("of no number"), None),
    ],
)
def test_a_full_disk_is_told_and_what_may_be_a_mistake_of_ours_is_not_hidden(
    error: OSError, said: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**_: object) -> None:
        raise error

    monkeypatch.setattr(app, "get_command", lambda _: failing)
    if said is None:
        with pytest.raises(type(error), match=error.strerror or "of no number"):
            main(["embed"])
    else:
        assert end_of("embed") == 1
        assert capsys.readouterr().err.startswith(said)


def test_a_second_input_of_score_is_refused_and_not_taken_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("score", "--input", "a.jsonl", "b.jsonl", "--output", "c.jsonl", "--model", "m") == 2
    assert "b.jsonl" in capsys.readouterr().err


def test_a_mistake_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(app, "get_command", lambda _: failing)
    with pytest.raises(ZeroDivisionError):
        main(["embed"])
