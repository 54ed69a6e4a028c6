"""The tokenizer of a served model, asked for over HTTP: for models of which no tokenizer is at hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import httpx2
from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_exponential

from replug_client.errors import (
    SupervisorError,
    SupervisorRequestError,
    SupervisorUnavailableError,
    UnreadableAnswerError,
)
from replug_client.supervisor.address import api_key, is_loopback
from replug_client.supervisor.endpoint import TRANSIENT
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.sender import KEEP_ALIVE_SECONDS
from replug_client.supervisor.tokenizer import Offsets

_log = logging.getLogger(__name__)

_SPACE = "\u2581"  # SentencePiece's mark for a space


class ServerTokenizer:
    """vLLM's ``/tokenize`` and ``/detokenize``. One request a text: slow for a corpus, so a last resort.

    BOS is what the server puts before a text when it is asked for special tokens; where it puts nothing, what its
    tokenizer calls BOS (``/tokenizer_info``), so that prompts are those that a folder's tokenizer gives. What looks
    like a special token in a text is one for the server; there is no way to tell it otherwise.
    Several servers of one model are asked in turn until one answers, and all of them again after a wait.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        *,
        timeout: float = 60.0,
        options: ClientOptions | None = None,
    ) -> None:
        """Ask for BOS. ``base_url``, or each of them, with or without ``/v1``; these routes lie beside it.

        Raises:
            SupervisorError: no such server, or one without these routes.
        """
        urls = [base_url] if isinstance(base_url, str) else base_url
        self._roots = [url.rstrip("/").removesuffix("/v1") for url in urls]
        self._model = model
        self._options = options or ClientOptions()
        self._client = httpx2.Client(
            timeout=timeout,
            trust_env=not all(map(is_loopback, urls)),
            headers={"Authorization": f"Bearer {api_key()}"},
            limits=httpx2.Limits(keepalive_expiry=KEEP_ALIVE_SECONDS),
        )
        with_special, _ = self._tokenize("a", add_special_tokens=True)
        without, _ = self._tokenize("a", add_special_tokens=False)
        opened = len(with_special) > len(without) and with_special[1 : 1 + len(without)] == without
        self.tells_bos = True
        self.bos_id: int | None = with_special[0] if opened else self._bos_by_name()

    def _bos_by_name(self) -> int | None:
        """Id of the token that the tokenizer's configuration calls BOS; None where it has none, or is not shown."""
        try:
            info = self._post("/tokenizer_info", None)
        except SupervisorError as error:
            _log.debug("no BOS is known: %s", error)
            self.tells_bos = False
            return None
        name = info.get("bos_token")
        ids = self._tokenize(name, add_special_tokens=False)[0] if isinstance(name, str) and name else []
        return ids[0] if len(ids) == 1 else None

    def encode(self, text: str) -> list[int]:
        """See ``SupervisorTokenizer.encode``."""
        if not text:
            return []
        ids, _ = self._tokenize(text, add_special_tokens=False)
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """See ``SupervisorTokenizer.encode_with_offsets``.

        Raises:
            SupervisorError: the tokens' text does not add up to ``text`` (its tokenizer rewrites text).
        """
        if not text:
            return [], []
        ids, strings = self._tokenize(text, add_special_tokens=False)
        return ids, offsets_of(strings, text)

    def decode(self, ids: Sequence[int]) -> str:
        """See ``SupervisorTokenizer.decode``."""
        answer = self._post("/detokenize", {"model": self._model, "tokens": list(ids)})
        if "prompt" not in answer:
            raise SupervisorError(f"{self._roots[0]}/detokenize: no text in {str(answer)[:200]}")
        return str(answer["prompt"])

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[str]]:
        payload = {
            "model": self._model,
            "prompt": text,
            "add_special_tokens": add_special_tokens,
            "return_token_strs": True,
        }
        answer = self._post("/tokenize", payload)
        ids, strings = answer.get("tokens"), answer.get("token_strs")
        if not isinstance(ids, list) or not isinstance(strings, list) or len(ids) != len(strings):
            raise SupervisorError(
                f"{self._roots[0]}/tokenize: no tokens with their strings in {str(answer)[:200]}"
            )
        return ids, strings

    def _post(self, path: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        """The answer of the first server that has one; what may pass is tried again, within bounds.

        Without a payload it is a GET.
        """
        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, SupervisorError) and error.retryable),
            stop=stop_after_attempt(self._options.attempts),
            wait=wait_exponential(self._options.first_wait, self._options.longest_wait),
            before_sleep=before_sleep_log(_log, logging.WARNING),
            reraise=True,
        )
        return retrying(self._post_to_any, path, payload)

    def _post_to_any(self, path: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        for _ in self._roots:
            try:
                return self._post_once(self._roots[0] + path, payload)
            except SupervisorError as error:
                reason = error
                self._roots.append(self._roots.pop(0))  # the next one, from now on
        raise reason

    def _post_once(self, url: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        try:
            response = self._client.get(url) if payload is None else self._client.post(url, json=payload)
        except httpx2.HTTPError as error:
            raise SupervisorUnavailableError(f"{url}: no answer ({error})") from error
        status = response.status_code
        if status >= 500 or status in TRANSIENT:
            raise SupervisorUnavailableError(f"{url}: status {status}: {response.text[:200]}")
        if status != 200:
            raise SupervisorRequestError(
                f"{url}: status {status}: {response.text[:200]}."
                " Without this route, give the model's tokenizer with --tokenizer FOLDER_OR_NAME."
            )
        try:
            answer = response.json()
        except ValueError as error:
            raise UnreadableAnswerError(f"{url}: an answer, but no JSON: {response.text[:80]!r}") from error
        if not isinstance(answer, dict):
            raise SupervisorRequestError(f"{url}: expected a JSON object, found {str(answer)[:200]}")
        return answer


def offsets_of(tokens: Sequence[str], text: str) -> Offsets:
    """Character ranges of tokens, from their strings in the vocabulary's own writing.

    The bytes of byte-level BPE (GPT-2's table) and of SentencePiece (``U+2581`` a space, ``<0x0A>`` a
    byte) are put together and held against the text's UTF-8; nothing is guessed.

    Raises:
        SupervisorError: they do not add up to the text.
    """
    expected = text.encode("utf-8")
    for pieces in (_byte_level(tokens), _sentencepiece(tokens)):
        if pieces is None:
            continue
        for lead in (b"", b" "):  # SentencePiece puts a space before the text
            if b"".join(pieces) == lead + expected:
                return _character_ranges(pieces, text, len(lead))
    raise SupervisorError(
        f"the server's token strings {list(tokens)[:8]} do not add up to the text {text[:40]!r}, so that none"
        " can be placed in it. Give the model's own tokenizer with --tokenizer FOLDER_OR_NAME."
    )


def _character_ranges(pieces: Sequence[bytes], text: str, lead: int) -> Offsets:
    character_at: list[int] = []  # of each byte of the text
    for position, character in enumerate(text):
        character_at += [position] * len(character.encode("utf-8"))
    offsets: Offsets = []
    byte = -lead
    for piece in pieces:
        start, end = max(byte, 0), byte + len(piece)
        byte = end
        if end <= start:  # nothing but the leading space
            offsets.append((0, 0))
        else:
            offsets.append((character_at[start], character_at[end - 1] + 1))
    return offsets


def _byte_level(tokens: Sequence[str]) -> list[bytes] | None:
    table = _byte_of_character()
    try:
        return [bytes(table[character] for character in token) for token in tokens]
    except KeyError:
        return None


def _sentencepiece(tokens: Sequence[str]) -> list[bytes]:
    return [
        bytes([int(token[3:5], 16)])
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        else token.replace(_SPACE, " ").encode("utf-8")
        for token in tokens
    ]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
