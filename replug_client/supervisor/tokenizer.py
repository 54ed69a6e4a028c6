"""The supervisor's tokenizer: text to its token ids, with exact character offsets.

Text is data, never control: what looks like a special token in a passage (``</s>``) is encoded as the
characters that it is made of, and no special token is ever added. BOS is the prompt builder's business.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from replug_client.errors import OptionError, SupervisorError
from replug_client.hub import spare_attempts

_log = logging.getLogger(__name__)

Offsets = list[tuple[int, int]]


@runtime_checkable
class SupervisorTokenizer(Protocol):
    """Text in, the supervisor's token ids out."""

    @property
    def bos_id(self) -> int | None:
        """Id of the token that opens a sequence, or None where the model has none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """The same with, per token, the half-open range of characters that it covers.

        Where a character is split over several tokens, each of them covers the whole character.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; a part of a character becomes U+FFFD."""
        ...


class FolderTokenizer:
    """A tokenizer of transformers' fast kind, from a local folder or the hub's cache."""

    def __init__(self, backend: Any, bos_id: int | None, end_ids: Iterable[int] = ()) -> None:
        """``backend`` is a ``tokenizers.Tokenizer`` that belongs to this object alone.

        ``end_ids``: the tokens with which the model ends a text.
        """
        # Post-processors add special tokens and may trim spaces off the offsets; neither is wanted.
        backend.post_processor = None
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.bos_id = bos_id
        self.end_ids = frozenset(end_ids)

    @classmethod
    def load(cls, name_or_path: str, *, local_only: bool) -> FolderTokenizer:
        """Load a folder or a hub name; ``local_only`` never asks the network.

        Raises:
            OSError: not found.
            OptionError: the model has no fast tokenizer.
        """
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name_or_path, local_files_only=local_only)
        if not tokenizer.is_fast:
            raise OptionError(
                f"{name_or_path}: its tokenizer has no fast form, and so no offsets into the text."
                " Convert it to a tokenizer.json first (transformers' convert_slow_tokenizer)."
            )
        ends = {tokenizer.eos_token_id, *_configured_ends(name_or_path)} - {None}
        return cls(tokenizer.backend_tokenizer, tokenizer.bos_token_id, ends)

    def encode(self, text: str) -> list[int]:
        """See ``SupervisorTokenizer.encode``; a lone surrogate raises ``UnicodeEncodeError``."""
        ids: list[int] = self._encoding(text).ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """See ``SupervisorTokenizer.encode_with_offsets``."""
        encoding = self._encoding(text)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """See ``SupervisorTokenizer.decode``."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    def _encoding(self, text: str) -> Any:
        try:
            return self._backend.encode(text, add_special_tokens=False)
        except TypeError:
            text.encode("utf-8")  # raises UnicodeEncodeError, which says where the lone surrogate stands
            raise


def load_tokenizer(name_or_path: str, *, server: SupervisorTokenizer | None = None) -> SupervisorTokenizer:
    """The tokenizer of a model: its local folder, else the hub's cache, else the hub, else ``server``.

    Args:
        name_or_path: Folder or hub name.
        server: Tokenizer of last resort, for a model that only its server knows.

    Raises:
        OptionError: found nowhere.
    """
    is_folder = Path(name_or_path).is_dir()
    for local_only in (True,) if is_folder else (True, False):
        if not local_only:
            spare_attempts()
        try:
            tokenizer = FolderTokenizer.load(name_or_path, local_only=local_only)
        except (OSError, ValueError) as error:
            _log.debug("no tokenizer at %s (local_only=%s): %s", name_or_path, local_only, error)
            reason = error
        else:
            _log.info("supervisor's tokenizer: %s", name_or_path)
            return tokenizer
    if isinstance(reason, OptionError):
        raise reason
    if server is None:
        raise OptionError(
            f"no tokenizer found for {name_or_path!r} ({_first_line(reason)})."
            " Give a folder that holds the model's tokenizer.json with --tokenizer."
        )
    _log.info("supervisor's tokenizer: the server's own (%s is no folder, nor on the hub)", name_or_path)
    if not getattr(server, "tells_bos", True):
        _log.warning(
            "the server puts no BOS before a text, and does not say whether its tokenizer has one: prompts begin "
            "without, which may cost much likelihood. Give the tokenizer's folder with --tokenizer, or start vLLM with "
            "--enable-tokenizer-info-endpoint, as `python -m server` does."
        )
    return server


def check_same_ids(tokenizer: SupervisorTokenizer, server: SupervisorTokenizer, model: str) -> None:
    """Hold a local tokenizer against the server's: with other ids every score would be of another text.

    Raises:
        OptionError: the two give different ids for the same text.
    """
    text = "def f(x, y):\n    return x + 2 * y  # déjà vu, 数\n"
    try:
        theirs = server.encode(text)
    except SupervisorError as error:
        _log.warning("the tokenizer in use is not held against the server's own: %s", error)
        return
    ours = tokenizer.encode(text)
    if ours != theirs:
        raise OptionError(
            f"the tokenizer in use is not that of {model!r}: the same text is {len(ours)} ids here"
            f" ({ours[:8]} ...) and {len(theirs)} at the server ({theirs[:8]} ...)."
            " Give the folder or hub name of the served model with --tokenizer."
        )


def _configured_ends(name_or_path: str) -> list[int]:
    """The end tokens of a model's ``generation_config.json`` (chat models have several), if it is at hand."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(name_or_path, local_files_only=True).eos_token_id
    except (OSError, ValueError):
        return []
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
