"""Every example's figures under every condition, one line an example: for plots, and for tables of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from replug_client.artefacts import atomic_write
from replug_client.errors import ArtefactError
from replug_client.evaluation.likelihood import LikelihoodTable

_MEND = "Make it again with `replug evaluate lm --per_example FILE`."


def write_per_example(path: Path, table: LikelihoodTable) -> None:
    """JSON lines of ``document_id``, ``num_bytes``, ``num_tokens`` and ``log_likelihood`` (nats, by condition)."""
    with atomic_write(path, "w") as stream:
        for number, document in enumerate(table.document_ids):
            line = {
                "document_id": document,
                "num_bytes": int(table.num_bytes[number]),
                "num_tokens": int(table.num_tokens[number]),
                "log_likelihood": {name: -float(nll[number]) for name, nll in table.nll.items()},
            }
            stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def read_per_example(path: Path) -> LikelihoodTable:
    """The table again, without what was left out of it.

    Raises:
        ArtefactError: no such file, or not of this form.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            lines = [json.loads(line) for line in stream]
        names = list(lines[0]["log_likelihood"])
        return LikelihoodTable(
            nll={
                name: np.array([-line["log_likelihood"][name] for line in lines], dtype=np.float64)
                for name in names
            },
            num_bytes=np.array([line["num_bytes"] for line in lines], dtype=np.int64),
            num_tokens=np.array([line["num_tokens"] for line in lines], dtype=np.int64),
            document_ids=tuple(line["document_id"] for line in lines),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtefactError(f"{path}: not the examples of an evaluation ({error!r}). {_MEND}") from error
