"""From a composed config to its dataclasses: all mistakes at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.settings import Bootstrap, Logger, Task
from llava_ext.settings import Model, Peft, Trainer
from robustmerge.hub import find_folder, name_of
from robustmerge.method import Method, OutsideMethod, build_method
from robustmerge.method_files import list_methods, read_method
from robustmerge.settings import ConfigError, UserError, build, suggest
from scripts.choosing import is_set_by_user
from scripts.config import Benchmark, Config, General, Paths


def read_config(point: Mapping[str, Any]) -> Config:
    """Check a composed config. Raises UserError; where several keys are wrong, all are named."""
    point = dict(point)
    problems: list[str] = []
    parts = {"paths": Paths, "benchmark": Benchmark, "model": Model, "peft": Peft, "trainer": Trainer}
    parts |= {"logger": Logger, "bootstrap": Bootstrap}
    built = {key: _collect(problems, build, cls, point.pop(key), key) for key, cls in parts.items()}
    tasks = _collect(problems, _build_tasks, point.pop("task"), point.pop("tasks"))
    merge = point.pop("merge", None)
    methods = _collect(problems, _build_methods, merge, point.pop("methods"))
    experts = _collect(problems, _read_experts, point.pop("experts"), built["paths"])
    general = _collect(problems, build, General, point, "")
    if problems:
        raise ConfigError(problems)
    fixed = tuple(method.name for method in methods if merge is not None and is_set_by_user(merge, method))
    config = Config(**built, tasks=tasks, methods=methods, experts=experts, fixed=fixed, **vars(general))
    if problems := _problems_of(config):
        raise ConfigError(problems)
    return config


def _problems_of(config: Config) -> list[str]:
    """What is wrong between the parts of a configuration, each of which is right by itself."""
    problems: list[str] = []
    for task in config.tasks:
        _collect(problems, config.data, task)
    if config.seen:
        _collect(problems, config.expert, *config.seen)
    if config.benchmark.counts.test < 1:
        problems.append(f"there must be a test question, got {config.benchmark.counts.test} (benchmark.counts.test)")
    if config.expert_set == "released" and config.experts is None:
        lacking = [task.name for task in config.seen if task.name not in config.benchmark.released]
        if lacking:
            problems.append(
                f"no expert is known to be released for {', '.join(lacking)} of {config.benchmark.name} "
                "(benchmark.released); those of the paper: benchmark=mm_mergebench model=llava15_7b"
            )
    names = {"benchmark.name": [config.benchmark.name], "model.name": [config.model.name]}
    names["merge.name"] = [method.name for method in config.methods]
    for key, found in names.items():
        bad = [name for name in found if not re.fullmatch(r"[a-z0-9_]+", name)]
        problems += [f"a name is made of a-z, 0-9 and _ (it becomes a folder), got '{name}' ({key})" for name in bad]
    return problems


def _collect(problems: list[str], make: Any, *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except ConfigError as error:
        problems.extend(error.problems)
    except (UserError, ValueError) as error:
        problems.append(str(error))
    return None


def _listed(value: Any, key: str) -> list[str]:
    """A list of names; a bare name is a list of one."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError([f"expected a list of names, as '{key}=[a,b]', got {value!r} ({key})"])
    if not names:
        raise ConfigError([f"the list is empty ({key})"])
    return names


def _build_tasks(described: Mapping[str, Any], chosen: list[str] | str | None) -> tuple[Task, ...]:
    chosen = list(described) if chosen is None else _listed(chosen, "tasks")
    problems = [
        f"unknown task '{name}'; {suggest(name, described)} (tasks)" for name in chosen if name not in described
    ]
    tasks = [
        _collect(problems, build, Task, {"name": name, **node}, f"task.{name}")
        for name, node in described.items()
        if name in chosen
    ]
    if problems:
        raise ConfigError(problems)
    return tuple(tasks)


def _build_methods(merge: Mapping[str, Any] | None, names: list[str] | str) -> tuple[Method | OutsideMethod, ...]:
    """`merge=NAME` narrows the table to one method; otherwise `methods` names its rows."""
    if merge is not None:
        return (build_method(merge),)
    problems: list[str] = []
    names = list_methods() if names == "all" else _listed(names, "methods")
    methods = tuple(_collect(problems, read_method, name) for name in names)
    if problems:
        raise ConfigError(problems)
    return methods


def _read_experts(named: list[str] | str | None, paths: Paths | None = None) -> tuple[tuple[str, Path], ...] | None:
    """Adapters as (name, folder), those on the Hub fetched; None for those of `expert_set`."""
    if named is None:
        return None
    experts: dict[str, Path] = {}
    problems: list[str] = []
    for entry in _listed(named, "experts"):
        name, colon, where = entry.partition(":")
        where = where if colon else entry
        name = name if colon else name_of(where)
        if name in experts:
            problems.append(f"two experts are called '{name}'; name them as name:folder (experts)")
            continue
        try:
            experts[name] = find_folder(where, paths.pins if paths else None)
        except UserError as error:
            problems.append(f"expert '{name}': {error} (experts)")
            continue
        if not (experts[name] / "adapter_config.json").exists():
            problems.append(f"expert '{name}': {experts[name]} has no adapter_config.json (experts)")
    if problems:
        raise ConfigError(problems)
    return tuple(experts.items())


def differences(found: Mapping[str, Any], default: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, value) for every setting that is not the default's."""
    for key, value in found.items():
        if isinstance(value, Mapping) and isinstance(default.get(key), Mapping):
            yield from differences(value, default[key], f"{prefix}{key}.")
        elif value != default.get(key):
            yield f"{prefix}{key}", value
