"""Progress bars: drawn in a terminal; in a child process reported to its parent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from tqdm import tqdm

from robustmerge.stage.text import one_line

STATUS = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class Bar(tqdm):
    """tqdm's bar for one of several parts of the work; if `report` is set, nothing is drawn.

    part: (which, of how many), counted from 1. report(fraction of the work that is done, status) is set once for the
    whole process; bars are then active even where there is no terminal, unless `disable=True`.
    """

    report: ClassVar[Callable[[float, str], None] | None] = None

    def __init__(
        self,
        iterable: Iterable | None = None,
        desc: str | None = None,
        *arguments: Any,
        part: tuple[int, int] = (1, 1),
        **options: Any,
    ):
        self.part = part
        if Bar.report is not None:
            options |= {"disable": options.get("disable") is True, "mininterval": 0.5, "delay": 0}
        desc = one_line(f"part {part[0]}/{part[1]} {desc}" if part[1] > 1 else desc or "")
        super().__init__(iterable, desc or None, *arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw or report the present state."""
        if Bar.report is None:
            super().display(msg, pos)
        elif self.total:
            number, parts = self.part
            status = self.format_meter(**{**self.format_dict, "bar_format": STATUS})
            Bar.report((number - 1 + self.n / self.total) / parts, status)
