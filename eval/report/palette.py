"""How the sources look in figures: colours, markers and the parts that rows stand in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.tables import REFERENCES, Row

# Okabe and Ito, told apart with any colour vision (https://jfly.uni-koeln.de/color/); brown for their yellow, which is
# too light for white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
INK = "#24292f"
GREY = "#6e7781"


@dataclass(frozen=True)
class Style:
    """How a source is drawn."""

    colour: str
    marker: str
    filled: bool


def assign_styles(rows: Sequence[Row]) -> list[Style]:
    """One look a label: references grey and black, from the second of a kind on coloured; others take colours and
    markers in turn. Where strengths were chosen, marks of merged models at their default are hollow."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        alike = labels.setdefault(row.kind if row.kind in REFERENCES else "merged", [])
        alike += [row.label] if row.label not in alike else []
    chosen = any(row.chosen for row in rows)
    looks = []
    for row in rows:
        if row.kind in REFERENCES:
            turn, hollow = labels[row.kind].index(row.label), row.kind == "zero_shot"
            marker = {"zero_shot": "o", "individual": "|", "multi_task": "D"}[row.kind]
            colour = COLOURS[(turn - 1) % len(COLOURS)] if turn else GREY if hollow else INK
            looks.append(Style(colour, marker, filled=not hollow and not turn))
        else:
            turn = labels["merged"].index(row.label)
            marker = MARKERS[(turn // len(COLOURS) + turn) % len(MARKERS)]
            looks.append(Style(COLOURS[turn % len(COLOURS)], marker, filled=row.chosen or not chosen))
    return looks


def list_panels(rows: Sequence[Row]) -> list[tuple[str, list[int]]]:
    """The parts of a figure, as heading and indices of rows: one for each way the experts were trained."""
    facets = list(dict.fromkeys(row.facet for row in rows if row.facet))
    if len(facets) < 2:
        return [("", list(range(len(rows))))]
    return [(facet, [i for i, row in enumerate(rows) if row.facet in ("", facet)]) for facet in facets]
