"""Any text in a question, an answer or a title is shown as it is: no report lacks, gains or obeys anything by it."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.report.assemble import Report, assemble_report, format_summary
from eval.report.formats import escape_block, escape_code, escape_csv, escape_html, escape_latex, escape_markdown
from eval.report.results import Context, SourceResult
from eval.settings import Bootstrap
from robustmerge.stage.records import Example, Prediction, write_examples, write_predictions
from robustmerge.stage.text import one_line
from tests.report_cases import PAPER_URL, TASKS, N, make_score

PAYLOADS = (
    '<img src="logo.gif">', "src=\"figures/tasks.svg\"", "<script>alert(1)</script>", "| a | b |", "`x` ``y``",
    "```\n# h\n```", "**b** _i_ ~~s~~", "[x](javascript:alert(1))", "![i](http://e.org/i.png)", "<!-- ", "</details>",
    "a\n\n# b\n\n- c\n---\n| d |\n| --- |", "- [ ] x", "> q", "1. x", "$x$ $\\frac$ $$", "\\input{/etc/passwd} % c",
    "[1em] *", "=HYPERLINK(\"x\")", "&lt;b&gt; &amp; &#60;", "\x1b[2J\x1b[1;1H done \x07\x00\x9b", "\u202egpj.exe",
    "été", "~^_{}#&%", "x" * 10**5, "x ✓", "</td></tr></table>", "\r\n\tx\x0b\x0c\u2028", "_x",
)  # fmt: skip
SPECIAL = st.text(st.sampled_from("<>&\"'`|*_~#[]()!\\$-+=.:1ax \n\t{}%^\x1b\x02\u202e"), max_size=12)


class Structure(HTMLParser):
    """The tags of a page with the names of their attributes, where links and pictures lead, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.targets: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.targets += [value[:30] for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}",))

    def handle_comment(self, data):
        self.tags.append(("comment",))

    def handle_data(self, data):
        self.text += data


def make_report(texts, context: Context, folder: Path) -> Report:
    """A report in which every text that comes from elsewhere is the next one of `texts`."""
    take = lambda: next(texts)  # noqa: E731
    tasks = tuple(dataclasses.replace(task, title=take()) for task in TASKS)
    questions = {}
    for task in tasks:
        questions[task.name] = folder / f"{task.name}.jsonl"
        write_examples(
            questions[task.name],
            [Example(f"{task.name}-{i}", take(), take(), choices=(take(), take()), image="0.png") for i in range(3)],
        )
    results = []
    for source, kind in (("merged/a", "merged"), ("merged/b", "merged"), ("zero_shot", "zero_shot")):
        scores = {task.name: make_score(task.name, 60, n_failed=1) for task in tasks}
        scores["rec"] = dataclasses.replace(scores["rec"], value=None, reason=take(), values={}, metric=take())
        files = {task.name: folder / f"{source[-1]}-{task.name}.jsonl" for task in tasks}
        for name, file in files.items():
            answers = [Prediction(f"{name}-{i}", take()) for i in range(2)]
            write_predictions(file, [*answers, Prediction(f"{name}-2", "", error=take())])
        known = {
            "address": take(),
            "settings": {"key": {"b": take(), "c": [take()]}},
            "method": source[-1] if kind == "merged" else "",
        }
        results.append(SourceResult(source, kind, take(), scores, files, overrides={"x": take()}, **known))
    base = {"probe": {take(): 0.5}, "skills": {take(): 0.5}}
    known = {"benchmark": take(), "model": take(), "command": take(), "commit": take(), "notes": (take(),)}
    facts = dataclasses.replace(context, tasks=tasks, questions=questions, bases=(base,), **known)
    return assemble_report(results, dataclasses.replace(facts, bootstrap=Bootstrap(draws=20)))


def count_cells(text: str) -> list[int]:
    return [line.count("|") for line in text.splitlines() if line.startswith("|")]


