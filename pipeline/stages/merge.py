"""`merge.py out=FOLDER`: one merge of any adapters, in this process, to a folder of the user's choice."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.jobs import say
from pipeline.plan import Plan, require, train_all_command, unfinished
from pipeline.stages.convert import convert
from pipeline.todo import item_of, once, share_out
from robustmerge.method import Method, OutsideMethod, find_unused, list_methods
from robustmerge.stage.address import Address, read_manifest
from robustmerge.stage.settings import UserError, suggest


def merge_out(plans: Sequence[Plan]) -> None:
    """Merge the experts of the one line with its one method into `out=`, and tell what came of it.

    Raises UserError if there is more than one merge, or something else in the folder.
    """
    if len(plans) > 1:
        raise UserError("out= is one folder, and a sweep makes several merges; leave out= away, or sweep over nothing")
    (plan,) = plans
    config = plan.config
    if len(config.methods) > 1:
        raise UserError(f"out= is one folder for one merge: add merge=NAME; {suggest('', list_methods())}")
    if config.experts is None:
        check_experts(plans, multi_task=False)
    experts = {name: address.path for name, address in plan.experts.items()}
    convert(plans)

    from robustmerge.merging import merge_folders

    folder = Path(config.out).expanduser().absolute()
    method = with_base(plan, config.methods[0])
    was_there = (folder / "manifest.json").exists()  # of another merge: then it is refused
    merge_folders(experts, method, folder, config.jobs, say=lambda told: None)
    tell_merged(folder, method, config.out, was_there)


def with_base(plan: Plan, method: Method | OutsideMethod) -> Method | OutsideMethod:
    """The method, for a full model of the line's own experts with the line's base: they name it, but not where it is.

    Raises UserError if that base is not there.
    """
    if method.out.format != "model" or method.out.base is not None or plan.config.experts is not None:
        return method
    if plan.config.model.base is not None:
        require([plan.base], "base model is", train_all_command())
    return dataclasses.replace(method, out=dataclasses.replace(method.out, base=str(plan.base.path)))


def tell_merged(folder: Path, method: Method | OutsideMethod, out: str, was_there: bool = False) -> None:
    """After one merge to a folder of one's own, typed as `out`: what went in, what came out, how to go on.

    was_there: the same merge had been made there before, so that nothing was done.
    """
    from robustmerge.merge_record import (
        count_experts,
        warnings_of,  # needs torch, which planning has not loaded
    )

    record = read_manifest(folder / "manifest.json")["record"]
    title = method.title or method.name
    print(f"\n{title}: {count_experts(record['experts'])} merged into {out}")
    print("it was there already, from the same experts and settings: nothing was done again\n" if was_there else "")
    rows = merge_rows(method, record)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    written = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    rows |= {"size": written, "time": f"{record['seconds']:.1f} s" + (" when it was made" if was_there else "")}
    for key, value in rows.items():
        print(f"  {key:<20} {value}")
    for warning in warnings_of(method, record):
        print(f"\nwarning: {warning}")
    is_model = (folder / "config.json").exists()
    words = ["model.base=null", f"+model.checkpoint={out}", "source=zero_shot"] if is_model else [f"source={out}"]
    answer = shlex.join(["python", "scripts/predict.py", *words])
    print(f"\nload it as its README.md says; on the line's base, answer with it: {answer}")


def merge_rows(method: Method | OutsideMethod, record: Mapping[str, Any]) -> dict[str, str]:
    """What the record of a merge tells, as lines of a table."""
    names, ranks, norms = record["experts"], record["ranks"], list(record["expert_norms"].values())
    mean = sum(norms) / len(norms)
    own = getattr(method, "params", {}).get("strength", "as the method sets it")
    factor = own if record["strength"] is None else record["effective_strength"]
    factor = f"{factor:g}" if isinstance(factor, (int, float)) else str(factor)
    if getattr(method, "strength_key", None) == "factors":
        factor += f" (strength {record['strength']:g} on A and on B)"
    unused = find_unused(method)
    ratio = f"{record['norm'] / mean:.3g} x the experts' mean of {mean:.3g}" if mean else "and the experts' too"
    return {
        "experts": ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else ""),
        "modules": str(record["modules"]),
        "rank": "none: dense updates" if not ranks else "-".join(str(rank) for rank in {ranks[0]: 0, ranks[-1]: 0}),
        "effective factor": factor,
        "norm of the update": f"{record['norm']:.3g}, {ratio}",
        "rank rows dropped": str(record["dropped_rows"]),
        "modules_to_save": f"{record['extras']} tensors averaged" if record["extras"] else "none",
        **({"not used": ", ".join(unused)} if unused else {}),
    }


def check_experts(plans: Sequence[Plan], multi_task: bool = True) -> None:
    """Raises UserError naming the trained models that are not there and the command that makes them."""
    for plan in plans:
        if not plan.config.out:  # a folder of the user's own may hold a full model
            plan.check_methods()
        if not plan.experts:
            raise UserError("there is no expert to merge: none of the chosen tasks is a seen one (tasks)")
        models = [*plan.experts.values(), plan.multi_task if multi_task else None]
        convert([plan])
        train_all = train_all_command()
        if unfinished(models) == [plan.multi_task]:
            train_all += "\nor leave it out: multi_task=false"
        require(models, "trained models are", train_all)


def merge(plans: Sequence[Plan], choose: bool = False) -> None:
    """Merge the experts, once a method and point: side by side, and each on the cores that are left.

    choose: also at every strength that is to be chosen from.
    """

    def list_one(plan: Plan) -> list[tuple[Address, Any]]:
        methods = [*plan.config.methods, *(source.method for source in (plan.tried if choose else ()))]
        return [(plan.merged(method), (plan, method)) for method in methods]

    todo = once(plans, list_one)
    items = []
    workers = max(1, plans[0].config.jobs // max(1, len(todo)))
    for address, (plan, method) in todo:
        experts = {name: str(expert.path) for name, expert in plan.experts.items()}
        items.append(item_of("merge", address, method, experts=experts, workers=workers))
    share_out(plans, "merge", items, [1.0] * len(items))


def work_merge(item: dict) -> None:
    from robustmerge.merging import merge
    from robustmerge.method import build_method

    experts = {name: Path(folder) for name, folder in item["experts"].items()}
    merge(Address.from_json(item["address"]), build_method(item["settings"]), experts, say, item["workers"], True)
