"""`replug evaluate qa`: questions, with free answers and with choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from replug_client.artefacts import atomic_write, default_cache_dir
from replug_client.cli import evaluate_flags as flags
from replug_client.cli.flags import (
    FILES,
    BaseUrl,
    CacheDir,
    Concurrency,
    LogLevel,
    ServerWait,
    Tokenizer,
)
from replug_client.progress import configure_logging

_QUESTIONS = "Questions"
_GENERATION = "Generation of free answers"


def qa(
    questions: Annotated[
        list[Path],
        typer.Option(
            "--questions",
            help="JSON, JSONL, CSV, TSV or Parquet with question and answer(s), and choices where there are any; MMLU, "
            "NQ-open, DPR and TriviaQA as they are published; a folder of MMLU's. May be given several times.",
            rich_help_panel=FILES,
        ),
    ],
    run: flags.Run = None,
    passages: flags.CorpusOfRun = None,
    passages_embeddings: flags.Embeddings = None,
    cache_dir: CacheDir = None,
    base: flags.Base = None,
    tuned: flags.Tuned = None,
    conditions: flags.Conditions = None,
    combinations: flags.Combinations = None,
    k: flags.CeilingOf = 10,
    temperature_score: flags.Gamma = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            help="Of random passages, and of answers that are drawn.",
            rich_help_panel=flags.COMPARED,
        ),
    ] = 0,
    max_questions: Annotated[
        int | None,
        typer.Option(
            "--max_questions", min=1, help="At most this many, spread evenly.", rich_help_panel=_QUESTIONS
        ),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            "--template",
            help=r"What a free answer continues, with {question} in it; \n is read.",
            rich_help_panel=_QUESTIONS,
        ),
    ] = r"Question: {question}\nAnswer:",
    choice_template: Annotated[
        str,
        typer.Option(
            "--choice_template",
            help="Of choices; scored from {choice} or {letter} on. {choices} lists all. MMLU's own: "
            r"'{question}\n{choices}\nAnswer: {letter}'.",
            rich_help_panel=_QUESTIONS,
        ),
    ] = r"Question: {question}\nAnswer: {choice}",
    no_context_prompt: Annotated[
        str | None,
        typer.Option(
            "--no_context_prompt",
            help="What stands before a choice whose likelihood by itself is asked for.",
            show_default="the template's last line before the choice",
            rich_help_panel=_QUESTIONS,
        ),
    ] = None,
    choice_scoring: Annotated[
        str,
        typer.Option(
            "--choice_scoring",
            help="What counts as chosen in the analysis: sum, mean (per token), byte, no_context. All are reported.",
            rich_help_panel=_QUESTIONS,
        ),
    ] = "sum",
    free_answers: Annotated[
        bool,
        typer.Option(
            "--free_answers",
            help="Answer questions with choices freely, too, without showing the choices.",
            rich_help_panel=_QUESTIONS,
        ),
    ] = False,
    hit_at: Annotated[
        list[int] | None,
        typer.Option(
            "--hit_at",
            min=1,
            help="k of Hit@k; again for several.",
            show_default="1, 5, 20",
            rich_help_panel=_QUESTIONS,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max_tokens", min=1, help="Of an answer.", rich_help_panel=_GENERATION)
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0: greedy.", rich_help_panel=_GENERATION)
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top_p", help="Above temperature 0 only.", rich_help_panel=_GENERATION)
    ] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop",
            help=r"Ends an answer; again for several, '' for none; \n is read.",
            show_default=r"\n",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    questions_at_once: Annotated[
        int,
        typer.Option(
            "--questions_at_once",
            min=1,
            help="Answered at a time; a server batches what comes together.",
            rich_help_panel=_GENERATION,
        ),
    ] = 32,
    model: flags.ModelOfRun = None,
    supervisor: flags.KindOfRun = None,
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    concurrency: Concurrency = "auto",
    server_wait: ServerWait = None,
    dtype: flags.DtypeOfRun = None,
    device: flags.Device = None,
    retrieved_max_length: flags.RetrievedMaxLengthOfRun = None,
    separator: flags.SeparatorOfRun = None,
    output: flags.Output = None,
    markdown: flags.Markdown = None,
    per_example: Annotated[
        Path | None,
        typer.Option(
            "--per_example",
            help="JSON lines: each question under each condition, what was answered and what became of it.",
            rich_help_panel=flags.OUT,
        ),
    ] = None,
    worst: Annotated[
        int, typer.Option("--worst", min=0, help="How many of the worst to show.", rich_help_panel=flags.OUT)
    ] = 5,
    as_json: flags.AsJson = False,
    log_level: LogLevel = "warning",
) -> None:
    """Does the tuned retriever help with questions? Answered, or chosen, from each one's passages.

    Exact match, F1, ROUGE-L and BLEU of free answers; accuracy of choices by likelihood; whether the passages hold the
    answer; and where wrong answers come from. The same questions under each of --conditions with each of
    --combinations, with differences to the base and intervals by paired bootstrap over questions.
    """
    configure_logging(log_level)
    from replug_client.evaluation.qa.asked import QaAsked, resolve
    from replug_client.evaluation.qa.report import per_example as lines_of
    from replug_client.evaluation.qa.run import run_qa
    from replug_client.evaluation.qa.templates import AnswerTemplate, ChoiceTemplate
    from replug_client.evaluation.run_settings import RunSettings
    from replug_client.inference.generation import GenerationOptions
    from replug_client.supervisor.prompts import unescape

    settings = None if run is None else RunSettings.read(run)
    where = cache_dir or (default_cache_dir() if settings is None else settings.cache_dir)
    asked = QaAsked(
        questions=tuple(questions),
        supervisor=flags.supervisor_over_run(
            settings,
            model=model,
            kind=supervisor,
            base_url=base_url,
            tokenizer=tokenizer,
            cache_dir=where,
            concurrency=concurrency,
            server_wait=server_wait,
            dtype=dtype,
            device=device,
        ),
        cache_dir=where,
        passages=tuple(passages or ()),
        shards=tuple(passages_embeddings or ()),
        base=base,
        tuned=tuned,
        device=device,
        conditions=tuple(conditions or ()),
        combinations=tuple(combinations or ("first",)),
        temperature_score=temperature_score,
        seed=seed,
        k=k,
        template=AnswerTemplate(unescape(template)),
        choice_template=ChoiceTemplate(
            unescape(choice_template), None if no_context_prompt is None else unescape(no_context_prompt)
        ),
        choice_scoring=choice_scoring,
        free_answers=free_answers,
        hit_at=tuple(sorted(set(hit_at or (1, 5, 20)))),
        at_once=questions_at_once,
        generation=GenerationOptions(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=tuple(unescape(text) for text in stop or (r"\n",) if text),
            seed=seed,
        ),
        max_questions=max_questions,
        worst=worst,
        retrieved_max_length=retrieved_max_length,
        separator=None if separator is None else unescape(separator),
    )
    found = run_qa(resolve(asked, settings))
    if per_example is not None:
        with atomic_write(per_example, "w") as stream:
            for line in lines_of(found.findings, found.store):
                stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    flags.show(found.result, output, markdown, as_json=as_json)
