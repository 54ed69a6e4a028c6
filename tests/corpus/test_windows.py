"""Documents to examples; the tokenizer here spells characters in their UTF-8 bytes, as byte-level BPE may."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replug_client.corpus.records import Document, Example
from replug_client.corpus.windows import WindowCounts, WindowOptions, cut_examples
from replug_client.errors import OptionError


class ByteTokenizer:
    """One token a byte; several bytes of one character each cover the whole character."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        pairs = [(byte, (at, at + 1)) for at, character in enumerate(text) for byte in character.encode()]
        return [byte for byte, _ in pairs], [offset for _, offset in pairs]


class WordTokenizer:
    """One token a word; the spaces between them are covered by none."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        offsets, at = [], 0
        for word in text.split(" "):
            if word:
                offsets.append((at, at + len(word)))
            at += len(word) + 1
        return list(range(len(offsets))), offsets


def cut(text: str, *lengths: int, stride: int | None = None) -> tuple[list[Example], WindowCounts]:
    counts = WindowCounts()
    context_len, pred_len, least = lengths
    options = WindowOptions(context_len, pred_len, least, stride)
    return list(cut_examples([Document("d", text)], ByteTokenizer(), options, counts)), counts


def parts(examples: list[Example]) -> list[tuple[str, str]]:
    return [(example.query, example.continuation) for example in examples]


def test_windows_follow_each_other_and_the_short_rest_is_dropped_and_counted() -> None:
    examples, counts = cut("aaaabbccccddeeeef", 4, 2, 2)
    assert parts(examples) == [("aaaa", "bb"), ("cccc", "dd")]
    assert counts == WindowCounts(documents=1, examples=2, dropped_short=1)
    assert examples[0] == Example("d", "aaaa", "bb", (97,) * 4, (98,) * 2, 2)


def test_the_last_continuation_may_be_as_short_as_the_minimum() -> None:
    examples, counts = cut("aaaabbbbccccd", 4, 4, 1)
    assert parts(examples) == [("aaaa", "bbbb"), ("cccc", "d")]
    assert counts.dropped_short == 0
    examples, counts = cut("aaaabbbbccccd", 4, 4, 2)
    assert parts(examples) == [("aaaa", "bbbb")]
    assert counts.dropped_short == 1


def test_nothing_is_dropped_where_windows_end_with_the_document() -> None:
    examples, counts = cut("aaaabbccccdd", 4, 2, 2)
    assert len(examples) == 2
    assert counts.dropped_short == 0


def test_a_stride_makes_windows_overlap_until_one_reaches_the_end() -> None:
    examples, counts = cut("abcdefgh", 2, 2, 1, stride=2)
    assert parts(examples) == [("ab", "cd"), ("cd", "ef"), ("ef", "gh")]
    assert counts.dropped_short == 0
    assert parts(cut("abcdefgh", 2, 2, 2, stride=3)[0]) == [("ab", "cd"), ("de", "fg")]
    assert parts(cut("abcdefgh", 1, 1, 1, stride=5)[0]) == [("a", "b"), ("f", "g")]


def test_a_cut_inside_a_character_moves_back_to_its_start() -> None:
    # 日 is three tokens; a query of 4 tokens would end inside of it.
    examples, _ = cut("abc日efgh", 4, 5, 1)
    assert parts(examples) == [("abc", "日ef")]
    assert len(examples[0].query_ids) == 3
    assert examples[0].num_bytes == 5
    # The continuation's end moves back too, and the next window takes up there.
    examples, _ = cut("abcde日fgh", 4, 2, 1)
    assert parts(examples) == [("abcd", "e"), ("日f", "gh")]


def test_a_character_longer_than_the_window_is_passed_over() -> None:
    examples, _ = cut("\U0001f600ab", 1, 1, 1)
    assert parts(examples) == [("a", "b")]


def test_windows_of_white_space_are_dropped_and_counted() -> None:
    examples, counts = cut("ab    cd    ", 2, 2, 2)
    assert parts(examples) == []
    assert counts.dropped_blank == 3
    assert counts.documents_without_example == 1


def test_documents_too_short_for_a_window_are_counted() -> None:
    counts = WindowCounts()
    documents = [Document("a", "ab"), Document("b", "abcdef"), Document("c", "x")]
    options = WindowOptions(context_len=4, pred_len=2)
    examples = list(cut_examples(documents, ByteTokenizer(), options, counts))
    assert [example.document_id for example in examples] == ["b"]
    assert counts == WindowCounts(documents=3, documents_without_example=2, examples=1, dropped_short=2)


def test_spaces_that_no_token_covers_go_with_the_token_after_them() -> None:
    options = WindowOptions(context_len=2, pred_len=2)
    document = Document("d", " one two  three four ")
    (example,) = cut_examples([document], WordTokenizer(), options)
    assert (example.query, example.continuation) == (" one two", "  three four ")


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80),
    st.integers(1, 9),
    st.integers(1, 9),
    st.none() | st.integers(1, 20),
)
def test_texts_are_exact_substrings_and_their_ids_exact_slices(
    text: str, context_len: int, pred_len: int, stride: int | None
) -> None:
    tokenizer = ByteTokenizer()
    examples, counts = cut(text, context_len, pred_len, 1, stride=stride)
    assert counts.examples == len(examples)
    for example in examples:
        assert example.query + example.continuation in text
        assert tokenizer.encode_with_offsets(example.query)[0] == list(example.query_ids)
        assert tokenizer.encode_with_offsets(example.continuation)[0] == list(example.continuation_ids)
        assert 1 <= len(example.query_ids) <= context_len
        assert 1 <= len(example.continuation_ids) <= pred_len
        assert example.num_bytes == len(example.continuation.encode())


@given(st.text("ab日\U0001f600", min_size=1, max_size=60), st.integers(4, 9), st.integers(4, 9))
def test_windows_end_to_end_lose_nothing_but_the_last(text: str, context_len: int, pred_len: int) -> None:
    examples, counts = cut(text, context_len, pred_len, 1)
    covered = "".join(example.query + example.continuation for example in examples)
    assert text.startswith(covered)
    assert counts.dropped_short == (covered != text)
    assert len(text.encode()) - len(covered.encode()) <= context_len


@pytest.mark.parametrize(
    "lengths",
    [{"context_len": 0}, {"pred_len": 0}, {"stride": 0}, {"min_pred_len": 0}, {"min_pred_len": 200}],
)
def test_lengths_that_cannot_work_are_refused(lengths: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=next(iter(lengths))):
        WindowOptions(**lengths)


def test_the_minimum_is_sixteen_tokens_or_the_whole_of_a_shorter_continuation() -> None:
    assert WindowOptions().least_continuation == 16
    assert WindowOptions(pred_len=8).least_continuation == 8
    assert WindowOptions(min_pred_len=3).least_continuation == 3


def test_a_real_byte_level_tokenizer_gives_windows_that_decode_to_their_texts() -> None:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(Path(__file__).parents[2] / "demo" / "lm" / "tokenizer.json"))
    backend.post_processor = None  # it would add BOS

    class Real:
        def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
            encoding = backend.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets

    text = Path(__file__).read_text(encoding="utf-8") + "日本語のコメント \U0001f600\U0001f680 é\r\n" * 40
    options = WindowOptions(context_len=13, pred_len=11, min_pred_len=1)
    examples = list(cut_examples([Document("d", text)], Real(), options))
    assert len(examples) > 50
    assert text.startswith("".join(example.query + example.continuation for example in examples))
    for example in examples:
        assert backend.decode(list(example.query_ids)) == example.query
        assert backend.decode(list(example.continuation_ids)) == example.continuation


def several(text: str, continuations: int, stride: int | None = None) -> tuple[list[Example], WindowCounts]:
    counts = WindowCounts()
    options = WindowOptions(4, 2, 2, stride, continuations)
    return list(cut_examples([Document("d", text)], ByteTokenizer(), options, counts)), counts


def test_a_query_may_have_several_continuations_each_behind_all_that_stands_before_it() -> None:
    examples, counts = several("aaaabbccddEEEEff", 3)
    assert parts(examples) == [("aaaa", "bb"), ("aaaa", "cc"), ("aaaa", "dd"), ("EEEE", "ff")]
    assert [bytes(example.query_ids).decode() for example in examples] == [
        "aaaa",
        "aaaabb",
        "aaaabbcc",
        "EEEE",
    ]
    assert [bytes(example.continuation_ids).decode() for example in examples] == ["bb", "cc", "dd", "ff"]
    assert counts == WindowCounts(documents=1, examples=4)
    assert several("aaaabbccddEEEEff", 1)[0] == cut("aaaabbccddEEEEff", 4, 2, 2)[0]


def test_a_later_continuation_that_would_be_too_short_is_not_given() -> None:
    assert parts(several("aaaabbcc", 3)[0]) == [("aaaa", "bb"), ("aaaa", "cc")]
    assert parts(several("aaaabbc", 3)[0]) == [("aaaa", "bb")]
    assert parts(several("aaaabb€", 2)[0]) == [("aaaa", "bb")], "a cut inside a character moves back"


def test_with_a_stride_windows_overlap_whatever_their_continuations() -> None:
    found = parts(several("aaaabbccdd", 2, stride=2)[0])
    assert found == [("aaaa", "bb"), ("aaaa", "cc"), ("aabb", "cc"), ("aabb", "dd"), ("bbcc", "dd")]


def slid(
    text: str, context_len: int, pred_len: int, *, skip: bool = False
) -> tuple[list[Example], WindowCounts]:
    counts = WindowCounts()
    options = WindowOptions(context_len, pred_len, sliding=True, skip_context=skip)
    return list(cut_examples([Document("d", text)], ByteTokenizer(), options, counts)), counts


def test_sliding_windows_lie_end_to_end_each_behind_the_text_before_it() -> None:
    examples, counts = slid("abcdefgh", 3, 2)
    assert parts(examples) == [("a", "bc"), ("abc", "de"), ("cde", "fg"), ("efg", "h")]
    assert counts == WindowCounts(documents=1, examples=4, unscored_start=1)


def test_sliding_windows_may_begin_where_a_whole_query_stands_before_them() -> None:
    examples, counts = slid("abcdefgh", 3, 2, skip=True)
    assert parts(examples) == [("abc", "de"), ("cde", "fg"), ("efg", "h")]
    assert counts.unscored_start == 3
    assert slid("abc", 3, 2, skip=True)[1] == WindowCounts(
        documents=1, documents_without_example=1, unscored_start=3
    )


@given(st.text("a \n日\U0001f600", max_size=60), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_sliding_windows_score_every_token_once_and_cut_no_character(
    text: str, context_len: int, pred_len: int, skip: bool
) -> None:
    examples, counts = slid(text, context_len, pred_len, skip=skip)
    tokenizer = ByteTokenizer()
    scored = [token for example in examples for token in example.continuation_ids]
    # The one independent statement of the whole: what is scored is the document's bytes but for its start.
    assert bytes(scored) == text.encode()[counts.unscored_start :]
    assert counts.dropped_blank == counts.dropped_short == 0
    first = len(text[:1].encode())
    assert (
        counts.unscored_start == first
        if not skip
        else counts.unscored_start >= min(context_len, len(text.encode()))
    )
    assert counts.unscored_start < max(first, context_len) + 4
    at = counts.unscored_start
    for example in examples:
        assert bytes(example.query_ids) == text.encode()[at - len(example.query_ids) : at]
        assert tokenizer.encode_with_offsets(example.query)[0] == list(example.query_ids)
        assert tokenizer.encode_with_offsets(example.continuation)[0] == list(example.continuation_ids)
        # A character may be longer than what was asked for; only then is a part longer, and by it alone.
        assert 1 <= len(example.query_ids) <= context_len or len(example.query) == 1
        assert 1 <= len(example.continuation_ids) <= pred_len or len(example.continuation) == 1
        at += len(example.continuation_ids)


@pytest.mark.parametrize(
    "options",
    [{"sliding": True, "stride": 4}, {"sliding": True, "continuations": 2}, {"skip_context": True}],
)
def test_what_sliding_windows_cannot_have_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="sliding windows"):
        WindowOptions(**options)  # type: ignore[arg-type]
