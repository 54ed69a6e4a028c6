import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from replug_client.errors import OptionError, SupervisorError, SupervisorRequestError
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.server_tokenizer import ServerTokenizer, offsets_of
from replug_client.supervisor.tokenizer import FolderTokenizer, check_same_ids, load_tokenizer
from tests.supervisor.fake_server import MODEL, Body, FakeServer, running
from tests.supervisor.reference import DEMO_LM

TEXTS = [
    "",
    "x",
    "def f(x):\n    return x\n",
    "é",
    "数据 😀👩‍💻",
    "a\r\n\tb\x00",
    "  two  spaces  ",
    "e\u0301 עברית",
]


@pytest.fixture(scope="module")
def folder() -> FolderTokenizer:
    return FolderTokenizer.load(str(DEMO_LM), local_only=True)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_give_the_text_back_and_offsets_cover_it(folder: FolderTokenizer, text: str) -> None:
    ids, offsets = folder.encode_with_offsets(text)
    assert ids == folder.encode(text)
    assert folder.decode(ids) == text
    assert len(offsets) == len(ids)
    covered = {position for start, end in offsets for position in range(start, end)}
    assert covered == set(range(len(text)))
    assert offsets == sorted(offsets)


def test_what_looks_like_a_special_token_is_text(folder: FolderTokenizer) -> None:
    ids = folder.encode("<s>a</s>")
    assert folder.bos_id == 0
    assert not {0, 1} & set(ids)
    assert folder.decode(ids) == "<s>a</s>"


def test_a_long_text_is_not_cut(folder: FolderTokenizer) -> None:
    assert folder.decode(folder.encode("x = 1\n" * 5000)) == "x = 1\n" * 5000


