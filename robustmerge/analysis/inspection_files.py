"""The files of an inspection: its text, its tables as CSV and JSON, and its figures, which need matplotlib."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from robustmerge.analysis.figure_tables import TABLES, explain_missing, write_captions
from robustmerge.analysis.inspection import Inspection
from robustmerge.analysis.inspection_text import format_inspection
from robustmerge.stage.files import read_json, write_atomically
from robustmerge.stage.settings import UserError
from robustmerge.stage.tables import format_csv

INSPECTION = "inspection.json"
INSPECTED = ("experts", "modules", "kinds", "spectra", "pairs", "merged")  # the tables that are no figure's


def write_inspection(inspection: Inspection, folder: Path, figure: str | None = None) -> Path:
    """Write inspection.{txt,json,png}, all tables, and every figure of the paper that these adapters can give.

    figure: only this one, of `figure3`, `figure7` and `figure8`, beside inspection.json. figures.txt says what is
    drawn, and what is not and why; figures.json holds what is drawn. Returns the path of the picture that shows most.
    Raises UserError if `figure` cannot be drawn; and, once text and tables are written, where matplotlib is missing.
    """
    missing, captions = explain_missing(inspection), write_captions(inspection)
    if figure in missing:
        raise UserError(f"{figure} cannot be drawn: {missing[figure]}")
    figures = [name for name in captions if figure in (None, name)]
    drawn = {name: tabulate(inspection) for key in figures for name, tabulate in TABLES[key].items()}
    words = [f"{name}. {captions[name]}" for name in figures]
    contents = {"figures.json": drawn, INSPECTION: dataclasses.asdict(inspection)}
    files = {name: json.dumps(content, indent=1) for name, content in contents.items()}
    if figure is None:
        words += [f"{name} is not drawn: {reason}." for name, reason in missing.items()]
        files["inspection.txt"] = format_inspection(inspection)
        drawn |= {name: getattr(inspection, name) for name in INSPECTED}
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in drawn.items():
        write_atomically(folder / f"{name}.csv", format_csv(rows))
    for name, text in {**files, "figures.txt": "\n\n".join(words)}.items():
        write_atomically(folder / name, text + "\n")
    _draw(inspection, folder, figures)
    if figure is not None:
        return folder / f"{figure}.png"

    from robustmerge.analysis.figures import draw_inspection

    write_atomically(folder / "inspection.png", draw_inspection(inspection).png)
    return folder / "inspection.png"


def read_inspection(file: Path) -> Inspection:
    """Read what `write_inspection` has written as inspection.json, from which it writes the same files again."""
    try:
        return Inspection(**read_json(file, "an inspection"))
    except TypeError as error:
        raise UserError(f"{file} cannot be read as an inspection: {error}") from error


def _draw(inspection: Inspection, folder: Path, figures: list[str]) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the text and the tables are in {folder}; pictures need matplotlib, which cannot be imported: "
            "pip install matplotlib, or in a checkout pip install '.[figures]'"
        ) from error

    from robustmerge.analysis.figures import DRAWN

    for name in figures:
        picture = DRAWN[name](inspection)
        write_atomically(folder / f"{name}.png", picture.png)
        write_atomically(folder / f"{name}.svg", picture.svg)
        write_atomically(folder / f"{name}.pdf", picture.as_pdf())
