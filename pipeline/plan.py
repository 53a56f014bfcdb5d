"""One configuration as a plan: its addresses, the sources that it compares, and what `source=` names.

prepare -> base -> experts and multi-task model -> merge -> predict -> score -> report
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from eval.report.results import CHOSEN, SEARCHED, Choice
from eval.settings import Task
from pipeline.addresses import Addresses, list_unfinished
from pipeline.program import command, merge_command, parse_overrides, train_all_command
from pipeline.sources import EvalSet, Source, explain_full_model, name_source
from pipeline.strengths import choose_strength, has_val
from pipeline.weight_search import Found, problems_of_budget, search_weights
from robustmerge.formats.adapter_config import SOURCE_FILES
from robustmerge.graded import format_grade
from robustmerge.method import AnyMethod, Method
from robustmerge.stage.address import Address
from robustmerge.stage.files import expand
from robustmerge.stage.records import read_examples, read_score
from robustmerge.stage.settings import UserError, suggest


@dataclass(frozen=True)
class Evaluation:
    """One source on one evaluation set, whose questions are prepared."""

    plan: Plan
    source: Source
    eval_set: EvalSet

    @property
    def task(self) -> Task:
        return self.eval_set.task

    @property
    def questions(self) -> Path:
        return self.plan.questions(self.eval_set)

    @cached_property
    def predictions(self) -> Address:
        return self.plan.predictions(self.source, self.eval_set)

    @cached_property
    def score(self) -> Address:
        return self.plan.score(self.source, self.eval_set)

    @property
    def expected_count(self) -> int:
        """About how many questions are asked: what the configuration says of the task's split."""
        config = self.plan.config
        count = max(1, getattr(config.data(self.task).counts, self.eval_set.split))
        return min(count, config.limit or count)

    def with_other_protocol(self) -> Evaluation | None:
        """The same evaluation by the other protocol; None if that is not wanted, or has neither score nor answers."""
        if not self.plan.config.other_protocol:
            return None
        other = dataclasses.replace(self, eval_set=self.eval_set.with_other_protocol())
        return other if other.score.is_complete() or other.predictions.is_complete() else None


