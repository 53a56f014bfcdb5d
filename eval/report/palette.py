"""Styles and panels of the figures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.results import REFERENCE_KINDS
from eval.report.tables import Row
from robustmerge.stage.drawing import COLOURS, GREY, INK, MARKERS

REFERENCE_MARKERS = {"zero_shot": "o", "individual": "|", "multi_task": "D"}


@dataclass(frozen=True)
class Style:
    """How a source is drawn."""

    colour: str
    marker: str
    filled: bool


def assign_styles(rows: Sequence[Row]) -> list[Style]:
    """A style for each row, the same for rows with one label.

    The first reference of a kind is grey or black, any others coloured; other sources take colours and markers in turn.
    Where strengths were chosen, marks of merged models at their default strength are hollow.
    """
    labels: dict[str, list[str]] = {}
    for row in rows:
        of_kind = labels.setdefault(row.kind if row.kind in REFERENCE_KINDS else "merged", [])
        of_kind += [row.label] if row.label not in of_kind else []
    any_chosen = any(row.chosen for row in rows)
    styles = []
    for row in rows:
        if row.kind in REFERENCE_KINDS:
            turn, hollow = labels[row.kind].index(row.label), row.kind == "zero_shot"
            colour = COLOURS[(turn - 1) % len(COLOURS)] if turn else GREY if hollow else INK
            styles.append(Style(colour, REFERENCE_MARKERS[row.kind], filled=not hollow and not turn))
        else:
            turn = labels["merged"].index(row.label)
            marker = MARKERS[(turn // len(COLOURS) + turn) % len(MARKERS)]
            styles.append(Style(COLOURS[turn % len(COLOURS)], marker, filled=row.chosen or not any_chosen))
    return styles


def list_panels(rows: Sequence[Row]) -> list[tuple[str, list[int]]]:
    """The panels of a figure, as heading and indices of rows: one for each way the experts were trained."""
    facets = list(dict.fromkeys(row.facet for row in rows if row.facet))
    if len(facets) < 2:
        return [("", list(range(len(rows))))]
    return [(facet, [i for i, row in enumerate(rows) if row.facet in ("", facet)]) for facet in facets]
