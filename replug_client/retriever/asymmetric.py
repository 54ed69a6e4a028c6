"""One model with two encoders: a tuned query encoder beside the passage encoder that filled the index.

It is a plain ``sentence_transformers`` model with a ``Router``: ``SentenceTransformer(folder)`` loads it, and
``encode_query`` / ``encode_document`` take the right route.
"""

from __future__ import annotations

from typing import Literal

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from torch import nn

from replug_client.errors import OptionError
from replug_client.retriever.lexical_weights import LexicalWeights

Route = Literal["query", "document"]


def is_asymmetric(model: SentenceTransformer) -> bool:
    """Whether queries and passages take different routes through the model."""
    return any(isinstance(module, Router) for module in model.children())


def modules_of(model: SentenceTransformer, route: Route) -> list[nn.Module]:
    """The modules that a text passes on one route, in order; for a plain model, all of them.

    Weights for matches of words are none of them: they change no vector.

    Raises:
        OptionError: the model has a router without that route.
    """
    modules: list[nn.Module] = []
    for module in model.children():
        if isinstance(module, LexicalWeights):
            continue
        if not isinstance(module, Router):
            modules.append(module)
            continue
        name = route if route in module.sub_modules else module.default_route
        if name is None:
            raise OptionError(
                f"the model routes by {', '.join(map(repr, module.sub_modules))}: there is no {route!r}. "
                "Use a model without a router, or one made by Router.for_query_document."
            )
        routed = module.sub_modules[name]
        assert isinstance(routed, nn.Sequential)
        modules.extend(routed)
    return modules


def combine(query_encoder: SentenceTransformer, passage_encoder: SentenceTransformer) -> SentenceTransformer:
    """A model that encodes queries with one encoder and passages with the other.

    The modules are shared, not copied: training the result trains the arguments. A plain ``encode`` takes the
    passage route. Where an argument is asymmetric itself, its query (or passage) side is taken.

    Raises:
        OptionError: the two give vectors of different length.
    """
    dimensions = query_encoder.get_embedding_dimension(), passage_encoder.get_embedding_dimension()
    if dimensions[0] != dimensions[1]:
        raise OptionError(
            f"the query encoder gives vectors of {dimensions[0]} numbers, the passage encoder of "
            f"{dimensions[1]}; their inner product needs the same length."
        )
    router = Router.for_query_document(
        query_modules=modules_of(query_encoder, "query"),  # type: ignore[arg-type]
        document_modules=modules_of(passage_encoder, "document"),  # type: ignore[arg-type]
    )
    return _assemble([router], query_encoder, passage_encoder)


def query_encoder_of(model: SentenceTransformer) -> SentenceTransformer:
    """What encodes queries, without the router: the same modules. A plain model is returned as it is."""
    return _assemble(modules_of(model, "query"), model, model) if is_asymmetric(model) else model


def passage_encoder_of(model: SentenceTransformer) -> SentenceTransformer:
    """What encodes passages, without the router: the same modules. A plain model is returned as it is."""
    return _assemble(modules_of(model, "document"), model, model) if is_asymmetric(model) else model


def _assemble(
    modules: list[nn.Module], query_encoder: SentenceTransformer, passage_encoder: SentenceTransformer
) -> SentenceTransformer:
    # Plain `encode` is the passages', so prompts that are neither side's come from there.
    document = passage_encoder.prompts.get("document") or ""
    others = {name: prompt or "" for name, prompt in passage_encoder.prompts.items()}
    prompts = others | {
        "query": query_encoder.prompts.get("query") or "",
        "document": document,
        "passage": passage_encoder.prompts.get("passage") or document,
    }
    return SentenceTransformer(
        modules=modules,
        device=str(passage_encoder.device),
        prompts=prompts,
        default_prompt_name=passage_encoder.default_prompt_name,
        similarity_fn_name=passage_encoder.similarity_fn_name,
        truncate_dim=passage_encoder.truncate_dim,
        local_files_only=True,
    )
