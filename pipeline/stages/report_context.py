"""What a report states beside the scores: seeds, command, base, regime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.general.lmms_results import GeneralResult
from eval.report.results import Context, Regime
from llava_ext.settings import TRAINING_RECORD
from pipeline.general_results import general_rows
from pipeline.plan import Plan
from pipeline.program import command
from pipeline.sources import Source
from pipeline.sweep import describe_point, find_ordered_key, find_swept_keys
from robustmerge.formats.adapter_config import CONFIG
from robustmerge.stage.address import commit
from robustmerge.stage.files import read_json
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote


def make_context(name: str, plans: Sequence[Plan]) -> Context:
    """Build the context that the points of a report share, without general benchmarks (`read_general`)."""
    config = plans[0].config
    is_one_drawing = len({plan.config.benchmark.seed for plan in plans}) == 1
    seeds = {**({"benchmark": config.benchmark.seed} if is_one_drawing else {}), "bootstrap": config.bootstrap.seed}
    of_bases = {base.seed for plan in plans if (base := plan.config.model.trained_base)}
    if len(of_bases) == 1:
        seeds["base"] = of_bases.pop()
    if config.trains and len({plan.config.seed for plan in plans}) == 1:
        seeds["experts"] = config.seed
    return Context(
        name=name,
        benchmark=config.benchmark.name,
        model=" and ".join(dict.fromkeys(plan.config.model.name for plan in plans)),
        profile=config.profile,
        tasks=tuple({task.name: task for plan in plans for task in plan.config.tasks}.values()),
        questions={
            task.name: plan.questions(plan.test_set(task)) for plan in reversed(plans) for task in plan.config.tasks
        },  # of the first point that has the task
        seeds=seeds,
        command=command("merge_eval", lambda word: not word.startswith("jobs=")),
        bootstrap=config.bootstrap,
        paper_table=config.paper_table,
        bases=_read_bases(plans),
        regime=_read_regime(plans),
        protocol=config.protocol,
        swept=find_ordered_key(plans),
        pdf=config.pdf,
        **commit(),
    )


def read_general(plans: Sequence[Plan]) -> tuple[GeneralResult, ...]:
    """Read the finished general benchmarks of the sources of these points, each source once.

    Raises UserError where the val scores are missing by which strengths are chosen.
    """
    titles: dict[Plan, dict[str, Source]] = {plan: {} for plan in plans}
    keys = find_swept_keys(plans)
    keys_of_base = [key for key in keys if key != "seed"] if len({plan.base.path for plan in plans}) > 1 else []
    seen = set()
    for plan in plans:
        for source in (source for source in plan.sources if source.address.path not in seen):
            seen.add(source.address.path)
            point = describe_point(plan, keys if source.kind != "zero_shot" else keys_of_base)
            chosen = ", strength chosen" if source.variant else ""
            titles[plan][source.title + chosen + (f" ({point})" if point else "")] = source
    return tuple(row for plan in plans for row in general_rows(plan, titles[plan]))


def _read_bases(plans: Sequence[Plan]) -> tuple[dict[str, Any], ...]:
    """Read name and training record of each small base of these points that has a record."""
    names = {plan.base.path / TRAINING_RECORD: plan.base_name for plan in plans}
    return tuple(_read_base(file, name) for file, name in names.items() if file.exists())


def _read_base(file: Path, name: str) -> dict[str, Any]:
    record = {"parameters": 0, **read_json(file, "the record of a training"), "name": name}
    if not isinstance(record["parameters"], (int, float)):
        raise UserError(f"{file}: parameters must be a number, got {quote(record['parameters'])}")
    for key in ("probe", "heads", "skills"):
        values = record.get(key) or {}
        if not isinstance(values, dict) or not all(isinstance(value, (int, float)) for value in values.values()):
            raise UserError(f"{file}: {key} must be accuracies by name, got {quote(values)}")
    return record


def _read_regime(plans: Sequence[Plan]) -> Regime | None:
    """Read how much of the language model's width the experts can span; None if the points differ in it."""
    regimes = {_regime_of(plan) for plan in plans}
    return regimes.pop() if len(regimes) == 1 else None


def _regime_of(plan: Plan) -> Regime | None:
    """The regime of one plan's experts and base; None if their configs cannot be read."""
    try:
        model = read_json(plan.base.path / "config.json", "the config of a model")
        experts, trained_rank = plan.merged_experts.values(), plan.config.peft.r if plan.config.trains else None
        configs = [
            {"r": trained_rank} if trained_rank else read_json(one.path / CONFIG, "the config of an adapter")
            for one in experts
        ]
    except UserError:
        return None
    text_model = model.get("text_config", model)
    sizes = [config.get("r") for config in configs]
    sizes += [text_model.get("hidden_size") if isinstance(text_model, dict) else None]
    *ranks, width = [size for size in sizes if isinstance(size, int) and size > 0] or [0]
    return Regime(len(ranks), max(ranks), width) if ranks and len(ranks) + 1 == len(sizes) else None
