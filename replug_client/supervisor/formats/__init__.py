"""Wire formats: how prompts are put to a server, and how its answer is read. Pure functions.

An answer is believed only where it can be checked: number of choices, length, the token ids at the scored
positions, numbers that are log-probs, the finish reason. A wrong answer becomes an error that names the
pair; its neighbours in the same answer are kept.
"""

from __future__ import annotations

from replug_client.supervisor.formats.completions import ECHO, VLLM
from replug_client.supervisor.formats.generate import GENERATE
from replug_client.supervisor.formats.sglang import SGLANG
from replug_client.supervisor.formats.wire import Parsed, WireFormat

__all__ = ["FORMATS", "Parsed", "WireFormat"]

FORMATS: tuple[WireFormat, ...] = (GENERATE, VLLM, SGLANG, ECHO)
"""In the order in which they are tried: the cheapest for the server first.

Each is refused, or ignored, by servers that do not have it: 400, 403 or 404, or an answer without the
log-probs. So a server is asked once or twice in vain, at the start only.
"""
