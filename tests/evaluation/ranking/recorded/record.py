"""Records what BEIR's own evaluation gives for the committed runs, so that tests compare with it.

BEIR is no dependency. In an environment of its own (BEIR's evaluation needs no more than this):

    pip install --no-deps beir==2.2.0 pytrec-eval-terrier==0.5.11 numpy
    python tests/evaluation/ranking/recorded/record.py

``minilm.run`` is what all-MiniLM-L6-v2 found for the small set (`replug evaluate retrieval --datasets
tests/evaluation/ranking/small --base MODEL --keep_identical --run_dir ...`); ``ties.run`` was written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
K_VALUES = [1, 3, 5, 10]


def read_run(path: Path) -> dict[str, dict[str, float]]:
    run: dict[str, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        query, _, passage, _, score, _ = line.split()
        run.setdefault(query, {})[passage.replace("%20", " ")] = float(score)
    return run


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for line in path.read_text().splitlines():
        query, _, passage, gain = line.split()
        qrels.setdefault(query, {})[passage.replace("%20", " ")] = int(gain)
    return qrels


def main() -> None:
    from beir.retrieval.evaluation import EvaluateRetrieval

    qrels = read_qrels(HERE / "qrels.txt")
    recorded = {}
    for path in sorted(HERE.glob("*.run")):
        run = {query: {} for query in qrels} | read_run(path)
        ndcg, ap, recall, precision = EvaluateRetrieval.evaluate(
            qrels, run, K_VALUES, ignore_identical_ids=True
        )
        mrr = EvaluateRetrieval.evaluate_custom(qrels, run, K_VALUES, "mrr")
        recorded[path.stem] = {**ndcg, **ap, **recall, **precision, **mrr}
    (HERE / "beir.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
