"""What a training run's record says of it, for the page of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replug_client.artefacts import read_json
from replug_client.errors import ArtefactError
from replug_client.evaluation.tuned_run import RUN_NAME
from replug_client.pages.charts import Chart, Line, chart
from replug_client.pages.markup import Markup

_MEND = "Name the folder of a finished run with --run, or leave it out."


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A finished run.

    Attributes:
        name: Its folder's.
        corpus: SHA-256 of the corpus it was trained on; None where the record does not say.
        facts: Name to value, for people.
        alarms: What the run was warned of.
        validation: An entry for each validation, with ``step``, ``bits_per_byte`` and others.
    """

    name: str
    corpus: str | None
    facts: Mapping[str, Any]
    alarms: Sequence[str]
    validation: Sequence[Mapping[str, float]]

    @classmethod
    def read(cls, folder: Path) -> RunSummary:
        """Read ``folder/run.json``.

        Raises:
            ArtefactError: no such record, or not one of a finished run.
        """
        path = folder / RUN_NAME
        value = read_json(path, mend=_MEND)
        if value.get("status") != "complete":
            raise ArtefactError(f"{path}: the run is not complete (status {value.get('status')!r}). {_MEND}")
        try:
            figures = value["figures"]
            return cls(
                name=folder.resolve().name,
                corpus=value.get("hashes", {}).get("corpus"),
                facts=_facts(value, figures),
                alarms=[f"{alarm['name']}: {alarm['message']}" for alarm in figures.get("alarms", [])],
                validation=[entry for entry in figures.get("validation", []) if "bits_per_byte" in entry],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{path}: not a run's record ({error!r}). {_MEND}") from error

    def charts(self) -> list[Markup]:
        """Its validations over the steps."""
        last = max((entry["step"] for entry in self.validation), default=0.0)
        drawn = [
            Chart(
                "Held-out bits per byte",
                "of the continuation behind the first passage, while it was trained; lower is better",
                [self._line("bits_per_byte", "now")],
            ),
            Chart(
                "Gain over the base",
                "base \u2212 now, bits per byte; band: 95 % interval over documents",
                [self._line("base_minus_current", "gain")],
                ("no gain", 0.0),
            ),
        ]
        return [figure for item in drawn if (figure := chart(item, last))]

    def _line(self, name: str, called: str) -> Line:
        ends = (f"{name}_low", f"{name}_high")
        return Line(
            called,
            [(entry["step"], entry[name]) for entry in self.validation if entry.get(name) is not None],
            [
                (entry["step"], entry[ends[0]], entry[ends[1]])
                for entry in self.validation
                if all(entry.get(end) is not None for end in ends)
            ],
        )


def _facts(value: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    used = {name: part.get("used") for name, part in figures.get("examples", {}).items()}
    facts = {
        "base encoder": value["base_model"],
        "trained side": value.get("train"),
        "supervisor": value.get("supervisor", {}).get("name"),
        "objective": value.get("objective"),
        "examples": used,
        "steps": figures.get("steps"),
        "best step": figures.get("best_step"),
        "minutes": None if figures.get("seconds") is None else round(figures["seconds"] / 60, 1),
        "passages": value.get("passages"),
        "replug": value.get("replug_version"),
    }
    return {name: fact for name, fact in facts.items() if fact not in (None, {}, [])}
