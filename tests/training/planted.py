"""A planted task: for each query the LM prefers another passage, of those that the base retriever ranks last."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

from replug_client.corpus.records import Example
from replug_client.retriever.encoder import EncoderOptions, encode_passages, encode_queries, load_encoder
from replug_client.retriever.index import ArrayIndex
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.protocol import Prompt
from replug_client.training.candidates import CandidateMiner, CandidateOptions, Rows
from replug_client.training.collator import LSRDataCollator
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from replug_client.training.schedule import Schedule
from replug_client.training.stream import CandidateStream
from replug_client.training.trainer import LSRTrainer, StreamHooks, set_dropout
from tests.retriever.tiny import saved_encoder

PASSAGES = [f"word{number} word{number + 1} word{number + 2}" for number in range(0, 40, 2)]
QUERIES = [f"word{number} word{number + 1}" for number in range(30, 50, 2)]


@dataclass(frozen=True)
class Planted:
    """The task: base vectors, and which passage the LM prefers for each query."""

    passage_vectors: npt.NDArray[np.float32]
    preferred: Rows

    def log_probs(self, prompt: Prompt) -> list[float]:
        row, query = prompt.ids[0] - 100, prompt.ids[1] - 500
        return [-0.1 if self.preferred[query] == row else -3.0]


def base_model(folder: Path) -> SentenceTransformer:
    """A small encoder with random weights, the same each time: what is learned is all that it knows."""
    name = folder / "encoder"
    if not name.exists():
        saved_encoder(name)
    model = load_encoder(EncoderOptions(str(name), device="cpu"))
    set_dropout(model, 0.0)
    return model


def plant(model: SentenceTransformer) -> Planted:
    """Each query gets the last of the base's list that no other query has: all of them in its lower half.

    Were it simply the last, two passages would be it for all queries, and a retriever that always returns
    the same would do.
    """
    vectors = encode_passages(model, PASSAGES)
    preferred: list[int] = []
    for similarity in encode_queries(model, QUERIES) @ vectors.T:
        preferred.append(next(row for row in similarity.argsort().tolist() if row not in preferred))
    return Planted(vectors, np.array(preferred))


def recall_at_1(model: SentenceTransformer, task: Planted, *, reencode: bool) -> float:
    """Share of queries whose preferred passage is found first, over an index of all passages."""
    vectors = encode_passages(model, PASSAGES) if reencode else task.passage_vectors
    found = ArrayIndex(vectors).search(encode_queries(model, QUERIES), 1).rows[:, 0]
    return float((found == task.preferred).mean())


def trainer_for(
    model: SentenceTransformer,
    task: Planted,
    folder: Path,
    objective: ObjectiveOptions,
    *,
    train_passages: bool,
    steps: int = 120,
    refresh_every: int = 20,
    save_every: int = 0,
    batch_size: int = 5,
    accumulation: int = 1,
) -> LSRTrainer:
    """A trainer over the planted task, put together from the public pieces."""
    examples = [
        Example(f"d{number}", query, "y", (500 + number,), (7,), 1) for number, query in enumerate(QUERIES)
    ]
    schedule = Schedule(len(examples), batch_size, seed=3, accumulation=accumulation)
    index = ArrayIndex(task.passage_vectors)
    miner = CandidateMiner(index, None, index.rows, CandidateOptions(len(PASSAGES), 0, 0), seed=3)

    def build_prompt(example: Example, row: int) -> Prompt:
        return Prompt((100 + row, *example.query_ids, *example.continuation_ids), 1)

    def mine(numbers: Rows) -> Rows:
        queries = [QUERIES[number] for number in numbers]
        return miner.mine(encode_queries(model, queries), queries, numbers)

    stream = CandidateStream(
        examples,
        schedule,
        build_prompt,
        FakeSupervisor(task.log_probs),
        generation=refresh_every * accumulation,
        total=steps * accumulation,
        folder=folder / "candidates",
    )
    collator = LSRDataCollator(
        model,
        examples,
        stream.take,
        passage_texts=(lambda rows: [PASSAGES[row] for row in rows]) if train_passages else None,
        frozen=None if train_passages else index,
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=batch_size,
        learning_rate=1e-2,
        max_steps=steps,
        num_train_epochs=1000,
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_accumulation_steps=accumulation,
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or steps,
        logging_steps=10,
        disable_tqdm=True,
        seed=3,
    )
    hooks = StreamHooks(stream, mine, None, accumulation)
    return LSRTrainer(model, arguments, LSRLoss(model, objective), collator, schedule, hooks)
