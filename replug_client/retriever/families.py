"""What each family of encoders was trained with: prompts, pooling, normalisation.

The rules are those of the models' own cards. They fill in what a model folder does not say; what a folder
says, and what the user says, goes before them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

_BGE_QUERY = "Represent this sentence for searching relevant passages: "
_INSTRUCT_QUERY = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
)


@dataclass(frozen=True, slots=True)
class Family:
    """How the encoders of one family are meant to be used.

    Attributes:
        name: Shown in the log.
        pattern: Regular expression, searched in the lower-cased last part of the model's name or path.
        query_prompt: Put before every query.
        passage_prompt: Put before every passage.
        pooling: How token vectors become one vector: ``mean``, ``cls`` or ``lasttoken``.
        normalize: Whether vectors are scaled to length 1, so that inner product is cosine.
    """

    name: str
    pattern: str
    query_prompt: str = ""
    passage_prompt: str = ""
    pooling: str = "mean"
    normalize: bool = True


# The first match counts: special cases stand before the family they belong to.
FAMILIES: tuple[Family, ...] = (
    Family("BGE-M3", r"bge-m3", pooling="cls"),
    Family("BGE (decoder)", r"bge-(multilingual-gemma2|en-icl|code)", pooling="lasttoken"),
    Family(
        "BGE (Chinese)",
        r"bge-(small|base|large)-zh",
        query_prompt="为这个句子生成表示以用于检索相关文章：",
        pooling="cls",
    ),
    Family("BGE", r"bge-(?!reranker)", query_prompt=_BGE_QUERY, pooling="cls"),
    Family("mxbai-embed", r"mxbai-embed", query_prompt=_BGE_QUERY, pooling="cls"),
    Family("Arctic-embed 2", r"arctic-embed-\w+-v2", query_prompt="query: ", pooling="cls"),
    Family("Arctic-embed", r"arctic-embed", query_prompt=_BGE_QUERY, pooling="cls"),
    Family("E5 (decoder)", r"e5-mistral", query_prompt=_INSTRUCT_QUERY, pooling="lasttoken"),
    Family("E5 (instruct)", r"e5-.*instruct", query_prompt=_INSTRUCT_QUERY),
    Family("E5", r"(^|[-_])e5-", query_prompt="query: ", passage_prompt="passage: "),
    Family("GTE (Qwen)", r"gte-qwen", query_prompt=_INSTRUCT_QUERY, pooling="lasttoken"),
    Family("GTE (CLS)", r"gte-(.*-v1\.5|multilingual|modernbert)", pooling="cls"),
    Family("GTE", r"(^|[-_])gte-"),
    Family("nomic-embed", r"nomic-embed", query_prompt="search_query: ", passage_prompt="search_document: "),
    Family("multi-qa (dot)", r"multi-qa-mpnet-base-dot", pooling="cls", normalize=False),
    Family("Contriever", r"contriever", normalize=False),
    Family("MiniLM and MPNet", r"(all|multi-qa)-(minilm|mpnet|distilroberta)"),
)


def family_of(model_name_or_path: str) -> Family | None:
    """The family whose pattern stands in the last part of a hub name or a path; None for an unknown one.

    A checkpoint of the hub's cache (``models--BAAI--bge-m3/snapshots/<commit>``) goes by the repository.
    """
    parts = PurePath(model_name_or_path).parts
    names = [part.rsplit("--", 1)[-1] for part in parts if part.startswith("models--")] or list(parts[-1:])
    for name in names:
        for family in FAMILIES:
            if re.search(family.pattern, name.lower()):
                return family
    return None
