"""The flags that only `replug train` has, by group; each alias is named as the parameter that it types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replug_client.cli.flags import FILES
from replug_client.training import choices, options

RETRIEVER = "Retriever"
EXAMPLES = "Examples and candidates"
OBJECTIVE = "Objective"
OPTIMISATION = "Optimisation"

# Files and folders
Data = Annotated[
    list[Path],
    typer.Option(
        "--data", help="Documents that examples are cut from, in the same forms.", rich_help_panel=FILES
    ),
]
PassagesEmbeddings = Annotated[
    list[str],
    typer.Option(
        "--passages_embeddings",
        help="Shards of `replug embed`: one, several, or a glob.",
        rich_help_panel=FILES,
    ),
]
OutputDir = Annotated[
    Path, typer.Option("--output_dir", help="Where the tuned retriever goes.", rich_help_panel=FILES)
]
ValidationData = Annotated[
    list[Path] | None,
    typer.Option("--validation_data", help="Documents to validate on.", rich_help_panel=FILES),
]
ValidationFraction = Annotated[
    float,
    typer.Option(
        "--validation_fraction",
        min=0.0,
        max=0.9,
        help="Share of --data's documents held out where there is no --validation_data.",
        rich_help_panel=FILES,
    ),
]
SaveOrLoadIndex = Annotated[
    bool,
    typer.Option(
        "--save_or_load_index",
        help="Keep the FAISS index beside the shards and reuse it.",
        rich_help_panel=FILES,
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=FILES)
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Throw away an earlier run in --output_dir.", rich_help_panel=FILES),
]

# Retriever
ReModelNameOrPath = Annotated[
    str,
    typer.Option(
        "--re_model_name_or_path",
        help="The retriever's base: name or folder.",
        rich_help_panel=RETRIEVER,
    ),
]
TrainWhat = Annotated[
    options.Train,
    typer.Option(
        "--train",
        help="query: passage vectors stay frozen; both: candidates are re-encoded in each step; head: a projection "
        "after a frozen encoder.",
        rich_help_panel=RETRIEVER,
    ),
]
TrainWordEmbeddings = Annotated[
    bool,
    typer.Option(
        "--train_word_embeddings",
        help="--train query, both: train the input embeddings too.",
        rich_help_panel=RETRIEVER,
    ),
]

# Examples and candidates
ContextLen = Annotated[
    int,
    typer.Option("--context_len", min=1, help="Supervisor tokens of the query.", rich_help_panel=EXAMPLES),
]
PredLen = Annotated[
    int,
    typer.Option(
        "--pred_len", min=1, help="Supervisor tokens of the continuation.", rich_help_panel=EXAMPLES
    ),
]
MinPredLen = Annotated[
    int | None,
    typer.Option(
        "--min_pred_len",
        min=1,
        help="Drop a last continuation below this; default 16, or --pred_len where that is less.",
        rich_help_panel=EXAMPLES,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        min=1,
        help="Tokens between training windows; default a window.",
        rich_help_panel=EXAMPLES,
    ),
]
ContinuationsPerQuery = Annotated[
    int,
    typer.Option(
        "--continuations_per_query",
        min=1,
        help="Continuations of --pred_len tokens, one behind the other, that a training query has; each gets "
        "candidates and a target of its own.",
        rich_help_panel=EXAMPLES,
    ),
]
MaxExamples = Annotated[
    int | None,
    typer.Option(
        "--max_examples", min=1, help="Train on at most this many examples.", rich_help_panel=EXAMPLES
    ),
]
MaxValidation = Annotated[
    int,
    typer.Option("--max_validation", min=0, help="Validate on at most this many.", rich_help_panel=EXAMPLES),
]
NgramGuard = Annotated[
    int,
    typer.Option(
        "--ngram_guard",
        min=0,
        help="Leave out examples that share a run of this many tokens with a passage; 0: off.",
        rich_help_panel=EXAMPLES,
    ),
]
NDocs = Annotated[
    int,
    typer.Option("--n_docs", min=0, help="The retriever's own candidates a query.", rich_help_panel=EXAMPLES),
]
Bm25Docs = Annotated[
    int,
    typer.Option("--bm25_docs", min=0, help="BM25's candidates beside them.", rich_help_panel=EXAMPLES),
]
RandomDocs = Annotated[
    int,
    typer.Option("--random_docs", min=0, help="Random candidates beside them.", rich_help_panel=EXAMPLES),
]


# Objective
def _temperature(text: str) -> float | None:
    """A temperature, or None for ``auto``; what it may be is checked with the other options."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}; expected auto or a number") from None


