"""Ask a running vLLM that serves the demo LM for the answers kept in this folder, byte for byte.

python -m tests.supervisor.recorded.record http://127.0.0.1:8000/v1 demo-lm
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx2

from replug_client.supervisor.formats import FORMATS
from replug_client.supervisor.protocol import Prompt
from replug_client.supervisor.tokenizer import FolderTokenizer

FOLDER = Path(__file__).parent
DEMO_LM = FOLDER.parents[2] / "demo" / "lm"
NAMES = ("vllm", "openai-echo")

# Text whose tokens look like JSON, or like the end of an answer.
_PAIRS = (
    ("def f(x):\n", "    return x\n"),
    (
        'text = "}},{\\"1\\":{\\"logprob\\":-1.0}}]"\n',
        'print("}}]", "\\\\", ",\\"prompt_logprobs\\":[null")\n',
    ),
    ("# naïve – 数据 😀 \u2028\x7f\x00\t\n", "é\u0301 = '\\u005c'\n"),
    ("", "x"),
)


def load_prompts() -> list[Prompt]:
    """The recorded prompts: of different lengths, the continuation from one token on."""
    entries = json.loads((FOLDER / "prompts.json").read_text())
    return [Prompt(tuple(e["ids"]), e["num_continuation"], f"pair {i}") for i, e in enumerate(entries)]


def main(base_url: str, model: str) -> None:
    """Write the prompts, and each format's answer to all of them in one request."""
    tokenizer = FolderTokenizer.load(str(DEMO_LM), local_only=True)
    assert tokenizer.bos_id is not None
    entries = []
    for head, tail in _PAIRS:
        scored = tokenizer.encode(tail)
        ids = [tokenizer.bos_id, *tokenizer.encode(head), *scored]
        entries.append({"ids": ids, "num_continuation": len(scored)})
    (FOLDER / "prompts.json").write_text(json.dumps(entries) + "\n")
    prompts = load_prompts()
    for wire_format in FORMATS:
        if wire_format.name in NAMES:
            answer = httpx2.post(
                base_url + wire_format.path, json=wire_format.build(model, prompts), timeout=60
            )
            answer.raise_for_status()
            (FOLDER / f"{wire_format.name}.json").write_bytes(answer.content)


if __name__ == "__main__":
    main(*sys.argv[1:])
