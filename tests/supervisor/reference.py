"""The independent computation: one prompt at a time, all logits, nothing shared with the package's code."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from replug_client.supervisor.protocol import Prompt

DEMO_LM = Path(__file__).parents[2] / "demo" / "lm"


@cache
def _model() -> Any:
    torch.set_num_threads(1)  # two thread pools at once, on two cores, take ten times as long
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO_LM, dtype=torch.float32)
    return model.eval()


def reference_log_probs(prompt: Prompt) -> list[float]:
    """Log-prob of each continuation token under the demo LM, float32; nats."""
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        log_probs = torch.log_softmax(_model()(ids).logits[0].double(), dim=-1)
    first = len(prompt.ids) - prompt.num_continuation
    return [
        float(log_probs[position - 1, prompt.ids[position]]) for position in range(first, len(prompt.ids))
    ]
