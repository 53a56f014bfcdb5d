"""The merge stage: merges the experts by every method, or any adapters by one (`merge.py out=FOLDER`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from llava_ext.launch import list_gpus
from llava_ext.settings import Trainer
from pipeline.addresses import list_unfinished, require_complete
from pipeline.events import say
from pipeline.plan import Plan
from pipeline.program import train_all_command
from pipeline.stages.base import require_bases
from pipeline.stages.convert import convert
from pipeline.words import format_command
from pipeline.work_items import ONE_CPU, describe_item, drop_finished, run_side_by_side
from robustmerge.formats.serving import BASE
from robustmerge.method import AnyMethod, list_methods
from robustmerge.stage.address import Address
from robustmerge.stage.files import expand
from robustmerge.stage.settings import UserError, suggest


def check_experts(plans: Sequence[Plan], multi_task: bool = True) -> None:
    """Raises UserError naming the trained models that are not there and the command that makes them."""
    for plan in plans:
        if not plan.config.out:  # a folder of the user's own may hold a full model
            plan.check_methods()
        if not plan.experts:
            raise UserError("there is no expert to merge: none of the chosen tasks is a seen one (tasks)")
        models = plan.trained_models if multi_task else list(plan.experts.values())
        convert(plan, plan.adapters.values())
        hint = "\nor leave it out: multi_task=false" if list_unfinished(models) == [plan.multi_task] else ""
        require_complete(models, "trained models are", train_all_command, hint)


def merge(plans: Sequence[Plan], choose: bool = False) -> None:
    """Merge the experts by every method at every point, side by side; each merge gets its share of the cores.

    choose: also at every strength that is to be chosen from.
    """
    wanted = [(plan, method) for plan in plans for method in plan.config.methods]
    if choose:
        by_method = ((plan, by_factor) for plan in plans for by_factor in plan.candidate_methods.values())
        wanted += [(plan, method) for plan, by_factor in by_method for method in by_factor.values()]
    merge_by(wanted)


def merge_by(wanted: Sequence[tuple[Plan, AnyMethod]]) -> None:
    """Merge each plan's experts by the method beside it, where that is not done, side by side."""
    if not wanted:
        return
    plans = [plan for plan, _ in wanted]
    unfinished = drop_finished((plan.merged(method), (plan, method)) for plan, method in wanted)
    items = []
    workers, device = max(1, plans[0].config.jobs // max(1, len(unfinished))), plans[0].config.merge_device
    trainer = ONE_CPU if device == "cpu" else Trainer("single_gpu", device)  # one process a GPU
    if unfinished and device == "cuda" and not list_gpus():
        raise UserError("merge_device=cuda merges on GPUs, and this machine shows none; merge_device=cpu needs none")
    for address, (plan, method) in unfinished:
        experts = {name: str(expert.path) for name, expert in plan.merged_experts.items()}
        items.append(describe_item("merge", address, method, experts=experts, workers=workers, device=device))
    run_side_by_side(plans[0], "merge", items, [1.0] * len(items), trainer)


def work_merge(item: dict) -> None:
    from robustmerge.merging import merge
    from robustmerge.method import build_method

    experts = {name: Path(folder) for name, folder in item["experts"].items()}
    method = build_method(item["settings"])
    merge(Address.from_json(item["address"]), method, experts, say, item["workers"], device=item["device"])


def merge_out(plans: Sequence[Plan]) -> None:
    """Merge the experts of the only plan by its only method into the folder `out=`, and print the result.

    Raises UserError if there is more than one merge, or something else in the folder.
    """
    if len(plans) > 1:
        raise UserError("out= is one folder, and a sweep makes several merges; leave out= away, or sweep over nothing")
    (plan,) = plans
    config = plan.config
    out = str(config.out)
    if len(config.methods) != 1:
        raise UserError(f"out= is one folder for one merge: add merge=NAME; {suggest('', list_methods())}")
    if config.experts is None:
        check_experts(plans, multi_task=False)
    experts = {name: address.path for name, address in plan.merged_experts.items()}
    convert(plan, plan.adapters.values())

    from robustmerge.merging import merge_with_summary

    method, device = _with_base(plan, config.methods[0]), config.merge_device
    merge_with_summary(out, method, experts, config.jobs, device=device)
    is_model = (expand(out) / "config.json").exists()
    words = [f"model.checkpoint={out}", "source=zero_shot"] if is_model else [f"source={out}"]
    if (expand(out) / BASE).is_dir():
        words.insert(0, f"model.checkpoint={out}/{BASE}")
    answer = format_command(["python", "scripts/predict.py", *words])
    print(f"\nits README.md says how to load it; to ask it the benchmark's questions (same base): {answer}")


def _with_base(plan: Plan, method: AnyMethod) -> AnyMethod:
    """The method, with the plan's base if its output includes the base: experts trained here name it without its path.

    Raises UserError if that base is not there.
    """
    is_written = method.out.format == "model" or method.out.for_ is not None
    if not is_written or method.out.base is not None or plan.config.experts is not None:
        return method
    require_bases([plan])
    return dataclasses.replace(method, out=dataclasses.replace(method.out, base=str(plan.base.path)))
