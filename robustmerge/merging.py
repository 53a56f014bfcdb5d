"""The merge stage: folders of experts in, one folder out, module by module.

Experts are opened sorted by name and never held in memory whole: their files are mapped, and one module of all
experts (one a worker) is read, merged and written at a time. In a notebook:

    from robustmerge.merging import merge_folders
    merge_folders(["path/a", "path/b"], "ties", "path/c")
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from robustmerge.algebra import merge_module, needs_another_majority, parts_of
from robustmerge.formats.adapter import Adapter, open_adapters
from robustmerge.formats.agreement import disagreements
from robustmerge.formats.output import open_writer, problems_of_format
from robustmerge.function_method import collect, merge_outside
from robustmerge.hub.places import fetch_adapter, find_place, name_of
from robustmerge.merge_record import Norms, card_for, record_of, squared_norm, summary_of
from robustmerge.method import MERGE_SCHEMA, Method, OutsideMethod, problems_of_weights, read_method, ways_past_ranks
from robustmerge.module import EmptyRow, EmptyRowsError, Merged, Module, check_module
from robustmerge.other_weights import mean_extras, mean_of, merge_biases, problems_of_extras
from robustmerge.rules import Known
from robustmerge.spaces import Blocks
from robustmerge.stage.address import Address, address_folder, foreign, run_stage
from robustmerge.stage.files import BESIDE
from robustmerge.stage.progress import Bar
from robustmerge.stage.settings import UserError
from robustmerge.thresholds import measure
from robustmerge.workers import in_order, set_up_for_merging

Say = Callable[[str], None]
R = TypeVar("R")


def merge(
    address: Address,
    method: Method | OutsideMethod,
    experts: Mapping[str, Path],
    say: Say = print,
    workers: int = 1,
    progress: bool | None = None,
) -> Path:
    """Merge the experts (name -> adapter folder) into the folder at `address`, and return its path.

    progress: whether progress bars are shown; None where there is a terminal.
    Raises UserError with all problems at once; nothing is written then.
    """
    return run_stage(address, lambda folder: write_merged(folder, method, experts, say, workers, progress), say)


def merge_folders(
    experts: Sequence[str | Path] | Mapping[str, str | Path],
    method: Method | OutsideMethod | str,
    out: str | Path,
    workers: int = 1,
    say: Say = print,
) -> Path:
    """Merge adapter folders or hub ids into the new folder `out`, and return its path.

    experts: named, or in a list, each under its folder's name. method: one, or the name of its file in configs/merge.
    workers: modules merged side by side, by threads; the result is the same for any number.
    A manifest in the folder says what it was made of; the same merge into the same folder is not made again.
    Raises UserError with all problems at once; nothing is written then.
    """
    method = read_method(method) if isinstance(method, str) else method
    named = experts.items() if isinstance(experts, Mapping) else [(name_of(e), e) for e in experts]
    folders: dict[str, Path] = {}
    for name, folder in named:
        if name in folders:
            raise UserError(f"two experts are called '{name}'; give a mapping of names to folders")
        folders[name] = fetch_adapter(find_place(folder))
    merge(address_at(Path(out), method, folders), method, folders, say, workers)
    return Path(out)


def address_at(out: Path, method: Method | OutsideMethod, experts: Mapping[str, Path]) -> Address:
    """The address of a merge into a folder of the user's choice. Raises UserError if something else is there."""
    inputs = {name: foreign(folder) for name, folder in experts.items()}
    address = address_folder(out.parent, "merged", method.name, "merge", MERGE_SCHEMA, method, inputs)
    address = replace(address, path=out)
    found = [out] if out.exists() and not out.is_dir() else out.glob("*")
    if any(not path.name.endswith(BESIDE) for path in found):
        others = f"{out} is there already and is not empty; choose another folder, or remove it (out)"
        try:
            complete = address.is_complete()
        except UserError as error:
            raise UserError(f"{others}. What it holds was made of other experts or settings") from error
        if not complete:
            raise UserError(others)
    return address


