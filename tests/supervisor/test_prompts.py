import pytest

from replug_client.errors import OptionError, PromptTooLongError, SupervisorError
from replug_client.supervisor.prompts import PromptBuilder, unescape
from replug_client.supervisor.tokenizer import Offsets


class Letters:
    """A tokenizer of one token a character; counts what it is asked."""

    def __init__(self, bos_id: int | None = 1) -> None:
        self.bos_id = bos_id
        self.asked: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.asked.append(text)
        return [ord(character) for character in text]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def decode(self, ids: object) -> str:
        raise AssertionError("a prompt is never decoded")


def builder(tokenizer: Letters, **options: object) -> PromptBuilder:
    settings = {"retrieved_max_length": 3, "max_prompt_tokens": 20, "separator": "|"} | options
    return PromptBuilder(tokenizer, **settings)  # type: ignore[arg-type]


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def test_bos_cut_passage_separator_query_continuation() -> None:
    prompt = builder(Letters()).build("passage", ids("query"), ids("yes"), "pair")
    assert prompt.ids == (1, *ids("pas|queryyes"))
    assert prompt.num_continuation == 3
    assert prompt.label == "pair"


def test_no_passage_no_separator() -> None:
    assert builder(Letters()).build("", ids("q"), ids("y")).ids == (1, *ids("qy"))


def test_a_model_without_bos_gets_none() -> None:
    assert builder(Letters(bos_id=None)).build("p", ids("q"), ids("y")).ids == ids("p|qy")


def test_an_empty_separator_is_nothing() -> None:
    assert builder(Letters(), separator="").build("p", ids("q"), ids("y")).ids == (1, *ids("pqy"))


def test_the_continuation_is_the_same_for_every_passage() -> None:
    build = builder(Letters()).build
    prompts = [build(passage, ids("q"), ids("yes")) for passage in ("", "a", "abc", "abcdef", "é\n")]
    assert {prompt.ids[-prompt.num_continuation :] for prompt in prompts} == {ids("yes")}


def test_a_passage_is_tokenised_once() -> None:
    tokenizer = Letters()
    build = builder(tokenizer).build
    for query in ("a", "b", "c"):
        build("passage", ids(query), ids("y"))
    assert tokenizer.asked.count("passage") == 1


def test_too_long_names_the_pair_and_the_lengths() -> None:
    build = builder(Letters(), max_prompt_tokens=10).build
    assert len(build("abc", ids("qqq"), ids("yy")).ids) == 10
    with pytest.raises(PromptTooLongError, match=r"example 3, passage 'x'.*11 tokens.*5.*4.*2.*takes 10"):
        build("abc", ids("qqqq"), ids("yy"), "example 3, passage 'x'")


def test_nothing_to_score_and_nothing_to_score_it_by_are_errors() -> None:
    with pytest.raises(SupervisorError, match="the pair: the continuation is empty"):
        builder(Letters()).build("p", ids("q"), (), "the pair")
    with pytest.raises(SupervisorError, match="the pair: nothing stands before the continuation"):
        builder(Letters(bos_id=None)).build("", (), ids("y"), "the pair")
    assert builder(Letters()).build("", (), ids("y")).ids == (1, ord("y"))


def test_a_passage_of_no_tokens_is_an_option_error() -> None:
    with pytest.raises(OptionError, match="retrieved_max_length"):
        builder(Letters(), retrieved_max_length=0)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n", "\n"),
        (r"\n\n", "\n\n"),
        (r"\t|", "\t|"),
        (r"\\n", r"\n"),
        ("", ""),
        (r"\x", r"\x"),
        ("\\", "\\"),
    ],
)
def test_a_separator_typed_in_a_shell(typed: str, meant: str) -> None:
    assert unescape(typed) == meant
