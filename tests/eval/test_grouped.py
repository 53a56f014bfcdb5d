"""Laws of F1 of "yes", accuracy+ and circular accuracy: of questions that belong together. Needs nothing."""

from __future__ import annotations

import dataclasses
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.prepare import draw_task
from data_prep.settings import Counts, TaskData
from eval.metrics.aggregates import AGGREGATES
from eval.score import score_predictions
from eval.settings import Bootstrap, Scoring
from eval.statistics import Resampled, sum_statistics
from robustmerge.stage.records import Prediction, Score

SCORINGS = {
    "pope_like": Scoring("pope_like", "yes_no", "f1_of_yes"),
    "mme_like": Scoring("mme_like", "yes_no", "accuracy_plus"),
    "mmbench_like": Scoring("mmbench_like", "letter", "circular"),
}
EXAMPLES = {
    task: [one for drawn in draw_task(TaskData(task, task, Counts(0, 0, 40)))["test"] for one in drawn.examples]
    for task in SCORINGS
}
BOTH = pytest.mark.parametrize("task", SCORINGS)


def score(task: str, answers: list[str], order: Random | None = None) -> Score:
    """Score answers to the questions, in the order of the questions or in a shuffled one."""
    pairs = list(zip(EXAMPLES[task], answers, strict=True))
    if order is not None:
        order.shuffle(pairs)
    predictions = [Prediction(example.question_id, answer) for example, answer in pairs]
    return score_predictions(SCORINGS[task], [example for example, _ in pairs], predictions)


def draw_answers(task: str) -> st.SearchStrategy[list[str]]:
    said = st.sampled_from(("A", "B", "C", "D", "", "who knows") if task == "mmbench_like" else ("yes", "no", "", "hm"))
    wrong = st.lists(said, min_size=len(EXAMPLES[task]), max_size=len(EXAMPLES[task]))

    def mix(answers: list[str], rng: Random) -> list[str]:
        pairs = zip(EXAMPLES[task], answers, strict=True)
        return [example.answer if rng.random() < 0.7 else answer for example, answer in pairs]

    return st.builds(mix, wrong, st.integers(0, 2**32).map(Random))


@BOTH
def test_a_perfect_answerer_gets_100_in_every_figure_and_silence_gets_0(task: str) -> None:
    perfect = score(task, [example.answer for example in EXAMPLES[task]])
    assert perfect.value == pytest.approx(100)
    figures = {name: part for name, part in perfect.parts.items() if name not in ("points", "said_yes")}
    assert figures == pytest.approx(dict.fromkeys(figures, 100))
    assert score(task, [""] * len(EXAMPLES[task])).value == 0


def test_always_yes_is_half_right_misses_no_yes_and_has_no_pair_right() -> None:
    of_pope, of_mme = (score(task, ["yes"] * len(EXAMPLES[task])) for task in ("pope_like", "mme_like"))
    assert (of_pope.parts["accuracy"], of_pope.parts["recall"], of_pope.parts["said_yes"]) == (50, 100, 100)
    assert of_pope.value == pytest.approx(200 / 3)
    assert (of_mme.parts["accuracy"], of_mme.parts["accuracy_plus"]) == (50, 0)
    assert of_mme.value == pytest.approx(25)  # 50 of 200 points a subtask
    assert of_mme.parts["points"] == pytest.approx(50 * len({example.category for example in EXAMPLES["mme_like"]}))


def test_one_letter_for_all_is_a_quarter_right_and_no_whole_rotation() -> None:
    always = score("mmbench_like", ["A"] * len(EXAMPLES["mmbench_like"]))
    assert (always.value, always.parts["accuracy"]) == (0, 25)


@BOTH
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_group_is_right_only_where_its_questions_are_and_order_does_not_matter(task: str, data) -> None:
    answers = data.draw(draw_answers(task))
    scored, shuffled = score(task, answers), score(task, answers, Random(1))
    assert shuffled.value == pytest.approx(scored.value) and shuffled.parts == pytest.approx(scored.parts)
    assert 0 <= scored.value <= 100 + 1e-9 and scored.values == shuffled.values
    accuracy = 100 * np.mean(list(scored.values.values()))
    assert scored.parts["accuracy"] == pytest.approx(accuracy)
    if task == "mme_like":
        names = [name.removesuffix("_plus") for name in scored.parts if name.endswith("_plus")]
        assert len(names) == 6 and all(scored.parts[f"{name}_plus"] <= scored.parts[name] + 1e-9 for name in names)
    if task == "mmbench_like":
        assert scored.value <= accuracy + 1e-9
    assert 100 * AGGREGATES[scored.aggregate](sum_statistics(scored)) == pytest.approx(scored.value)


@BOTH
def test_the_bootstrap_resamples_pictures_with_all_their_questions(task: str) -> None:
    examples = EXAMPLES[task]
    pictures = list(dict.fromkeys(example.image for example in examples))
    right = {picture: index % 3 > 0 for index, picture in enumerate(pictures)}  # a whole group, or none of it
    no = {"yes": "no", "no": "yes"}
    scored = score(task, [one.answer if right[one.image] else no.get(one.answer, "none") for one in examples])
    assert set(scored.clusters.values()) == set(pictures)
    resampled = Resampled({"one": {task: scored}, "copy": {task: dataclasses.replace(scored)}}, Bootstrap(200))
    interval, difference = resampled.interval("one", [task]), resampled.difference("one", "copy", [task])
    assert interval.low < interval.value < interval.high and interval.value == pytest.approx(scored.value)
    assert difference.value == difference.low == difference.high == 0 and difference.p == 1
