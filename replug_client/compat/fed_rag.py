"""FedRAG's LM-supervised retriever training, with gradients that reach the retriever.

In fed-rag 0.0.27 ``retrieval_scores`` are made from Python floats, and the optimiser gets no parameter of the encoder:
no weight of the retriever can change. Each target token's probability is read one position too late
(``benchmarks/fed_rag.py`` shows both). The names and batch keys here are its own; ``retrieval_scores`` carry gradients
to the encoder, and targets are scored by a replug supervisor. A ``RAGSystem`` of fed-rag itself is taken, too: exchange
the imports of the collator, the loss and the trainer, and leave the rest.

What is trained is the retriever's query side: ``query_encoder``, or ``encoder`` where it has one for both. The
knowledge store's vectors stay as they are; where one encoder serves both, queries should be encoded with the trained
one and contexts with the base (two names in ``HFSentenceTransformerRetriever``), or the store be filled anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, cast

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from torch import Tensor, nn
from transformers import TrainingArguments

from replug_client.compat.rag_system import (
    DEFAULT_PROMPT_TEMPLATE,
    HFPretrainedModelGenerator,
    HFSentenceTransformerRetriever,
    InMemoryKnowledgeStore,
    KnowledgeNode,
    RAGConfig,
    RAGResponse,
    RAGSystem,
    SourceNode,
    SupervisorGenerator,
    supervisor_of,
)
from replug_client.errors import CorpusError, OptionError, TrainingDivergedError
from replug_client.retriever.asymmetric import is_asymmetric
from replug_client.training.choices import Aggregation, named
from replug_client.training.objectives import aggregate, kl_divergence, log_distribution

__all__ = [
    "DEFAULT_PROMPT_TEMPLATE",
    "DEFAULT_TARGET_TEMPLATE",
    "DataCollatorForLSR",
    "HFPretrainedModelGenerator",
    "HFSentenceTransformerRetriever",
    "HuggingFaceTrainerForLSR",
    "InMemoryKnowledgeStore",
    "KnowledgeNode",
    "LSRLoss",
    "RAGConfig",
    "RAGResponse",
    "RAGSystem",
    "ReductionMode",
    "SourceNode",
    "SupervisorGenerator",
    "TrainResult",
]

DEFAULT_TARGET_TEMPLATE = " {response}"
_ROWS = "rows"


class ReductionMode(StrEnum):
    """How the divergences of a batch become one number."""

    MEAN = "mean"
    SUM = "sum"


class LSRLoss(nn.Module):
    """KL(Q||P) of ``softmax(lm_scores)`` and ``softmax(retrieval_scores)``, in nats, as FedRAG computes it.

    Args:
        reduction: ``mean`` or ``sum`` over the batch.
        temperature_score: gamma, of P; FedRAG has none, which is 1. Cosines differ by less than 1, so P can hardly
            be other than uniform with it: 0.1 is REPLUG's.
        temperature_gold: beta, of Q.

    Raises:
        OptionError: another reduction.

    Example:
        >>> import torch
        >>> from replug_client.compat.fed_rag import LSRLoss
        >>> retrieval_scores = torch.tensor([[0.0, 0.0]], requires_grad=True)
        >>> loss = LSRLoss(reduction="sum")(retrieval_scores, torch.tensor([[5.0, -5.0]]))
        >>> loss.backward()
        >>> bool(retrieval_scores.grad[0, 0] < 0)  # a step against the gradient raises the first passage
        True
    """

    def __init__(
        self,
        reduction: ReductionMode | str = ReductionMode.MEAN,
        *,
        temperature_score: float = 1.0,
        temperature_gold: float = 1.0,
    ) -> None:
        super().__init__()
        if reduction not in list(ReductionMode):
            raise OptionError(f"reduction is {reduction!r}; expected one of {', '.join(ReductionMode)}")
        self.reduction = ReductionMode(reduction)
        self.temperature_score = temperature_score
        self.temperature_gold = temperature_gold

    def forward(self, retrieval_scores: Tensor, lm_scores: Tensor) -> Tensor:
        """A scalar, of two ``(batch, K)`` tensors."""
        log_p = log_distribution(retrieval_scores, self.temperature_score)
        log_q = log_distribution(lm_scores.to(retrieval_scores.dtype), self.temperature_gold)
        divergence = kl_divergence(log_q, log_p)
        return divergence.mean() if self.reduction is ReductionMode.MEAN else divergence.sum()


@dataclass
class DataCollatorForLSR:
    """Retrieves and scores for rows with ``query`` and ``response``.

    Attributes:
        rag_system: Of this module, or FedRAG's own.
        prompt_template: With ``{query}`` and ``{context}``. The default is plain text; FedRAG's words are its own, so
            give the same to both where figures are to be compared.
        target_template: With ``{response}``.
        default_return_tensors: ``pt``, nothing else.
        score: What an LM score is. FedRAG's is the target's ``probability``, which is 0 for every passage where targets
            are long; ``mean`` is the log-likelihood per token.

    Raises:
        OptionError: a template without its fields, or a generator that cannot be scored with.

    Example:
        >>> from replug_client.compat.fed_rag import (
        ...     DataCollatorForLSR, HFSentenceTransformerRetriever, InMemoryKnowledgeStore, KnowledgeNode, LSRLoss,
        ...     RAGConfig, RAGSystem, SupervisorGenerator)
        >>> from replug_client.training.toy import toy
        >>> texts = ["paris lies in france", "cats chase mice"]
        >>> model, supervisor, tokenizer = toy([*texts, "capital"])
        >>> retriever = HFSentenceTransformerRetriever(model)
        >>> store = InMemoryKnowledgeStore.from_nodes([
        ...     KnowledgeNode(text_content=text, embedding=retriever.encode_context(text).tolist()) for text in texts])
        >>> system = RAGSystem(SupervisorGenerator(supervisor, tokenizer), retriever, store, RAGConfig(top_k=2))
        >>> collator = DataCollatorForLSR(system, "{context} {query}", "{response}", score="mean")
        >>> batch = collator([{"query": "capital", "response": "paris"}])
        >>> LSRLoss()(batch["retrieval_scores"], batch["lm_scores"]).backward()
        >>> any(weight.grad.abs().sum() > 0 for weight in model.parameters())
        True
        >>> supervisor.close()
    """

    rag_system: Any
    prompt_template: str | None = None
    target_template: str | None = None
    default_return_tensors: str = "pt"
    score: Aggregation | str = Aggregation.PROBABILITY
    valid_label_columns: list[str] = field(default_factory=lambda: ["label", "score"])

    def __post_init__(self) -> None:
        self.prompt_template = self.prompt_template or DEFAULT_PROMPT_TEMPLATE
        self.target_template = self.target_template or DEFAULT_TARGET_TEMPLATE
        for template, names in (
            (self.prompt_template, ("{query}", "{context}")),
            (self.target_template, ("{response}",)),
        ):
            if missing := [name for name in names if name not in template]:
                raise OptionError(f"template {template[:40]!r} lacks {' and '.join(missing)}")
        self.score = named(Aggregation, self.score, "score")
        self._generator = supervisor_of(self.rag_system.generator)

    @property
    def encoder(self) -> SentenceTransformer:
        """The encoder of the queries, which is trained."""
        return trained_encoder(self.rag_system)

    def __call__(
        self, features: Sequence[Mapping[str, Any]], return_tensors: str | None = None
    ) -> dict[str, Tensor]:
        """One batch.

        Returns:
            ``retrieval_scores``: ``(batch, K)`` cosines, with gradient to the encoder; ``lm_scores``: ``(batch, K)``
            float64, without.

        Raises:
            CorpusError: a row without query or response.
            OptionError: anything but PyTorch tensors asked for, or a store without vectors.
        """
        if (return_tensors or self.default_return_tensors) != "pt":
            raise OptionError(
                f"return_tensors is {return_tensors or self.default_return_tensors!r}; expected 'pt'"
            )
        queries = [_text(row, "query") for row in features]
        responses = [_text(row, "response") for row in features]
        vectors = nn.functional.normalize(self._encoded(queries), dim=-1)
        nodes = [self._retrieved(vector) for vector in vectors.detach().float().cpu().tolist()]
        tables = torch.tensor([[_embedding(node) for node in line] for line in nodes])
        passages = nn.functional.normalize(tables.to(vectors), dim=-1)
        return {
            "retrieval_scores": torch.einsum("bd,bkd->bk", vectors, passages),
            "lm_scores": self._lm_scores(queries, responses, nodes).to(vectors.device),
        }

    def _encoded(self, queries: list[str]) -> Tensor:
        encoder = self.encoder
        features = encoder.preprocess(queries, prompt=encoder.prompts.get("query") or None, task="query")
        moved: dict[str, Any] = {
            name: value.to(encoder.device) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        if is_asymmetric(encoder):
            moved["task"] = "query"
        vectors: Tensor = encoder(moved)["sentence_embedding"]
        return vectors.float()

    def _retrieved(self, vector: list[float]) -> list[Any]:
        system = self.rag_system
        return [node for _, node in system.knowledge_store.retrieve(vector, system.rag_config.top_k)]

    def _lm_scores(self, queries: list[str], responses: list[str], nodes: list[list[Any]]) -> Tensor:
        assert self.prompt_template and self.target_template  # by __post_init__
        pairs = [
            (
                self.prompt_template.format(query=query, context=node.get_content()["text_content"]),
                self.target_template.format(response=response),
            )
            for query, response, line in zip(queries, responses, nodes, strict=True)
            for node in line
        ]
        shape = len(queries), len(nodes[0])
        scores = self._generator.score(pairs)
        log_likelihood = torch.tensor([score.log_likelihood for score in scores], dtype=torch.float64)
        return aggregate(
            log_likelihood.view(shape),
            torch.tensor([score.num_tokens for score in scores]).view(shape)[:, 0],
            torch.tensor([len(target.encode()) for _, target in pairs]).view(shape)[:, 0],
            Aggregation(self.score),
        )


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a training run: the mean training loss."""

    loss: float


