"""The check that experts can be merged with one another (equal base model, modules and shapes), and their config."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from robustmerge.formats.adapter import Adapter
from robustmerge.formats.adapter_config import SAME_BASE, SAME_KIND, TARGETS
from robustmerge.formats.names import is_saved_whole
from robustmerge.stage.settings import first_few
from robustmerge.stage.text import plain, shorten

SAVED_WHOLE = (
    "embeddings are saved whole where the vocabulary was resized, norms where they are trained; train all experts so, "
    "and list them in modules_to_save"
)
BY_DORA = "an absent module is no zero update with DoRA, whose magnitude is then that of the base; merge them apart"
BY_PEFT = "peft attaches no LoRA there, so rename the tensors or correct the list"
KINDS = {"use_dora": "a DoRA magnitude", "lora_bias": "a bias of the update"}


def find_disagreements(
    adapters: Sequence[Adapter], equal_ranks: bool, check_base: bool = True, remedy: str = "", targets: str = "union"
) -> list[str]:
    """Why these experts cannot be merged with one another: a line for every one that differs from most.

    Ranks (unless equal_ranks), alphas, rsLoRA and dtypes may differ. check_base: whether another base model is a
    reason. remedy: what to advise about ranks. targets: whether other modules are a reason (strict); with DoRA
    they always are. Where modules differ, so is LoRA on a module that the expert's own list of targets leaves out.
    """
    problems = []
    for key in SAME_BASE if check_base else ():
        values = {a.name: _comparable(a.config.get(key)) for a in adapters}
        if key == "revision":  # the tip, which is what no revision means
            values = {name: "none" if value == "main" else value for name, value in values.items()}
        odd = _odd_ones(key, values)
        problems += [f"{problem}; merge.check_base=false merges them all the same" for problem in odd]
    for key in SAME_KIND:
        problems += _odd_ones(key, {a.name: _comparable(a.config.get(key)) for a in adapters})
    for key, what in KINDS.items():
        problems += _mixed(key, what, adapters)
    usual = Counter(a.modules for a in adapters).most_common(1)[0][0]
    is_dora = any(a.is_dora for a in adapters)
    for a in adapters if is_dora or targets == "strict" else ():
        problems += _with(BY_DORA if is_dora else "", _missing(a.name, "module", usual, a.modules))
    if any(a.modules != usual for a in adapters):
        problems += _with(BY_PEFT, chain.from_iterable(map(_unnamed, adapters)))
    extras = Counter(a.extras for a in adapters).most_common(1)[0][0]
    for a in adapters:
        is_whole = any(is_saved_whole(name) for name in set(extras) ^ set(a.extras))
        problems += _with(SAVED_WHOLE if is_whole else "", _missing(a.name, "tensor", extras, a.extras))
    if equal_ranks and (targets == "strict" or all(a.modules == usual for a in adapters)):
        problems += _with(remedy, _odd_ones("rank", {a.name: _ranks_of(a) for a in adapters}))
    if not problems and equal_ranks:
        problems += _with(remedy, _odd_ranks(adapters))
    if not problems:
        problems += first_few(list(_odd_shapes(adapters)))
    return problems


def list_modules(adapters: Sequence[Adapter]) -> list[str]:
    """The modules that any expert adapts."""
    return sorted({module for a in adapters for module in a.shapes})


def unite(adapters: Sequence[Adapter]) -> Adapter:
    """The first expert with the modules of all, as what is merged has them, and their common config."""
    shapes = {module: shape for a in reversed(adapters) for module, shape in a.shapes.items()}
    kinds = {module: kind for a in reversed(adapters) for module, kind in a.kinds.items()}
    lora = {module: parts for a in reversed(adapters) for module, parts in a.lora.items()}
    renamed = adapters[0].renamed or len(shapes) > len(adapters[0].shapes)
    config = common_config(adapters)
    return replace(adapters[0], config=config, shapes=shapes, kinds=kinds, lora=lora, renamed=renamed)


def common_config(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The first expert's config, with all modules_to_save, and no targets if these differ or modules were renamed."""
    config = dict(adapters[0].config)
    if any(adapter.renamed for adapter in adapters) or any(_differ(key, adapters) for key in TARGETS):
        config |= dict.fromkeys(TARGETS)
    if _differ("modules_to_save", adapters):
        config["modules_to_save"] = sorted({name for a in adapters for name in a.config.get("modules_to_save") or []})
    return config


def _differ(key: str, adapters: Sequence[Adapter]) -> bool:
    return len({_comparable(a.config.get(key)) for a in adapters}) > 1


def _with(remedy: str, problems: Iterator[str]) -> list[str]:
    """The first few problems; the last one also says what to do."""
    few = first_few(list(problems))
    return [*few[:-1], f"{few[-1]}; {remedy}"] if few and remedy else few


def _comparable(value: Any) -> str:
    if not value or value == "none":
        return "none"
    if isinstance(value, (list, set, tuple)):
        return ", ".join(sorted(map(str, value)))
    if isinstance(value, str) and os.path.isdir(value):
        return str(Path(value).resolve())
    return str(value)


def _mixed(key: str, what: str, adapters: Sequence[Adapter]) -> Iterator[str]:
    having = [a.name for a in adapters if a.config.get(key)]
    if having and len(having) < len(adapters):
        without = [a.name for a in adapters if not a.config.get(key)]
        names = f"{', '.join(having)}; without: {', '.join(without)}"
        yield f"only some experts have {what} ({key}): {names}; merge them apart"


def _ranks_of(adapter: Adapter) -> str:
    return " and ".join(map(str, sorted(set(adapter.ranks.values()))))


def _odd_ones(what: str, values: Mapping[str, str]) -> Iterator[str]:
    usual = Counter(values.values()).most_common(1)[0][0]
    for name, value in values.items():
        if value != usual:
            others = [other for other in values if other != name]
            who = f"expert '{others[0]}'" if len(others) == 1 else "the others"
            yield f"expert '{name}' has {what} {value}, {who} {usual}"


def _missing(name: str, what: str, usual: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    for verb, odd in (("lacks", set(usual) - set(names)), ("alone has", set(names) - set(usual))):
        if odd:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            yield f"expert '{name}' {verb} {what} '{min(odd)}'{more}"


def _unnamed(adapter: Adapter) -> Iterator[str]:
    """The modules with LoRA that an expert's own list of targets leaves out, by the last part of their names."""
    targets = adapter.config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        return
    listed = shorten(plain(", ".join(sorted(targets))))
    named = {target.rpartition(".")[2] for target in targets}
    for module in adapter.modules:
        if module.rpartition(".")[2] not in named:
            yield f"expert '{adapter.name}' has LoRA on '{module}', which its target_modules ({listed}) do not name"


def _odd_ranks(adapters: Sequence[Adapter]) -> Iterator[str]:
    for module in list_modules(adapters):
        ranks = {a.name: str(a.shapes[module][1]) for a in adapters if module in a.shapes}
        yield from _odd_ones(f"rank in module '{module}'", ranks)


def _odd_shapes(adapters: Sequence[Adapter]) -> Iterator[str]:
    for module in list_modules(adapters):
        owners = [a for a in adapters if module in a.shapes]
        sizes = {a.name: f"{a.shapes[module][0]} x {a.shapes[module][2]}" for a in owners}
        yield from _odd_ones(f"shape of module '{module}'", sizes)
        yield from _odd_ones(f"kind of module '{module}'", {a.name: str(a.kinds[module]) for a in owners})
    for extra in adapters[0].extras:
        yield from _odd_ones(f"shape of '{extra}'", {a.name: str(list(a.extra_shape(extra))) for a in adapters})
