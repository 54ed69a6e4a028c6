"""`replug answer`: a question or code prefix, answered by a language model over retrieved passages."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

import typer

from replug_client.artefacts import default_cache_dir
from replug_client.cli.evaluate_flags import (
    CorpusOfRun,
    Device,
    DtypeOfRun,
    Embeddings,
    KindOfRun,
    ModelOfRun,
    RetrievedMaxLengthOfRun,
    Run,
    SeparatorOfRun,
    supervisor_over_run,
)
from replug_client.cli.flags import (
    FILES,
    PROMPT,
    SUPERVISOR,
    BaseUrl,
    CacheDir,
    LogLevel,
    ServerWait,
    Tokenizer,
)
from replug_client.errors import OptionError
from replug_client.inference.answers import AnswererOptions, Combination
from replug_client.inference.generation import GenerationOptions
from replug_client.progress import configure_logging
from replug_client.supervisor.prompts import unescape

_ANSWER = "Answer"


def answer(
    question: Annotated[
        str,
        typer.Argument(
            help="Question, or text or code to go on from; - reads it from stdin.", show_default=False
        ),
    ],
    passages: CorpusOfRun = None,
    retriever: Annotated[
        str | None,
        typer.Option(
            "--retriever",
            help="Encoder: folder or hub name, tuned or not.",
            show_default="the run's tuned one",
            rich_help_panel=FILES,
        ),
    ] = None,
    run: Run = None,
    passages_embeddings: Embeddings = None,
    cache_dir: CacheDir = None,
    model: ModelOfRun = None,
    supervisor: KindOfRun = None,
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    server_wait: ServerWait = None,
    device: Device = None,
    dtype: DtypeOfRun = None,
    n_docs: Annotated[int, typer.Option("--n_docs", help="Passages.", rich_help_panel=_ANSWER)] = 4,
    combination: Annotated[
        Combination,
        typer.Option(
            "--combination",
            help="ensemble: mixed at every token, a prompt a passage; concat: one prompt; ensemble-answers: a whole"
            " answer a passage, weighted; none: no passage.",
            rich_help_panel=_ANSWER,
        ),
    ] = Combination.ENSEMBLE,
    answer_weights: Annotated[
        str,
        typer.Option(
            "--answer_weights",
            help="Of ensemble-answers: prior (λ of the passages that give it) or likelihood (under the mixture).",
            rich_help_panel=_ANSWER,
        ),
    ] = "prior",
    temperature_score: Annotated[
        float | None,
        typer.Option(
            "--temperature_score",
            help="γ of the passages' weights λ.",
            show_default="the run's, else 1",
            rich_help_panel=_ANSWER,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max_tokens", help="Most tokens of the answer.", rich_help_panel=_ANSWER)
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0: greedy.", rich_help_panel=_ANSWER)
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option("--top_p", help="Draw among the fewest tokens of this mass.", rich_help_panel=_ANSWER),
    ] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop",
            help=r"Text that ends the answer; again for several; \n and \t are read.",
            rich_help_panel=_ANSWER,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="The same seed, the same text.", rich_help_panel=_ANSWER)
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            "--template",
            help=r"What the model goes on from, e.g. 'Question: {question}\nAnswer:'.",
            rich_help_panel=PROMPT,
        ),
    ] = "{question}",
    retrieved_max_length: RetrievedMaxLengthOfRun = None,
    separator: SeparatorOfRun = None,
    top_log_probs: Annotated[
        int,
        typer.Option(
            "--top_log_probs",
            help="Most probable tokens that a server is asked for behind each passage (vLLM: --max-logprobs).",
            rich_help_panel=SUPERVISOR,
        ),
    ] = 20,
    look_ahead: Annotated[
        int,
        typer.Option(
            "--look_ahead",
            help="Tokens that a server generates in advance behind each passage; 0: none.",
            rich_help_panel=SUPERVISOR,
        ),
    ] = 4,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_ANSWER)
    ] = False,
    log_level: LogLevel = "warning",
) -> None:
    """Answer over retrieved passages, and show which passage carried how much weight.

    Each passage has its weight λ from retrieval, and another one behind the text: what the passage by itself
    would have given the text, times λ. The two differ where the text rests on one passage more than on others.
    """
    configure_logging(log_level)
    # What cannot work is refused before anything is loaded.
    generation = GenerationOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        stop=tuple(unescape(text) for text in stop or ()),
        seed=seed,
    )
    mixing = AnswererOptions(
        temperature_score=1.0 if temperature_score is None else temperature_score,
        retrieved_max_length=128 if retrieved_max_length is None else retrieved_max_length,
        separator=unescape(r"\n" if separator is None else separator),
        top_log_probs=top_log_probs,
        look_ahead=look_ahead,
        answer_weights=answer_weights,  # type: ignore[arg-type]  # checked there
    )
    from replug_client.cli.answer_view import show
    from replug_client.evaluation.run_settings import RunSettings
    from replug_client.inference.replug import Replug, ReplugOptions
    from replug_client.retriever.encoder import EncoderOptions

    settings = None if run is None else RunSettings.read(run)
    if settings is not None:
        mixing = replace(
            mixing,
            temperature_score=settings.temperature if temperature_score is None else temperature_score,
            retrieved_max_length=retrieved_max_length or settings.retrieved_max_length,
            separator=settings.separator if separator is None else mixing.separator,
        )
        passages = passages or list(settings.run.passages)
        retriever = retriever or str(settings.run.folder)
        passages_embeddings = passages_embeddings or list(settings.run.shards)
    if not passages or not retriever:
        raise OptionError("no corpus or no retriever: give --passages and --retriever, or a run with --run")
    folder = cache_dir or (default_cache_dir() if settings is None else settings.cache_dir)
    options = ReplugOptions(
        passages=tuple(passages),
        retriever=EncoderOptions(retriever, device=device),
        supervisor=supervisor_over_run(
            settings,
            model=model,
            kind=supervisor,
            base_url=base_url,
            tokenizer=tokenizer,
            cache_dir=folder,
            concurrency="auto",
            server_wait=server_wait,
            dtype=dtype,
            device=device,
        ),
        shards=tuple(passages_embeddings or ()),
        cache_dir=folder,
        n_docs=n_docs,
        template=unescape(template),
        answerer=mixing,
    )
    with Replug.open(options) as replug:
        pieces = replug.stream(_read(question), combination=combination, options=generation)
        about = {"model": options.supervisor.model, "combination": combination.value}
        show(pieces, as_json=as_json, about=about)


def _read(question: str) -> str:
    """The question; ``-`` takes it from stdin, without the last line's end."""
    if question != "-":
        return question
    return sys.stdin.read().removesuffix("\n")
