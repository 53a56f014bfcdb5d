"""Captions of a report's figures: what is drawn and how to read it, so that a figure can be passed on alone."""

from __future__ import annotations

QUESTIONS = "95 % intervals over questions"
BARS = f"Thick bars: {QUESTIONS}; thin bars, where there are several training seeds: 95 % intervals over seeds."
CAPTIONS = {
    "seen_unseen": (
        "Average over the seen tasks against average over the unseen ones, a mark a source; the upper right is best. "
        f"Bars: {QUESTIONS}. Dashed: the experts, each on its own task, which have no unseen score."
    ),
    "tasks": (
        f"Score of every source on every task, a mark a source; below, the averages with {QUESTIONS}. A band reaches "
        "from the lowest source to the highest."
    ),
    "swept": f"Averages over the seen tasks, and ranks of several methods, against what the sweep runs over. {BARS}",
    "swept_unseen": (
        f"Averages over the unseen tasks, and ranks of several methods, against what the sweep runs over. {BARS}"
    ),
    "standing": (
        "RobustMerge minus each other method in points: to the right of zero RobustMerge is better. Hollow: not told "
        f"apart. {BARS}"
    ),
    "ranking": f"Averages of the merged models, the best on top, RobustMerge in colour. {BARS}",
    "balance": (
        "What a model for all tasks keeps of each expert's score on the expert's task: the mean over the seen tasks, a "
        "bar of one deviation over the tasks to either side, hollow the task that keeps least. To the far right, with "
        "a short bar, is best."
    ),
    "strengths": (
        "Mean score on the val questions of the seen tasks against the multiple of each method's default update. "
        "Lines: means over training seeds; bands: from the lowest seed to the highest; circles: each seed's choice."
    ),
    "losses": (
        "Loss of every training over its steps: points are single steps, lines means over a twentieth of the run; "
        "below, the learning rates. Losses of different tasks do not compare: their answers differ in length and "
        "difficulty."
    ),
}
