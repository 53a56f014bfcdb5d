"""Aggregates: functions that compute a task's score from sums of statistics over its questions.

An aggregate is a function of sums, so that the bootstrap needs nothing else: sums [..., 1 + columns], the first column
the number of questions, the others the sums of their statistics (of their value, for a mean) -> scores in 0..1 [...].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Aggregate = Callable[[np.ndarray], np.ndarray]

MAX_ORDER = 4
BLEU_COLUMNS = 2 * MAX_ORDER + 1
METEOR_COLUMNS = 23
# METEOR 1.5 for English, from its jar: the defaults.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGES = np.array((1.0, 0.6, 0.8, 0.6))  # exact, stem, synonym, paraphrase


def mean(sums: np.ndarray) -> np.ndarray:
    """The mean of the questions' values. sums: [..., 2]. CIDEr is one: its idf stays that of all questions."""
    return sums[..., 1] / sums[..., 0]


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1..4 of a corpus: BLEU_n = (p_1 ... p_n)^(1/n) min(1, exp(1 - r/c)), [..., 4].

    sums [..., 9]: clipped matches of 1- to 4-grams, n-grams of the captions, and r, the length of the references
    closest to the captions; c = their 1-grams. The small numbers are pycocoevalcap's, against division by zero.
    """
    matches, guesses, reference = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER], sums[..., 2 * MAX_ORDER]
    product = np.cumprod((matches + 1e-15) / (guesses + 1e-9), axis=-1)
    ratio = (guesses[..., 0] + 1e-15) / (reference + 1e-9)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    return product ** (1 / np.arange(1, MAX_ORDER + 1)) * brevity[..., None]


def meteor(sums: np.ndarray) -> np.ndarray:
    """METEOR 1.5 of a corpus: F_mean (1 - gamma (chunks / matched words)^beta), [...].

    Precision and recall weigh a match by its stage, a content word by delta and a function word by 1 - delta, as
    their denominators do; F_mean = 1 / ((1 - alpha) / P + alpha / R). 0 where nothing matches.
    sums [..., 23]: see eval.metrics.meteor.count_matches, which counts no chunk where all of a caption is one.
    """
    length, function_words = sums[..., 0:2], sums[..., 2:4]  # of caption and reference
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # stage, content or function, caption or reference
    chunks, words = sums[..., 20], sums[..., 21:23].mean(-1)
    kinds = np.array((_DELTA, 1 - _DELTA))
    matched = np.einsum("...skc,s,k->...c", stages, _STAGES, kinds)
    weight = _DELTA * (length - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / weight, -1, 0)
        f_mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        penalty = _GAMMA * (chunks / words) ** _BETA
    return np.maximum(np.nan_to_num(f_mean * (1 - penalty), nan=0.0), 0.0)


def caption_figures(sums: np.ndarray) -> np.ndarray:
    """BLEU-1..4, METEOR, ROUGE-L and CIDEr, [..., 7].

    sums [..., 1 + 34]: the columns of BLEU (9), of METEOR (23), and the values of ROUGE-L and CIDEr.
    """
    of_bleu, of_meteor, others = np.split(sums[..., 1:], (BLEU_COLUMNS, BLEU_COLUMNS + METEOR_COLUMNS), axis=-1)
    return np.concatenate((bleu(of_bleu), meteor(of_meteor)[..., None], others / sums[..., :1]), axis=-1)


def mean_of_seven(sums: np.ndarray) -> np.ndarray:
    """The mean of the seven caption figures, as published. sums: see `caption_figures`."""
    return caption_figures(sums).mean(-1)


def f1(sums: np.ndarray) -> np.ndarray:
    """2 tp / (2 tp + fp + fn), 0 without any of them. sums [..., 4]: after the number of questions tp, fp, fn."""
    double, wrong = 2 * sums[..., 1], sums[..., 2] + sums[..., 3]
    return np.divide(double, double + wrong, out=np.zeros_like(double, dtype=float), where=double + wrong > 0)


def sum_of_means(sums: np.ndarray) -> np.ndarray:
    """Points of MME in hundreds: the sum over categories of points / pictures; 0 for a category without any.

    sums [..., 1 + 2 categories]: after the number of questions, of each category its pictures and their points.
    """
    counts, points = sums[..., 1::2], sums[..., 2::2]
    return np.divide(points, counts, out=np.zeros_like(points, dtype=float), where=counts > 0).sum(-1)


AGGREGATES: dict[str, Aggregate] = {
    "cider": mean,
    "f1": f1,
    "mean": mean,
    "mean_of_seven": mean_of_seven,
    "sum_of_means": sum_of_means,
}
