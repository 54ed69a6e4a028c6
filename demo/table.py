"""The demo's table: what each retriever's first passage is worth to the LM, on files held out of training."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from replug_client.artefacts import write_json
from replug_client.corpus.overlap import ngram_overlap
from replug_client.corpus.readers import read_documents
from replug_client.corpus.records import Example
from replug_client.corpus.store import PassageStore
from replug_client.corpus.windows import WindowOptions, cut_examples
from replug_client.evaluation.likelihood import (
    CEILING,
    LikelihoodTable,
    evaluate_conditions,
    standard_conditions,
)
from replug_client.evaluation.report import render_likelihood
from replug_client.evaluation.retrieval import Retriever, open_retrievers
from replug_client.retriever.encoder import EncoderOptions, encode_queries
from replug_client.retriever.lexical import LexicalIndex
from replug_client.statistics import bits_per_byte
from replug_client.supervisor.local import LocalOptions
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.tokenizer import SupervisorTokenizer

BM25 = "bm25"
K = 10


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What is compared, and on what.

    Attributes:
        base: Folder of the base encoder.
        tuned: Folder of the tuned one.
        passages: The corpus.
        embeddings: The base's shard of it.
        held_out: Documents that took no part in training.
        lm: Folder of the supervisor.
        dtype: Its precision, the same as in training, so that the score cache serves both.
        cache_dir: Score cache and converted corpora.
        results: Where the figures go as JSON.
        windows: How examples are cut.
        retrieved_max_length: Supervisor tokens of a passage.
        ngram_guard: Examples that share a run of so many tokens with a passage are left out.
        max_examples: At most this many, evenly spread; None takes all.
    """

    base: str
    tuned: Path
    passages: Path
    embeddings: str
    held_out: Path
    lm: Path
    cache_dir: Path
    results: Path
    windows: WindowOptions
    dtype: str = "bfloat16"
    retrieved_max_length: int = 128
    ngram_guard: int = 20
    max_examples: int | None = None


def write_table(options: TableOptions, console: Console) -> LikelihoodTable:
    """Score the held-out examples under every condition, print the table, and write it as JSON."""
    store = PassageStore.open([options.passages], options.cache_dir)
    supervisor, tokenizer = open_supervisor(
        SupervisorOptions(
            model=str(options.lm),
            kind="local",
            cache_dir=options.cache_dir,
            local=LocalOptions(dtype=options.dtype),
        )
    )
    with closing(supervisor):
        examples = held_out_examples(options, store, tokenizer)
        builder = PromptBuilder(
            tokenizer,
            retrieved_max_length=options.retrieved_max_length,
            max_prompt_tokens=supervisor.max_prompt_tokens,
        )
        conditions = _conditions(options, store, [example.query for example in examples])
        table = evaluate_conditions(
            examples,
            conditions,
            store,
            builder,
            supervisor,
            examples_per_call=4096,
            description="held-out files",
        )
    console.print(render_likelihood(table))
    figures = {**table.to_json(), "k": K, "passages": len(store), "by_package": by_package(table)}
    write_json(options.results, figures)
    return table


def by_package(table: LikelihoodTable) -> list[dict[str, Any]]:
    """Bits per byte under each condition for each package of the library, the one with most examples first.

    A module outside of packages counts to ``(modules)``. Packages differ so much in what a passage gives that
    the figure over all of them says little about one.
    """
    packages = np.array([name.split("/")[0] if "/" in name else "(modules)" for name in table.document_ids])
    names, counts = np.unique(packages, return_counts=True)
    rows = []
    for number in np.argsort(-counts, kind="stable"):
        inside = packages == names[number]
        values = {
            condition: bits_per_byte(nll[inside], table.num_bytes[inside])
            for condition, nll in table.nll.items()
        }
        documents = len({name for name, own in zip(table.document_ids, inside, strict=True) if own})
        rows.append(
            {"package": str(names[number]), "n": int(counts[number]), "documents": documents, **values}
        )
    return rows


def held_out_examples(
    options: TableOptions, store: PassageStore, tokenizer: SupervisorTokenizer
) -> list[Example]:
    """Windows of the held-out documents that share no long run of tokens with any passage."""
    examples = list(cut_examples(read_documents(options.held_out), tokenizer, options.windows))
    passages = (tokenizer.encode(text) for text in store.iter_texts())
    shared = ngram_overlap(examples, passages, options.ngram_guard)
    kept = [example for example, drop in zip(examples, shared, strict=True) if not drop]
    if options.max_examples is None or len(kept) <= options.max_examples:
        return kept
    chosen = np.linspace(0, len(kept) - 1, options.max_examples).round().astype(int)
    return [kept[number] for number in chosen]


def _conditions(
    options: TableOptions, store: PassageStore, queries: list[str]
) -> dict[str, np.ndarray | None]:
    """The five of the experiment, and BM25's first passage beside them: each over its own index."""
    base, tuned = open_retrievers(
        EncoderOptions(options.base),
        EncoderOptions(str(options.tuned)),
        store,
        shards=[options.embeddings],
        cache_dir=options.cache_dir,
    )
    conditions = standard_conditions(
        _rows(base, queries), _rows(tuned, queries), num_passages=len(store), seed=0
    )
    ceiling = conditions.pop(CEILING)
    lexical = LexicalIndex(store.iter_texts()).search(queries, 1)
    return {**conditions, BM25: lexical, CEILING: ceiling}


def _rows(retriever: Retriever, queries: list[str]) -> np.ndarray:
    vectors = encode_queries(retriever.model, queries, description="held-out queries")
    return retriever.index.search(vectors, K).rows
