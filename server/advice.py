"""What a server's own figures say about why it is slow, and which flag would help. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_BUSY = 0.8
_CLEARLY_FASTER = 1.1
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(\{.*\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen while pairs were scored.

    Attributes:
        formats: Names of the wire formats that work, the one in use first.
        rates: Pairs a second by requests in flight; ``auto``: as many as the client found right.
        counters: By how much each of the server's metrics rose.
        config: What ``vllm:cache_config_info`` tells of its settings; empty for other servers.
        seconds: How long it was watched.
    """

    formats: tuple[str, ...]
    rates: Mapping[int | Literal["auto"], float]
    counters: Mapping[str, float]
    config: Mapping[str, str]
    seconds: float


def read_metrics(text: str) -> tuple[dict[str, float], dict[str, str]]:
    """Prometheus' text: each metric's sum over its labels, and the labels of ``vllm:cache_config_info``."""
    sums: dict[str, float] = {}
    config: dict[str, str] = {}
    for name, labels, value in _SAMPLE.findall(text):
        try:
            sums[name] = sums.get(name, 0.0) + float(value)
        except ValueError:
            continue
        if name == "vllm:cache_config_info":
            config.update(_LABEL.findall(labels))
    return sums, config


def advise(seen: Observed) -> list[str]:
    """One line for each thing that costs speed, with the flag that helps; empty: nothing stands out."""
    advice = []
    if seen.config.get("enable_prefix_caching") == "True":
        advice.append(
            "prefix caching is on, and requests for prompt log-probs do not read it:"
            " --no-enable-prefix-caching saves the hashing"
        )
    if seen.counters.get("vllm:num_preemptions_total", 0) > 0:
        advice.append(
            "requests were preempted, so the KV cache is too small: raise VLLM_CPU_KVCACHE_SPACE (CPU) or"
            " --gpu-memory-utilization (GPU), or lower --max-num-seqs"
        )
    if seen.seconds > 0 and seen.counters.get("process_cpu_seconds_total", 0) / seen.seconds > _BUSY:
        advice.append(
            "the process that writes the answers is busy all the time: --api-server-count 2 or more (GPU),"
            " or a format with shorter answers"
        )
    if "vllm-generate" not in seen.formats and seen.config:
        advice.append(
            "the shortest format, vllm-generate, is not there. On a GPU --enable-scale-out opens it"
            " (vLLM 0.32); on a CPU vLLM does not have it"
        )
    return advice + _concurrency(seen.rates)


def _concurrency(rates: Mapping[int | Literal["auto"], float]) -> list[str]:
    fixed = {level: rate for level, rate in rates.items() if level != "auto"}
    if not fixed:
        return []
    best = max(fixed, key=lambda level: fixed[level])
    if "auto" in rates and fixed[best] > _CLEARLY_FASTER * rates["auto"]:
        return [f"--concurrency {best} was faster than auto: give it to training, or try a longer --seconds"]
    if "auto" not in rates and len(fixed) > 1 and best == max(fixed):
        return [f"the most requests in flight were the fastest: try more than {best}"]
    return []
