"""From generated tokens to text, in pieces that are sure: no half character, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from replug_client.inference.generation import FinishReason, Token

_TAIL = 6
_REPLACEMENT = "\ufffd"
_LONGEST = 4  # bytes of a character, so tokens that it may be split over


class Detokenizer:
    """Decodes tokens as they come.

    Each is decoded behind those before it, the prompt's last ones at the start: what a token adds to a text may
    depend on them (SentencePiece drops the space before the first). A character that is split over tokens is held
    back until it is whole.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        """``prompt``: the ids that stand before the generated ones."""
        self._decode = decode
        self._ids = list(prompt[-_TAIL:])
        self._start, self._read = 0, len(self._ids)

    def feed(self, token: int) -> str:
        """The text that the token makes sure."""
        self._ids.append(token)
        text = self._unread()
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._read < _LONGEST:
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text

    def finish(self) -> str:
        """What was held back: a character that never became whole."""
        text = self._unread() if self._read < len(self._ids) else ""
        self._read = len(self._ids)
        return text

    def _unread(self) -> str:
        before = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(before) :]


class StopStrings:
    """Cuts a text at the first of several stop strings; holds back what may yet become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        """``stop``: none of them empty."""
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """The text that is sure to stand before any stop string; sets ``stopped`` where one is complete."""
        text = self._held + piece
        found = [at for at in map(text.find, self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """Tokens in, text out; both of the above."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        """See :class:`Detokenizer` and :class:`StopStrings`."""
        self._tokens = Detokenizer(decode, prompt)
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._stop.stopped

    def feed(self, token: int) -> str:
        """The text that the token makes sure."""
        return self._stop.feed(self._tokens.feed(token))

    def finish(self) -> str:
        """What is left at the end; it may still hold a stop string."""
        return "" if self.stopped else self._stop.feed(self._tokens.finish()) + self._stop.finish()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


class Writer:
    """A text that grows by tokens, until the model or a stop string ends it."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        """See :class:`TextStream`."""
        self._stream = TextStream(decode, prompt, stop)
        self._pieces: list[str] = []
        self.tokens: list[Token] = []
        self.reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """What is sure so far; all of it after :meth:`finish`."""
        return "".join(self._pieces)

    def feed(self, token: Token) -> str:
        """The text that the token makes sure; sets ``reason`` where it is the last one."""
        self.tokens.append(token)
        if token.ends:
            self.reason = "end"
            return ""
        piece = self._stream.feed(token.id)
        if self._stream.stopped:
            self.reason = "stop"
        self._pieces.append(piece)
        return piece

    def finish(self) -> str:
        """What was held back, at the end."""
        piece = self._stream.finish()
        if self._stream.stopped:
            self.reason = "stop"
        self.reason = self.reason or "length"
        self._pieces.append(piece)
        return piece
