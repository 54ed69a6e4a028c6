"""Merging, bounds and choices, against values worked out by hand and against the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from replug_client.inference.mixing import Candidates, Mixture, choose, merge, mix, unsettled

LOG = np.log
HALF = LOG([0.5, 0.5])


def two_tops() -> Candidates:
    # Behind the first context: token 7 has 0.6, token 3 has 0.3 (0.1 is left); behind the second: 3 has 0.5, 9 has 0.2.
    return merge(
        [(np.array([7, 3]), LOG(np.array([0.6, 0.3]))), (np.array([3, 9]), LOG(np.array([0.5, 0.2])))]
    )


def test_the_candidates_are_the_union_of_the_tops() -> None:
    candidates = two_tops()
    assert candidates.ids.tolist() == [3, 7, 9]
    assert np.exp(candidates.log_probs[0]) == pytest.approx([0.3, 0.6, np.nan], nan_ok=True)
    assert np.exp(candidates.log_probs[1]) == pytest.approx([0.5, np.nan, 0.2], nan_ok=True)
    assert np.exp(candidates.bounds) == pytest.approx([0.3, 0.2])


def test_bounds_of_a_mixture_by_hand() -> None:
    mixture = mix(two_tops(), HALF)
    # What one unknown token can have: behind the first context 0.1 (all that is left), behind the second 0.2 (the
    # least of its top; 0.3 would be left).
    assert mixture.probabilities == pytest.approx([0.4, 0.3, 0.1])
    assert mixture.ceilings == pytest.approx([0.4, 0.3 + 0.5 * 0.2, 0.1 + 0.5 * 0.1])
    assert mixture.outside == pytest.approx(0.5 * 0.1 + 0.5 * 0.2)
    assert mixture.dropped == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
    assert mixture.dropped == pytest.approx(1 - mixture.probabilities.sum())


def test_only_what_may_be_the_most_probable_has_to_be_known() -> None:
    candidates = two_tops()
    mixture = mix(candidates, LOG([0.5, 0.5]))
    # 7 may reach 0.4, which 3 has; 9 cannot.
    assert unsettled(candidates, mixture, greedy=True).tolist() == [7]
    assert unsettled(candidates, mixture, greedy=False).tolist() == [7, 9]
    known = candidates.with_known(np.array([7]), LOG([[0.6], [0.05]]))
    assert unsettled(known, mix(known, HALF), greedy=True).tolist() == []
    assert mix(known, HALF).probabilities == pytest.approx([0.4, 0.325, 0.1])


def full(probabilities: list[float]) -> Mixture:
    values = np.array(probabilities)
    return Mixture(np.arange(len(values)), values, values, 0.0, 0.0)


def test_greedy_takes_the_most_probable_and_of_equals_the_first() -> None:
    assert choose(full([0.2, 0.4, 0.4]), temperature=0, top_p=1, uniform=0.9) == (1, True)


def test_greedy_is_certain_only_where_nothing_outside_can_be_more_probable() -> None:
    values = np.array([0.2, 0.1])
    assert choose(
        Mixture(np.arange(2), values, values, 0.2, 0.7), temperature=0, top_p=1, uniform=0.0
    ).certain
    assert not choose(
        Mixture(np.arange(2), values, values, 0.21, 0.7), temperature=0, top_p=1, uniform=0.0
    ).certain


@pytest.mark.parametrize(
    ("uniform", "place"), [(0.0, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 0), (0.999, 0)]
)
def test_a_draw_goes_through_the_tokens_by_falling_probability(uniform: float, place: int) -> None:
    assert choose(full([0.2, 0.5, 0.3]), temperature=1, top_p=1, uniform=uniform) == (place, True)


def test_top_p_draws_among_the_fewest_tokens_that_hold_it() -> None:
    mixture = full([0.2, 0.5, 0.3])
    # 0.5 and 0.3 are needed for 0.6; their shares are 5/8 and 3/8.
    assert choose(mixture, temperature=1, top_p=0.6, uniform=0.62).place == 1
    assert choose(mixture, temperature=1, top_p=0.6, uniform=0.63).place == 2
    assert choose(mixture, temperature=1, top_p=0.6, uniform=0.999).place == 2
    assert choose(mixture, temperature=1, top_p=0.5, uniform=0.999).place == 1


def test_temperature_raises_probabilities_to_its_inverse() -> None:
    # At 0.5: 0.04, 0.25, 0.09, which sum to 0.38; the second has 0.6579, the first two of the order 0.8947.
    mixture = full([0.2, 0.5, 0.3])
    places = [choose(mixture, temperature=0.5, top_p=1, uniform=u).place for u in (0.65, 0.66, 0.89, 0.90)]
    assert places == [1, 2, 2, 0]


def test_a_draw_from_the_mass_outside_falls_among_the_candidates_and_says_so() -> None:
    values = np.array([0.5, 0.2])
    mixture = Mixture(np.arange(2), values, values, 0.1, 0.3)
    assert choose(mixture, temperature=1, top_p=1, uniform=0.69) == (1, True)
    place, certain = choose(mixture, temperature=1, top_p=1, uniform=0.75)
    assert place in (0, 1)
    assert not certain


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_what_is_certain_is_what_the_whole_vocabulary_gives(temperature: float, top_p: float) -> None:
    rng = np.random.default_rng(0)
    certain = 0
    for _ in range(300):
        logits = 3 * rng.standard_normal((3, 50))
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        weights = np.log(rng.dirichlet([1, 1, 1]))
        whole = mix(Candidates(np.arange(50), log_probs, np.full(3, -np.inf)), weights)
        tops = [np.argsort(-row)[:8] for row in log_probs]
        candidates = merge([(top, row[top]) for top, row in zip(tops, log_probs, strict=True)])
        mixture = mix(candidates, weights)
        exact = whole.probabilities[candidates.ids]
        assert (mixture.probabilities <= exact + 1e-12).all()
        assert (mixture.ceilings >= exact - 1e-12).all()
        others = np.delete(whole.probabilities, candidates.ids)
        assert mixture.outside >= others.max() - 1e-12
        assert mixture.dropped >= others.sum() - 1e-12
        wanted = unsettled(candidates, mixture, greedy=temperature == 0)
        mixture = mix(candidates.with_known(wanted, log_probs[:, wanted]), weights)
        uniform = rng.random()
        choice = choose(mixture, temperature=temperature, top_p=top_p, uniform=uniform)
        reference = choose(whole, temperature=temperature, top_p=top_p, uniform=uniform)
        assert reference.certain
        if choice.certain:
            certain += 1
            assert mixture.ids[choice.place] == whole.ids[reference.place]
    assert certain > (200 if temperature <= 1 else -1)


def test_draws_have_the_mixtures_frequencies() -> None:
    rng = np.random.default_rng(1)
    mixture = full([0.1, 0.6, 0.3])
    drawn = [choose(mixture, temperature=1, top_p=1, uniform=rng.random()).place for _ in range(20_000)]
    assert np.bincount(drawn) / len(drawn) == pytest.approx([0.1, 0.6, 0.3], abs=0.015)
