"""Which rule a name falls under."""

from __future__ import annotations

import pytest

from replug_client.retriever.families import family_of


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("BAAI/bge-small-en-v1.5", "BGE"),
        ("/models/bge-base-en", "BGE"),
        ("BAAI/bge-large-zh-v1.5", "BGE (Chinese)"),
        ("BAAI/bge-m3", "BGE-M3"),
        ("BAAI/bge-multilingual-gemma2", "BGE (decoder)"),
        ("intfloat/e5-base-v2", "E5"),
        ("intfloat/multilingual-e5-small", "E5"),
        ("intfloat/multilingual-e5-large-instruct", "E5 (instruct)"),
        ("intfloat/e5-mistral-7b-instruct", "E5 (decoder)"),
        ("thenlper/gte-small", "GTE"),
        ("Alibaba-NLP/gte-base-en-v1.5", "GTE (CLS)"),
        ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "GTE (Qwen)"),
        ("sentence-transformers/all-MiniLM-L6-v2", "MiniLM and MPNet"),
        ("sentence-transformers/multi-qa-mpnet-base-dot-v1", "multi-qa (dot)"),
        ("facebook/contriever-msmarco", "Contriever"),
        ("mixedbread-ai/mxbai-embed-large-v1", "mxbai-embed"),
        ("Snowflake/snowflake-arctic-embed-m-v2.0", "Arctic-embed 2"),
        ("Snowflake/snowflake-arctic-embed-m", "Arctic-embed"),
        (
            "/cache/hub/models--BAAI--bge-small-en-v1.5/snapshots/5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
            "BGE",
        ),
    ],
)
def test_a_model_falls_under_the_rule_of_its_family(name: str, family: str) -> None:
    found = family_of(name)
    assert found is not None and found.name == family


@pytest.mark.parametrize(
    "name",
    [
        "output_finetuned_retriever",
        "bert-base-uncased",
        "BAAI/bge-reranker-base",
        "./",
        ".",
        "/x/base5-tuned",
    ],
)
def test_an_unknown_name_falls_under_none(name: str) -> None:
    assert family_of(name) is None


def test_only_the_last_part_of_a_path_counts() -> None:
    assert family_of("/data/bge-small-en/output_finetuned_retriever") is None
