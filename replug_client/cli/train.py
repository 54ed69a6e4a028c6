"""`replug train`: tune a retriever to a supervisor (REPLUG LSR)."""

from __future__ import annotations

from pathlib import Path

from replug_client.artefacts import default_cache_dir
from replug_client.cli import train_flags as flag
from replug_client.cli.flags import (
    BaseUrl,
    CacheDir,
    Concurrency,
    Kind,
    LocalDtype,
    LogLevel,
    MaxLength,
    Model,
    Normalize,
    PassagePrompt,
    Passages,
    Pooling,
    ProjectionSize,
    QueryPrompt,
    RetrievedMaxLength,
    Separator,
    ServerWait,
    SupervisorKind,
    Tokenizer,
    supervisor_options,
)
from replug_client.progress import configure_logging
from replug_client.retriever.encoder import EncoderOptions
from replug_client.supervisor.prompts import unescape
from replug_client.training.candidates import CandidateOptions
from replug_client.training.modes import ModeOptions
from replug_client.training.objectives import Aggregation, Denominator, Objective
from replug_client.training.options import (
    DataOptions,
    Keep,
    PlaceOptions,
    StepOptions,
    TargetOptions,
    Train,
    TrainOptions,
)


def train(
    passages: Passages,
    data: flag.Data,
    passages_embeddings: flag.PassagesEmbeddings,
    model: Model,
    output_dir: flag.OutputDir = Path("output_finetuned_retriever"),
    validation_data: flag.ValidationData = None,
    validation_fraction: flag.ValidationFraction = 0.1,
    save_or_load_index: flag.SaveOrLoadIndex = False,
    cache_dir: CacheDir = None,
    resume: flag.Resume = False,
    overwrite: flag.Overwrite = False,
    re_model_name_or_path: flag.ReModelNameOrPath = "sentence-transformers/all-MiniLM-L6-v2",
    projection_size: ProjectionSize = None,
    train_what: flag.TrainWhat = Train.QUERY,
    query_prompt: QueryPrompt = None,
    passage_prompt: PassagePrompt = None,
    pooling: Pooling = None,
    max_length: MaxLength = None,
    normalize: Normalize = None,
    train_word_embeddings: flag.TrainWordEmbeddings = False,
    grad_cache_chunk: flag.GradCacheChunk = 0,
    supervisor: SupervisorKind = Kind.SERVER,
    tokenizer: Tokenizer = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = "auto",
    server_wait: ServerWait = 600.0,
    dtype: LocalDtype = "auto",
    separator: Separator = r"\n",
    retrieved_max_length: RetrievedMaxLength = 128,
    context_len: flag.ContextLen = 128,
    pred_len: flag.PredLen = 128,
    min_pred_len: flag.MinPredLen = 16,
    stride: flag.Stride = None,
    max_examples: flag.MaxExamples = None,
    max_validation: flag.MaxValidation = 300,
    ngram_guard: flag.NgramGuard = 0,
    n_docs: flag.NDocs = 10,
    bm25_docs: flag.Bm25Docs = 4,
    random_docs: flag.RandomDocs = 2,
    objective: flag.Objective = Objective.LSR,
    contrastive_weight: flag.ContrastiveWeight = 0.0,
    temperature_score: flag.TemperatureScore = None,
    temperature_gold: flag.TemperatureGold = None,
    gold_entropy: flag.GoldEntropy = 0.5,
    score: flag.Score = Aggregation.MEAN,
    kl: flag.Kl = None,
    denominator: flag.Denominator = Denominator.CANDIDATES,
    index_negatives: flag.IndexNegatives = 0,
    per_gpu_batch_size: flag.PerGpuBatchSize = 4,
    gradient_accumulation_steps: flag.GradientAccumulationSteps = 1,
    learning_rate: flag.LearningRate = 2e-5,
    warmup_ratio: flag.WarmupRatio = 0.1,
    weight_decay: flag.WeightDecay = 0.01,
    dropout: flag.Dropout = 0.0,
    epochs: flag.Epochs = 1,
    max_steps: flag.MaxSteps = None,
    refresh_every: flag.RefreshEvery = 100,
    eval_every: flag.EvalEvery = 0,
    keep: flag.Keep = Keep.BEST,
    bf16: flag.Bf16 = True,
    seed: flag.Seed = 0,
    device: flag.Device = None,
    log_level: LogLevel = "info",
) -> None:
    """Tune a retriever so that what it finds makes the supervisor predict the right continuation.

    Reads the passages and their embeddings, cuts the documents into queries and continuations, asks the
    supervisor how likely each continuation is behind each candidate passage, and trains the retriever towards
    the passages that help (REPLUG LSR, Shi et al. 2023). An interrupted run goes on with --resume; a score
    is never asked for twice.
    """
    configure_logging(log_level)
    cache_dir = cache_dir or default_cache_dir()
    # Imported here: torch and transformers take seconds, which --help should not wait for.
    from replug_client.training.run import train_retriever

    train_retriever(
        TrainOptions(
            data=DataOptions(
                passages=tuple(passages),
                passages_embeddings=tuple(passages_embeddings),
                data=tuple(data),
                validation_data=tuple(validation_data or ()),
                validation_fraction=validation_fraction,
                max_validation=max_validation,
                context_len=context_len,
                pred_len=pred_len,
                min_pred_len=min_pred_len,
                stride=stride,
                max_examples=max_examples,
                ngram_guard=ngram_guard,
            ),
            encoder=EncoderOptions(
                model_name_or_path=re_model_name_or_path,
                query_prompt=query_prompt,
                passage_prompt=passage_prompt,
                pooling=pooling,
                normalize=normalize,
                max_seq_length=max_length,
                device=device,
            ),
            supervisor=supervisor_options(
                model=model,
                kind=supervisor,
                base_url=base_url,
                tokenizer=tokenizer,
                cache_dir=cache_dir,
                concurrency=concurrency,
                server_wait=server_wait,
                dtype=dtype,
            ),
            place=PlaceOptions(output_dir, cache_dir, resume, overwrite, save_or_load_index),
            candidates=CandidateOptions(n_docs, bm25_docs, random_docs),
            target=TargetOptions(
                temperature_score=temperature_score,
                temperature_gold=temperature_gold,
                gold_entropy=gold_entropy,
                score=score,
                kl=kl,
                denominator=denominator,
                index_negatives=index_negatives,
                objective=objective,
                contrastive_weight=contrastive_weight,
            ),
            steps=StepOptions(
                train=train_what,
                batch_size=per_gpu_batch_size,
                learning_rate=learning_rate,
                epochs=epochs,
                max_steps=max_steps,
                warmup_ratio=warmup_ratio,
                weight_decay=weight_decay,
                accumulation=gradient_accumulation_steps,
                refresh_every=refresh_every,
                eval_every=eval_every,
                keep=keep,
                dropout=dropout,
                train_word_embeddings=train_word_embeddings,
                bf16=bf16,
                seed=seed,
            ),
            modes=ModeOptions(grad_cache_chunk=grad_cache_chunk),
            retrieved_max_length=retrieved_max_length,
            separator=unescape(separator),
            projection_size=projection_size,
        )
    )
