"""Prompts as token ids: BOS + passage + separator + query + continuation (design decision 1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from replug_client.errors import OptionError, PromptTooLongError, SupervisorError
from replug_client.supervisor.protocol import Prompt
from replug_client.supervisor.tokenizer import SupervisorTokenizer

_CACHED_PASSAGES = 65_536
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class PromptBuilder:
    """Builds prompts in the supervisor's own tokens.

    The separator is encoded on its own, and so is the passage; query and continuation come as ids. So
    the continuation's ids are the same for all passages, and its boundary is exact.
    """

    def __init__(
        self,
        tokenizer: SupervisorTokenizer,
        *,
        retrieved_max_length: int,
        max_prompt_tokens: int,
        separator: str = "\n",
    ) -> None:
        """Set the parts that all prompts share.

        Args:
            tokenizer: The supervisor's.
            retrieved_max_length: A passage keeps this many of its first tokens.
            max_prompt_tokens: What the supervisor takes, continuation included.
            separator: Stands between passage and query; nothing stands there where there is no passage.

        Raises:
            OptionError: ``retrieved_max_length`` below 1.
        """
        if retrieved_max_length < 1:
            raise OptionError(f"--retrieved_max_length must be at least 1, not {retrieved_max_length}")
        self.retrieved_max_length = retrieved_max_length
        self.max_prompt_tokens = max_prompt_tokens
        self._tokenizer = tokenizer
        self._bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
        self._separator = tuple(tokenizer.encode(separator))
        # A passage comes back with query after query; its tokenisation is kept.
        self._head = lru_cache(maxsize=_CACHED_PASSAGES)(self._head_ids)

    def context(self, passages: str | Sequence[str], query_ids: Sequence[int]) -> tuple[int, ...]:
        """What stands before the continuation: BOS, each passage (cut) with a separator behind it, the query.

        ``""`` and ``()`` mean no passage. Several passages stand in the order given; the one that matters most
        should come last, next to the query.
        """
        return (*self._heads(passages), *query_ids)

    def build(
        self,
        passages: str | Sequence[str],
        query_ids: Sequence[int],
        continuation_ids: Sequence[int],
        label: str = "",
    ) -> Prompt:
        """One prompt; an empty passage means no passage (and no separator); see :meth:`context` for several.

        Raises:
            PromptTooLongError: longer than ``max_prompt_tokens``; names the pair and the lengths.
            SupervisorError: an empty continuation, or nothing at all before it.
        """
        head = self._heads(passages)
        ids = (*head, *query_ids, *continuation_ids)
        num_continuation = len(continuation_ids)
        name = label or "a prompt"
        if num_continuation == 0:
            raise SupervisorError(f"{name}: the continuation is empty, so there is nothing to score")
        if len(ids) == num_continuation:
            raise SupervisorError(
                f"{name}: nothing stands before the continuation (no passage, an empty query, and the model"
                " has no BOS), so that its first token has no log-prob"
            )
        if len(ids) > self.max_prompt_tokens:
            raise PromptTooLongError(
                f"{name}: {len(ids)} tokens (BOS, passage and separator {len(head)}, query {len(query_ids)},"
                f" continuation {num_continuation}), but the supervisor takes {self.max_prompt_tokens}."
                " Lower --retrieved_max_length, or cut query and continuation shorter."
            )
        return Prompt(ids, num_continuation, label)

    def _heads(self, passages: str | Sequence[str]) -> tuple[int, ...]:
        if isinstance(passages, str):
            return self._head(passages)
        start = len(self._bos)
        return (*self._bos, *(token for passage in passages for token in self._head(passage)[start:]))

    def _head_ids(self, passage: str) -> tuple[int, ...]:
        if not passage:
            return self._bos
        return (*self._bos, *self._tokenizer.encode(passage)[: self.retrieved_max_length], *self._separator)


def unescape(separator: str) -> str:
    r"""Read ``\n``, ``\t``, ``\r`` and ``\\`` in a separator typed in a shell; all else stands for itself."""
    result: list[str] = []
    characters = iter(separator)
    for character in characters:
        if character != "\\":
            result.append(character)
            continue
        following = next(characters, "")
        result.append(_ESCAPES.get(following, "\\" + following))
    return "".join(result)