def without_alternatives(tags: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [tag for tag in tags if tag[0] not in ("span", "/span")]


@pytest.fixture(scope="module")
def harmless(context, tmp_path_factory) -> Report:
    texts = (f"word {number}" for number in itertools.count())
    return make_report(texts, context, tmp_path_factory.mktemp("harmless"))


@pytest.mark.parametrize("shift", range(2))
def test_no_text_changes_what_a_report_consists_of(shift, context, harmless, tmp_path):
    turn = itertools.cycle(PAYLOADS)
    texts = (f"{next(turn)}{' ' * (number // len(PAYLOADS))}" for number in itertools.count())
    report = make_report(itertools.islice(texts, 9 * shift, None), context, tmp_path)
    assert report.files.keys() == harmless.files.keys()
    page, clean = (Structure(one.files["report.html"].decode()) for one in (report, harmless))
    assert without_alternatives(page.tags) == without_alternatives(clean.tags)
    assert page.targets == clean.targets
    text, clean_text = (one.files["report.md"].decode() for one in (report, harmless))
    assert count_cells(text) == count_cells(clean_text)
    assert text.count("\n") - text.split("```bash")[1].count("\n") == clean_text.count("\n") - 3
    for name, content in report.files.items():
        if name.endswith((".md", ".html", ".tex", ".csv")):
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", content.decode()), name
    assert "\x1b" not in format_summary(report)
    assert len(text) < 5 * 10**6
    for name in ("tables/main", "tables/counts", "tables/differences"):
        assert_same_table(report, harmless, name)


def assert_same_table(report: Report, harmless: Report, name: str) -> None:
    for suffix in (".csv", ".tex"):
        hostile, clean = (one.files[name + suffix].decode() for one in (report, harmless))
        assert hostile.count("\n") == clean.count("\n")
        if suffix == ".csv":
            assert [*map(len, csv.reader(io.StringIO(hostile)))] == [*map(len, csv.reader(io.StringIO(clean)))]
            continue
        for line, other in zip(hostile.splitlines(), clean.splitlines(), strict=True):
            bare = re.sub(r"\\[&%$#_{}]", "", line)
            assert line[0] == other[0] == "%" or count_tex(bare) == count_tex(other)


def count_tex(line: str) -> tuple[int, ...]:
    commands = re.findall(r"\\(?!text)[a-z]+", re.sub(r"\$(\\pm|[<>])\$", "", line))
    return line.count("&"), line.count("{") - line.count("}"), line.count("%"), len(commands), line.count(r"\\")


def test_long_texts_are_shortened_and_most_of_all_in_the_examples(context, tmp_path):
    report = make_report(itertools.repeat("x" * 10**5), context, tmp_path)
    examples = report.files["report.md"].decode().split("## Examples")[1].split("## How this was made")[0]
    assert len(examples) < 400_000
    assert sum(map(len, report.files.values())) < 3 * 10**6


@settings(max_examples=60, deadline=None)
@given(SPECIAL, st.sampled_from([escape_markdown, escape_code]))
@example("---", escape_markdown)
@example("- - -", escape_markdown)
@example("+ a", escape_markdown)
@example("1. a", escape_markdown)
@example("=", escape_markdown)
def test_markdown_shows_any_text_as_it_is_wherever_it_stands(text, escape):
    pages = []
    for shown in (escape(text), escape("x")):
        source = f"# t {shown}\n\n- **a** {shown}\n\n> {shown}\n\n| a | {shown} |\n| --- | ---: |\n| {shown} | b |\n"
        pages.append(Structure(markdown.markdown(source, extensions=["tables", "fenced_code", "sane_lists"])))
    hostile, clean = pages
    if one_line(text):
        assert hostile.tags == clean.tags
    assert hostile.text.count(one_line(text)) >= 4


@settings(max_examples=60, deadline=None)
@given(SPECIAL)
def test_every_format_shows_any_text_as_it_is(text):
    assert Structure(f"<p>{escape_html(text)}</p>").text == one_line(text)
    (row,) = csv.reader(io.StringIO(f"{escape_csv(text)!s}".replace('"', '""').join('""')))
    assert row[0].removeprefix("'") == one_line(text).removeprefix("'")
    block = Structure(markdown.markdown(f"a\n\n{escape_block(text, 'bash')}\nb", extensions=["fenced_code"]))
    assert [tag[0] for tag in block.tags] == ["p", "/p", "pre", "code", "/code", "/pre", "p", "/p"]
    latex = escape_latex(text)
    assert not latex.startswith(("[", "*"))
    assert not re.search(r"[\\&%$#_{}~^\n]", re.sub(r"^\{\}|\\text[a-z]+\{\}|\\[&%$#_{}]|\$[-<>]\$", "", latex))


@pytest.mark.usefixtures("undrawn")
def test_only_an_address_on_the_web_becomes_a_link(plain_context):
    papers = ["javascript:alert(1)", "https://x) [y](javascript:z", 'https://x" onclick="y', "https://arxiv.org/abs/1"]
    scores = {"vqav2": make_score("vqav2", N // 2)}
    results = [SourceResult(f"merged/{paper}", "merged", paper, scores, paper=paper, method="a") for paper in papers]
    page = Structure(assemble_report(results, plain_context).files["report.html"].decode())
    links = [target for target in page.targets if not target.startswith("data:image")]
    assert [link for link in links if not link.startswith(PAPER_URL[:20])] == []
    assert "https://arxiv.org/abs/1" in links
    assert all(f"paper: {paper}" in page.text for paper in papers[:-1])
