"""A toy encoder and a toy LM, made on the spot: what the examples in the docstrings run on, without any download."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.protocol import Prompt
from replug_client.supervisor.tokenizer import FolderTokenizer

_UNKNOWN = "[UNK]"
_DIMENSION = 32
_COPIED, _NEW = -0.1, -3.0


class Toy(NamedTuple):
    """An encoder with random vectors for words, an LM that copies, and the LM's tokenizer."""

    model: SentenceTransformer
    supervisor: FakeSupervisor
    tokenizer: FolderTokenizer


def toy(texts: Iterable[str], seed: int = 0) -> Toy:
    """An encoder that knows the words of ``texts`` but not what they mean, and an LM that likes to copy.

    The LM finds a word of the continuation likely (-0.1 nats) where it stands before it in the prompt, and
    unlikely (-3 nats) elsewhere: of several passages it prefers those that hold the continuation's words.

    Example:
        >>> from replug_client.training import Prompt
        >>> from replug_client.training.toy import toy
        >>> model, supervisor, tokenizer = toy(["a cat", "a dog"])
        >>> model.encode(["a cat"]).shape
        (1, 32)
        >>> prompt = Prompt(tuple(tokenizer.encode("a cat cat dog")), num_continuation=2)
        >>> round(supervisor.score([prompt])[0].log_likelihood, 2)
        -3.1
        >>> supervisor.close()
    """
    texts = list(texts)
    torch.manual_seed(seed)
    model = SentenceTransformer(
        modules=[StaticEmbedding(_tokenizer(texts), embedding_dim=_DIMENSION), Normalize()], device="cpu"
    )
    return Toy(model, FakeSupervisor(_copying, name="toy"), FolderTokenizer(_tokenizer(texts), None))


def _tokenizer(texts: list[str]) -> Tokenizer:
    words = dict.fromkeys(word for text in texts for word, _ in Whitespace().pre_tokenize_str(text))
    vocabulary = {word: number for number, word in enumerate([_UNKNOWN, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def _copying(prompt: Prompt) -> list[float]:
    first = len(prompt.ids) - prompt.num_continuation
    before = set(prompt.ids[:first])
    return [_COPIED if token in before else _NEW for token in prompt.ids[first:]]
