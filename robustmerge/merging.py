"""The merge stage: merges folders of experts into one folder, module by module.

Experts are opened sorted by name and never held in memory whole: their files are mapped, and one module of all
experts (one a worker) is read, merged and written at a time. In a notebook:

    from robustmerge.merging import merge_folders
    merge_folders(["path/a", "path/b"], "ties", "path/c")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from robustmerge.algebra import measure_model, merge_module, needs_another_majority
from robustmerge.experts import fetch_experts
from robustmerge.formats.adapter import Adapter, open_adapters
from robustmerge.formats.adapter_config import CONFIG, WEIGHT_FILES
from robustmerge.formats.adapter_writer import AdapterInMemory, AdapterWriter
from robustmerge.formats.compatibility import find_disagreements, list_modules
from robustmerge.formats.delta import DeltaWriter
from robustmerge.formats.full_model import ModelWriter
from robustmerge.formats.output import base_of, open_writer, problems_of_format, problems_of_serving
from robustmerge.hub.places import fetch_model
from robustmerge.merge_record import Norms, print_merge, record_merge, summarize_merge, write_card
from robustmerge.method import MERGE_SCHEMA, AnyMethod, problems_of_weights, read_method
from robustmerge.module import (
    EmptyRow,
    EmptyRowsError,
    Merged,
    Module,
    PairNorms,
    check_module,
    complete_module,
    measure_experts,
    measure_merged,
    to_cpu,
)
from robustmerge.other_weights import mean_extras, mean_if_present, merge_biases, problems_of_extras
from robustmerge.rules import Election, Statistics
from robustmerge.stage.address import Address, address_chosen, address_foreign, run_stage
from robustmerge.stage.files import expand
from robustmerge.stage.progress import Bar
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import plain
from robustmerge.workers import map_in_threads, set_up_for_merging

BASE_KEY = "merge.out.base"  # among the inputs of a merge; experts have the others
Say = Callable[[str], None]
Output = AdapterWriter | AdapterInMemory | DeltaWriter | ModelWriter
R = TypeVar("R")


def merge(
    address: Address,
    method: AnyMethod,
    experts: Mapping[str, Path],
    say: Say = print,
    workers: int = 1,
    progress: bool | None = None,
    device: str = "cpu",
) -> Path:
    """Merge the experts (name -> adapter folder) into the folder at `address`, and return its path.

    progress: whether progress bars are shown; None where there is a terminal. device: as of `merge_folders`.
    Raises UserError with all problems at once; nothing is written then.
    """
    work = partial(
        write_merged, method=method, experts=experts, say=say, workers=workers, progress=progress, device=device
    )
    return run_stage(address, work, say, True)


def merge_folders(
    experts: Sequence[str | Path] | Mapping[str, str | Path],
    method: AnyMethod | str,
    out: str | Path,
    workers: int = 1,
    say: Say = print,
    device: str = "cpu",
) -> Path:
    """Merge adapter folders or hub ids into the new folder `out`, and return its path.

    experts: a mapping by name, or a list, where each has its folder's name by default. method: an object, or the name
    of its file in configs/merge.
    workers: how many modules are merged side by side, in threads; it does not change the result.
    device: where modules are merged, such as `cuda`; the numbers are those of the CPU except for rounding, and random
    pruning keeps the same entries. The device is not part of the merge's identity.
    A manifest in the folder says what it was made of; the same merge into the same folder is not repeated.
    Raises UserError with all problems at once; nothing is written then.
    """
    method = read_method(method) if isinstance(method, str) else method
    folders = fetch_experts(experts)
    merge(address_at(Path(out), method, folders), method, folders, say, workers, device=device)
    return Path(out)


def merge_with_summary(
    out: str | Path,
    method: AnyMethod,
    experts: Mapping[str, Path],
    workers: int = 1,
    progress: bool | None = None,
    device: str = "cpu",
) -> None:
    """Merge adapter folders into the folder `out` as `merge_folders` does, and print what went in and what came out."""
    folder = expand(out).absolute()
    was_there = (folder / "manifest.json").exists()  # of another merge: then it is refused
    address = address_at(folder, method, experts)
    for line in describe_links(experts):
        print(line)
    work = partial(
        write_merged,
        method=method,
        experts=experts,
        say=lambda _: None,
        workers=workers,
        progress=progress,
        device=device,
    )
    run_stage(address, work, at_once=True)
    print_merge(folder, method, str(out), was_there)


def address_at(out: Path, method: AnyMethod, experts: Mapping[str, Path]) -> Address:
    """The address of a merge into a folder of the user's choice. Raises UserError if something else is there."""
    inputs = {name: address_foreign(folder) for name, folder in experts.items()}
    what = "experts"
    if (base := find_written_base(method, experts)) is not None:
        inputs, what = {**inputs, BASE_KEY: address_foreign(base)}, "experts, base"
    return address_chosen(out, "merge", MERGE_SCHEMA, method, inputs, what)


