"""`replug answer`: a question or code prefix, answered by a language model over retrieved passages."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from replug_client.artefacts import default_cache_dir, read_json
from replug_client.cli.flags import (
    FILES,
    PROMPT,
    SUPERVISOR,
    BaseUrl,
    CacheDir,
    Kind,
    LocalDtype,
    LogLevel,
    RetrievedMaxLength,
    Separator,
    ServerWait,
    SupervisorKind,
    Tokenizer,
    supervisor_options,
)
from replug_client.errors import OptionError
from replug_client.evaluation.tuned_run import RUN_NAME, TunedRun
from replug_client.inference.answers import AnswererOptions, Combination
from replug_client.inference.generation import GenerationOptions
from replug_client.progress import configure_logging
from replug_client.retriever.encoder import EncoderOptions
from replug_client.supervisor.prompts import unescape

_ANSWER = "Answer"


def answer(
    question: Annotated[
        str,
        typer.Argument(
            help="Question, or text or code to go on from; - reads it from stdin.", show_default=False
        ),
    ],
    passages: Annotated[
        list[Path] | None,
        typer.Option(
            "--passages",
            help="Corpus: CSV, TSV, JSONL or Parquet with id and text. May be given several times.",
            show_default="the run's",
            rich_help_panel=FILES,
        ),
    ] = None,
    retriever: Annotated[
        str | None,
        typer.Option(
            "--retriever",
            help="Encoder: folder or hub name, tuned or not.",
            show_default="the run's tuned one",
            rich_help_panel=FILES,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            help="Folder of a finished run: gives --passages, --retriever and what else is not given.",
            rich_help_panel=FILES,
        ),
    ] = None,
    passages_embeddings: Annotated[
        list[str] | None,
        typer.Option(
            "--passages_embeddings",
            help="Shards that may serve; vectors that are missing are made, once.",
            rich_help_panel=FILES,
        ),
    ] = None,
    cache_dir: CacheDir = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The supervisor: the name that the server serves, or a folder.",
            show_default="the run's",
            rich_help_panel=SUPERVISOR,
        ),
    ] = None,
    supervisor: SupervisorKind = Kind.SERVER,
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    server_wait: ServerWait = None,
    device: Annotated[
        str,
        typer.Option("--device", help="Of a local supervisor: auto, cpu, cuda.", rich_help_panel=SUPERVISOR),
    ] = "auto",
    dtype: LocalDtype = "auto",
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
    retrieved_max_length: RetrievedMaxLength = 128,
    separator: Separator = r"\n",
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
    found = _Found.of(run, passages, retriever, model)
    folder = cache_dir or default_cache_dir()
    weights = AnswererOptions(
        temperature_score=found.temperature_score if temperature_score is None else temperature_score,
        retrieved_max_length=retrieved_max_length,
        separator=unescape(separator),
        top_log_probs=top_log_probs,
        look_ahead=look_ahead,
        answer_weights=answer_weights,  # type: ignore[arg-type]  # checked there
    )
    generation = GenerationOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        stop=tuple(unescape(text) for text in stop or ()),
        seed=seed,
    )
    options = supervisor_options(
        model=found.model,
        kind=supervisor,
        base_url=base_url,
        tokenizer=tokenizer,
        cache_dir=folder,
        concurrency="auto",
        server_wait=server_wait,
        dtype=dtype,
        device=device,
    )

    from replug_client.cli.answer_view import show
    from replug_client.inference.replug import Replug, ReplugOptions

    opened = Replug.open(
        ReplugOptions(
            passages=found.passages,
            retriever=EncoderOptions(found.retriever),
            supervisor=options,
            shards=tuple(passages_embeddings or found.shards),
            cache_dir=folder,
            n_docs=n_docs,
            template=unescape(template),
            answerer=weights,
        )
    )
    with opened as replug:
        pieces = replug.stream(_read(question), combination=combination, options=generation)
        show(pieces, as_json=as_json, about={"model": found.model, "combination": combination.value})


@dataclass(frozen=True, slots=True)
class _Found:
    """What flags and run together say."""

    passages: tuple[Path, ...]
    retriever: str
    model: str
    shards: tuple[str, ...]
    temperature_score: float

    @classmethod
    def of(
        cls, run: Path | None, passages: list[Path] | None, retriever: str | None, model: str | None
    ) -> _Found:
        """Take each thing from its flag, and what no flag gives from the run's record.

        Raises:
            OptionError: there is no run, and something is missing.
            ArtefactError: the run's record cannot be read.
        """
        if run is None:
            given = {"--passages": passages, "--retriever": retriever, "--model": model}
            missing = [name for name, value in given.items() if not value]
            if missing or passages is None or retriever is None or model is None:
                raise OptionError(f"{', '.join(missing)}: not given, and no --run that would give it")
            return cls(tuple(passages), retriever, model, (), 1.0)
        record = TunedRun.read(run)
        settings = read_json(run / RUN_NAME, mend="Train again, or give --passages, --retriever and --model.")
        gamma = settings.get("objective", {}).get("temperature_score")
        model = model or settings.get("options", {}).get("supervisor", {}).get("model")
        if not model:
            raise OptionError(f"--model: not given, and {run / RUN_NAME} names none")
        return cls(
            passages=tuple(passages or record.passages),
            retriever=retriever or str(run),
            model=model,
            shards=record.shards,
            temperature_score=float(gamma) if isinstance(gamma, int | float) else 1.0,
        )


def _read(question: str) -> str:
    """The question; ``-`` takes it from stdin, without the last line's end."""
    if question != "-":
        return question
    return sys.stdin.read().removesuffix("\n")