def write_merged(
    folder: Path,
    method: Method | OutsideMethod,
    experts: Mapping[str, Path],
    say: Say = print,
    workers: int = 1,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Merge into `folder` and return the record: what went in, what came out, what was left out."""
    with set_up_for_merging():
        merging = Merging(open_experts(experts, method), method, workers, progress)
        known = merging.look_at_whole_model()
        try:
            record = merging.write(folder, known)
        except WrongMajorityError:
            record = merging.write(folder, replace(known, majority=-1))
    say(summary_of(method, record))
    return record


def open_experts(experts: Mapping[str, Path], method: Method | OutsideMethod) -> list[Adapter]:
    """Open all experts, sorted by name. Raises UserError if one is refused or they do not fit together."""
    if not experts:
        raise UserError("there are no experts to merge")
    adapters, problems = open_adapters(experts)
    if not problems:
        equal_ranks = getattr(method, "needs_equal_ranks", False)
        problems = disagreements(adapters, equal_ranks, method.check_base, ways_past_ranks(method))
        problems += problems_of_format(method.output_format, adapters)
    problems += problems_of_weights(getattr(method, "weights", None), experts)
    if problems:
        raise UserError("\n".join(problems))
    return adapters


class WrongMajorityError(Exception):
    """Positive signs were taken for the majority of the whole model, which decided something, and they are not."""


class Told(NamedTuple):
    """What a merged module says of itself. norms: ||D||_F^2 of the experts' updates; bias: of the update."""

    merged: Merged
    norm: float
    norms: dict[str, float]
    bias: Tensor | None
    magnitude: Tensor | None


@dataclass(frozen=True)
class Merging:
    """The experts that were opened, in the order of their names, and how they are merged."""

    adapters: Sequence[Adapter]
    method: Method | OutsideMethod
    workers: int = 1
    progress: bool | None = None

    @cached_property
    def problems(self) -> list[str]:
        """What is wrong outside of the modules; told with the first walk over them."""
        return list(problems_of_extras(self.adapters))

    @property
    def names(self) -> list[str]:
        return [a.name for a in self.adapters]

    @property
    def looks_first(self) -> bool:
        """Whether the method walks over the modules before it merges them."""
        method = self.method
        return method.collect is not None if isinstance(method, OutsideMethod) else method.looks_at_whole_model

    def read(self, name: str) -> Module:
        """One module of all experts, not checked yet."""
        return Module(name, self.names, [a.pair(name) for a in self.adapters], self.method)

    def each(self, title: str, function: Callable[[str], R], part: tuple[int, int] = (1, 1)) -> Iterator[R]:
        """function(module) for all modules, in order, with a progress bar. Raises UserError with all problems."""
        problems = list(self.problems)
        empty: list[EmptyRow] = []

        def attempt(name: str) -> R | UserError:
            try:
                return function(name)
            except UserError as error:
                return error

        hide = None if self.progress is None else not self.progress
        name = f"{title} {self.method.name}"
        modules = Bar(self.adapters[0].modules, name, part=part, unit="module", disable=hide)
        for found in in_order(attempt, modules, self.workers):
            if isinstance(found, EmptyRowsError):
                empty += found.rows
            elif isinstance(found, UserError):
                problems.append(str(found))
            else:
                yield found
        if empty:
            problems.append(str(EmptyRowsError(empty, self.method.prune.rule)))
        if problems:
            raise UserError("\n".join(dict.fromkeys(problems)))

    def look_at_whole_model(self) -> Known | dict[str, Any]:
        """What the method must know before it can merge a module: thresholds, or what a function collects."""
        if isinstance(self.method, OutsideMethod):
            return collect(self.method, self.each("collect", lambda n: (n, check_module(self.read(n)).pairs), (1, 2)))
        if not self.method.looks_at_whole_model:
            return Known()

        def visit(add: Callable[[str, str, Blocks], None]) -> None:
            def add_all(name: str) -> None:
                for part in parts_of(check_module(self.read(name))):
                    add(*part)

            deque(self.each("measure", add_all, (1, 2)), maxlen=0)

        return measure(self.method, self.names, visit)

    def merge(self, name: str, known: Known | dict[str, Any]) -> Told:
        """Merge one module: its update, and what goes with it. Raises UserError if a value is not finite."""
        module = self.read(name)
        norms = {expert: squared_norm(pair) for expert, pair in zip(module.experts, module.pairs, strict=True)}
        if not all(map(math.isfinite, norms.values())):  # they are, where every value is and none is huge
            check_module(module)
        merged = merge_module(module, known) if isinstance(known, Known) else merge_outside(module, known)
        bias = merge_biases([a.bias(name) for a in self.adapters], module)
        magnitude = mean_of([a.magnitude(name) for a in self.adapters])
        return Told(merged, squared_norm(merged.update), norms, bias, magnitude)

    def write(self, folder: Path, known: Known | dict[str, Any]) -> dict[str, Any]:
        """Merge all modules into the folder, and return the record."""
        method, norms, told = self.method, Norms(), []
        out = replace(method.out, format=method.output_format)
        part = (2, 2) if self.looks_first else (1, 1)
        with open_writer(folder, out, self.adapters, card_for(method, out, self.adapters)) as writer:
            for name, one in self.each("merge", lambda name: (name, self.merge(name, known)), part):
                writer.add_update(name, one.merged.update, magnitude=one.magnitude, bias=one.bias)
                norms.add(one.norm, one.norms)
                told.append(one.merged._replace(update=None))
            if isinstance(known, Known) and needs_another_majority(known, [one.election for one in told]):
                raise WrongMajorityError
            for name, mean in mean_extras(self.adapters):
                writer.add_extra(name, mean)
        return record_of(method, self.adapters, writer.ranks, sum(one.dropped for one in told), norms)
