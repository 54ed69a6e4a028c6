"""What a person sees while a command works: bars on a terminal, lines in a log elsewhere, and one log format."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from replug_client.errors import OptionError

_LEVELS = ("debug", "info", "warning", "error")
logger = logging.getLogger(__name__)

_DELAY_SECONDS = 0.5
_REFRESH_SECONDS = 0.1
# Between the lines of a log, which stay: twice as long each time, up to the last.
_LINE_SECONDS = 30.0
_MAX_LINE_SECONDS = 600.0
_LEAST_UNITS = 3
# Loggers that report each request or file at INFO; their warnings still come through.
_CHATTY = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "openai",
    "urllib3",
    "filelock",
    "fsspec",
    "asyncio",
    "faiss",
    "sentence_transformers",
)


class _AmountColumn(ProgressColumn):
    """``12,345/20,000 passages`` or, without a total, ``12,345 passages``."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        amount = _quantity(task.completed, unit)
        if task.total is not None:
            amount = f"{amount}/{_quantity(task.total, unit)}"
        return Text(amount if unit == "B" else f"{amount} {unit}", style="progress.download")


class _RateColumn(ProgressColumn):
    """``193/s``, or ``4.2 s each``, over the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else _rate(speed, task.fields["unit"]), style="progress.data.speed")


def _quantity(value: float, unit: str) -> str:
    if unit != "B":
        return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
    for prefix in ("", "K", "M", "G"):
        if value < 1000:
            return f"{value:.0f} {prefix}B"
        value /= 1000
    return f"{value:.1f} TB"


def _rate(a_second: float, unit: str) -> str:
    """``193/s``; of what takes more than a second, ``4.2 s each``."""
    if unit == "B" or not 0 < a_second < 1:
        return f"{_quantity(a_second, unit)}/s"
    each = 1 / a_second
    return f"{each:.1f} s each" if each < 10 else f"{_duration(each)} each"


def _duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Bars:
    """All bars of the process in one display: rich draws only one live display at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._display: Progress | None = None
        self._shown = 0

    def show(self, description: str, total: int | None, unit: str, done: int) -> Callable[[int], None]:
        with self._lock:
            if self._display is None:
                self._display = _new_display()
                self._display.start()
            self._shown += 1
            display = self._display
            task = display.add_task(description, total=total, completed=done, unit=unit)
        return lambda completed: display.update(task, completed=completed)

    def hide(self) -> None:
        with self._lock:
            self._shown -= 1
            if self._shown == 0 and self._display is not None:
                self._display.stop()
                self._display = None


def _new_display() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        _AmountColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
    )


_bars = _Bars()
_muted = False


def mute() -> None:
    """No bars from here on, and of the log only errors: for all but the first of several processes of one run."""
    global _muted
    _muted = True
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.ERROR)


