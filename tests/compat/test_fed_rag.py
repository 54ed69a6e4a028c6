"""FedRAG's names do what they say: gradients reach the retriever, and the scores are the LM's."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from torch.nn import functional
from transformers import PrinterCallback, TrainingArguments

from replug_client.compat.fed_rag import (
    DataCollatorForLSR,
    HFPretrainedModelGenerator,
    HFSentenceTransformerRetriever,
    HuggingFaceTrainerForLSR,
    InMemoryKnowledgeStore,
    KnowledgeNode,
    LSRLoss,
    RAGConfig,
    RAGSystem,
    SupervisorGenerator,
)
from replug_client.compat.rag_system import supervisor_of
from replug_client.errors import CorpusError, OptionError
from replug_client.retriever.asymmetric import combine
from replug_client.training.toy import toy

LM = Path(__file__).parents[2] / "demo" / "lm"
PASSAGES = [f"word{number} other{number}" for number in range(6)]
ROWS = [{"query": f"query{number}", "response": f"word{5 - number}"} for number in range(4)]
TEMPLATES = ("{context} {query}", "{response}")


def system(top_k: int = 6, *, separate: bool = False) -> RAGSystem:
    texts = [*PASSAGES, *(row["query"] for row in ROWS)]
    model, supervisor, tokenizer = toy(texts)
    retriever = (
        HFSentenceTransformerRetriever(query_model_name=model, context_model_name=toy(texts).model)
        if separate
        else HFSentenceTransformerRetriever(model)
    )
    nodes = [
        KnowledgeNode(text_content=text, embedding=retriever.encode_context(text).tolist())
        for text in PASSAGES
    ]
    store = InMemoryKnowledgeStore.from_nodes(nodes)
    return RAGSystem(SupervisorGenerator(supervisor, tokenizer), retriever, store, RAGConfig(top_k=top_k))


def arguments(folder: Path, steps: int) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        str(folder),
        max_steps=steps,
        learning_rate=0.05,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_fed_rags_own(reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    retrieval, lm = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    each = functional.kl_div(torch.log_softmax(retrieval, 1), torch.softmax(lm, 1), reduction="none").sum(-1)
    expected = each.mean() if reduction == "mean" else each.sum()
    torch.testing.assert_close(LSRLoss(reduction)(retrieval, lm), expected)
    assert torch.autograd.gradcheck(lambda scores: LSRLoss(reduction)(scores, lm), retrieval.requires_grad_())


def test_another_reduction_is_refused() -> None:
    with pytest.raises(OptionError, match="reduction is 'max'; expected one of mean, sum"):
        LSRLoss("max")


def test_a_batch_has_fed_rags_keys_cosines_and_probabilities() -> None:
    rag = system(top_k=3)
    batch = DataCollatorForLSR(rag, *TEMPLATES)(ROWS)
    assert set(batch) == {"retrieval_scores", "lm_scores"}
    assert batch["retrieval_scores"].requires_grad and not batch["lm_scores"].requires_grad
    for row, cosines, scores in zip(ROWS, batch["retrieval_scores"], batch["lm_scores"], strict=True):
        nodes = rag.retrieve(row["query"])
        torch.testing.assert_close(cosines.detach(), torch.tensor([node.score for node in nodes]))
        held = [row["response"] in node.get_content()["text_content"] for node in nodes]
        expected = [math.exp(-0.1 if own else -3.0) for own in held]
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


def test_gradients_reach_every_word_of_a_query_and_the_loss_falls() -> None:
    rag = system()
    collator = DataCollatorForLSR(rag, *TEMPLATES, score="mean")
    loss = LSRLoss(temperature_score=0.1, temperature_gold=0.5)
    optimizer = torch.optim.Adam(collator.encoder.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        batch = collator(ROWS)
        value = loss(batch["retrieval_scores"], batch["lm_scores"])
        value.backward()
        if not losses:
            (gradient,) = (weight.grad for weight in collator.encoder.parameters())
            touched = int((gradient.abs().sum(1) > 0).sum())
            assert touched == len(ROWS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("separate", [False, True], ids=["one encoder", "two encoders"])
def test_the_trainer_teaches_what_the_lm_prefers(separate: bool, tmp_path: Path) -> None:
    rag = system(separate=separate)
    contexts = rag.retriever.encode_context(PASSAGES)
    trainer = HuggingFaceTrainerForLSR(
        rag,
        ROWS,
        arguments(tmp_path, 40),
        data_collator=DataCollatorForLSR(rag, *TEMPLATES, score="mean"),
        loss=LSRLoss(temperature_score=0.1, temperature_gold=0.5),
    )
    trainer.hf_trainer_obj.remove_callback(PrinterCallback)
    assert trainer.model is (rag.retriever.query_encoder if separate else rag.retriever.encoder)
    assert trainer.train().loss > 0
    firsts = [rag.retrieve(row["query"])[0].get_content()["text_content"] for row in ROWS]
    assert all(row["response"] in first for row, first in zip(ROWS, firsts, strict=True))
    if separate:
        assert (rag.retriever.encode_context(PASSAGES) == contexts).all()


def test_the_trainer_takes_what_fedrags_users_bring(tmp_path: Path) -> None:
    """transformers' own arguments, a list to evaluate on, and a retriever with two routes."""
    rag = system()
    model = rag.retriever.encoder
    rag.retriever.encoder = combine(copy.deepcopy(model), model)
    queries = [row["query"] for row in ROWS]
    before = rag.retriever.encoder.encode_query(queries), rag.retriever.encoder.encode_document(queries)
    given = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        learning_rate=0.05,
        lr_scheduler_type="cosine",
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=3,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    collator = DataCollatorForLSR(rag, *TEMPLATES, score="mean")
    trainer = HuggingFaceTrainerForLSR(
        rag, ROWS, given, data_collator=collator, loss=LSRLoss(temperature_score=0.1), eval_dataset=ROWS[:2]
    )
    trainer.hf_trainer_obj.remove_callback(PrinterCallback)
    assert trainer.hf_trainer_obj.args.lr_scheduler_type == "cosine"
    assert trainer.train().loss > 0
    assert any("eval_loss" in entry for entry in trainer.hf_trainer_obj.state.log_history)
    after = rag.retriever.encoder.encode_query(queries), rag.retriever.encoder.encode_document(queries)
    moved = [bool(abs(one - other).max() > 1e-4) for one, other in zip(before, after, strict=True)]
    assert moved == [True, False], "the route of the queries is trained"
    with pytest.raises(OptionError, match="training_arguments is dict"):
        HuggingFaceTrainerForLSR(rag, ROWS, {"max_steps": 3}, data_collator=collator)