class HuggingFaceTrainerForLSR:
    """Trains the retriever of a RAG system, in place.

    Args:
        rag_system: Of this module, or FedRAG's own.
        train_dataset: Rows with ``query`` and ``response``.
        training_arguments: sentence-transformers', or transformers' own, which become these.
        data_collator: None is ``DataCollatorForLSR(rag_system)``.
        loss: None is ``LSRLoss()``.
        keywords: Passed on to ``SentenceTransformerTrainer``.

    Example:
        >>> import tempfile
        >>> from sentence_transformers import SentenceTransformerTrainingArguments
        >>> from transformers import PrinterCallback
        >>> from replug_client.compat.fed_rag import (
        ...     DataCollatorForLSR, HFSentenceTransformerRetriever, HuggingFaceTrainerForLSR, InMemoryKnowledgeStore,
        ...     KnowledgeNode, LSRLoss, RAGConfig, RAGSystem, SupervisorGenerator)
        >>> from replug_client.training.toy import toy
        >>> texts = ["cats chase mice", "paris lies in france"]
        >>> model, supervisor, tokenizer = toy([*texts, "capital"])
        >>> retriever = HFSentenceTransformerRetriever(model)
        >>> store = InMemoryKnowledgeStore.from_nodes([
        ...     KnowledgeNode(text_content=text, embedding=retriever.encode_context(text).tolist()) for text in texts])
        >>> system = RAGSystem(SupervisorGenerator(supervisor, tokenizer), retriever, store, RAGConfig(top_k=2))
        >>> trainer = HuggingFaceTrainerForLSR(
        ...     system,
        ...     [{"query": "capital", "response": "paris"}],
        ...     SentenceTransformerTrainingArguments(
        ...         tempfile.mkdtemp(), max_steps=20, learning_rate=0.05, save_strategy="no", report_to="none",
        ...         disable_tqdm=True, use_cpu=True),
        ...     data_collator=DataCollatorForLSR(system, "{context} {query}", "{response}", score="mean"),
        ...     loss=LSRLoss(temperature_score=0.1))
        >>> trainer.hf_trainer_obj.remove_callback(PrinterCallback)
        >>> trainer.train().loss > 0
        True
        >>> [node.get_content()["text_content"] for node in system.retrieve("capital")]
        ['paris lies in france', 'cats chase mice']
        >>> supervisor.close()
    """

    def __init__(
        self,
        rag_system: Any,
        train_dataset: Iterable[Mapping[str, Any]],
        training_arguments: Any = None,
        *,
        data_collator: DataCollatorForLSR | None = None,
        loss: LSRLoss | None = None,
        **keywords: Any,
    ) -> None:
        self.rag_system = rag_system
        self.train_dataset = train_dataset
        self.model = trained_encoder(rag_system)
        self.training_arguments = _arguments(training_arguments)
        self._trainer = _Trainer(
            self.model,
            self.training_arguments,
            train_dataset,
            data_collator or DataCollatorForLSR(rag_system),
            loss or LSRLoss(),
            **keywords,
        )

    @property
    def hf_trainer_obj(self) -> SentenceTransformerTrainer:
        """The trainer that does the work."""
        return self._trainer

    def train(self, **keywords: Any) -> TrainResult:
        """Train; keywords are those of ``Trainer.train``."""
        return TrainResult(float(self._trainer.train(**keywords).training_loss))


