"""Scores of captions: CIDEr, and the mean of seven that is published, through the scorers of pycocoevalcap.

The scorers are called one by one. Their common entry point builds SPICE first, which fetches a model from the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics import meteor
from eval.metrics.aggregates import MAX_ORDER
from eval.metrics.aggregates import meteor as score_meteor
from eval.metrics.caption_tokens import NEEDS_JAVA, tokenize
from eval.settings import BUILTIN_SUFFIX
from robustmerge.stage.settings import UserError

BLEUS = tuple(f"bleu_{order}" for order in range(1, MAX_ORDER + 1))
CAPTION_FIGURES = (*BLEUS, "meteor", "rouge_l", "cider")
NO_METEOR = f"METEOR {NEEDS_JAVA}"
ONE_QUESTION = "CIDEr needs two questions at least: with one, every idf is 0"


@dataclass(frozen=True)
class CaptionScore:
    """The score of one task's captions. value: per cent, None if it cannot be computed; reason: why.

    parts: further figures by name, in per cent. values: of each question, in question order, for inspection: the
    mean of its seven, or its CIDEr. statistics: of each question, from which `aggregate` (a key of AGGREGATES) computes
    the value; empty rows where there is no METEOR.
    metric: the name that the value goes by: with the built-in tokenizer it is another than with the published one.
    """

    value: float | None
    reason: str
    parts: dict[str, float | None]
    values: list[float]
    statistics: list[list[float]]
    aggregate: str
    metric: str


@dataclass(frozen=True)
class _Figures:
    """Caption metrics in 0..1: values of the corpus and of each question, by name; BLEU's statistics [questions, 9]."""

    corpus: dict[str, float]
    questions: dict[str, np.ndarray]
    bleu: np.ndarray


def score_cider(texts: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> CaptionScore:
    """CIDEr in per cent, with BLEU-1..4 and ROUGE-L as parts. texts, references: raw, one entry per question.

    Published: the mean of seven, in which a CIDEr above 100 weighs more than the others together.
    Raises UserError if the tokenizer needs Java and there is none, or no reference holds a word.
    """
    figures = _measure(*_tokenize_all(texts, references, tokenizer))
    values, suffix = figures.questions["cider"], _suffix(tokenizer)
    parts: dict[str, float | None] = {
        f"{name}{suffix}": 100 * value for name, value in figures.corpus.items() if suffix or name != "cider"
    }
    is_one = len(texts) == 1
    return CaptionScore(
        value=None if is_one else 100 * figures.corpus["cider"],
        reason=ONE_QUESTION if is_one else "",
        parts=parts,
        values=values.tolist(),
        statistics=values[:, None].tolist(),
        aggregate="cider",
        metric=f"cider{suffix}",
    )


def score_mean_of_seven(texts: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> CaptionScore:
    """The published rule: the mean of BLEU-1..4, METEOR, ROUGE-L and CIDEr in per cent, all seven as parts.

    With the built-in tokenizer there is no METEOR, so there is no value: never a mean of six under this name.
    Raises UserError if the tokenizer needs Java and there is none, or no reference holds a word.
    """
    if tokenizer == "ptb":
        meteor.start()  # loads while the rest is computed
    captions, accepted = _tokenize_all(texts, references, tokenizer)
    figures = _measure(captions, accepted)
    if tokenizer != "ptb":
        parts = {f"{name}{_suffix(tokenizer)}": 100 * value for name, value in figures.corpus.items()}
        values = figures.questions["cider"].tolist()
        none: list[list[float]] = [[] for _ in texts]
        return CaptionScore(None, NO_METEOR, {**parts, "meteor": None}, values, none, "mean_of_seven", "mean_of_seven")
    matches = np.array(meteor.count_matches(captions, accepted))  # [questions, 23]
    corpus = {**figures.corpus, "meteor": float(score_meteor(matches.sum(0)))}
    questions = {**figures.questions, "meteor": score_meteor(matches)}
    others = np.stack((figures.questions["rouge_l"], figures.questions["cider"]), axis=1)
    return CaptionScore(
        value=100 * sum(corpus[name] for name in CAPTION_FIGURES) / len(CAPTION_FIGURES),
        reason="",
        parts={name: 100 * corpus[name] for name in CAPTION_FIGURES},
        values=np.mean([questions[name] for name in CAPTION_FIGURES], axis=0).tolist(),
        statistics=np.concatenate((figures.bleu, matches, others), axis=1).tolist(),
        aggregate="mean_of_seven",
        metric="mean_of_seven",
    )


def _suffix(tokenizer: str) -> str:
    return "" if tokenizer == "ptb" else BUILTIN_SUFFIX


def _tokenize_all(
    texts: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str
) -> tuple[list[str], list[list[str]]]:
    """Tokens of the captions, and of all references: one document each, in question order, as published.

    Raises UserError if no reference holds a word.
    """
    words = tokenize([one for accepted in references for one in accepted], tokenizer)
    if not any(words):
        raise UserError("no reference caption holds a word")
    flat = iter(words)
    accepted = [[next(flat) for _ in several] for several in references]
    return tokenize(texts, tokenizer), accepted


def _measure(captions: Sequence[str], references: Sequence[Sequence[str]]) -> _Figures:
    """BLEU, ROUGE-L and CIDEr; METEOR has its own process."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates = {index: [caption] for index, caption in enumerate(captions)}
    accepted = {index: list(several) for index, several in enumerate(references)}
    bleus, each_bleu, counts = measure_bleu(captions, references)
    rouge, each_rouge = Rouge().compute_score(accepted, candidates)
    cider, each_cider = Cider().compute_score(accepted, candidates)
    corpus = dict(zip((*BLEUS, "rouge_l", "cider"), map(float, (*bleus, rouge, cider)), strict=True))
    questions = dict(zip((*BLEUS, "rouge_l", "cider"), (*each_bleu, each_rouge, each_cider), strict=True))
    return _Figures(corpus, questions, counts)


def measure_bleu(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """BLEU-1..4 of the corpus and of each question [4, questions], and the counts they follow from [questions, 9]."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=MAX_ORDER)
    for caption, accepted in zip(captions, references, strict=True):
        scorer += (caption, list(accepted))
    corpus, each = scorer.compute_score(option="closest")
    counts = [[*one["correct"], *one["guess"], _closest(one["reflen"], one["testlen"])] for one in scorer.ctest]
    return corpus, np.array(each), np.array(counts, dtype=float)


def _closest(lengths: Sequence[int], length: int) -> int:
    """The length of the reference that is closest to the caption's, the shorter one of two equally close."""
    return min((abs(one - length), one) for one in lengths)[1]


CAPTION_METRICS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]], str], CaptionScore]] = {
    "cider": score_cider,
    "mean_of_seven": score_mean_of_seven,
}
