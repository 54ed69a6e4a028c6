"""From tokens to text: whole characters, stop strings across tokens, pieces that add up."""

from __future__ import annotations

from pathlib import Path

import pytest

from replug_client.inference.generation import Token
from replug_client.inference.text import Detokenizer, StopStrings, Writer
from replug_client.supervisor.tokenizer import FolderTokenizer

DEMO_LM = Path(__file__).parents[2] / "demo" / "lm"
TEXTS = ["déjà vu, 数学 🙂🙃\n\tx = 1", "    return self._x\n\n\n", "🧑‍🚀 naïve ☃", "a\ufffdb"]


@pytest.fixture(scope="module")
def tokenizer() -> FolderTokenizer:
    return FolderTokenizer.load(str(DEMO_LM), local_only=True)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_and_hold_no_half_character(tokenizer: FolderTokenizer, text: str) -> None:
    prompt, ids = tokenizer.encode("print("), tokenizer.encode(text)
    stream = Detokenizer(tokenizer.decode, prompt)
    pieces = [stream.feed(token) for token in ids]
    assert "".join(pieces) + stream.finish() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_never_becomes_whole_comes_at_the_end(tokenizer: FolderTokenizer) -> None:
    ids = tokenizer.encode("数")
    assert len(ids) > 1  # else this says nothing
    stream = Detokenizer(tokenizer.decode, [])
    assert [stream.feed(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert set(stream.finish()) == {"\ufffd"}


def test_bytes_that_are_no_text_are_not_held_back_for_ever(tokenizer: FolderTokenizer) -> None:
    first = tokenizer.encode("数")[0]
    stream = Detokenizer(tokenizer.decode, [])
    assert any(stream.feed(first) for _ in range(8))


def test_the_space_of_a_first_word_is_kept_where_the_decoder_would_drop_it() -> None:
    words = {0: "▁print", 1: "▁hello", 2: "▁world"}

    def sentencepiece(ids: list[int]) -> str:
        return "".join(words[token] for token in ids).replace("▁", " ").removeprefix(" ")

    stream = Detokenizer(sentencepiece, [0])  # type: ignore[arg-type]
    assert stream.feed(1) + stream.feed(2) == " hello world"


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "stopped"),
    [
        (["abc", "def"], ["cd"], "ab", True),
        (["ab", "c", "x"], ["cd"], "abcx", False),
        (["a\n", "\n", "b"], ["\n\n"], "a", True),
        (["aab"], ["aac", "ab"], "a", True),
        (["xyz"], ["yz", "xyz"], "", True),
        (["aaa", "b"], ["aab"], "a", True),
        (["hello"], [], "hello", False),
    ],
)
def test_a_stop_string_ends_the_text_wherever_tokens_part(
    pieces: list[str], stop: list[str], text: str, stopped: bool
) -> None:
    strings = StopStrings(stop)
    written = ""
    for piece in pieces:
        written += strings.feed(piece)
        if strings.stopped:
            break
    written += strings.finish()
    assert (written, strings.stopped) == (text, stopped)


def test_nothing_of_a_stop_string_is_given_away_early() -> None:
    strings = StopStrings(["</answer>"])
    given = [strings.feed(piece) for piece in ("yes", " <", "/ans", "wer", ">", "more")][:5]
    assert given == ["yes", " ", "", "", ""]
    assert strings.stopped


def test_a_writer_says_why_a_text_ended(tokenizer: FolderTokenizer) -> None:
    ids = tokenizer.encode("x = 1\ny = 2\n")
    for stop, end, reason, text in [
        ((), 0, "length", "x = 1\ny = 2\n"),
        (("\n",), 0, "stop", "x = 1"),
        ((), 1, "end", "x = 1\ny = 2\n"),
    ]:
        writer = Writer(tokenizer.decode, [], stop)
        for token in [Token(token, -1.0, False) for token in ids] + [Token(1, -1.0, True)] * end:
            writer.feed(token)
            if writer.reason:
                break
        writer.finish()
        assert (writer.reason, writer.text) == (reason, text)
