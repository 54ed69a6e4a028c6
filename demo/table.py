"""The demo's table: what each retriever's first passage is worth to the LM, on files held out of training.

`replug evaluate lm` makes it; here stand the flags, and the figures by package of the library.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from replug_client.artefacts import write_json
from replug_client.evaluation.likelihood import LikelihoodTable
from replug_client.evaluation.per_example import read_per_example
from replug_client.evaluation.results import EvaluationResult
from replug_client.statistics import bits_per_byte

CONDITIONS = "none random bm25 base tuned ceiling"


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What is compared, and on what; all else is the run's.

    Attributes:
        run: Folder of the finished run.
        held_out: Documents that took no part in it.
        cache_dir: Score cache and converted corpora.
        results: Where the figures go as JSON.
        combinations: How passages are read.
        max_examples: At most this many examples; None takes all.
        new_files: Documents of files that the retriever was not tuned on at all, for a table of their own; or None.
    """

    run: Path
    held_out: Path
    cache_dir: Path
    results: Path
    combinations: str = "first"
    max_examples: int | None = None
    new_files: Path | None = None

    @property
    def evaluation(self) -> Path:
        """What the command found, beside the retriever."""
        return self.run / f"evaluation_lm_{self.held_out.stem}.json"

    @property
    def per_example(self) -> Path:
        """The same for every example."""
        return self.evaluation.with_suffix(".examples.jsonl")

    @property
    def on_new_files(self) -> TableOptions | None:
        """The same on the files that are new to the retriever."""
        if self.new_files is None:
            return None
        results = self.results.with_name(f"{self.results.stem}_new_files.json")
        return replace(self, held_out=self.new_files, new_files=None, results=results, combinations="first")


def evaluate_flags(options: TableOptions) -> dict[str, str]:
    """Flags of `replug evaluate lm`."""
    flags = {
        "run": str(options.run),
        "data": str(options.held_out),
        "cache_dir": str(options.cache_dir),
        "conditions": CONDITIONS,
        "combinations": options.combinations,
        "output": str(options.evaluation),
        "per_example": str(options.per_example),
    }
    if options.max_examples is not None:
        flags["max_examples"] = str(options.max_examples)
    return flags


def write_results(options: TableOptions) -> LikelihoodTable:
    """From what the command found, the figures of first passages, over all examples and by package, as JSON.

    Those on new files stand under ``new_files``. Gives all conditions of the held-out examples back.
    """
    table, figures = _read(options)
    if (new := options.on_new_files) is not None:
        figures["new_files"] = _read(new)[1]
    write_json(options.results, figures)
    return table


def _read(options: TableOptions) -> tuple[LikelihoodTable, dict[str, Any]]:
    result = EvaluationResult.read(options.evaluation)
    table = replace(read_per_example(options.per_example), left_out=result.left_out)
    first = replace(table, nll={name: nll for name, nll in table.nll.items() if "." not in name})
    figures = {
        **first.to_json(),
        "k": result.details["k"],
        "passages": result.details["passages"],
        "combined": {name: table.bits_per_byte(name) for name in table.nll if name not in first.nll},
        "by_package": by_package(first),
    }
    return table, figures


def by_package(table: LikelihoodTable) -> list[dict[str, Any]]:
    """Bits per byte under each condition for each package of the library, the one with most examples first.

    A module outside of packages counts to ``(modules)``. Packages differ so much in what a passage gives that
    the figure over all of them says little about one.
    """
    packages = np.array([name.split("/")[0] if "/" in name else "(modules)" for name in table.document_ids])
    names, counts = np.unique(packages, return_counts=True)
    rows = []
    for number in np.argsort(-counts, kind="stable"):
        inside = packages == names[number]
        values = {
            condition: bits_per_byte(nll[inside], table.num_bytes[inside])
            for condition, nll in table.nll.items()
        }
        documents = len({name for name, own in zip(table.document_ids, inside, strict=True) if own})
        rows.append(
            {"package": str(names[number]), "n": int(counts[number]), "documents": documents, **values}
        )
    return rows
