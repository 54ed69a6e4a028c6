"""What every passage index does: run by a subclass that says how one is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from replug_client.errors import ArtefactError, OptionError
from replug_client.retriever.index import PassageIndex, blocks_of


def unit_vectors(count: int, dimension: int = 8, seed: int = 0) -> npt.NDArray[np.float32]:
    """Random directions; no two inner products of which are equal but by chance."""
    vectors = np.random.default_rng(seed).normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class PassageIndexContract:
    """Subclass it, and give ``make``."""

    def make(
        self, folder: Path, vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | None = None
    ) -> PassageIndex:
        """An index of ``vectors`` at corpus ``rows`` (``0 .. n - 1`` where None)."""
        raise NotImplementedError

    def test_it_is_a_passage_index(self, tmp_path: Path) -> None:
        index = self.make(tmp_path, unit_vectors(5))
        assert isinstance(index, PassageIndex)
        assert len(index) == 5 and index.dimension == 8
        np.testing.assert_array_equal(index.rows, np.arange(5))

    @pytest.mark.parametrize(
        ("count", "queries", "k"),
        [(1, 1, 1), (2, 3, 1), (7, 5, 3), (30, 4, 30), (60, 1, 59), (60, 0, 5), (60, 5, 80)],
    )
    @pytest.mark.parametrize("seed", [0, 1])
    def test_search_is_the_sorted_inner_product(
        self, tmp_path: Path, count: int, queries: int, k: int, seed: int
    ) -> None:
        vectors, asked = unit_vectors(count, seed=seed), unit_vectors(queries, seed=seed + 1)
        result = self.make(tmp_path, vectors).search(asked, k)
        exact = asked.astype(np.float64) @ vectors.T.astype(np.float64)
        expected = np.argsort(-exact, axis=1)[:, :k]
        assert result.scores.dtype == np.float32 and result.rows.dtype == np.int64
        assert result.rows.shape == result.scores.shape == (queries, min(k, count))
        np.testing.assert_allclose(result.scores, np.take_along_axis(exact, expected, axis=1), atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(exact, result.rows, axis=1), result.scores, atol=1e-5)
        assert all(len(set(line)) == len(line) for line in result.rows.tolist())

    @pytest.mark.parametrize("rows", [None, [3, 4, 10, 11, 40]])
    def test_blocks_are_all_vectors_in_order(self, tmp_path: Path, rows: list[int] | None) -> None:
        vectors = unit_vectors(5)
        index = self.make(tmp_path, vectors, None if rows is None else np.array(rows))
        blocks = list(blocks_of(index))
        assert all(block.dtype == np.float32 for block in blocks)
        np.testing.assert_array_equal(np.concatenate(blocks), index.vectors(index.rows))

    def test_rows_are_those_of_the_corpus(self, tmp_path: Path) -> None:
        vectors, rows = unit_vectors(4), np.array([3, 10, 11, 40])
        index = self.make(tmp_path, vectors, rows)
        np.testing.assert_array_equal(index.search(vectors, 1).rows[:, 0], rows)
        np.testing.assert_array_equal(index.rows, rows)

    def test_a_k_beyond_the_corpus_gives_every_passage_and_never_minus_one(self, tmp_path: Path) -> None:
        result = self.make(tmp_path, unit_vectors(3)).search(unit_vectors(2, seed=1), 10)
        assert result.rows.shape == (2, 3)
        assert [sorted(line) for line in result.rows.tolist()] == [[0, 1, 2], [0, 1, 2]]

    def test_one_passage_is_enough(self, tmp_path: Path) -> None:
        vectors = unit_vectors(1)
        result = self.make(tmp_path, vectors).search(vectors, 5)
        assert result.rows.tolist() == [[0]]
        np.testing.assert_allclose(result.scores, [[1.0]], atol=1e-6)

    def test_no_passage_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ArtefactError, match="at least one"):
            self.make(tmp_path, np.zeros((0, 8), dtype=np.float32))

    def test_equal_vectors_are_all_found(self, tmp_path: Path) -> None:
        vectors = np.repeat(unit_vectors(1), 4, axis=0)
        result = self.make(tmp_path, vectors).search(vectors[:1], 4)
        assert sorted(result.rows[0].tolist()) == [0, 1, 2, 3]

    def test_vectors_are_given_back_by_row_in_any_shape(self, tmp_path: Path) -> None:
        vectors, rows = unit_vectors(6), np.array([0, 1, 2, 7, 8, 9])
        index = self.make(tmp_path, vectors, rows)
        asked = np.array([[9, 0, 7], [2, 2, 8]])
        given_back = index.vectors(asked)
        assert given_back.shape == (2, 3, 8) and given_back.dtype == np.float32
        np.testing.assert_array_equal(given_back, vectors[np.array([[5, 0, 3], [2, 2, 4]])])
        assert index.vectors(np.zeros((0, 2), dtype=np.int64)).shape == (0, 2, 8)
        np.testing.assert_array_equal(index.vectors(np.int64(7)), vectors[3])

    @pytest.mark.parametrize("row", [-1, 3, 10, 2**40])
    def test_a_row_that_it_does_not_hold_is_an_error(self, tmp_path: Path, row: int) -> None:
        index = self.make(tmp_path, unit_vectors(4), np.array([0, 1, 2, 7]))
        with pytest.raises(IndexError, match=f"row {row} is not in this index"):
            index.vectors(np.array([0, row]))

    @pytest.mark.parametrize(
        ("queries", "k", "message"),
        [
            (unit_vectors(2), 0, "k = 0"),
            (unit_vectors(2), -3, "k = -3"),
            (unit_vectors(2, 7), 1, r"shape \(2, 7\) for an index of dimension 8"),
            (unit_vectors(1)[0], 1, r"shape \(8,\)"),
            (np.full((1, 8), np.nan, dtype=np.float32), 1, "NaN"),
        ],
    )
    def test_a_search_that_makes_no_sense_is_refused(
        self, tmp_path: Path, queries: npt.NDArray[np.float32], k: int, message: str
    ) -> None:
        with pytest.raises(OptionError, match=message):
            self.make(tmp_path, unit_vectors(4)).search(queries, k)
