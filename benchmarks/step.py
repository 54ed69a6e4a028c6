"""Time of a step of LSRLoss over one of sentence-transformers' DistillKLDivLoss, same batches; aim: at most 1.05.

python -m benchmarks.step [--batch 8] [--candidates 4] [--rounds 12]

Both train all-MiniLM-L6-v2 on texts of this Python's library: the same queries, candidates and scores, each collated
by its side's own collator, and the loss computed by its side's own trainer, LSRTrainer's with the batch's diagnosis
for the log; then backward, clipping and its AdamW. Passages are encoded with gradient by both, as DistillKLDivLoss
does nothing else, and no two examples share one. The losses are compared first: with the same temperatures they are
the same number but for DistillKLDivLoss's factor gamma². The sides take turns; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

from demo.pipeline import minilm
from replug_client.corpus.records import Example
from replug_client.progress import configure_logging
from replug_client.retriever.encoder import EncoderOptions, load_encoder
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.protocol import Prompt
from replug_client.training.choices import Direction
from replug_client.training.collator import EXAMPLE_COLUMN, LSRDataCollator
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from replug_client.training.schedule import Schedule
from replug_client.training.stream import CandidateStream, ScoredCandidates
from replug_client.training.trainer import LSRTrainer, StreamHooks, set_dropout

_CHARACTERS = 400
_GAMMA, _BETA = 0.1, 0.05
_SAME_LOSS = 1e-4


def main() -> None:
    """Print each side's median step, and the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8, help="examples a step")
    parser.add_argument("--candidates", type=int, default=4, help="passages an example; at least 2")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each side")
    options = parser.parse_args()
    if options.batch < 1 or options.candidates < 2 or options.rounds < 1:
        parser.error("--batch and --rounds must be at least 1, --candidates at least 2")
    configure_logging("error")
    columns, scores = make_batch(options.batch, options.candidates)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "DistillKLDivLoss": distill_side(columns, scores, folder),
            "LSRLoss": lsr_side(columns, scores, folder),
        }
        losses = {name: step() for name, step in sides.items()}
        expected = losses["LSRLoss"] * _GAMMA**2
        if abs(losses["DistillKLDivLoss"] - expected) > _SAME_LOSS * expected:
            raise SystemExit(f"the sides do not compute the same loss: {losses}, the first times gamma²")
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(options.rounds):
            for name in sorted(sides, reverse=bool(number % 2)):
                began = time.perf_counter()
                sides[name]()
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.3f} to {max(seconds[name]):.3f}"
        print(f"{name:<17} {median:.3f} s a step ({spread}), {options.batch} examples x {options.candidates}")
    print(f"ratio {medians['LSRLoss'] / medians['DistillKLDivLoss']:.3f} (aim: at most 1.05)")


def make_batch(batch: int, candidates: int) -> tuple[list[list[str]], torch.Tensor]:
    """Texts by column (queries, then each candidate), and ``(batch, candidates)`` scores."""
    library = Path(sysconfig.get_paths()["stdlib"])
    code = "".join(path.read_text(encoding="utf-8") for path in sorted(library.glob("[a-d]*.py")))
    pieces = [
        code[place * _CHARACTERS : (place + 1) * _CHARACTERS] for place in range(batch * (candidates + 1))
    ]
    if len(set(pieces)) < len(pieces) or not pieces[-1]:
        raise SystemExit(f"this Python's library has no {len(pieces)} distinct pieces; lower --batch")
    columns = [pieces[number * batch : (number + 1) * batch] for number in range(candidates + 1)]
    scores = torch.randn(batch, candidates, generator=torch.Generator().manual_seed(0)) * 0.1
    return columns, scores


def distill_side(columns: list[list[str]], scores: torch.Tensor, folder: str) -> Callable[[], float]:
    """A step of sentence-transformers' own."""
    model = encoder()
    rows = {f"text_{number}": texts for number, texts in enumerate(columns)} | {"label": scores.tolist()}
    dataset = Dataset.from_dict(rows)
    loss = DistillKLDivLoss(model, student_temperature=_GAMMA, teacher_temperature=_BETA)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments(folder, len(scores)), train_dataset=dataset, loss=loss
    )
    return stepper(trainer, [dataset[number] for number in range(len(dataset))])


def lsr_side(columns: list[list[str]], scores: torch.Tensor, folder: str) -> Callable[[], float]:
    """A step of LSRTrainer; one token a continuation, so that the mean score is the log-likelihood."""
    model = encoder()
    batch, candidates = scores.shape
    passages = [text for texts in columns[1:] for text in texts]
    rows = np.arange(batch * candidates).reshape(candidates, batch).T
    scored = ScoredCandidates(
        rows, scores.double().numpy(), np.ones(batch, dtype=np.int64), np.ones(batch, dtype=np.int64)
    )
    examples = [Example(str(number), query, "", (0,), (0,), 1) for number, query in enumerate(columns[0])]
    collator = LSRDataCollator(
        model,
        examples,
        lambda _: scored,
        passage_texts=lambda numbers: [passages[number] for number in numbers.tolist()],
    )
    schedule = Schedule(batch, batch, seed=0)
    trainer = LSRTrainer(
        model,
        arguments(folder, batch),
        LSRLoss(model, ObjectiveOptions(_GAMMA, _BETA, kl=Direction.Q_P)),
        collator,
        schedule,
        StreamHooks(idle_stream(examples, schedule, folder), lambda numbers: rows, None, accumulation=1),
    )
    return stepper(trainer, [{EXAMPLE_COLUMN: number} for number in range(batch)])


def idle_stream(examples: list[Example], schedule: Schedule, folder: str) -> CandidateStream:
    """What the trainer wants and a step never asks: the scores are there."""
    supervisor = FakeSupervisor(lambda prompt: [0.0] * prompt.num_continuation)
    supervisor.close()
    return CandidateStream(
        examples,
        schedule,
        lambda example, row: Prompt((0, 0), num_continuation=1),
        supervisor,
        generation=1,
        total=1,
        folder=Path(folder),
    )


def encoder() -> SentenceTransformer:
    """MiniLM without dropout, so that both sides compute the same loss."""
    model = load_encoder(EncoderOptions(str(minilm()), device="cpu"))
    set_dropout(model, 0.0)
    return model


def arguments(folder: str, batch: int) -> SentenceTransformerTrainingArguments:
    """The same for both sides."""
    return SentenceTransformerTrainingArguments(
        folder,
        per_device_train_batch_size=batch,
        learning_rate=1e-6,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )


def stepper(trainer: Any, features: list[dict[str, Any]]) -> Callable[[], float]:
    """Collate, forward, backward, clip, AdamW: what a step of the trainer is; returns the loss."""
    trainer.create_optimizer()

    def step() -> float:
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(features))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