def test_a_generator_of_fed_rags_kind_is_scored_by_its_own_model() -> None:
    """Against logits read off the whole sequence, and with the position that FedRAG misses by one."""
    own = HFPretrainedModelGenerator(str(LM))

    class Foreign:
        model, model_name = own.model, "foreign"
        tokenizer = type("Wrapped", (), {"unwrapped": own.tokenizer})()

    prompt, target = "import os\nprint(os.", "path)"
    tokenizer = own.supervisor_tokenizer
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    head, tail = start + tokenizer.encode(prompt), tokenizer.encode(target)
    with torch.no_grad():
        log_probs = own.model(torch.tensor([head + tail])).logits[0].float().log_softmax(-1)
    expected = sum(float(log_probs[len(head) - 1 + place, token]) for place, token in enumerate(tail))
    for generator in (own, supervisor_of(Foreign())):
        (score,) = generator.score([(prompt, target)])
        assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
    assert own.compute_target_sequence_proba(prompt, target) == pytest.approx(math.exp(expected), rel=1e-3)
    assert own.complete(prompt, max_new_tokens=2)


def test_a_store_finds_by_cosine_and_forgets_what_is_deleted() -> None:
    store = InMemoryKnowledgeStore.from_nodes(
        [
            KnowledgeNode(text_content="long", embedding=[9.0, 0.0], node_id="a"),
            KnowledgeNode(text_content="near", embedding=[0.6, 0.8], node_id="b"),
        ]
    )
    ((cosine, node),) = store.retrieve([0.0, 2.0], 1)
    assert (node.node_id, cosine) == ("b", pytest.approx(0.8))
    assert len(store.retrieve([1.0, 0.0], 5)) == 2
    assert store.delete_node("b") and not store.delete_node("b")
    assert store.retrieve([0.0, 2.0], 5)[0][1].node_id == "a"
    store.clear()
    with pytest.raises(OptionError, match="empty"):
        store.retrieve([0.0, 1.0], 1)


def test_what_cannot_work_is_refused_with_its_reason() -> None:
    rag = system()
    with pytest.raises(OptionError, match=r"lacks \{context\}"):
        DataCollatorForLSR(rag, "{query}")
    with pytest.raises(CorpusError, match=r"'response' is None.*\['query'\]"):
        DataCollatorForLSR(rag)([{"query": "a"}])
    with pytest.raises(OptionError, match="expected 'pt'"):
        DataCollatorForLSR(rag)(ROWS, return_tensors="np")
    with pytest.raises(OptionError, match="expected a SupervisorGenerator"):
        supervisor_of(object())
    with pytest.raises(OptionError, match="has no embedding"):
        rag.knowledge_store.load_node(KnowledgeNode(text_content="a"))
    with pytest.raises(OptionError, match="node_type 'image'"):
        KnowledgeNode("image", "a")
    with pytest.raises(OptionError, match="expected model_name, or both"):
        HFSentenceTransformerRetriever(query_model_name=rag.retriever.encoder)
    with pytest.raises(OptionError, match="does not generate"):
        rag.query("query0")


def test_a_retriever_without_a_sentence_transformer_is_refused() -> None:
    rag: Any = system()
    rag.retriever.encoder = torch.nn.Linear(1, 1)
    assert not isinstance(rag.retriever.encoder, SentenceTransformer)
    with pytest.raises(OptionError, match="the retriever's encoder is Linear"):
        _ = DataCollatorForLSR(rag).encoder
