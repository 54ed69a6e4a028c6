"""A toy LM, made on the spot: what the examples in the docstrings run on, without any download."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from replug_client.corpus.records import Passage
from replug_client.inference.answerer import Answerer
from replug_client.retriever.encoder import encode_passages
from replug_client.retriever.index import ArrayIndex
from replug_client.supervisor.local import LocalSupervisor
from replug_client.supervisor.options import LocalOptions
from replug_client.supervisor.tokenizer import FolderTokenizer

if TYPE_CHECKING:
    from replug_client.inference.replug import Replug


def toy_lm(texts: Iterable[str], seed: int = 0) -> tuple[LocalSupervisor, FolderTokenizer]:
    """A Llama of one layer with random weights, which knows the words of ``texts``, and its tokenizer.

    Example:
        >>> from replug_client.inference.toy import toy_lm
        >>> supervisor, tokenizer = toy_lm(["a cat", "a dog"])
        >>> tokenizer.decode(tokenizer.encode("a dog"))
        'a dog'
        >>> supervisor.close()
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    backend = _backend(texts)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.4,  # so that what stands before a word makes a difference
    )
    build: Any = AutoModelForCausalLM.from_config
    model = build(config)
    return LocalSupervisor(model, "toy", LocalOptions()), FolderTokenizer(backend, 0, [1])


def toy_replug(texts: Sequence[str], seed: int = 0) -> Replug:
    """The toy LM with an encoder of random word vectors, over these passages; two of them an answer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    from replug_client.inference.replug import Replug

    texts = list(texts)
    supervisor, tokenizer = toy_lm(texts, seed)
    table = StaticEmbedding(_backend(texts), embedding_dim=32)
    model = SentenceTransformer(modules=[table, Normalize()], device="cpu")
    index = ArrayIndex(encode_passages(model, texts))
    passages = [Passage(id=str(number), text=text) for number, text in enumerate(texts)]
    replug = Replug(model, index, passages, Answerer(supervisor, tokenizer), n_docs=2)
    replug._owned.append(supervisor)
    return replug


def _backend(texts: Iterable[str]) -> Tokenizer:
    words = dict.fromkeys(word for text in texts for word, _ in Whitespace().pre_tokenize_str(text))
    names = ["<s>", "</s>", "[UNK]", *words]
    names += [f"<{number}>" for number in range(len(names), 64)]  # the canary takes ids up to 52
    backend = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return backend
