"""Free answers held against the right ones: exact match, token F1, ROUGE-L, BLEU. Pure functions."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """What one answer is worth, each figure the best over the right answers.

    Attributes:
        exact_match: 1 or 0.
        f1: Token F1, 0 to 1.
        rouge_l: ROUGE-L's F-measure, 0 to 1.
        bleu: Sentence BLEU, 0 to 100.
    """

    exact_match: float
    f1: float
    rouge_l: float
    bleu: float


def normalise(text: str) -> str:
    """SQuAD's official form: lower case, without ASCII punctuation, without a/an/the, single spaces.

    Rajpurkar et al. 2016, `evaluate-v1.1.py`, in its order: punctuation goes before articles do.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the normalised prediction is a normalised answer, else 0.

    Raises:
        ValueError: no answers.
    """
    return _best(lambda answer: float(normalise(prediction) == normalise(answer)), answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over normalised words, with repetition; the best over the answers.

    Where either side has no word left, 1 if neither has, else 0 (SQuAD 2.0's rule).

    Raises:
        ValueError: no answers.
    """
    return _best(lambda answer: _f1(normalise(prediction).split(), normalise(answer).split()), answers)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L's F-measure by ``rouge_score`` (no stemming), the best over the answers.

    Its tokenizer keeps a-z and 0-9 only: text in other scripts scores 0.

    Raises:
        ValueError: no answers.
    """
    return _best(lambda answer: float(_rouge().score(answer, prediction)["rougeL"].fmeasure), answers)


def sentence_bleu(prediction: str, answers: Sequence[str]) -> float:
    """BLEU of one answer by ``sacrebleu``, 0 to 100, the best over the answers, each as the only reference.

    With its ``effective_order``, since answers are often shorter than four words.

    Raises:
        ValueError: no answers.
    """
    return _best(lambda answer: float(_sentence().sentence_score(prediction, [answer]).score), answers)


def corpus_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """BLEU over all answers together by ``sacrebleu``, 0 to 100, each prediction with all its references.

    Args:
        predictions: ``n`` of them.
        answers: For each, at least one reference; numbers may differ.

    Raises:
        ValueError: no predictions, unequal lengths, or a prediction without references.
    """
    if not predictions or len(predictions) != len(answers) or not all(answers):
        raise ValueError(
            f"expected n >= 1 predictions and references for each, found {len(predictions)} and {len(answers)}"
        )
    most = max(map(len, answers))
    streams = [[own[place] if place < len(own) else None for own in answers] for place in range(most)]
    # None marks a missing reference; the annotation does not say so.
    return float(_corpus().corpus_score(list(predictions), streams).score)  # type: ignore[arg-type]


def score_answer(prediction: str, answers: Sequence[str]) -> AnswerScores:
    """All figures of one answer.

    Raises:
        ValueError: no answers.
    """
    return AnswerScores(
        exact_match=exact_match(prediction, answers),
        f1=token_f1(prediction, answers),
        rouge_l=rouge_l(prediction, answers),
        bleu=sentence_bleu(prediction, answers),
    )


def _best(score: Callable[[str], float], answers: Sequence[str]) -> float:
    if not answers:
        raise ValueError("no answer to hold the prediction against")
    return max(map(score, answers))


def _f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    common = (Counter(prediction) & Counter(answer)).total()
    return 2 * common / (len(prediction) + len(answer))


@lru_cache(maxsize=1)
def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


@lru_cache(maxsize=1)
def _sentence() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)


@lru_cache(maxsize=1)
def _corpus() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU()
