"""What `replug answer` shows: the text as it comes, then what each passage carried; or all of it as JSON."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from replug_client.evaluation.terminal import excerpt, one_line, open_console, visible
from replug_client.inference.answers import Answer, Combination
from replug_client.inference.replug import Grounded

_WIDEST = 160
_LINES = 2
_ENDED = {
    "end": "the model ended it",
    "stop": "a stop string ended it",
    "length": "--max_tokens ended it",
}


def show(
    pieces: Generator[str, None, Grounded],
    *,
    as_json: bool,
    about: Mapping[str, str],
    console: Console | None = None,
) -> None:
    """Write an answer to the terminal as it comes, or to stdout as one JSON object.

    Args:
        pieces: As ``Replug.stream`` gives them.
        as_json: Whether a program reads it.
        about: What else the JSON holds; ``combination`` is in it.
        console: Where to; None: stdout.
    """
    if as_json:
        grounded = _drained(pieces, None)
        # ASCII only: what JSON may leave bare, such as C1 controls or overrides, is escaped too.
        print(json.dumps({**about, **to_json(grounded)}, indent=2, ensure_ascii=True, allow_nan=False))
        return
    console = console or open_console()
    grounded = _drained(pieces, console)
    console.print()
    combination = Combination(about["combination"])
    for part in render(grounded, combination, width=min(console.width, _WIDEST)):
        console.print(part)


def _drained(pieces: Generator[str, None, Grounded], console: Console | None) -> Grounded:
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            grounded: Grounded = end.value
            return grounded
        if console is not None:
            console.print(Text(visible(piece)), end="", soft_wrap=True)


def to_json(grounded: Grounded) -> dict[str, object]:
    """All that is known of an answer, as JSON-ready values."""
    answer = grounded.answer
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "passages": [
            {
                "id": passage.id,
                "title": passage.title,
                "text": passage.text,
                "similarity": similarity,
                "prior": weight.prior,
                "posterior": weight.posterior,
            }
            for passage, similarity, weight in zip(
                grounded.passages, grounded.similarities, answer.weights, strict=True
            )
        ],
        "choices": [{"text": choice.text, "share": choice.share} for choice in answer.choices],
        "tokens": list(answer.tokens),
        "log_probs": list(answer.log_probs),
        "dropped_mass": list(answer.dropped_mass),
        "certain": list(answer.certain),
    }


def render(grounded: Grounded, combination: Combination, *, width: int) -> list[RenderableType]:
    """What stands below the text: other answers, passages with their weights, and what is known of the tokens."""
    answer = grounded.answer
    parts: list[RenderableType] = []
    if answer.choices:
        parts += [Text(), _choices(answer, width)]
    if grounded.passages:
        parts += [Text(), _passages(grounded, width)]
    return [*parts, Text(), Text(summary(answer, combination), style="dim")]


def _choices(answer: Answer, width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("share", justify="right")
    table.add_column("answer", no_wrap=True, overflow="ellipsis")
    for choice in answer.choices:
        table.add_row(f"{choice.share:.3f}", Text(one_line(choice.text, width - 10)))
    return table


def _passages(grounded: Grounded, width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("similarity", "λ", "behind the text"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("passage", no_wrap=True, overflow="ellipsis")
    room = max(width - 44, 20)
    rows = zip(grounded.passages, grounded.similarities, grounded.answer.weights, strict=True)
    for passage, similarity, weight in rows:
        name = " · ".join([passage.id, *([passage.title] if passage.title else [])])
        lines = Text(one_line(name, room), style="bold")
        for line in excerpt(passage.text, room, _LINES, dense=True):
            lines.append(f"\n{line}", style="not bold")
        posterior = "–" if weight.posterior is None else f"{weight.posterior:.3f}"
        table.add_row(f"{similarity:.3f}", f"{weight.prior:.3f}", posterior, lines)
    return table


def summary(answer: Answer, combination: Combination) -> str:
    """One line: how many tokens, what ended them, and, of a mixture, how much of it was known."""
    text = f"{len(answer.tokens)} tokens; {_ENDED[answer.finish_reason]}"
    if combination is not Combination.ENSEMBLE:
        return text
    dropped = np.array(answer.dropped_mass)
    if not dropped.any():
        return f"{text}; the mixture is exact"
    return (
        f"{text}; mass outside the tops: {dropped.mean():.3f} in the mean, {dropped.max():.3f} at most;"
        f" {sum(answer.certain)} of {len(answer.tokens)} tokens are those of the whole vocabulary for certain"
    )
