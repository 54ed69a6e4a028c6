"""Bars on a terminal, now and then a line elsewhere, one log format."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from replug_client import progress as module
from replug_client.errors import OptionError
from replug_client.progress import configure_logging, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Call it in the test to make stderr a terminal: between set-up and test, pytest sets its own again."""

    def attach() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "_DELAY_SECONDS", 0.0)
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0.0)
    return attach


@pytest.fixture
def clean_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, environment = list(root.handlers), root.level, dict(os.environ)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in (*module._CHATTY, module.logger.name):
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


def test_a_terminal_is_shown_amount_rate_and_time_left(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()
    with progress("Embedding passages", 1200, "passages") as advance:
        for _ in range(4):
            advance(300)
            time.sleep(0.02)
    shown = screen.getvalue()
    assert "Embedding passages" in shown
    assert "1,200/1,200 passages" in shown
    assert "/s" in shown
    assert "left" in shown


def test_bytes_are_shown_in_powers_of_a_thousand(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()
    with progress("Reading", 2_500_000_000, "B") as advance:
        advance(1_200_000_000)
        advance(1_300_000_000)
    assert "2 GB/2 GB" in screen.getvalue()


def test_an_unknown_total_is_counted(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()
    with progress("Scoring", None, "pairs") as advance:
        advance(5)
        advance(7)
    assert "12 pairs" in screen.getvalue()


def test_work_that_is_soon_over_shows_no_bar(
    terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal()
    monkeypatch.setattr(module, "_DELAY_SECONDS", 60.0)
    with progress("Reading", 10, "passages") as advance:
        advance(10)
    assert screen.getvalue() == ""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def work(clock: Clock, advance: Callable[[int], None], seconds: int, a_second: int) -> None:
    for _ in range(seconds):
        clock.now += 1
        advance(a_second)


def test_where_stderr_is_no_terminal_there_are_lines_ever_more_seldom(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", module.logger.name)
    with progress("Embedding passages", 40_000, "passages") as advance:
        work(clock, advance, 35, 100)
        assert caplog.messages == ["Embedding passages: 3,000 of 40,000 passages, 100/s, 6 min left"]
        work(clock, advance, 65, 100)
        work(clock, advance, 150, 200)
    assert caplog.messages[1:] == [
        "Embedding passages: 9,000 of 40,000 passages, 100/s, 5 min left",
        "Embedding passages: 32,000 of 40,000 passages, 192/s, 42 s left",
        "Embedding passages: 40,000 of 40,000 passages, 4 min, 160/s",
    ]


@pytest.mark.usefixtures("clean_logging")
@pytest.mark.parametrize(("level", "lines"), [("debug", 2), ("warning", 2), ("error", 0)])
def test_a_log_that_warns_alone_says_how_far_long_work_is_too(
    clock: Clock, capsys: pytest.CaptureFixture[str], level: str, lines: int
) -> None:
    configure_logging(level)
    with progress("Embedding passages", 40_000, "passages") as advance:
        work(clock, advance, 35, 100)
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_lines_come_at_least_every_ten_minutes(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", module.logger.name)
    with progress("training", 1_000_000, "steps") as advance:
        work(clock, advance, 4 * 3600, 1)
        lines = len(caplog.messages)
        work(clock, advance, 3600, 1)
        assert len(caplog.messages) == lines + 6
    assert caplog.messages[-2].endswith("steps, 1/s, 272 h 51 min left")


def test_what_is_soon_over_has_no_line(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", module.logger.name)
    with progress("Reading", 10, "passages") as advance:
        work(clock, advance, 29, 1)
    assert caplog.messages == []


def test_lines_count_what_was_done_before_but_not_in_the_rate(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", module.logger.name)
    with progress("corpus.tar", 9_000_000, "B", 3_000_000) as advance:
        work(clock, advance, 30, 100_000)
    assert caplog.messages == [
        "corpus.tar: 6 MB of 9 MB, 100 KB/s, 30 s left",
        "corpus.tar: 6 MB of 9 MB, 30 s, 100 KB/s",
    ]


def test_lines_of_an_unknown_total_and_of_more_than_was_expected(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", module.logger.name)
    with progress("scoring", None, "pairs") as advance, progress("Reading", 1, "rows") as more:
        work(clock, advance, 30, 2)
        more(3)
        assert caplog.messages == ["scoring: 60 pairs, 2/s", "Reading: 3 of 1 rows, 10 s each, 0 s left"]


def test_of_what_takes_longer_than_a_second_the_seconds_are_shown(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", module.logger.name)
    with progress("training", 94, "steps") as advance:
        for seconds in (34, 100, 1200):
            clock.now += seconds
            advance(1 if seconds < 1200 else 40)
    assert caplog.messages == [
        "training: 1 of 94 steps, 34 s each",
        "training: 2 of 94 steps, 100 s each",
        "training: 42 of 94 steps, 30 s each, 26 min left",
        "training: 42 of 94 steps, 22 min, 32 s each",
    ]


def test_the_other_processes_of_a_run_write_no_lines(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", module.logger.name)
    monkeypatch.setattr(module, "_muted", True)
    with progress("Reading", 10, "passages") as advance:
        work(clock, advance, 60, 1)
    assert caplog.messages == []


def test_bars_may_be_nested_and_come_from_several_threads(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()

    def work(name: str) -> None:
        with progress(name, 50, "steps") as advance:
            for _ in range(50):
                advance(1)

    with progress("outer", 4, "parts") as advance:
        threads = [threading.Thread(target=work, args=(f"inner {number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
            advance(1)
        for thread in threads:
            thread.join()
        advance(1)
    shown = screen.getvalue()
    for name in ("outer", "inner 0", "inner 1", "inner 2"):
        assert name in shown
    assert "4/4 parts" in shown
    assert sys.stderr is screen, "rich must have given stderr back"


def test_an_exception_takes_the_bar_down_and_goes_on(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()
    with contextlib.suppress(KeyError), progress("Reading", 3, "passages") as advance:
        advance(1)
        raise KeyError
    assert "1/3 passages" in screen.getvalue()
    assert sys.stderr is screen
    assert module._bars._display is None


@pytest.mark.usefixtures("clean_logging")
def test_the_log_goes_to_stderr_once_in_one_format(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug")
    configure_logging("info")
    logging.getLogger("replug_client.corpus").info("read %d passages", 3)
    logging.getLogger("replug_client.corpus").debug("unseen")
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.endswith("INFO    read 3 passages")


@pytest.mark.usefixtures("clean_logging")
@pytest.mark.parametrize("name", ["httpx", "httpx2", "httpcore2.connection"])
def test_chatty_libraries_speak_only_to_warn(capsys: pytest.CaptureFixture[str], name: str) -> None:
    configure_logging("INFO")
    logging.getLogger(name).info("HTTP Request: POST")
    logging.getLogger(name).warning("trouble")
    assert capsys.readouterr().err.splitlines()[0].endswith("WARNING trouble")
    configure_logging("debug")
    logging.getLogger(name).debug("HTTP Request: POST")
    assert "HTTP Request" in capsys.readouterr().err


@pytest.mark.usefixtures("clean_logging")
def test_log_lines_go_above_a_live_bar(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()
    configure_logging("info")
    with progress("Reading", 10, "passages") as advance:
        advance(5)
        logging.getLogger("replug_client").info("a line")
        assert sys.stderr is not screen
        advance(5)
    assert "a line\n" in screen.getvalue()


def test_an_unknown_level_lists_those_that_are_known() -> None:
    with pytest.raises(OptionError, match="--log_level loud: expected one of debug, info, warning, error"):
        configure_logging("loud")