def group_by_source(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Group evaluations by source; the experts are one group, each on its own task, and come first."""
    experts = [one for one in evaluations if one.source.kind == "expert"]
    groups: dict[tuple[str, Path], list[Evaluation]] = {}
    for one in (one for one in evaluations if one.source.kind != "expert"):
        groups.setdefault((one.source.label, one.source.address.path), []).append(one)
    return [*([experts] if experts else []), *groups.values()]


class Plan(Addresses):
    """One configuration: its addresses, and the sources that it compares."""

    @cached_property
    def overrides(self) -> dict[str, str]:
        """The keys that the command line sets at this point, with their values."""
        return parse_overrides(self.config.overrides)

    @property
    def logs(self) -> Path:
        """The folder of job files and logs."""
        return self.root / "logs"

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the table in order; a method is followed by its chosen-strength and searched-weight variants.

        Raises UserError as `check_methods` does, and if val scores are missing.
        """
        sources: list[Source] = []
        for source in self.configured:
            sources.append(source)
            if source.method is not None and source.method.name in self.choices:
                sources.append(self._chosen_source(source.method.name))
            if source.method is not None and source.method.name in self.searched_methods:
                sources.append(self._searched_source(source.method.name))
        return tuple(sources)

    @cached_property
    def configured(self) -> tuple[Source, ...]:
        """The sources of the table without chosen strengths. Raises UserError as `check_methods` does."""
        self.check_methods()
        eval_sets = {task.name: self.test_set(task) for task in self.config.tasks}
        everything = tuple(eval_sets.values())
        sources = [Source("zero_shot", "zero_shot", self.base, everything)]
        sources += [
            Source(f"expert/{name}", "expert", adapter.address, (eval_sets[name],), original=adapter.original)
            for name, adapter in self.adapters.items()
            if name in eval_sets
        ]
        if self.multi_task is not None:
            sources.append(Source("multi_task", "multi_task", self.multi_task, everything))
        sources += [self._merged_source(method, everything) for method in self.config.methods]
        return tuple(sources)

    def check_methods(self) -> None:
        """Raises UserError if a method writes full models or adapters for a server, which cannot be sources.

        Also if the budget of a weight search is too small.
        """
        budget, count = self.config.search_budget, len(self.merged_experts)
        if self.config.weight_search and (problems := problems_of_budget(budget, count)):
            raise UserError("\n".join(problems))
        for method in self.config.methods:
            if method.out.format == "model":
                raise UserError(explain_full_model(f"merged/{method.name}"))
            if method.out.for_ is not None:
                raise UserError(
                    f"merged/{method.name} is for a server (merge.out.for={method.out.for_}): what was trained in full "
                    "is in a base of its own. Evaluate it without; for the server merge into a folder: "
                    "scripts/merge.py out=FOLDER"
                )

    def _merged_source(self, method: AnyMethod, eval_sets: tuple[EvalSet, ...]) -> Source:
        return Source(f"merged/{method.name}", "merged", self.merged(method), eval_sets, method)

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations of all sources of the table on the test questions; with `ids`, of the tasks that have one."""
        return self._that_ask(self._evaluations(self.sources))

    def _evaluations(self, sources: Iterable[Source]) -> list[Evaluation]:
        return [Evaluation(self, source, eval_set) for source in sources for eval_set in source.eval_sets]

    # What strengths are chosen by

    @cached_property
    def candidate_methods(self) -> dict[str, dict[float, AnyMethod]]:
        """Method name -> factor of the update -> the method at that strength, for all strengths that can be chosen."""
        grid = self.config.strength_grid
        if not grid or not self._val_sets:
            return {}
        free = [m for m in self.config.methods if m.strength is not None and m.name not in self.config.fixed]
        return {method.name: {factor: method.with_factor(factor) for factor in grid} for method in free}

    @cached_property
    def _val_sets(self) -> tuple[EvalSet, ...]:
        val_sets = [self.val_set(task) for task in self.config.seen]
        return tuple(one for one in val_sets if has_val(self.questions(one), self.config.data(one.task)))

    @cached_property
    def candidates(self) -> dict[str, dict[float, Source]]:
        """Method name -> factor of the update -> the source that is evaluated on val."""
        return {
            name: {factor: self._merged_source(method, self._val_sets) for factor, method in by_factor.items()}
            for name, by_factor in self.candidate_methods.items()
        }

    @property
    def val_evaluations(self) -> list[Evaluation]:
        """The evaluations of every candidate of every method on the val questions."""
        return self._evaluations(source for by_factor in self.candidates.values() for source in by_factor.values())

    def choosing_addresses(self) -> list[Address]:
        """The addresses of all results that the choices rest on: merges, val answers and val scores."""
        evaluations = list(self.val_evaluations)
        evaluations += self.evaluate_on_val(method for found in self.searches.values() for method in found.tried)
        merged = {one.source.address.path: one.source.address for one in evaluations}
        return [*merged.values(), *(a for one in evaluations for a in (one.predictions, one.score))]

    @cached_property
    def choices(self) -> dict[str, Choice]:
        """Method name -> the strength with the best mean val score. Raises UserError where val scores are missing."""
        self._require_val_scores(self.val_evaluations, "strengths are chosen", "strength_grid=null")
        return {
            name: choose_strength(
                {
                    factor: (format_grade(method.strength, 3), self._val_mean(self.candidates[name][factor]))
                    for factor, method in by_factor.items()
                }
            )
            for name, by_factor in self.candidate_methods.items()
        }

    @property
    def searched_methods(self) -> dict[str, Method]:
        """The methods whose weights are searched, by name; none where there are no val questions."""
        named = [m for m in self.config.methods if isinstance(m, Method) and m.name in self.config.weight_search]
        return {method.name: method for method in named} if named and self._val_sets else {}

    def evaluate_on_val(self, methods: Iterable[AnyMethod]) -> list[Evaluation]:
        """The evaluations of methods on the val questions of the seen tasks."""
        return self._evaluations(self._merged_source(method, self._val_sets) for method in methods)

    @cached_property
    def searches(self) -> dict[str, Found]:
        """Method name -> what the search for its weights has found. Raises UserError where val scores are missing."""
        return {name: self.search(name, self.val_means) for name in self.searched_methods}

    def search(self, name: str, evaluate: Callable[[Sequence[AnyMethod]], list[float]]) -> Found:
        """Search the weights of a method, from its chosen strength; evaluate: mean val scores of merges."""
        factor = self.choices[name].factor if name in self.choices else 1.0
        experts = sorted(self.merged_experts)
        return search_weights(self.searched_methods[name], experts, factor, self.config.search_budget, evaluate)

    def val_means(self, methods: Sequence[AnyMethod]) -> list[float]:
        """The mean val scores of methods. Raises UserError where they are missing."""
        self._require_val_scores(self.evaluate_on_val(methods), "weights are searched", "weight_search=[]")
        return [self._val_mean(self._merged_source(method, self._val_sets)) for method in methods]

    def _require_val_scores(self, evaluations: Iterable[Evaluation], purpose: str, without: str) -> None:
        if missing := list_unfinished(one.score for one in evaluations):
            make = command("merge_eval", lambda word: not word.startswith("source"))
            raise UserError(
                f"{len(missing)} val scores are missing, by which {purpose}; the first is {missing[0].short}\n"
                f"Make them with: {make}\nor leave that out: {without}"
            )

    def _val_mean(self, source: Source) -> float:
        """The mean val score over the tasks that can be scored here; without Java some caption tasks cannot be."""
        values = [read_score(self.score(source, val_set).path).value for val_set in source.eval_sets]
        return fmean([value for value in values if value is not None] or [0.0])

    def _chosen_source(self, method: str) -> Source:
        source = self.candidates[method][self.choices[method].factor]
        return dataclasses.replace(source, eval_sets=self._all_test_sets, variant=CHOSEN)

    def _searched_source(self, method: str) -> Source:
        found = self.searches[method].method
        titled = dataclasses.replace(found, title=f"{found.title or found.name}, weights searched")
        source = self._merged_source(titled, self._all_test_sets)
        return dataclasses.replace(source, variant=SEARCHED)

    # What `source=` names

    @cached_property
    def selected(self) -> Source:
        """The source that `source=` names, on all tasks. Raises UserError with the choices."""
        return self.find_source(self.config.source)

    @property
    def selected_evaluations(self) -> list[Evaluation]:
        """The evaluations of the selected source on the test questions; with `ids`, only of the tasks that have one."""
        return self.list_evaluations(self.selected)

    def list_evaluations(self, source: Source) -> list[Evaluation]:
        """The evaluations of a source on the test questions; with `ids`, of the tasks that have one of them."""
        return self._that_ask(self._evaluations([source]))

    def _that_ask(self, evaluations: list[Evaluation]) -> list[Evaluation]:
        """Those of the evaluations that ask one of `ids`; all of them without `ids`, or while data are not prepared.

        Raises UserError for an id that no task has.
        """
        prepared = [one for one in evaluations if self.config.only.ids and one.questions.exists()]
        if len(prepared) < len(evaluations) or not prepared:
            return evaluations
        ids = {one.task.name: self.ids_in(one.eval_set) for one in prepared}
        if unknown := set(self.config.only.ids).difference(*ids.values()):
            example = read_examples(prepared[0].questions)[0].question_id
            raise UserError(f"no task has a question {', '.join(sorted(unknown)[:5])} (ids); ids are like {example}")
        return [one for one in prepared if ids[one.task.name]]

    def find_source(self, name: str | None) -> Source:
        """Find the source of a name, address or folder, on all tasks. Raises UserError with the choices."""
        names = [source.name for source in self.configured]
        names += [f"merged/{method}@{CHOSEN}" for method in self.candidates]
        names += [f"merged/{method}@{SEARCHED}" for method in self.searched_methods]
        choices = suggest(name or "", names)
        choices += f", or give a folder with {' or '.join(SOURCE_FILES)}"
        if name is None:
            raise UserError(f"source=NAME is needed; {choices}")
        for method in self.candidates:
            if name == f"merged/{method}@{CHOSEN}":
                return self._chosen_source(method)
        for method in self.searched_methods:
            if name == f"merged/{method}@{SEARCHED}":
                return self._searched_source(method)
        for source in self.configured:
            if name in (source.name, source.address.short):
                return dataclasses.replace(source, eval_sets=self._all_test_sets)
        for path in (expand(name), self.root / name):
            if any((path / file).exists() for file in SOURCE_FILES):
                return self._source_of_folder(path)
            if (path / "config.json").exists():
                raise UserError(explain_full_model(str(path)))
        if expand(name).is_absolute():
            what = "holds no adapter" if expand(name).is_dir() else "does not exist"
            raise UserError(f"the folder {name} {what} (source); {choices}")
        raise UserError(f"unknown source '{name}'; {choices}")

    def _source_of_folder(self, folder: Path) -> Source:
        adapter = self.find_adapter(folder.name, folder)
        name, kind = name_source(adapter.address)
        return Source(name, kind, adapter.address, self._all_test_sets, original=adapter.original)

    @property
    def _all_test_sets(self) -> tuple[EvalSet, ...]:
        return tuple(self.test_set(task) for task in self.config.tasks)


def make_command(source: Source) -> str:
    """The command that makes a missing source."""
    return merge_command() if source.kind == "merged" else train_all_command()
