"""A toy LM, made on the spot: what the examples in the docstrings run on, without any download."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from replug_client.supervisor.local import LocalOptions, LocalSupervisor
from replug_client.supervisor.tokenizer import FolderTokenizer


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

    words = dict.fromkeys(word for text in texts for word, _ in Whitespace().pre_tokenize_str(text))
    # The canary takes ids up to 52; words that are not needed make room for them.
    names = ["<s>", "</s>", "[UNK]", *words]
    names += [f"<{number}>" for number in range(len(names), 64)]
    backend = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(names),
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