class _Trainer(SentenceTransformerTrainer):
    """Batches are retrieved and scored in the step itself.

    A data loader is a batch ahead: scores that it had made would belong to weights from before the last step.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: Any,
        rows: Iterable[Mapping[str, Any]],
        collator: DataCollatorForLSR,
        loss: LSRLoss,
        **keywords: Any,
    ) -> None:
        if args.world_size > 1:
            raise OptionError(
                f"this trainer runs in one process, and {args.world_size} were started; use `replug train` instead"
            )
        self._collate, self._between = collator, loss
        dataset = _dataset(rows)
        if not len(dataset):
            raise CorpusError("train_dataset is empty; expected rows with query and response")
        if keywords.get("eval_dataset") is not None:
            keywords["eval_dataset"] = _dataset(keywords["eval_dataset"])
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            loss=_WithModel(model, loss),
            data_collator=cast(Any, _RowCollator()),
            **keywords,
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        batch = self._collate(inputs[_ROWS])
        loss = self._between(batch["retrieval_scores"], batch["lm_scores"])
        if not math.isfinite(float(loss.detach())):
            raise TrainingDivergedError(
                f"the loss is {float(loss.detach())}; lower the learning rate, or use score='mean'"
            )
        return (loss, batch) if return_outputs else loss


def _arguments(given: Any) -> SentenceTransformerTrainingArguments:
    """Transformers' arguments as sentence-transformers' trainer takes them."""
    if given is None:
        return SentenceTransformerTrainingArguments()
    if isinstance(given, SentenceTransformerTrainingArguments):
        return given
    if not isinstance(given, TrainingArguments):
        raise OptionError(f"training_arguments is {type(given).__name__}; expected TrainingArguments")
    values = {item.name: getattr(given, item.name) for item in fields(TrainingArguments) if item.init}
    return SentenceTransformerTrainingArguments(**values)


def _dataset(rows: Any) -> Any:
    """Rows as a ``Dataset``; one stays as it is, and so do several by name."""
    return rows if isinstance(rows, Dataset | dict) else Dataset.from_list([dict(row) for row in rows])


class _WithModel(nn.Module):
    """The loss beside the encoder: the trainer's optimiser takes its parameters from the loss."""

    def __init__(self, model: SentenceTransformer, loss: LSRLoss) -> None:
        super().__init__()
        self.model, self.loss = model, loss


class _RowCollator:
    """Leaves the rows as they are."""

    valid_label_columns: tuple[str, ...] = ("label", "score")

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {_ROWS: rows}


def trained_encoder(rag_system: Any) -> SentenceTransformer:
    """The encoder that is trained: the one for both sides, or the queries'."""
    encoder = rag_system.retriever.encoder or rag_system.retriever.query_encoder
    if not isinstance(encoder, SentenceTransformer):
        raise OptionError(
            f"the retriever's encoder is {type(encoder).__name__}; expected a SentenceTransformer"
        )
    return encoder


def _embedding(node: Any) -> Sequence[float]:
    if node.embedding is None:
        raise OptionError(
            f"node {node.node_id} came back without its embedding; the knowledge store has to keep them"
        )
    embedding: Sequence[float] = node.embedding
    return embedding


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise CorpusError(f"{column!r} is {value!r}; expected a text. The row's columns are {sorted(row)}")
    return value