Objective = Annotated[
    choices.Objective,
    typer.Option(
        "--objective",
        help="lsr: a KL of P and Q; pdist: Atlas' KL(Q||P); marginal: -log sum of P times likelihood (EMDR2); loop: "
        "a KL to what leaving each passage out costs. See docs/objectives.md.",
        rich_help_panel=OBJECTIVE,
    ),
]
ContrastiveWeight = Annotated[
    float,
    typer.Option(
        "--contrastive_weight",
        min=0.0,
        help="Weight of InfoNCE beside it: the supervisor's best candidate against other queries' passages.",
        rich_help_panel=OBJECTIVE,
    ),
]
TemperatureScore = Annotated[
    float | None,
    typer.Option(
        "--temperature_score",
        parser=_temperature,
        metavar="auto|NUMBER",
        show_default="auto",
        help="Gamma, of P. auto: P under the base as flat as Q, over the passages of --denominator.",
        rich_help_panel=OBJECTIVE,
    ),
]
TemperatureGold = Annotated[
    float | None,
    typer.Option(
        "--temperature_gold",
        parser=_temperature,
        metavar="auto|NUMBER",
        show_default="auto",
        help="Beta, of Q. auto: by --gold_entropy, from the scores of the first candidates.",
        rich_help_panel=OBJECTIVE,
    ),
]
GoldEntropy = Annotated[
    float,
    typer.Option(
        "--gold_entropy",
        min=0.01,
        max=0.99,
        help="--temperature_gold auto: the median entropy of Q, as a share of log K, that beta is chosen for.",
        rich_help_panel=OBJECTIVE,
    ),
]
Score = Annotated[
    choices.Aggregation,
    typer.Option("--score", help="How log-probs become one score.", rich_help_panel=OBJECTIVE),
]
Kl = Annotated[
    choices.Direction | None,
    typer.Option(
        "--kl",
        help="p-q is KL(P||Q), which the REPLUG paper writes; q-p is KL(Q||P).",
        show_default="q-p",
        rich_help_panel=OBJECTIVE,
    ),
]
Denominator = Annotated[
    choices.Denominator | None,
    typer.Option(
        "--denominator",
        help="Which passages share P's mass: the query's candidates, or the batch's (with --kl q-p).",
        show_default="batch; with --kl p-q candidates",
        rich_help_panel=OBJECTIVE,
    ),
]
IndexNegatives = Annotated[
    int | None,
    typer.Option(
        "--index_negatives",
        min=0,
        show_default="3000 with --denominator batch and --train query or head, else 0",
        help="Passages drawn from the whole index to join the batch's, in its denominator and in InfoNCE "
        "(--train query).",
        rich_help_panel=OBJECTIVE,
    ),
]

# Optimisation
PerGpuBatchSize = Annotated[
    int,
    typer.Option(
        "--per_gpu_batch_size", min=1, help="Examples a step and process.", rich_help_panel=OPTIMISATION
    ),
]
GradientAccumulationSteps = Annotated[
    int,
    typer.Option(
        "--gradient_accumulation_steps",
        min=1,
        help="Batches an optimiser step.",
        rich_help_panel=OPTIMISATION,
    ),
]
LearningRate = Annotated[
    float,
    typer.Option(
        "--learning_rate",
        help="Peak; with --train head that of --head_layers.",
        rich_help_panel=OPTIMISATION,
    ),
]
WarmupRatio = Annotated[
    float,
    typer.Option(
        "--warmup_ratio", min=0.0, max=0.99, help="Share of the steps.", rich_help_panel=OPTIMISATION
    ),
]
WeightDecay = Annotated[float, typer.Option("--weight_decay", min=0.0, rich_help_panel=OPTIMISATION)]
Dropout = Annotated[
    float, typer.Option("--dropout", min=0.0, max=0.9, help="While training.", rich_help_panel=OPTIMISATION)
]
Epochs = Annotated[int, typer.Option("--epochs", min=1, rich_help_panel=OPTIMISATION)]
Curriculum = Annotated[
    options.Curriculum,
    typer.Option(
        "--curriculum",
        help="Order of the first epoch; easy-first scores all examples before the first step.",
        rich_help_panel=OPTIMISATION,
    ),
]
CurriculumBy = Annotated[
    options.Easy,
    typer.Option(
        "--curriculum_by",
        help="--curriculum easy-first: what is easy, the base's margin for the supervisor's best passage, or the "
        "spread of the scores.",
        rich_help_panel=OPTIMISATION,
    ),
]
MaxGradNorm = Annotated[
    float,
    typer.Option(
        "--max_grad_norm",
        min=0.0,
        help="Scale longer gradients down to this length; 0: never.",
        rich_help_panel=OPTIMISATION,
    ),
]
GradientCheckpointing = Annotated[
    bool,
    typer.Option(
        "--gradient_checkpointing",
        help="Compute activations again in the backward pass: less memory, more time.",
        rich_help_panel=OPTIMISATION,
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        "--max_steps",
        min=1,
        help="Steps in all, instead of --epochs: fewer, or more, for which the examples are repeated.",
        rich_help_panel=OPTIMISATION,
    ),
]
RefreshEvery = Annotated[
    int,
    typer.Option(
        "--refresh_every",
        min=0,
        help="Steps between retrievals with the current retriever (--train both: and re-embeddings); 0: never.",
        rich_help_panel=OPTIMISATION,
    ),
]
EvalEvery = Annotated[
    int,
    typer.Option(
        "--eval_every",
        min=0,
        help="Steps between validations; 0: a quarter of the run.",
        rich_help_panel=OPTIMISATION,
    ),
]
Keep = Annotated[
    options.Keep,
    typer.Option(
        "--keep", help="The weights that were best in validation, or the last.", rich_help_panel=OPTIMISATION
    ),
]
BestMetric = Annotated[
    options.BestMetric,
    typer.Option(
        "--best_metric",
        help="The validation figure by which weights are best (--keep best, --early_stopping).",
        rich_help_panel=OPTIMISATION,
    ),
]
EarlyStopping = Annotated[
    int,
    typer.Option(
        "--early_stopping",
        min=0,
        help="Stop after this many validations without a new best; 0: never.",
        rich_help_panel=OPTIMISATION,
    ),
]
StaleAfter = Annotated[
    int,
    typer.Option(
        "--stale_after",
        min=1,
        help="Warn where the index or the candidates are older than this many steps.",
        rich_help_panel=OPTIMISATION,
    ),
]
Bf16 = Annotated[
    bool, typer.Option("--bf16/--no_bf16", help="bfloat16 autocast.", rich_help_panel=OPTIMISATION)
]
Seed = Annotated[int, typer.Option("--seed", rich_help_panel=OPTIMISATION)]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Of the retriever: cpu, cuda, cuda:1... Of several processes each takes a GPU of its own.",
        rich_help_panel=OPTIMISATION,
    ),
]
