from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from replug_client.supervisor.prefixes import Group, batches, group_by_prefix, waves
from replug_client.supervisor.protocol import Prompt

ids = st.lists(st.integers(0, 2), min_size=2, max_size=12).map(tuple)
prompts = st.lists(
    ids.flatmap(lambda i: st.integers(1, len(i) - 1).map(lambda n: Prompt(i, n))), min_size=0, max_size=12
)


@given(prompts)
def test_groups_hold_every_prompt_once_and_share_what_they_say(asked: list[Prompt]) -> None:
    groups = group_by_prefix(asked, min_shared=1)
    assert sorted(member for group in groups for member in group.members) == list(range(len(asked)))
    for group in groups:
        assert (group.shared == 0) == (len(group.members) == 1)
        assert len({asked[member].ids[: group.shared] for member in group.members}) == 1
        for member in group.members:
            assert len(asked[member].ids) - asked[member].num_continuation - 1 >= group.shared


@given(prompts.filter(lambda asked: len(asked) <= 6))
def test_no_partition_saves_more(asked: list[Prompt]) -> None:
    """Held against every partition there is."""
    saved = sum(group.saved for group in group_by_prefix(asked, min_shared=1))
    assert saved == max(sum(map(saving, partition)) for partition in partitions(asked))


def partitions(items: list[Prompt]) -> Iterator[list[list[Prompt]]]:
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [items[:1], *rest]
        for place in range(len(rest)):
            yield [*rest[:place], [items[0], *rest[place]], *rest[place + 1 :]]


def saving(group: list[Prompt]) -> int:
    limit = min(len(prompt.ids) - prompt.num_continuation - 1 for prompt in group)
    shared = 0
    while shared < limit and len({prompt.ids[shared] for prompt in group}) == 1:
        shared += 1
    return (len(group) - 1) * shared


def test_a_passage_before_many_queries_is_one_group() -> None:
    first, second = tuple(range(100, 130)), tuple(range(200, 230))
    asked = [Prompt((0, *passage, query, 7), 1) for query in (1, 2, 3) for passage in (first, second)]
    assert sorted(group_by_prefix(asked), key=lambda group: group.members) == [
        Group(31, (0, 2, 4)),
        Group(31, (1, 3, 5)),
    ]


def test_a_shared_bos_is_not_worth_a_group() -> None:
    asked = [Prompt((0, query, 7), 1) for query in range(4)]
    assert all(group.shared == 0 for group in group_by_prefix(asked))


@given(st.lists(st.integers(0, 60), max_size=20), st.integers(1, 200))
def test_waves_hold_every_sharing_group_once_within_the_limit(depths: list[int], limit: int) -> None:
    groups = [Group(depth, (2 * i, 2 * i + 1)) for i, depth in enumerate(depths)]
    found = list(waves(groups, limit))
    assert sorted((group for wave in found for group in wave), key=lambda group: group.members) == [
        group for group in groups if group.shared
    ]
    for wave in found:
        shortest, longest = min(g.shared for g in wave), max(g.shared for g in wave)
        assert len(wave) == 1 or len(wave) * shortest <= limit
        assert longest - shortest <= 0.1 * longest


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200), st.integers(1, 8))
def test_batches_hold_everything_once_within_the_limits(lengths: list[int], tokens: int, rows: int) -> None:
    found = list(batches(lengths, tokens, rows))
    assert sorted(position for batch in found for position in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= tokens
    flat = [lengths[position] for batch in found for position in batch]
    assert flat == sorted(flat, reverse=True)
