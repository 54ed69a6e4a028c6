"""The flags of `replug train` that a mode of ``--train`` has of its own; named as the parameters that they type."""

from __future__ import annotations

from typing import Annotated

import typer

from replug_client.training import modes

MODES = "Modes of --train"

ProjectionDim = Annotated[
    int | None,
    typer.Option(
        "--projection_dim",
        min=1,
        help="--train head: numbers of the projected vectors; default the base's.",
        rich_help_panel=MODES,
    ),
]
HeadLayers = Annotated[
    int,
    typer.Option(
        "--head_layers",
        min=0,
        help="--train head: train the query encoder's last layers too, so many of them.",
        rich_help_panel=MODES,
    ),
]
HeadLearningRate = Annotated[
    float,
    typer.Option(
        "--head_learning_rate",
        help="--train head: the projection's peak; --learning_rate is the layers'.",
        rich_help_panel=MODES,
    ),
]
LoraRank = Annotated[
    int,
    typer.Option(
        "--lora_rank",
        min=0,
        help="--train query, both: low-rank updates of this rank are trained (needs peft); 0: the weights are.",
        rich_help_panel=MODES,
    ),
]
LoraAlpha = Annotated[
    int | None,
    typer.Option(
        "--lora_alpha",
        min=1,
        help="Updates are scaled by alpha / rank; default twice the rank.",
        rich_help_panel=MODES,
    ),
]
RetrieveEvery = Annotated[
    int | None,
    typer.Option(
        "--retrieve_every",
        min=1,
        help="--train both: steps between retrievals, a part of --refresh_every; default that.",
        rich_help_panel=MODES,
    ),
]
RefreshSchedule = Annotated[
    modes.RefreshSchedule,
    typer.Option(
        "--refresh_schedule",
        help="--train both: re-embed at N, 2N, 3N... or (doubling) at N, 2N, 4N... steps; N is --refresh_every.",
        rich_help_panel=MODES,
    ),
]
BackgroundRefresh = Annotated[
    bool,
    typer.Option(
        "--background_refresh",
        help="--train both: re-embed beside the training; two such runs are not the same.",
        rich_help_panel=MODES,
    ),
]
OverRetrieve = Annotated[
    int,
    typer.Option(
        "--over_retrieve",
        min=0,
        help="--train both: take so many from an index that has aged, keep the best --n_docs by fresh vectors; 0: off.",
        rich_help_panel=MODES,
    ),
]
IsotropyWeight = Annotated[
    float,
    typer.Option(
        "--isotropy_weight",
        min=0.0,
        help="Of SIGReg in the loss, which keeps vectors from collapsing; 0: off.",
        rich_help_panel=MODES,
    ),
]
GradCacheChunk = Annotated[
    int,
    typer.Option(
        "--grad_cache_chunk",
        min=0,
        help="--train both: encode so many passages at once, with the same gradient and less memory; 0: all.",
        rich_help_panel=MODES,
    ),
]
Lexical = Annotated[
    bool,
    typer.Option(
        "--lexical",
        help="--train query, both: add to the vectors' similarity how well the words match, by weights that the LM's "
        "scores teach.",
        rich_help_panel=MODES,
    ),
]
LexicalLearningRate = Annotated[
    float,
    typer.Option(
        "--lexical_learning_rate",
        help="--lexical: the weights' peak; they begin at 0.",
        rich_help_panel=MODES,
    ),
]
