"""Formatters of a report's tables: Markdown, HTML, LaTeX, CSV and text for the terminal."""

from __future__ import annotations

import csv
import html
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

from eval.report.results import REFERENCE_KINDS
from eval.report.tables import Cell, Column, Row, Table, starts_block
from robustmerge.stage.text import one_line, plain, shorten

FormatTable = Callable[[Table], str]  # one of the functions below, with its defaults
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "—": "---", "–": "--", "−": "$-$",
    "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
}  # fmt: skip
CSV_PARTS = ("value", "low", "high", "p", "deviation", "seeds_low", "seeds_high")  # as in Cell
MARKDOWN = str.maketrans({character: f"&#{ord(character)};" for character in '&<>|*_`[]\\~#$"'})
BLOCK = re.compile(r"[-+](?=\s|$)|[-=](?=[-= ]*$)|\d+[.)](?=\s|$)")  # begins a list, a rule or the line below a title
CODE = re.compile(r"[^`<>&\\]*[^`<>&\\ ]")  # what stands between backticks as it is
URL = re.compile(r"https?://[\w.~:/?#@!&+,;=%-]+", re.ASCII)
LONGEST = 10_000  # characters of a text in any format
FORMULA = ("=", "+", "-", "@")  # a spreadsheet computes a text that begins so


def _fit(text: str) -> str:
    return shorten(one_line(text), LONGEST)


def escape_markdown(text: str) -> str:
    """Escape text for Markdown: on one line, with nothing that a reader takes for markup."""
    escaped = _fit(text).translate(MARKDOWN)
    if start := BLOCK.match(escaped):
        escaped = f"{start[0][:-1]}&#{ord(start[0][-1])};{escaped[start.end() :]}"
    return escaped


def escape_code(text: str) -> str:
    """Format text as code in a line of Markdown, between backticks where that is safe."""
    text = _fit(text)
    return f"`{text}`" if CODE.fullmatch(text) else f"<code>{escape_markdown(text)}</code>"


