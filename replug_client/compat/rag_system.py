"""FedRAG's building blocks: a retriever, a generator and a knowledge store that make a RAG system.

Names and signatures are those of fed-rag 0.0.27. Only what LM-supervised retriever training uses is here.
"""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from replug_client.errors import OptionError
from replug_client.supervisor.local import LocalSupervisor
from replug_client.supervisor.protocol import Prompt, Score, Supervisor
from replug_client.supervisor.tokenizer import FolderTokenizer, SupervisorTokenizer

DEFAULT_PROMPT_TEMPLATE = "Passages:\n{context}\n\nQuestion: {query}\nAnswer:"


@dataclass(slots=True)
class KnowledgeNode:
    """One passage of a knowledge store.

    Attributes:
        node_type: ``text``; nothing else is supported.
        text_content: The passage.
        embedding: Its vector.
        node_id: Unique in its store.
        metadata: Whatever belongs to it.
    """

    node_type: str = "text"
    text_content: str | None = None
    embedding: list[float] | None = None
    node_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.node_type != "text" or not self.text_content:
            raise OptionError(
                f"node {self.node_id}: node_type {self.node_type!r} with text_content {self.text_content!r}; expected "
                "a text that is not empty"
            )

    def get_content(self) -> dict[str, Any]:
        """``text_content``, and ``image_content``, which is None."""
        return {"text_content": self.text_content, "image_content": None}


@dataclass(frozen=True, slots=True)
class SourceNode:
    """A node that was found, and the cosine by which it was."""

    score: float
    node: KnowledgeNode

    def get_content(self) -> dict[str, Any]:
        """The node's."""
        return self.node.get_content()


@dataclass(frozen=True, slots=True)
class RAGConfig:
    """How many nodes are retrieved, and what stands between them in a context."""

    top_k: int
    context_separator: str = "\n"


@dataclass(frozen=True, slots=True)
class RAGResponse:
    """An answer, and the nodes it was made from."""

    response: str
    source_nodes: list[SourceNode]

    def __str__(self) -> str:
        return self.response


class InMemoryKnowledgeStore:
    """Nodes in memory, searched by cosine; of nodes with one id the first counts."""

    def __init__(self) -> None:
        self._nodes: dict[str, KnowledgeNode] = {}
        self._table: npt.NDArray[np.float32] | None = None

    @classmethod
    def from_nodes(cls, nodes: Sequence[KnowledgeNode]) -> InMemoryKnowledgeStore:
        """A store of these nodes."""
        store = cls()
        store.load_nodes(nodes)
        return store

    def load_node(self, node: KnowledgeNode) -> None:
        """Add a node.

        Raises:
            OptionError: it has no embedding.
        """
        if node.embedding is None:
            raise OptionError(
                f"node {node.node_id} has no embedding; expected retriever.encode_context(text)"
            )
        self._nodes.setdefault(node.node_id, node)
        self._table = None

    def load_nodes(self, nodes: Sequence[KnowledgeNode]) -> None:
        """Add nodes, in order."""
        for node in nodes:
            self.load_node(node)

    def delete_node(self, node_id: str) -> bool:
        """Remove a node; False where there is none of this id."""
        self._table = None
        return self._nodes.pop(node_id, None) is not None

    def clear(self) -> None:
        """Remove all nodes."""
        self._nodes.clear()
        self._table = None

    @property
    def count(self) -> int:
        """Number of nodes."""
        return len(self._nodes)

    def retrieve(self, query_emb: Sequence[float], top_k: int) -> list[tuple[float, KnowledgeNode]]:
        """The ``top_k`` nodes of the largest cosine (all, where there are fewer), best first."""
        return self.batch_retrieve([query_emb], top_k)[0]

    def batch_retrieve(
        self, query_embs: Sequence[Sequence[float]], top_k: int
    ) -> list[list[tuple[float, KnowledgeNode]]]:
        """The same for several queries.

        Raises:
            OptionError: the store is empty.
        """
        if not self._nodes:
            raise OptionError("the knowledge store is empty; load nodes before retrieving")
        if self._table is None:
            self._table = _unit(np.array([node.embedding for node in self._nodes.values()], dtype=np.float32))
        nodes = list(self._nodes.values())
        cosines = _unit(np.asarray(query_embs, dtype=np.float32)) @ self._table.T
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :top_k]
        return [
            [(float(line[place]), nodes[place]) for place in best]
            for line, best in zip(cosines, order, strict=True)
        ]


