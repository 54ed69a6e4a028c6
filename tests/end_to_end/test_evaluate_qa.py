"""`replug evaluate qa` over a real vLLM: what it finds is what the LM in this process finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replug_client.cli.app import main
from tests.end_to_end.conftest import DEMO_LM, ROOT, VllmServer

SET = ROOT / "tests" / "cli" / "qa"


def evaluated(folder: Path, *more: str) -> dict[tuple[str, str], dict[str, Any]]:
    folder.mkdir()
    output = folder / "qa.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("evaluate", "qa", "--questions", str(SET / "questions.jsonl")),
                *("--passages", str(SET / "passages.jsonl"), "--conditions", "none,random,bm25"),
                *("--combinations", "first,concat-2,ensemble-2", "--max_tokens", "8"),
                *("--cache_dir", str(folder / "cache"), "--per_example", str(output), *more),
            ]
        )
    assert ended.value.code in (0, None)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return {(line["id"], line["condition"]): line for line in lines}


def test_a_server_and_the_lm_in_process_find_the_same(vllm_server: VllmServer, tmp_path: Path) -> None:
    remote = evaluated(
        tmp_path / "remote",
        *("--model", vllm_server.model, "--base_url", vllm_server.base_url, "--tokenizer", str(DEMO_LM)),
    )
    local = evaluated(
        tmp_path / "local",
        *("--model", str(DEMO_LM), "--supervisor", "local", "--device", "cpu", "--dtype", "float32"),
    )
    assert remote.keys() == local.keys()
    assert len(remote) == 7 * 7
    for key, line in remote.items():
        other = local[key]
        if "choices" in line:
            for name in ("log_likelihood", "log_likelihood_no_context"):
                assert line[name] == pytest.approx(other[name], abs=2e-3), key
        else:
            assert line["given"] == other["given"], key
        assert line["passages"] == other["passages"], key
        assert line["outcome"] == other["outcome"], key