def escape_block(text: str, language: str = "") -> str:
    """Format text as a block of code in Markdown, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{plain(shorten(text, LONGEST))}\n{fence}\n"


def escape_link(title: str, url: str) -> str:
    """Format a link in Markdown; an address that is not on the web is shown as text."""
    return f"[{title}]({url})" if URL.fullmatch(url) else f"{title}: {escape_markdown(url)}"


def escape_html(text: str) -> str:
    """Escape text for HTML: on one line, with nothing that a browser takes for markup."""
    return html.escape(_fit(text))


def escape_csv(text: str) -> str:
    """Escape text for a field of CSV: on one line, and nothing that a spreadsheet computes."""
    text = _fit(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def is_reference(row: Row) -> bool:
    """Whether a row is a reference (not a merged model); a rule is drawn below the last one."""
    return row.kind in REFERENCE_KINDS or row.kind == "published_reference"


def format_markdown(table: Table) -> str:
    """Format a table as a Markdown pipe table; columns that share a title are distinguished by their headings."""
    titles = [column.title for column in table.columns]
    are_ambiguous = len(set(titles)) < len(titles)
    heads = [
        f"{column.heading}: {column.title}" if are_ambiguous and column.heading else column.title
        for column in table.columns
    ]
    lines = [_piped([escape_markdown(head) for head in (table.head, *heads)])]
    lines.append("|" + " --- |" + " ---: |" * len(table.columns))
    for row in table.rows:
        shown = [
            escape_markdown(cell.text) if column.is_text else f"**{cell.text}**" if cell.bold else cell.text
            for cell, column in zip(row.cells, table.columns, strict=True)
        ]
        lines.append(_piped([escape_markdown(row.title), *shown]))
    return "\n".join(lines) + "\n"


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _list_headings(columns: Sequence[Column]) -> Iterator[tuple[str, int]]:
    """The headings above the columns, each with the number of columns that it spans."""
    for heading, members in itertools.groupby(columns, key=lambda column: column.heading):
        yield heading, len(list(members))


def format_html(table: Table) -> str:
    """Format a table as HTML, with a bar behind every value 0..100; eval.report.page has the style sheet."""
    headings = _list_headings(table.columns)
    groups = "".join(f'<th colspan="{count}">{escape_html(heading)}</th>' for heading, count in headings)
    heads = "".join(f'<th class="{_column_class(c)}">{escape_html(c.title)}</th>' for c in table.columns)
    body = "".join(_html_heading(table, index) + _html_row(table, index) for index in range(len(table.rows)))
    return (
        f'<div class="wide"><table class="scores {table.name}"><thead><tr class="groups"><th></th>{groups}</tr>'
        f"<tr><th>{escape_html(table.head)}</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _column_class(column: Column) -> str:
    return "average" if column.is_average else "words" if column.is_text else "task"


def _html_heading(table: Table, index: int) -> str:
    """The heading of a block, above its first row."""
    if not starts_block(table.rows, index):
        return ""
    block = escape_html(table.rows[index].block)
    return f'<tr class="block"><th colspan="{len(table.columns) + 1}"><span>{block}</span></th></tr>'


def _html_row(table: Table, index: int) -> str:
    row = table.rows[index]
    last = is_reference(row) and index + 1 < len(table.rows) and not is_reference(table.rows[index + 1])
    cells = "".join(_html_cell(cell, column, table.bars) for cell, column in zip(row.cells, table.columns, strict=True))
    title = row.label if row.block else row.title
    return f'<tr{" class=last" if last else ""}><th scope="row">{escape_html(title)}</th>{cells}</tr>'


def _html_cell(cell: Cell, column: Column, bar: bool) -> str:
    text = escape_html(cell.text)
    number, space, interval = (text, "", "") if column.is_text else text.partition(" (")
    text = f"<b>{number}</b>" if cell.bold else number
    if space:
        text += f" <small>({interval}</small>"
    style = f' style="--v:{min(cell.value, 100):.1f}%"' if bar and cell.value is not None else ""
    return f'<td class="{_column_class(column)}"{style}>{text}</td>'


def escape_latex(text: str) -> str:
    r"""Escape text for a cell in LaTeX; `[` or `*` at its beginning would belong to the `\\\\` before it."""
    escaped = "".join(LATEX.get(character, character) for character in _fit(text))
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def format_latex(table: Table) -> str:
    r"""Format a table as a LaTeX `tabular` for `\input`, with booktabs rules."""
    heads = [table.head, *(column.title for column in table.columns)]
    lines = [
        f"% {_fit(table.title)}",
        r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
        r"\toprule",
        _latex_headings(table.columns),
        " & ".join(escape_latex(head) for head in heads) + r" \\",
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        before = table.rows[index - 1]
        if index and (is_reference(before) and not is_reference(row) or before.block != row.block):
            lines.append(r"\midrule")
        shown = [rf"\textbf{{{escape_latex(c.text)}}}" if c.bold else escape_latex(c.text) for c in row.cells]
        lines.append(" & ".join([escape_latex(row.title), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_headings(columns: Sequence[Column]) -> str:
    headings = [rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(text)}}}" for text, count in _list_headings(columns)]
    return " & ".join(["", *headings]) + r" \\"


def format_csv(table: Table) -> str:
    """Format a table as CSV: of each column the words, or the value and its noise; empty where it is missing."""
    parts = [
        (index, column, part)
        for index, column in enumerate(table.columns)
        for part in CSV_PARTS
        if part == "value" or any(getattr(row.cells[index], part) is not None for row in table.rows)
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [column.key if part == "value" else f"{column.key}_{part}" for _, column, part in parts]
    writer.writerow([escape_csv(head) for head in (table.head.lower(), *heads)])
    for row in table.rows:
        writer.writerow(
            [escape_csv(row.title), *(_csv_field(row.cells[index], column, part) for index, column, part in parts)]
        )
    return file.getvalue()


def _csv_field(cell: Cell, column: Column, part: str) -> str:
    if column.is_text:
        return escape_csv(cell.text)
    value = getattr(cell, part)
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def format_text(table: Table, width: int = 110, averages_only: bool = False) -> str:
    """Format a table as aligned columns for a terminal, averages first; what does not fit follows in further blocks."""
    order = sorted(range(len(table.columns)), key=lambda index: not table.columns[index].is_average)
    if averages_only:
        order = [index for index in order if table.columns[index].is_average]
    shown = [[_fit(table.columns[i].title), *(_starred(row.cells[i]) for row in table.rows)] for i in order]
    titles = [_fit(title) for title in (table.head, *(row.title for row in table.rows))]
    left = max(len(title) for title in titles)
    blocks: list[list[list[str]]] = [[]]
    room = width - left
    for column in shown:
        needed = 2 + max(len(text) for text in column)
        if needed > room and blocks[-1]:
            blocks.append([])
            room = width - left
        blocks[-1].append([text.rjust(needed) for text in column])
        room -= needed
    return "\n".join(_text_block(titles, left, block) for block in blocks)


def _starred(cell: Cell) -> str:
    return _fit(cell.text) + ("*" if cell.bold else " ")


def _text_block(titles: Sequence[str], left: int, columns: Sequence[Sequence[str]]) -> str:
    lines = [
        (title.ljust(left) + "".join(column[index] for column in columns)).rstrip()
        for index, title in enumerate(titles)
    ]
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