@contextlib.contextmanager
def progress(
    description: str, total: int | None, unit: str, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and time left while the block runs.

    Where stderr is no terminal (a log file, ``nohup``, a cluster's job) a line in the log instead, after half
    a minute and then ever more seldom, up to ten minutes; and one at the end of what had lines. Silent for
    work that is over sooner. Safe to nest and to use from several threads; ``advance`` too.

    Args:
        description: What is being done, for example ``"Embedding passages"``.
        total: How many units there are; ``None`` when that is not known.
        unit: What is counted, in the plural (``"passages"``); ``"B"`` is shown as KB, MB, GB.
        done: Units that were done before the block, and are no part of the rate.

    Yields:
        ``advance(n)``: call it with the number of units done since the last call.
    """
    if _muted:
        yield lambda _: None
        return
    shown = (_Bar if sys.stderr.isatty() else _Lines)(description, total, unit, done)
    try:
        yield shown.advance
    finally:
        shown.close()


class _Progress(ABC):
    """Appears after a moment, and is shown anew at most as often as it is due, however often it is advanced."""

    def __init__(self, description: str, total: int | None, unit: str, done: int) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = done
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._due = self._began + self._delay()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now >= self._due:
                self._due = now + self._show(now)

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _delay(self) -> float:
        """Seconds before it is shown at all."""

    @abstractmethod
    def _show(self, now: float) -> float:
        """Show how far it is; seconds until it may be shown again."""


class _Bar(_Progress):
    """One bar among those of the terminal."""

    _update: Callable[[int], None] | None = None

    def close(self) -> None:
        with self._lock:
            if self._update is not None:
                self._update(self._done)
                _bars.hide()

    def _delay(self) -> float:
        return _DELAY_SECONDS

    def _show(self, now: float) -> float:
        if self._update is None:
            self._update = _bars.show(self._description, self._total, self._unit, self._done)
        else:
            self._update(self._done)
        return _REFRESH_SECONDS


class _Lines(_Progress):
    """Lines in the log: ``Embedding passages: 12,345 of 38,195 passages, 60/s, 7 min left``."""

    def __init__(self, description: str, total: int | None, unit: str, done: int) -> None:
        super().__init__(description, total, unit, done)
        self._gap = _LINE_SECONDS
        self._first = done
        self._last = (self._began, done)  # of the rate: when the last line was written, and what it said
        self._lines = 0

    def close(self) -> None:
        with self._lock:
            if self._lines:
                now = time.monotonic()
                self._write(f"{_duration(now - self._began)}, {self._rate(now, self._began, self._first)}")

    def _delay(self) -> float:
        return _LINE_SECONDS

    def _show(self, now: float) -> float:
        rate = self._rate(now, *self._last)
        # The first units wait for what comes before them (a step, for its scores): they say nothing of the rest.
        if self._total is None or self._done < self._last[1] + _LEAST_UNITS:
            self._write(rate)
        else:
            left = (self._total - self._done) * (now - self._last[0]) / (self._done - self._last[1])
            self._write(f"{rate}, {_duration(max(0.0, left))} left")
        self._last = (now, self._done)
        self._lines += 1
        self._gap = min(_MAX_LINE_SECONDS, 2 * self._gap)
        return self._gap

    def _rate(self, now: float, since: float, done: int) -> str:
        return _rate((self._done - done) / max(1e-9, now - since), self._unit)

    def _write(self, rest: str) -> None:
        amount = _quantity(self._done, self._unit)
        if self._total is not None:
            amount += f" of {_quantity(self._total, self._unit)}"
        if self._unit != "B":
            amount += f" {self._unit}"
        logger.info("%s: %s, %s", self._description, amount, rest)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stderr`` is now: a live bar replaces it, so that lines go above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("this handler always writes to sys.stderr")


def configure_logging(level: str = "info") -> None:
    """Send the log to stderr in one format, and quieten the libraries underneath.

    May be called again; the last call counts. Third-party loggers are kept at warnings (at
    ``debug`` they speak too), and the bars of transformers, datasets and huggingface_hub are
    turned off, since replug draws its own. How far long work is (:func:`progress`) is said at every
    level but ``error``, as a bar on a terminal is shown.

    Raises:
        OptionError: ``level`` is not one of debug, info, warning, error.
    """
    name = level.lower()
    if name not in _LEVELS:
        raise OptionError(f"--log_level {level}: expected one of {', '.join(_LEVELS)}")
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    for old in [kept for kept in root.handlers if isinstance(kept, _StderrHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(name.upper())
    logger.setLevel("ERROR" if name == "error" else "INFO")
    logging.captureWarnings(True)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.NOTSET if name == "debug" else logging.WARNING)
    _quieten_hugging_face("warning" if name == "debug" else "error")


def _quieten_hugging_face(verbosity: str) -> None:
    # Their settings are read from the environment at import, and importing them takes seconds:
    # the variables serve those not imported yet, the calls those that are.
    os.environ["TRANSFORMERS_VERBOSITY"] = verbosity
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if (transformers := sys.modules.get("transformers")) is not None:
        transformers.utils.logging.set_verbosity(getattr(logging, verbosity.upper()))
        transformers.utils.logging.disable_progress_bar()
    if (datasets := sys.modules.get("datasets")) is not None:
        datasets.disable_progress_bars()
