"""What a report states beside the scores: seeds, command, base, regime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from eval.general import GeneralRow
from eval.results import Context, Regime
from robustmerge.runs import commit, read_manifest
from scripts.commands import command
from scripts.general_results import general_rows
from scripts.line import Line
from scripts.sources import Source


def make_context(name: str, lines: Sequence[Line]) -> Context:
    """Everything that the points of a report share, but for what general.py has measured: `read_general`."""
    config = lines[0].config
    seeds = {"benchmark": config.benchmark.seed, "bootstrap": config.bootstrap.seed}
    if config.model.base is not None:
        seeds["base"] = config.model.base.seed
    if config.trains and len({line.config.seed for line in lines}) == 1:
        seeds["experts"] = config.seed
    return Context(
        name=name,
        benchmark=config.benchmark.name,
        model=config.model.name,
        profile=config.profile,
        tasks=tuple({task.name: task for line in lines for task in line.config.tasks}.values()),
        questions={task.name: line.questions(task) for line in lines for task in line.config.tasks},
        seeds=seeds,
        command=command("merge_eval", lambda word: not word.startswith("jobs=")),
        bootstrap=config.bootstrap,
        base=_read_base(lines),
        regime=_read_regime(lines),
        protocol=config.protocol,
        **commit(),
    )


def read_general(lines: Sequence[Line]) -> tuple[GeneralRow, ...]:
    """What general.py has measured of the sources of these points, each source once.

    Raises UserError where the val scores are missing by which strengths are chosen.
    """
    titles: dict[Line, dict[str, Source]] = {line: {} for line in lines}
    seen = set()
    for line in lines:
        own = [word for word in line.config.overrides if any(word not in other.config.overrides for other in lines)]
        for source in (source for source in line.sources if source.address.path not in seen):
            seen.add(source.address.path)
            point = f" ({', '.join(own)})" if own and source.kind != "zero_shot" else ""
            chosen = ", strength chosen" if source.variant else ""
            titles[line][source.title + chosen + point] = source
    return tuple(row for line in lines for row in general_rows(line, titles[line]))


def _read_base(lines: Sequence[Line]) -> dict[str, Any] | None:
    """What the training of the base recorded; None for a checkpoint from elsewhere, and if the points have several."""
    bases = {line.base.path: line.base for line in lines}
    if lines[0].config.model.base is None or len(bases) > 1 or not lines[0].base.is_complete():
        return None
    return read_manifest(lines[0].base.manifest)["record"]


def _read_regime(lines: Sequence[Line]) -> Regime | None:
    """How much of the language model's width the experts can span; None if the points differ in it."""
    found = {_regime_of(line) for line in lines}
    return found.pop() if len(found) == 1 else None


def _regime_of(line: Line) -> Regime | None:
    """None where the files do not tell."""
    try:
        model = json.loads((line.base.path / "config.json").read_text())
        ranks = [json.loads((expert.path / "adapter_config.json").read_text())["r"] for expert in line.experts.values()]
        return Regime(len(ranks), max(ranks), model.get("text_config", model)["hidden_size"])
    except (OSError, ValueError, KeyError):
        return None
