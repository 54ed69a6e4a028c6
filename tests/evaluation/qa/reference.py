"""The demo LM by transformers alone: likelihoods and greedy answers of a text, to hold ours against."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.supervisor.reference import DEMO_LM


@lru_cache(maxsize=1)
def _loaded() -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(str(DEMO_LM))
    model = AutoModelForCausalLM.from_pretrained(str(DEMO_LM), dtype=torch.float32)
    return tokenizer, model.eval()


def _ids(text: str) -> list[int]:
    ids: list[int] = _loaded()[0](text, add_special_tokens=False)["input_ids"]
    return ids


def choice_log_likelihood(passages: str, before: str, choice: str) -> float:
    """Summed, nats: of the tokens of ``choice`` behind BOS, passages (with their separators) and ``before``."""
    tokenizer, model = _loaded()
    head = [tokenizer.bos_token_id]
    for passage in passages.splitlines():
        head += _ids(passage) + _ids("\n")
    whole = _ids(before + choice)
    scored = len(whole) - len(_ids(before))
    ids = torch.tensor([head + whole])
    with torch.no_grad():
        log_probs = model(ids).logits[0].log_softmax(-1)
    places = range(ids.shape[1] - scored, ids.shape[1])
    return float(sum(log_probs[place - 1, ids[0, place]] for place in places))


def greedy_answer(prompt: str, tokens: int) -> str:
    """What the LM generates behind BOS and the prompt."""
    tokenizer, model = _loaded()
    ids = [tokenizer.bos_token_id, *_ids(prompt)]
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    text: str = tokenizer.decode(ids[start:])
    return text
