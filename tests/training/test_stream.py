"""The candidate stream: what is retrieved by which weights, in which order, and after an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from replug_client.corpus.records import Example
from replug_client.errors import SupervisorError
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.protocol import OnScores, Prompt, Score
from replug_client.training.candidates import NO_PASSAGE, Rows
from replug_client.training.schedule import Schedule
from replug_client.training.stream import CandidateStream, Mine

EXAMPLES = [
    Example(f"d{number}", f"q{number}", "yy", (number,), (7, 8)[: 1 + number % 2], 3 + number)
    for number in range(10)
]
SCHEDULE = Schedule(10, 2, 5)  # five batches an epoch
GENERATION, TOTAL = 3, 11


def log_prob(example: int, row: int) -> float:
    return -float(100 * example + row) / 64


def scores_of(prompt: Prompt) -> list[float]:
    example, row = prompt.ids[1], prompt.ids[0]
    return [log_prob(example, row)] + [0.0] * (prompt.num_continuation - 1)


def build(example: Example, row: int) -> Prompt:
    return Prompt((row, *example.query_ids, *example.continuation_ids), len(example.continuation_ids))


class Weights:
    """A retriever whose candidates show with which weights they were retrieved: rows 10 * step + ..."""

    def __init__(self) -> None:
        self.step = 0
        self.mined: list[tuple[int, Rows]] = []

    def mine(self, numbers: Rows) -> Rows:
        self.mined.append((self.step, numbers))
        return rows_at(self.step, numbers)


def rows_at(step: int, numbers: Rows) -> Rows:
    return np.stack([1000 * step + numbers, 1000 * step + 500 + numbers], axis=1)


def stream_in(folder: Path, supervisor: object = None, *, group: int = 1) -> CandidateStream:
    return CandidateStream(
        EXAMPLES,
        SCHEDULE,
        build,
        supervisor or FakeSupervisor(scores_of),  # type: ignore[arg-type]
        generation=GENERATION,
        total=TOTAL,
        folder=folder,
        batches_per_submission=group,
    )


def run(stream: CandidateStream, weights: Weights, start: int, stop: int) -> list[Rows]:
    """Train from one batch to another, a batch a step; weights move with each."""
    weights.step = start
    stream.start(start, weights.mine)
    taken = []
    for batch in range(start, stop):
        if batch > start and batch % GENERATION == 0:
            stream.advance(batch, weights.mine)
        examples = SCHEDULE.batches(batch, batch + 1)[0]
        scored = stream.take(examples)
        for line, example in enumerate(examples):
            expected = [log_prob(example, row) for row in scored.rows[line]]
            assert scored.log_likelihoods[line].tolist() == expected
        assert scored.num_bytes.tolist() == [3 + number for number in examples]
        assert scored.num_tokens.tolist() == [1 + number % 2 for number in examples]
        taken.append(scored.rows)
        weights.step = batch + 1
    return taken


def retrieved_at(batch: int) -> int:
    """Generation g is retrieved when g - 1 begins; the first two before the run."""
    return max(0, batch // GENERATION - 1) * GENERATION


def expected_rows(start: int, stop: int) -> list[list[list[int]]]:
    return [
        rows_at(retrieved_at(batch), SCHEDULE.batches(batch, batch + 1)[0]).tolist()
        for batch in range(start, stop)
    ]


def as_lists(taken: Sequence[Rows]) -> list[list[list[int]]]:
    return [rows.tolist() for rows in taken]


@pytest.mark.parametrize(("group", "first"), [(1, [2, 4]), (2, [4, 2]), (64, [6])])
def test_each_generation_is_retrieved_when_the_one_before_it_begins(
    group: int, first: list[int], tmp_path: Path
) -> None:
    """The first one in parts."""
    weights = Weights()
    taken = run(stream_in(tmp_path, group=group), weights, 0, TOTAL)
    assert as_lists(taken) == expected_rows(0, TOTAL)
    assert [step for step, _ in weights.mined] == [0] * len(first) + [0, 3, 6]
    stream = stream_in(tmp_path)
    assert [stream.retrieved_at(batch) for batch in range(TOTAL)] == [*map(retrieved_at, range(TOTAL))]
    sizes = [len(numbers) for _, numbers in weights.mined]
    assert sizes == [*first, 6, 6, 4]  # the run ends within the last


class Recording(FakeSupervisor):
    """Notes how many prompts each submission holds."""

    def __init__(self) -> None:
        super().__init__(scores_of)
        self.sent: list[int] = []

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        self.sent.append(len(prompts))
        return super().submit(prompts, on_scores)


def test_the_supervisor_is_at_work_before_all_is_retrieved(tmp_path: Path) -> None:
    supervisor, before = Recording(), []

    def mine(numbers: Rows) -> Rows:
        before.append(list(supervisor.sent))
        return rows_at(0, numbers)

    stream_in(tmp_path, supervisor).start(0, mine)
    assert before == [[], [4], [4, 4, 4]]


@pytest.mark.parametrize("skip", [1, 2])
def test_what_a_resumed_run_has_trained_on_is_not_sent_again(skip: int, tmp_path: Path) -> None:
    """Nor where the file of candidates is gone."""
    for _ in "gone", "there":
        supervisor = Recording()
        stream = stream_in(tmp_path, supervisor)
        stream.start(skip, Weights().mine)
        assert supervisor.sent == [4] * (2 * GENERATION - skip)
        for batch in range(skip, 2 * GENERATION):
            stream.take(SCHEDULE.batches(batch, batch + 1)[0])


@pytest.mark.parametrize("stop", [4, 5, 6, 9, 10])
def test_a_resumed_run_finds_the_same_candidates(stop: int, tmp_path: Path) -> None:
    """In the middle of a generation and at its boundary."""
    run(stream_in(tmp_path), Weights(), 0, stop)
    weights = Weights()
    taken = run(stream_in(tmp_path), weights, stop, TOTAL)
    assert as_lists(taken) == expected_rows(stop, TOTAL)


def test_a_run_resumed_from_an_older_checkpoint_drops_what_later_weights_retrieved(tmp_path: Path) -> None:
    run(stream_in(tmp_path), Weights(), 0, TOTAL)
    for path in tmp_path.iterdir():  # what is kept must come from disk, what is dropped must not
        rows = np.load(path)
        np.save(path, rows + (0 if path.name < "generation_00002" else 7))
    assert len(list(tmp_path.iterdir())) == 4
    weights = Weights()
    taken = run(stream_in(tmp_path), weights, 2, TOTAL)
    assert as_lists(taken) == expected_rows(2, TOTAL)
    assert [step for step, _ in weights.mined] == [3, 6]


def test_the_first_passage_of_a_query_is_counted_once(tmp_path: Path) -> None:
    """However many epochs a generation has, and however many continuations a query."""
    examples = [replace(example, query=f"q{number // 2}") for number, example in enumerate(EXAMPLES)]
    supervisor = FakeSupervisor(scores_of)
    stream = CandidateStream(examples, SCHEDULE, build, supervisor, generation=12, total=24, folder=tmp_path)
    stream.start(0, lambda numbers: np.stack([numbers // 4, numbers + 10], axis=1))
    assert sorted(stream.first_rows.tolist()) == [0, 0, 1, 1, 2]  # of five queries, each pair finds the same


class Counting(FakeSupervisor):
    """Counts what is handed to it, whether it is scored by now or not."""

    submitted = 0

    def submit(self, prompts, on_scores=None):  # type: ignore[no-untyped-def]
        self.submitted += len(prompts)
        return super().submit(prompts, on_scores)


def test_at_most_two_generations_are_ahead(tmp_path: Path) -> None:
    supervisor = Counting(scores_of)
    stream, weights = stream_in(tmp_path, supervisor), Weights()
    pairs = GENERATION * 4
    stream.start(0, weights.mine)
    assert supervisor.submitted == 2 * pairs
    stream.advance(0, weights.mine)
    assert supervisor.submitted == 2 * pairs
    for batch in range(GENERATION):
        stream.take(SCHEDULE.batches(batch, batch + 1)[0])
    stream.advance(GENERATION, weights.mine)
    assert supervisor.submitted == 3 * pairs


def test_candidates_that_do_not_exist_are_not_scored(tmp_path: Path) -> None:
    supervisor = Counting(scores_of)
    stream = stream_in(tmp_path, supervisor, group=4)

    def gappy(numbers: Rows) -> Rows:
        rows = rows_at(0, numbers)
        rows[numbers % 3 == 0, 1] = NO_PASSAGE
        return rows

    stream.start(0, gappy)
    for batch in range(4):
        examples = SCHEDULE.batches(batch, batch + 1)[0]
        scored = stream.take(examples)
        gaps = examples % 3 == 0
        assert (scored.rows[gaps, 1] == NO_PASSAGE).all()
        assert (scored.log_likelihoods[gaps, 1] == 0).all()
        assert scored.log_likelihoods[:, 0].tolist() == [log_prob(number, number) for number in examples]
    asked = SCHEDULE.batches(0, 2 * GENERATION).ravel()
    assert supervisor.submitted == 2 * len(asked) - int((asked % 3 == 0).sum())


@pytest.mark.parametrize("group", [1, 2])
def test_an_error_in_scoring_reaches_the_batch_that_needs_the_score(group: int, tmp_path: Path) -> None:
    bad = int(SCHEDULE.batches(2, 3)[0, 1])

    def scores(prompt: Prompt) -> list[float]:
        if prompt.ids[1] == bad:
            raise SupervisorError("the server went away")
        return scores_of(prompt)

    stream = stream_in(tmp_path, FakeSupervisor(scores), group=group)
    stream.start(0, Weights().mine)
    for batch in range(2):
        stream.take(SCHEDULE.batches(batch, batch + 1)[0])
    with pytest.raises(SupervisorError, match="the server went away"):
        stream.take(SCHEDULE.batches(2, 3)[0])


def test_batches_of_one_submission_end_together_and_in_order(tmp_path: Path) -> None:
    class Slow(FakeSupervisor):
        """Answers when it is told to."""

        def __init__(self) -> None:
            super().__init__(scores_of)
            self.waiting: list[tuple[Future[list[Score]], list[Score]]] = []

        def submit(self, prompts, on_scores=None):  # type: ignore[no-untyped-def]
            future: Future[list[Score]] = Future()
            self.waiting.append((future, super().submit(prompts).result()))
            return future

    slow = Slow()
    stream = stream_in(tmp_path, slow, group=2)
    stream.start(0, Weights().mine)
    assert [len(scores) for _, scores in slow.waiting] == [8, 4, 8, 4]  # 3 batches of 4 pairs, twice
    for future, scores in reversed(slow.waiting):  # the last submission is answered first
        future.set_result(scores)
    for batch in range(2 * GENERATION):
        examples = SCHEDULE.batches(batch, batch + 1)[0]
        assert stream.take(examples).log_likelihoods[:, 0].tolist() == [log_prob(n, n) for n in examples]


def test_another_batch_than_the_next_is_refused(tmp_path: Path) -> None:
    stream = stream_in(tmp_path)
    with pytest.raises(RuntimeError, match="not started"):
        stream.take(SCHEDULE.batches(0, 1)[0])
    stream.start(0, Weights().mine)
    with pytest.raises(RuntimeError, match="were asked for"):
        stream.take(SCHEDULE.batches(1, 2)[0])


def test_candidates_of_another_shape_on_disk_are_retrieved_anew(tmp_path: Path) -> None:
    np.save(tmp_path / "generation_00000.npy", np.zeros((1, 2, 2), dtype=np.int64))
    weights = Weights()
    mine: Mine = weights.mine
    stream_in(tmp_path).start(0, mine)
    assert [step for step, _ in weights.mined] == [0, 0, 0]
