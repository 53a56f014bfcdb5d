"""The page of findings: beside the report of the same overrides, with details, figures and tables in `findings/`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipeline.plan import Plan
from pipeline.stages.report import name_of
from pipeline.tools.findings.figures import draw_findings
from pipeline.tools.findings.measure import measure
from pipeline.tools.findings.relations import MIN_GAP, Findings, Row, relate
from pipeline.tools.findings.sentences import conclude, limits, varied_alone
from pipeline.tools.findings.tables import compose_details, tell_kept, tell_relations
from pipeline.tools.inspect.inspect import as_csv
from robustmerge.stage.files import write_atomically

ABOUT = """\
{points}. Independent A: every expert began with a random A of its own; shared A: all with one. An expert's update of \
a layer is the product B A of two thin matrices; taken together, those of all {modules} adapted layers are one long \
vector{extras}. Numbers are means ± sample standard deviations over seeds. They say what goes together in these runs, \
not what causes what: {varied} varied alone."""

TRIED = """\
Strength multiplies the whole update and changes nothing else of it. Mean score on the val questions of the seen tasks \
at every strength tried:"""
GAINS = f"""\
On each expert's own task: how much of its gain over zero-shot a merged model retains, (merged − zero-shot) / \
(individual − zero-shot), against what the merge left of the expert. Tasks with a gain below {MIN_GAP:g} points are \
left out."""
MORE = """\
More: [the experts, every merged model and every correlation](findings/details.md); the numbers of each seed are in \
the CSV files beside it."""


def write(plans: Sequence[Plan]) -> list[Path]:
    """Measure, and write a page for every run folder; returns the pages. Raises UserError where results are missing."""
    roots = {plan.root: [other for other in plans if other.root == plan.root] for plan in plans}
    return [_write_one(root, alike) for root, alike in roots.items()]


def _write_one(root: Path, plans: Sequence[Plan]) -> Path:
    found = measure(plans)
    relations = relate(found)
    page = root / "reports" / name_of(plans) / "findings.md"
    folder = page.parent / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    for table in dataclasses.fields(found):
        write_atomically(folder / f"{table.name}.csv", as_csv(getattr(found, table.name)))
    write_atomically(folder / "relations.csv", as_csv(relations))
    drawn = draw_findings(found)
    for figure in drawn:
        write_atomically(folder / f"{figure.name}.png", figure.png)
        write_atomically(folder / f"{figure.name}.svg", figure.svg)
    pictures = {figure.name: f"![{figure.alt}](findings/{figure.name}.png)" for figure in drawn}
    write_atomically(page, compose(plans, found, relations, pictures))
    beside = {name: link.replace("(findings/", "(") for name, link in pictures.items()}
    write_atomically(folder / "details.md", compose_details(found, relations, beside))
    return page


def compose(plans: Sequence[Plan], found: Findings, relations: Sequence[Row], pictures: dict[str, str]) -> str:
    """The page as Markdown."""
    config = plans[0].config
    blocks = [f"# What goes with the ranking: {config.benchmark.name}, {config.model.name}", _about(found)]
    if config.profile != "full":
        blocks.append(f"**Profile {config.profile}: the numbers mean nothing.**")
    blocks += ["## In short", *conclude(found, relations)]
    blocks += ["## What a merge leaves of the experts", *tell_kept(found)]
    if "strengths" in pictures:
        blocks += [TRIED, pictures["strengths"]]
    blocks += ["## What goes with the scores", *tell_relations(relations), GAINS, pictures["scores"]]
    blocks += ["## What this cannot tell about a 7B model", "\n".join(f"- {limit}" for limit in limits(plans, found))]
    return "\n\n".join([*blocks, MORE]) + "\n"


def _about(found: Findings) -> str:
    seeds: dict[str, set[int]] = {}
    for row in found.experts:
        seeds.setdefault(row["group"], set()).add(row["seed"])
    points = "; ".join(f"{group}: seeds {', '.join(map(str, sorted(own)))}" for group, own in seeds.items())
    modules = sorted({row["modules"] for row in found.experts})
    saved = any(row["extras"] for row in found.experts)
    extras = " (what was trained in full, the projector, is averaged by every method and is not among them)"
    return ABOUT.format(
        points=points[0].upper() + points[1:],
        modules="-".join(map(str, modules)),
        extras=extras if saved else "",
        varied=varied_alone(found),
    )
