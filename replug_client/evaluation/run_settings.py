"""What a finished run's record says about the LM's side: which supervisor, which windows, how prompts are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replug_client.artefacts import default_cache_dir, read_json
from replug_client.corpus.windows import WindowOptions
from replug_client.errors import ArtefactError
from replug_client.evaluation.tuned_run import RUN_NAME, TunedRun, moved
from replug_client.supervisor.open import SupervisorOptions
from replug_client.supervisor.options import LocalOptions

_MEND = "It was written by another version of replug, or changed by hand; give the options themselves."


@dataclass(frozen=True, slots=True)
class RunSettings:
    """A run's own settings, so that an evaluation of it asks the same questions of the same model.

    Attributes:
        run: Retrievers, corpus and held-out examples.
        supervisor: Model, server and precision of the training; its cache lies in ``cache_dir``.
        windows: Validation's windows.
        ngram_guard: Examples that share a run of so many tokens with a passage were left out; 0: none were.
        retrieved_max_length: Supervisor tokens of a passage.
        separator: Between passage and query.
        temperature: γ of the run's P, which is the ensemble's λ.
        cache_dir: Where the run kept its scores, if that folder is still there; else the default.
        trained_on: The files that it trained and validated on.
        kept_best: Whether the held-out examples chose the weights that were kept.
    """

    run: TunedRun
    supervisor: SupervisorOptions
    windows: WindowOptions = field(default_factory=WindowOptions)
    ngram_guard: int = 0
    retrieved_max_length: int = 128
    separator: str = "\n"
    temperature: float = 1.0
    cache_dir: Path = field(default_factory=default_cache_dir)
    trained_on: tuple[Path, ...] = ()
    kept_best: bool = False

    @classmethod
    def read(cls, folder: Path) -> RunSettings:
        """Read ``folder/run.json``.

        Raises:
            ArtefactError: no such record, an unfinished one, or one without these settings.
        """
        run = TunedRun.read(folder)
        path = folder / RUN_NAME
        record = read_json(path, mend=_MEND)
        try:
            return cls._of(run, record, record["options"])
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"{path}: the run's options cannot be read ({error!r}). {_MEND}") from error

    @classmethod
    def _of(cls, run: TunedRun, record: dict[str, Any], options: dict[str, Any]) -> RunSettings:
        data = options["data"]
        kept = Path(moved(run.folder, options["place"]["cache_dir"]))
        cache_dir = kept if kept.is_dir() else default_cache_dir()
        return cls(
            run=run,
            supervisor=_supervisor(run.folder, options["supervisor"], cache_dir),
            windows=WindowOptions(data["context_len"], data["pred_len"], data["min_pred_len"]),
            ngram_guard=data["ngram_guard"],
            retrieved_max_length=options["retrieved_max_length"],
            separator=options["separator"],
            temperature=record["objective"]["temperature_score"],
            cache_dir=cache_dir,
            trained_on=tuple(
                Path(moved(run.folder, name)) for name in (*data["data"], *data["validation_data"])
            ),
            kept_best=options["steps"]["keep"] == "best",
        )


def _supervisor(folder: Path, options: dict[str, Any], cache_dir: Path) -> SupervisorOptions:
    """The same model in the same precision; how it is asked, and on which device it runs, is this machine's."""
    tokenizer = options["tokenizer"]
    return SupervisorOptions(
        model=moved(folder, options["model"]),
        kind=options["kind"],
        base_url=options["base_url"],
        tokenizer=None if tokenizer is None else moved(folder, tokenizer),
        cache_dir=cache_dir,
        local=LocalOptions(dtype=options["local"]["dtype"]),
    )
