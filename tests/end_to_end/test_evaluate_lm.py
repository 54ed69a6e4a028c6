"""The evaluation through a real vLLM is the evaluation in this process: combinations, too, to 1e-4 nats a token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from replug_client.corpus.windows import WindowOptions
from replug_client.evaluation.conditions import parse_conditions
from replug_client.evaluation.held_out import ExampleOptions
from replug_client.evaluation.lm import LMOptions, evaluate_lm
from replug_client.retriever.encoder import EncoderOptions
from replug_client.supervisor.open import SupervisorOptions
from replug_client.supervisor.options import LocalOptions
from tests.end_to_end.conftest import DEMO_LM, ROOT, VllmServer
from tests.retriever.tiny import corpus_file, saved_encoder

TOLERANCE = 1e-4


@pytest.fixture
def options(tmp_path: Path) -> LMOptions:
    """This project's own code behind other parts of it; for the LM in this process."""
    sources = sorted((ROOT / "replug_client" / "supervisor").glob("*.py"))
    texts = [path.read_text() for path in sources]
    pieces = [text[at : at + 400] for text in texts for at in range(0, len(text) - 400, 2000)]
    document = tmp_path / "client.txt"
    document.write_text((ROOT / "replug_client" / "retriever" / "index.py").read_text()[:3000])
    return LMOptions(
        passages=(corpus_file(tmp_path / "corpus.jsonl", pieces),),
        supervisor=SupervisorOptions(
            str(DEMO_LM), kind="local", local=LocalOptions(device="cpu", dtype="float32")
        ),
        cache_dir=tmp_path / "cache",
        examples=ExampleOptions((document,), windows=WindowOptions(48, 32, sliding=True), max_examples=12),
        conditions=tuple(
            parse_conditions(["none random bm25 base ceiling"], ["first concat-2 ensemble-1 ensemble-3"])
        ),
        base=EncoderOptions(str(saved_encoder(tmp_path / "base")), device="cpu"),
        k=3,
        temperature=0.2,
        retrieved_max_length=96,
    )


def test_remote_and_in_process_agree_under_every_condition(
    options: LMOptions, vllm_server: VllmServer
) -> None:
    local = evaluate_lm(options).table
    served = SupervisorOptions(
        vllm_server.model, base_url=vllm_server.base_url, tokenizer=str(vllm_server.folder)
    )
    before = vllm_server.prompts_answered()
    remote = evaluate_lm(replace(options, supervisor=served))
    assert set(remote.table.nll) == set(local.nll)
    assert remote.table.n == 12
    for name, nll in remote.table.nll.items():
        apart = np.abs(nll - local.nll[name]) / local.num_tokens
        assert apart.max() < TOLERANCE, name
    assert remote.table.nll["base.ensemble-1"].tolist() == remote.table.nll["base"].tolist()
    # Every prompt once; two of the answers are the probe's and the canary's, or a few more.
    asked = remote.result.details["scores"]["asked"]
    assert asked <= vllm_server.prompts_answered() - before <= asked + 12
