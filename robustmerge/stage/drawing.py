"""The look of all figures, and a figure as bytes; the same data give the same bytes (no dates, fixed ids).

Without matplotlib, which only who draws has to have.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from robustmerge.stage.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito, distinct with any colour vision (https://jfly.uni-koeln.de/color/); brown for their yellow, which is
# too light for white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
INK = "#24292f"
GREY = "#6e7781"
GRID_COLOUR = "#e6e9ed"
RC_PARAMS = {
    "svg.hashsalt": "robustmerge",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa1ab",
    "axes.labelcolor": "#30363d",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "legend.frameon": False,
}
PLAIN_TEXT = {**RC_PARAMS, "text.parse_math": False}  # a dollar in a title begins no formula
METADATA: dict[str, dict[str, str | None]] = {  # without dates and versions
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
LONGEST_LABEL = 100  # characters


@dataclass(frozen=True)
class RenderedFigure:
    """A rendered figure. alt: its text alternative. wide: whether it needs the full width of the page."""

    name: str
    alt: str
    png: bytes
    svg: bytes
    figure: Figure = field(repr=False, compare=False)
    wide: bool = False

    def as_pdf(self) -> bytes:
        """The figure as PDF, which takes as long as PNG and SVG together."""
        return _save(self.figure, "pdf")


def render_figure(figure: Figure, name: str, alt: str, wide: bool = False) -> RenderedFigure:
    """The figure as PNG and SVG."""
    return RenderedFigure(name, alt, _save(figure, "png"), _save(figure, "svg"), figure, wide)


def _save(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=160, metadata=METADATA[kind])
    return file.getvalue()


def format_label(title: str) -> str:
    """A title as a label, shortened. matplotlib leaves labels that begin with an underscore out of a legend."""
    label = textwrap.shorten(one_line(title), LONGEST_LABEL, placeholder="…")
    return f" {label}" if label.startswith("_") else label