class HFSentenceTransformerRetriever:
    """One sentence-transformers encoder for both sides, or one for queries and one for contexts.

    Args:
        model_name: Name or folder of the encoder for both, or the encoder itself.
        query_model_name: The same, of the queries' encoder.
        context_model_name: The same, of the contexts' encoder.
        load_model_kwargs: Passed to ``SentenceTransformer``.

    Raises:
        OptionError: neither one for both, nor one for each.
    """

    def __init__(
        self,
        model_name: str | SentenceTransformer | None = None,
        query_model_name: str | SentenceTransformer | None = None,
        context_model_name: str | SentenceTransformer | None = None,
        load_model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if (model_name is None) == (query_model_name is None or context_model_name is None):
            raise OptionError("expected model_name, or both query_model_name and context_model_name")
        arguments = load_model_kwargs or {}
        self.encoder = _encoder(model_name, arguments)
        self.query_encoder = _encoder(query_model_name, arguments)
        self.context_encoder = _encoder(context_model_name, arguments)

    def encode_query(self, query: str | list[str]) -> npt.NDArray[np.float32]:
        """``(D,)`` of a query, ``(n, D)`` of several, with the encoder's query prompt."""
        return (self.encoder or self.query_encoder).encode_query(query, show_progress_bar=False)  # type: ignore[union-attr]

    def encode_context(self, context: str | list[str]) -> npt.NDArray[np.float32]:
        """The same of contexts, with the document prompt."""
        return (self.encoder or self.context_encoder).encode_document(context, show_progress_bar=False)  # type: ignore[union-attr]


class SupervisorGenerator:
    """Any replug supervisor as a generator: a black-box LM behind a server scores, its weights unseen.

    ``SupervisorGenerator(*open_supervisor(SupervisorOptions("served-name")))``.
    """

    def __init__(self, supervisor: Supervisor, tokenizer: SupervisorTokenizer) -> None:
        self.supervisor = supervisor
        self.supervisor_tokenizer = tokenizer

    def generate(self, query: str, context: str) -> str:
        """Not to be had of a supervisor.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            f"supervisor {self.supervisor.name} scores, and does not generate; use RAGSystem.retrieve"
        )

    def compute_target_sequence_proba(self, prompt: str, target: str) -> float:
        """P(target | prompt); 0 where it is too small for a float."""
        return math.exp(self.score([(prompt, target)])[0].log_likelihood)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Score targets behind prompts: BOS, prompt and target, each of the two tokenised on its own.

        Raises:
            OptionError: a prompt or a target without tokens.
            SupervisorError: a pair cannot be scored.
        """
        tokenizer = self.supervisor_tokenizer
        start = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
        prompts = []
        for prompt, target in pairs:
            head, ids = (*start, *tokenizer.encode(prompt)), tokenizer.encode(target)
            if not ids or not head:
                raise OptionError(
                    f"prompt {prompt[-40:]!r} with target {target[:40]!r}: each needs at least one token"
                )
            prompts.append(Prompt((*head, *ids), len(ids), f"target {target[:40]!r}"))
        return self.supervisor.score(prompts)


class HFPretrainedModelGenerator(SupervisorGenerator):
    """A causal LM of transformers in this process.

    Args:
        model_name: Name or folder.
        generation_config: Of transformers.
        prompt_template: With ``{query}`` and ``{context}``.
        load_model_kwargs: Passed to ``AutoModelForCausalLM.from_pretrained``.
    """

    def __init__(
        self,
        model_name: str,
        generation_config: Any = None,
        prompt_template: str | None = None,
        load_model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model_name = model_name
        self.model: Any = AutoModelForCausalLM.from_pretrained(model_name, **(load_model_kwargs or {}))
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_name)
        self.generation_config = generation_config
        self.prompt_template = prompt_template or DEFAULT_PROMPT_TEMPLATE
        super().__init__(*_in_process(self.model, self.tokenizer, model_name))

    def generate(self, query: str, context: str) -> str:
        """An answer to ``query``, from ``context``."""
        return self.complete(self.prompt_template.format(query=query, context=context))

    def complete(self, prompt: str, **keywords: Any) -> str:
        """What the LM goes on with behind ``prompt``."""
        tokens = self.tokenizer(prompt, return_tensors="pt").to(self.model.device)
        ids = self.model.generate(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            generation_config=self.generation_config,
            **keywords,
        )
        text: str = self.tokenizer.decode(ids[0, tokens.input_ids.shape[1] :], skip_special_tokens=True)
        return text


@dataclass
class RAGSystem:
    """Retriever, generator and knowledge store.

    Example:
        >>> from replug_client.compat.fed_rag import (
        ...     HFSentenceTransformerRetriever, InMemoryKnowledgeStore, KnowledgeNode, RAGConfig, RAGSystem,
        ...     SupervisorGenerator)
        >>> from replug_client.training.toy import toy
        >>> texts = ["paris lies in france", "cats chase mice"]
        >>> model, supervisor, tokenizer = toy(texts)
        >>> retriever = HFSentenceTransformerRetriever(model)
        >>> store = InMemoryKnowledgeStore.from_nodes([
        ...     KnowledgeNode(text_content=text, embedding=retriever.encode_context(text).tolist()) for text in texts])
        >>> system = RAGSystem(SupervisorGenerator(supervisor, tokenizer), retriever, store, RAGConfig(top_k=1))
        >>> [node.get_content()["text_content"] for node in system.retrieve("france")]
        ['paris lies in france']
        >>> supervisor.close()
    """

    generator: Any
    retriever: Any
    knowledge_store: Any
    rag_config: RAGConfig

    def retrieve(self, query: str) -> list[SourceNode]:
        """The nodes for a query, best first."""
        return self.batch_retrieve([query])[0]

    def batch_retrieve(self, queries: list[str]) -> list[list[SourceNode]]:
        """The nodes for each of several queries."""
        found = self.knowledge_store.batch_retrieve(
            self.retriever.encode_query(queries).tolist(), self.rag_config.top_k
        )
        return [[SourceNode(score, node) for score, node in line] for line in found]

    def query(self, query: str) -> RAGResponse:
        """Retrieve, and have the generator answer."""
        nodes = self.retrieve(query)
        context = self.rag_config.context_separator.join(node.get_content()["text_content"] for node in nodes)
        return RAGResponse(self.generator.generate(query=query, context=context), nodes)


def supervisor_of(generator: Any) -> SupervisorGenerator:
    """A generator of this module as it is; fed-rag's own gets an in-process supervisor over its model.

    Raises:
        OptionError: neither a supervisor, nor a model with its tokenizer.
    """
    if isinstance(generator, SupervisorGenerator):
        return generator
    try:
        tokenizer = getattr(generator.tokenizer, "unwrapped", generator.tokenizer)
        parts = generator.model, tokenizer, generator.model_name
    except AttributeError as error:
        raise OptionError(
            f"generator {type(generator).__name__}: expected a SupervisorGenerator, or a model with its tokenizer"
        ) from error
    return SupervisorGenerator(*_in_process(*parts))


def _in_process(model: Any, tokenizer: Any, name: str) -> tuple[LocalSupervisor, FolderTokenizer]:
    if not getattr(tokenizer, "is_fast", False):
        raise OptionError(f"{name}: its tokenizer has no fast form; load it with use_fast=True")
    # A copy: the supervisor's tokenizer adds no special tokens, the generator's own goes on doing so.
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    return LocalSupervisor(model, name), FolderTokenizer(backend, tokenizer.bos_token_id)


def _encoder(
    model: str | SentenceTransformer | None, arguments: dict[str, Any]
) -> SentenceTransformer | None:
    return SentenceTransformer(model, **arguments) if isinstance(model, str) else model


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
