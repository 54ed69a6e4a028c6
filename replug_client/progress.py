"""What a person sees while a command works: progress bars on a terminal, and one log format."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
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
_DELAY_SECONDS = 0.5
_REFRESH_SECONDS = 0.1
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
    """``193/s``: units per second over the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            "" if speed is None else f"{_quantity(speed, task.fields['unit'])}/s", style="progress.data.speed"
        )


def _quantity(value: float, unit: str) -> str:
    if unit != "B":
        return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
    for prefix in ("", "K", "M", "G"):
        if value < 1000:
            return f"{value:.0f} {prefix}B"
        value /= 1000
    return f"{value:.1f} TB"


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
def progress(description: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and time left while the block runs.

    Silent when stderr is not a terminal, and for work that is over within half a second. Safe to
    nest and to use from several threads; ``advance`` too.

    Args:
        description: What is being done, for example ``"Embedding passages"``.
        total: How many units there are; ``None`` when that is not known.
        unit: What is counted, in the plural (``"passages"``); ``"B"`` is shown as KB, MB, GB.

    Yields:
        ``advance(n)``: call it with the number of units done since the last call.
    """
    if _muted or not sys.stderr.isatty():
        yield lambda _: None
        return
    bar = _Bar(description, total, unit)
    try:
        yield bar.advance
    finally:
        bar.close()


class _Bar:
    """One bar: appears after a moment, redraws a few times a second however often it is advanced."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._what = (description, total, unit)
        self._lock = threading.Lock()
        self._done = 0
        self._update: Callable[[int], None] | None = None
        self._due = time.monotonic() + _DELAY_SECONDS

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now < self._due:
                return
            self._due = now + _REFRESH_SECONDS
            if self._update is None:
                self._update = _bars.show(*self._what, self._done)
            else:
                self._update(self._done)

    def close(self) -> None:
        with self._lock:
            if self._update is not None:
                self._update(self._done)
                _bars.hide()


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
    turned off, since replug draws its own.

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
