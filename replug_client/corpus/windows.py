"""Documents to examples: windows of the supervisor's own tokens, cut at whole characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from replug_client.corpus.records import Document, Example
from replug_client.errors import OptionError

_LEAST_CONTINUATION = 16


class OffsetTokenizer(Protocol):
    """What is needed of the supervisor's tokenizer here."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of ``text`` without special tokens and, per id, the characters ``[start, end)`` that it covers.

        Where a character is split over several tokens, each of them covers the whole character.
        """
        ...


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """How documents are cut; all lengths in the supervisor's tokens.

    Attributes:
        context_len: Length of the query.
        pred_len: Length of the continuation.
        min_pred_len: The last window of a document may have a continuation as short as this; a shorter
            one is dropped. ``None`` means 16, or ``pred_len`` where that is less.
        stride: From the start of one window to the start of the next; ``None`` lays them end to end.
        continuations: A window has this many continuations, one behind the other, of ``pred_len`` each; every
            one gives an example with the window's query.
        sliding: Every token once, as perplexity is measured: continuations of ``pred_len`` tokens lie end to end
            over the whole document, each with the ``context_len`` tokens before it (or as many as there are) as
            its query. Nothing is dropped but the document's first token, which nothing stands before.
        skip_context: In sliding windows, leave the first ``context_len`` tokens unscored, so that every
            continuation has a whole query.
    """

    context_len: int = 128
    pred_len: int = 128
    min_pred_len: int | None = None
    stride: int | None = None
    continuations: int = 1
    sliding: bool = False
    skip_context: bool = False

    def __post_init__(self) -> None:
        for name in ("context_len", "pred_len", "min_pred_len", "stride", "continuations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; expected at least 1")
        if self.least_continuation > self.pred_len:
            raise OptionError(
                f"min_pred_len ({self.min_pred_len}) exceeds pred_len ({self.pred_len}); lower it"
            )
        if self.sliding and (self.stride is not None or self.continuations > 1):
            raise OptionError("sliding windows lie end to end; a stride or continuations have no place there")
        if self.skip_context and not self.sliding:
            raise OptionError("skip_context is for sliding windows; others always have a whole query")

    @property
    def least_continuation(self) -> int:
        """The shortest continuation that is kept, in tokens."""
        return min(_LEAST_CONTINUATION, self.pred_len) if self.min_pred_len is None else self.min_pred_len


@dataclass(slots=True)
class WindowCounts:
    """What became of the documents; filled while :func:`cut_examples` is consumed.

    Attributes:
        documents: Documents read.
        documents_without_example: Those too short for a single window.
        examples: Examples given out: windows, times their continuations.
        dropped_short: Windows at the end of a document whose continuation was below the minimum.
        dropped_blank: Examples whose query or continuation is white space only; sliding windows keep them.
        unscored_start: Tokens before the first continuation of sliding windows.
    """

    documents: int = 0
    documents_without_example: int = 0
    examples: int = 0
    dropped_short: int = 0
    dropped_blank: int = 0
    unscored_start: int = 0


def cut_examples(
    documents: Iterable[Document],
    tokenizer: OffsetTokenizer,
    options: WindowOptions,
    counts: WindowCounts | None = None,
) -> Iterator[Example]:
    """Cut each document into windows of a query and a continuation, streamed.

    A document is tokenised once, as a whole. Ids are slices of that, and texts are the exact
    characters that those ids cover, so the boundary between query and continuation is the same
    in both. Where a cut would fall inside a character that several tokens spell (byte-level BPE),
    it moves back to the character's start, so no part is longer than was asked for.

    Where a window has several continuations, the retriever reads the window's query before each of them
    (``query``), the supervisor all that stands before it in the window (``query_ids``): so the
    log-likelihoods of a window's continuations behind a passage add up to that of the whole stretch.

    Args:
        documents: Where the examples come from.
        tokenizer: The supervisor's.
        options: Lengths and stride.
        counts: Filled with what was given out and what was dropped.
    """
    counts = WindowCounts() if counts is None else counts
    for document in documents:
        counts.documents += 1
        before = counts.examples
        ids, offsets = tokenizer.encode_with_offsets(document.text)
        cuts = Cuts(document.text, offsets)
        windows = _sliding_windows if options.sliding else _windows
        for window in windows(cuts, options, counts):
            example = _example(document, ids, cuts, window)
            blank = not example.query.strip() or not example.continuation.strip()
            if blank and not options.sliding:
                counts.dropped_blank += 1
                continue
            counts.examples += 1
            yield example
        counts.documents_without_example += counts.examples == before


class Cuts:
    """Where a text may be cut: token ``i`` starts at character ``at[i]``; ``whole[i]`` says whether
    no character is split there.

    Both have one entry more than there are tokens, for the end; without tokens they have just one.
    """

    def __init__(self, text: str, offsets: Sequence[tuple[int, int]]) -> None:
        self.text = text
        self.num_tokens = len(offsets)
        self.at = [0]
        self.whole = [True]
        # Characters that no token covers (some tokenizers leave a space out) go to the token that follows.
        reached = 0
        for (_, end), (start, _) in pairwise(offsets):
            reached = max(reached, end)
            self.at.append(reached)
            self.whole.append(start >= reached)
        if offsets:
            self.at.append(len(text))
            self.whole.append(True)

    def floor(self, token: int) -> int:
        """The last place to cut that is not after ``token``."""
        while not self.whole[token]:
            token -= 1
        return token

    def ceil(self, token: int) -> int:
        """The first place to cut that is not before ``token``."""
        return token if self.whole[token] else self.after(token)

    def after(self, token: int) -> int:
        """The first place to cut after ``token``."""
        token += 1
        while not self.whole[token]:
            token += 1
        return token


@dataclass(frozen=True, slots=True)
class _Window:
    """One example in tokens: the query is ``[start, middle)``, its continuation ``[begin, end)``."""

    start: int
    middle: int
    begin: int
    end: int


def _windows(cuts: Cuts, options: WindowOptions, counts: WindowCounts) -> Iterator[_Window]:
    start, end = 0, 0
    while end < cuts.num_tokens:
        if start + options.context_len + options.least_continuation > cuts.num_tokens:
            counts.dropped_short += start < cuts.num_tokens
            return
        middle = cuts.floor(start + options.context_len)
        end = cuts.floor(min(middle + options.pred_len, cuts.num_tokens))
        if start < middle < end:
            yield _Window(start, middle, middle, end)
            reached = end
            for _ in range(options.continuations - 1):
                begin, reached = reached, cuts.floor(min(reached + options.pred_len, cuts.num_tokens))
                if reached - begin < options.least_continuation:
                    reached = begin
                    break
                yield _Window(start, middle, begin, reached)
        else:  # one character has more tokens than the window
            reached = end = cuts.after(start)
        following = (
            reached if options.stride is None else cuts.floor(min(start + options.stride, cuts.num_tokens))
        )
        start = following if following > start else cuts.after(start)


def _sliding_windows(cuts: Cuts, options: WindowOptions, counts: WindowCounts) -> Iterator[_Window]:
    end = cuts.num_tokens
    begin = cuts.after(0) if end else 0
    if options.skip_context:
        begin = max(begin, cuts.ceil(min(options.context_len, end)))
    counts.unscored_start += begin
    while begin < end:
        start = cuts.ceil(max(0, begin - options.context_len))
        # A character of more tokens than the context has, or than a continuation, is taken whole.
        start = start if start < begin else cuts.floor(begin - 1)
        reached = cuts.floor(min(begin + options.pred_len, end))
        reached = reached if reached > begin else cuts.after(begin)
        yield _Window(start, begin, begin, reached)
        begin = reached


def _example(document: Document, ids: Sequence[int], cuts: Cuts, window: _Window) -> Example:
    continuation = cuts.text[cuts.at[window.begin] : cuts.at[window.end]]
    return Example(
        document_id=document.id,
        query=cuts.text[cuts.at[window.start] : cuts.at[window.middle]],
        continuation=continuation,
        query_ids=tuple(ids[window.start : window.begin]),
        continuation_ids=tuple(ids[window.begin : window.end]),
        num_bytes=len(continuation.encode()),
    )
