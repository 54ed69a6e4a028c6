"""One side of `benchmarks.fed_rag`: trains on the rows of a file with FedRAG or with replug, and prints figures.

python -P _fed_rag_side.py {fed_rag,replug} JOB.json; run as a file by the interpreter that has the library, with -P
(beside it lies another fed_rag.py).
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments

_HOMES = {
    "DataCollatorForLSR": ".data_collators.huggingface",
    "HFPretrainedModelGenerator": ".generators",
    "HFSentenceTransformerRetriever": ".retrievers",
    "HuggingFaceTrainerForLSR": ".trainers.huggingface.lsr",
    "InMemoryKnowledgeStore": ".knowledge_stores",
    "KnowledgeNode": ".data_structures",
    "LSRLoss": ".loss.pytorch.lsr",
    "RAGConfig": "",
    "RAGSystem": "",
}


def main() -> None:
    """Train, and print one line of JSON."""
    library, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text("utf-8"))
    names = _names(library)
    retriever = names["HFSentenceTransformerRetriever"](model_name=job["encoder"])
    retriever.encoder.eval()
    store = names["InMemoryKnowledgeStore"].from_nodes(
        [
            names["KnowledgeNode"](
                node_type="text", text_content=text, embedding=retriever.encode_context(text).tolist()
            )
            for text in job["passages"]
        ]
    )
    generator = names["HFPretrainedModelGenerator"](model_name=job["lm"])
    system = names["RAGSystem"](
        generator=generator,
        retriever=retriever,
        knowledge_store=store,
        rag_config=names["RAGConfig"](top_k=job["top_k"]),
    )
    collator = names["DataCollatorForLSR"](system, *job["templates"])
    loss = names["LSRLoss"]()
    before = {name: value.detach().clone() for name, value in retriever.encoder.named_parameters()}
    first = _loss(collator, loss, job["rows"])
    steps = _train(names, system, job)
    moved = sum(not torch.equal(value, before[name]) for name, value in retriever.encoder.named_parameters())
    prompt, target = job["pair"]
    figures = {
        "tensors": len(before),
        "tensors_moved": moved,
        "loss_before": first,
        "loss_after": _loss(collator, loss, job["rows"]),
        "steps": steps,
        "log_probability": float(
            torch.as_tensor(generator.compute_target_sequence_proba(prompt, target)).log()
        ),
        "reference": _reference(generator, prompt, target),
    }
    print(json.dumps(figures))


def _names(library: str) -> dict[str, Any]:
    """What both libraries call the same, from where each has it."""
    if library == "replug":
        module = import_module("replug_client.compat.fed_rag")
        return {name: getattr(module, name) for name in module.__all__}
    return {name: getattr(import_module(f"fed_rag{home}"), name) for name, home in _HOMES.items()}


def _loss(collator: Any, loss: Any, rows: list[dict[str, str]]) -> float:
    batch = collator(rows)
    return float(loss(batch["retrieval_scores"].detach(), batch["lm_scores"]))


def _train(names: dict[str, Any], system: Any, job: dict[str, Any]) -> int:
    arguments = SentenceTransformerTrainingArguments(
        tempfile.mkdtemp(),
        max_steps=job["steps"],
        learning_rate=job["learning_rate"],
        per_device_train_batch_size=len(job["rows"]),
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=False,
    )
    trainer = names["HuggingFaceTrainerForLSR"](
        rag_system=system, train_dataset=Dataset.from_list(job["rows"]), training_arguments=arguments
    )
    trainer.train()
    system.retriever.encoder.eval()
    return int(trainer.hf_trainer_obj.state.global_step)


def _reference(generator: Any, prompt: str, target: str) -> float:
    """Log P(target | prompt) in nats, read off one forward pass over both: token i by the logits before it.

    replug puts the LM's BOS before a prompt, FedRAG what the LM's tokenizer does, which is nothing here.
    """
    tokenizer = getattr(generator.tokenizer, "unwrapped", generator.tokenizer)
    start = [tokenizer.bos_token_id] if hasattr(generator, "supervisor_tokenizer") else []
    head = len(start) + len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([start + tokenizer(prompt + target)["input_ids"]])
    with torch.no_grad():
        log_probs = generator.model(ids).logits[0].float().log_softmax(-1)
    return float(log_probs[head - 1 : -1].gather(1, ids[0, head:, None]).sum())


if __name__ == "__main__":
    main()
