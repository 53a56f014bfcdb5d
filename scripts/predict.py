"""Answer the test questions of the chosen tasks with one source: `python scripts/predict.py source=...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from scripts import answers, steps, summary

    lines = steps.plan(points)
    answers.check_devices(lines)
    answers.check_sources(lines)
    steps.prepare(lines)
    steps.build_base(lines)
    answers.predict(lines, answers.chosen_source)
    summary.tell_made([address for line in lines for address in answers.predictions_of(line)])
    summary.tell_answers(lines)


if __name__ == "__main__":
    run("predict", walk)