def find_written_base(method: AnyMethod, experts: Mapping[str, Path]) -> Path | None:
    """The base of which the merge writes a changed copy; None if it writes none, or if an expert does not open."""
    is_model = method.output_format == "model"
    if not is_model and method.out.for_ is None:
        return None
    adapters, problems = open_adapters(experts)
    if problems or not (is_model or adapters[0].extras):
        return None
    base = method.out.base or base_of(adapters[0])
    return fetch_model(base) if base else None


def write_merged(
    folder: Path,
    method: AnyMethod,
    experts: Mapping[str, Path],
    say: Say = print,
    workers: int = 1,
    progress: bool | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Merge into `folder` and return the record: inputs, results, omissions."""
    for line in describe_links(experts):
        say(line)
    with set_up_for_merging(device):
        adapters, out = open_experts(experts, method), method.out
        card = write_card(method, adapters)
        record = Merging(adapters, method, workers, progress, device).run(
            lambda: open_writer(folder, method.output_format, adapters, card, out.dtype, out.base, out.for_)
        )
    say(summarize_merge(method, record))
    return record


def open_experts(experts: Mapping[str, Path], method: AnyMethod) -> list[Adapter]:
    """Open all experts, sorted by name. Raises UserError if one cannot be merged or they do not fit together."""
    if not experts:
        raise UserError("there are no experts to merge")
    adapters, problems = open_adapters(experts)
    return check_together(adapters, problems, method, experts)


def check_together(
    adapters: list[Adapter], problems: list[str], method: AnyMethod, experts: Iterable[str]
) -> list[Adapter]:
    """Return the adapters if they can be merged with one another. problems: of those of the experts that did not open.

    Raises UserError with all problems at once.
    """
    if not problems:
        problems = find_disagreements(
            adapters, method.needs_equal_ranks, method.check_base, method.rank_advice, method.targets
        )
        problems += problems_of_format(method.output_format, adapters)
        problems += problems_of_serving(method.out.for_, adapters, method.out.base)
        try:
            method.by_module(list_modules(adapters))
        except UserError as error:
            problems.append(str(error))
    problems += problems_of_weights(method.weights, experts)
    if problems:
        raise UserError("\n".join(problems))
    return adapters


def describe_links(experts: Mapping[str, Path]) -> list[str]:
    """List, a line each, the experts' files that are links out of their folders, except links in the Hub's cache."""
    lines = []
    for name, folder in sorted(experts.items()):
        for file in (folder / file for file in (CONFIG, *WEIGHT_FILES)):
            target = Path(os.path.realpath(file))
            snapshots = target.parent.parent / "snapshots"
            is_cached = target.parent.name == "blobs" and folder.resolve().is_relative_to(snapshots)
            if file.is_symlink() and not target.is_relative_to(folder.resolve()) and not is_cached:
                lines.append(plain(f"expert '{name}': {file.name} is a link to {target}"))
    return lines


class WrongMajorityError(Exception):
    """Raised if positive signs were assumed to be the model's majority, are not, and the assumption mattered."""


class MergedModule(NamedTuple):
    """One merged module: all that is written and recorded of it.

    norm: ||D||_F^2 of the merged update. bias: of the update.
    """

    merged: Merged
    norm: float
    expert_norms: dict[str, PairNorms]
    bias: Tensor | None
    magnitude: Tensor | None


@dataclass(frozen=True)
class Merging:
    """One merge: opened experts, sorted by name, and the method; reads, checks, merges and writes their modules.

    device: where A and B are merged; whatever else the experts train is merged on the CPU, and everything is written
    from there.
    """

    adapters: Sequence[Adapter]
    method: AnyMethod
    workers: int = 1
    progress: bool | None = None
    device: str = "cpu"

    @cached_property
    def problems(self) -> list[str]:
        """Problems outside of the modules, raised by the first walk over them."""
        return list(problems_of_extras(self.adapters))

    @property
    def names(self) -> list[str]:
        return [a.name for a in self.adapters]

    @cached_property
    def modules(self) -> list[str]:
        """The modules that any expert adapts."""
        return list_modules(self.adapters)

    @cached_property
    def methods(self) -> Mapping[str, AnyMethod]:
        """The method of each module."""
        return self.method.by_module(self.modules)

    def read(self, name: str) -> Module:
        """Read one module of all experts, unchecked."""
        found = {a.name: a.pair(name) if name in a.shapes else None for a in self.adapters}
        return complete_module(name, found, self.method, self.device)

    def walk(self, title: str, function: Callable[[str], R], part: tuple[int, int] = (1, 1)) -> Iterator[R]:
        """Call function(module) for all modules, in order, with a progress bar. Raises UserError with all problems."""
        problems = list(self.problems)
        empty: list[EmptyRow] = []
        prune_rule = ""

        def attempt(name: str) -> R | UserError:
            try:
                return function(name)
            except UserError as error:
                return error

        hide = None if self.progress is None else not self.progress
        name = f"{title} {self.method.name}"
        modules = Bar(self.modules, name, part=part, unit="module", disable=hide)
        for result in map_in_threads(attempt, modules, self.workers):
            if isinstance(result, EmptyRowsError):
                empty += result.rows
                prune_rule = result.prune_rule
            elif isinstance(result, UserError):
                problems.append(str(result))
            else:
                yield result
        if empty:
            problems.append(str(EmptyRowsError(empty, prune_rule)))
        if problems:
            raise UserError("\n".join(dict.fromkeys(problems)))

    def measure(self) -> Statistics:
        """Measure what the method must know of all modules before it can merge one."""

        def visit(function: Callable[[Module], R]) -> Iterator[R]:
            return self.walk("measure", lambda name: function(check_module(self.read(name))), (1, 2))

        return measure_model(self.method, self.methods, self.names, visit)

    def merge(self, name: str, statistics: Statistics) -> MergedModule:
        """Merge one module: its update, and what goes with it. Raises UserError if a value is not finite."""
        module = self.read(name)
        norms = measure_experts(module)
        method = self.methods[name]
        merged = merge_module(module, method, statistics)
        biases = [a.bias(name) if name in a.shapes else None for a in self.adapters]
        bias = merge_biases(biases, method, self.names)
        magnitude = mean_if_present([a.magnitude(name) for a in self.adapters])
        norm = measure_merged(merged.update, name)
        return MergedModule(to_cpu(merged), norm, norms, bias, magnitude)

    def run(self, open_output: Callable[[], Output]) -> dict[str, Any]:
        """Merge all modules into an output, and return the record.

        open_output: opens a writer; called a second time if the assumed majority sign was wrong and that mattered.
        """
        statistics = self.measure()
        try:
            return self.write(open_output(), statistics)
        except WrongMajorityError:
            return self.write(open_output(), replace(statistics, majority=-1))

    def write(self, output: Output, statistics: Statistics) -> dict[str, Any]:
        """Merge all modules into the output, and return the record."""
        method, norms, dropped = self.method, Norms(), 0
        elections: list[Election] = []
        part = (2, 2) if method.needs_whole_model else (1, 1)
        with output as writer:
            for name, module in self.walk("merge", lambda name: (name, self.merge(name, statistics)), part):
                writer.add_update(name, module.merged.update, magnitude=module.magnitude, bias=module.bias)
                norms.add(module.norm, module.expert_norms, module.merged.cut)
                elections.append(module.merged.election)
                dropped += module.merged.dropped
            if needs_another_majority(statistics, elections):
                raise WrongMajorityError
            for name, mean in mean_extras(self.adapters):
                writer.add_extra(name, mean)
        record = record_merge(method, self.adapters, writer.ranks, dropped, norms)
        return record if self.device == "cpu" else {**record, "device": self.device}