def test_a_lone_surrogate_is_an_encoding_error(folder: FolderTokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        folder.encode("a\ud800")


def test_an_unknown_name_says_what_to_give() -> None:
    with pytest.raises(OptionError, match=r"no tokenizer found for 'no/such'.*--tokenizer"):
        load_tokenizer("no/such")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as fake:
        yield fake


def test_the_servers_tokenizer_is_the_last_resort(server: FakeServer) -> None:
    remote = ServerTokenizer(server.base_url, MODEL)
    assert load_tokenizer("no/such", server=remote) is remote
    assert load_tokenizer(str(DEMO_LM), server=remote) is not remote


@dataclass
class Plain(FakeServer):
    """Puts no BOS before a text, as GPT-2's tokenizer; what it is called stands in the configuration, if shown."""

    info: Any = None

    def tokenize(self, payload: dict[str, Any]) -> tuple[int, Body]:
        if payload["prompt"] == "<s>":
            return 200, {"count": 1, "tokens": [1], "token_strs": ["<s>"]}
        return super().tokenize(payload | {"add_special_tokens": False})

    def tokenizer_info(self) -> tuple[int, Body]:
        return super().tokenizer_info() if self.info is None else (200, self.info)


@pytest.mark.parametrize(
    ("info", "bos", "warned"),
    [
        ({"bos_token": "<s>", "tokenizer_class": "GPT2Tokenizer"}, 1, False),
        ({"bos_token": None}, None, False),
        ({"bos_token": "three tokens, and no special one"}, None, False),
        (None, None, True),
    ],
)
def test_a_bos_that_the_server_does_not_add_is_asked_for_by_name(
    info: Any, bos: int | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with running(Plain(info=info)) as server:
        remote = ServerTokenizer(server.base_url, MODEL, options=QUICK)
        assert remote.bos_id == bos
        assert load_tokenizer("no/such", server=remote) is remote
    assert ("prompts begin without" in caplog.text) == warned


def test_a_server_that_adds_bos_is_not_asked_for_more(server: FakeServer) -> None:
    remote = ServerTokenizer(server.base_url, MODEL)
    assert (remote.bos_id, remote.tells_bos) == (1, True)


@pytest.mark.parametrize("text", TEXTS)
def test_the_servers_tokens_are_placed_in_the_text(server: FakeServer, text: str) -> None:
    """The fake's tokens are single bytes: each of a character's bytes covers the whole character."""
    remote = ServerTokenizer(server.base_url, MODEL)
    ids, offsets = remote.encode_with_offsets(text)
    assert remote.bos_id == 1
    assert ids == remote.encode(text) == [100 + byte for byte in text.encode()]
    expected = [(i, i + 1) for i, character in enumerate(text) for _ in character.encode()]
    assert offsets == expected
    assert remote.decode(ids) == text


def test_offsets_from_token_strings_equal_the_tokenizers_own(folder: FolderTokenizer) -> None:
    rng = random.Random(1)
    for _ in range(50):
        text = "".join(rng.choice([*"ab (\n\t_", "é", "数", "😀", "\u200d", "\x00"]) for _ in range(30))
        encoding = folder._encoding(text)
        assert offsets_of(encoding.tokens, text) == encoding.offsets


@pytest.mark.parametrize(
    ("tokens", "text", "offsets"),
    [
        (["▁Hi", "▁you"], "Hi you", [(0, 2), (2, 6)]),
        (["▁", "\n", "x"], "\nx", [(0, 0), (0, 1), (1, 2)]),
        (["▁a", "<0xC3>", "<0xA9>", "b"], "aéb", [(0, 1), (1, 2), (1, 2), (2, 3)]),
    ],
)
def test_offsets_of_sentencepiece(tokens: list[str], text: str, offsets: list[tuple[int, int]]) -> None:
    assert offsets_of(tokens, text) == offsets


def test_tokens_that_do_not_add_up_to_the_text_are_an_error() -> None:
    with pytest.raises(SupervisorError, match=r"do not add up .*--tokenizer"):
        offsets_of(["hello"], "Hello")


def test_a_server_without_the_route_says_what_to_give(server: FakeServer) -> None:
    with pytest.raises(SupervisorRequestError, match=r"404.*--tokenizer"):
        ServerTokenizer(server.base_url.replace("/v1", "/elsewhere"), MODEL)


QUICK = ClientOptions(attempts=3, first_wait=0.01, longest_wait=0.02)
PASSING: dict[str, tuple[int, Body]] = {"502": (502, "Bad Gateway"), "a page": (200, "<html>wait</html>")}


class Failing(FakeServer):
    """Answers as told while ``left`` lasts."""

    def __init__(self, left: int, reply: tuple[int, Body]) -> None:
        super().__init__()
        self.left, self.reply, self.asked = left, reply, 0

    def tokenize(self, payload: dict[str, Any]) -> tuple[int, Body]:
        self.asked += 1
        self.left -= 1
        return self.reply if self.left >= 0 else super().tokenize(payload)


@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
def test_what_passes_is_asked_of_the_servers_tokenizer_again(reply: tuple[int, Body]) -> None:
    with running(Failing(2, reply)) as server:
        assert ServerTokenizer(server.base_url, MODEL, options=QUICK).encode("a") == [197]
    with running(Failing(9, reply)) as server:
        with pytest.raises(SupervisorError, match=f"{server.base_url[:-3]}/tokenize") as caught:
            ServerTokenizer(server.base_url, MODEL, options=QUICK)
        assert caught.value.retryable
        assert isinstance(server, Failing) and server.asked == 3


def test_a_server_that_does_not_answer_leaves_the_tokenizer_to_the_next(server: FakeServer) -> None:
    with running(Failing(10**6, (503, "loading"))) as loading:
        urls = ["http://127.0.0.1:1/v1", loading.base_url, server.base_url]
        remote = ServerTokenizer(urls, MODEL, options=QUICK)
        assert remote.encode("ab") == [197, 198]
        assert isinstance(loading, Failing) and loading.asked == 1, "what failed comes last from then on"


def test_a_tokenizer_that_is_not_held_against_the_servers_is_said(
    folder: FolderTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with running(Failing(0, PASSING["502"])) as server:
        remote = ServerTokenizer(server.base_url, MODEL, options=QUICK)
        assert isinstance(server, Failing)
        server.left = 100
        check_same_ids(folder, remote, MODEL)
        options = SupervisorOptions(MODEL, base_url=server.base_url, tokenizer=str(DEMO_LM), client=QUICK)
        supervisor, _ = open_supervisor(options)
        supervisor.close()
    said = [record for record in caplog.records if "not held against the server's own" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING", "WARNING"]


@pytest.mark.parametrize("shift", [100, 101])
def test_text_that_a_server_without_ids_echoes_is_held_against_ours(
    shift: int, caplog: pytest.LogCaptureFixture
) -> None:
    def in_words(server: FakeServer, payload: dict[str, Any], body: Body) -> tuple[int, Body] | None:
        for choice, ids in zip(body["choices"], payload["prompt"], strict=True):  # type: ignore[index, call-overload]
            if "logprobs" in choice:
                words = [chr(max(token - shift, 0)).replace(" ", "\u0120") for token in ids]
                choice["logprobs"]["tokens"] = [*words, "x"]
        return 200, body

    with running(FakeServer(formats={"openai-echo"}, mischief=in_words)) as server:
        options = SupervisorOptions(MODEL, base_url=server.base_url, client=QUICK)
        if shift == 100:
            open_supervisor(options)[0].close()
        else:
            with pytest.raises(OptionError, match=r"not that of 'fake-lm'.*--tokenizer"):
                open_supervisor(options)
    assert "returns no token ids" in caplog.text


def test_a_tokenizer_of_another_model_is_refused(server: FakeServer, folder: FolderTokenizer) -> None:
    with pytest.raises(OptionError, match=r"not that of 'fake-lm'.*--tokenizer"):
        check_same_ids(folder, ServerTokenizer(server.base_url, MODEL), MODEL)
