"""What vLLM is doing while it starts, told from its log (the words are those of vLLM 0.32)."""

from __future__ import annotations

import re

_STAGES = (
    (r"Resolved architecture|Using max model len", "reading the model's configuration"),
    (r"Initializing a V1 LLM engine", "starting the engine"),
    (r"Starting to load model", "loading the model"),
    (r"Downloading|Fetching \d+ files", "fetching the model's files"),
    (r"Loading safetensors checkpoint shards", "loading the weights"),
    (r"Loading weights took|Model loading took", "weights loaded"),
    (r"torch\.compile takes|Warming up model|Compiling a graph|Dynamo bytecode transform", "compiling"),
    (r"KV cache size|Explicitly set .* for KV cache", "setting up the KV cache"),
    (r"Capturing CUDA graphs|Graph capturing", "capturing CUDA graphs"),
    (r"Starting vLLM (API )?server|Application startup complete", "opening the port"),
)
_COMPILED = tuple((re.compile(pattern), stage) for pattern, stage in _STAGES)


FIRST = "starting vLLM"


def later_stage(stage: str, line: str) -> str:
    """The stage after ``line``, which is ``stage`` unless the line tells of a later one: a start never goes back."""
    told = stage_of(line)
    if told is None:
        return stage
    order = [FIRST, *(name for _, name in _STAGES)]
    return max(stage, told, key=order.index)


def stage_of(line: str) -> str | None:
    """The stage of starting that a line of vLLM's log tells of; None: nothing new."""
    for pattern, stage in _COMPILED:
        if pattern.search(line):
            return stage
    return None
