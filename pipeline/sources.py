"""Sources and evaluation sets: what is evaluated, and on which questions. `source=` is resolved in plan.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from eval.settings import Task, other_protocol
from robustmerge.method import AnyMethod
from robustmerge.stage.address import Address

TITLES = {"zero_shot": "Zero-shot", "multi_task": "Multi-task"}


@dataclass(frozen=True)
class EvalSet:
    """The questions of one split of a task, asked and scored by one protocol.

    task: as its file describes it. split: test for what is reported, val for what is chosen.
    """

    task: Task
    split: str
    protocol: str

    @property
    def task_by_protocol(self) -> Task:
        """The task with the prompt, parser and metric of the protocol."""
        return self.task.under(self.protocol)

    def with_other_protocol(self) -> EvalSet:
        return dataclasses.replace(self, protocol=other_protocol(self.protocol, self.task.has_classes))


@dataclass(frozen=True)
class Source:
    """A model to evaluate: zero_shot | expert/<task> | multi_task | merged/<method> | any adapter or delta folder.

    address: of the adapter or the deltas; of the base for zero_shot. eval_sets: what it is evaluated on.
    variant: "" as configured; `chosen`: the method at the strength chosen on val; `searched`: with weights searched.
    original: the adapter in LLaVA's format from which `address` is converted; None where nothing is converted.
    """

    name: str
    kind: str
    address: Address
    eval_sets: tuple[EvalSet, ...]
    method: AnyMethod | None = None
    variant: str = ""
    original: Address | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(eval_set.task for eval_set in self.eval_sets)

    @property
    def label(self) -> str:
        """The name that `source=` takes."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def title(self) -> str:
        """The title in tables, the same for all variants."""
        return TITLES.get(self.kind) or (self.method and self.method.title) or self.name.removeprefix("merged/")

    @property
    def folder(self) -> str:
        """The folder of its predictions and scores: the name with the hash of its address."""
        return f"{self.name}-{self.address.hash8}"

    @property
    def adapter(self) -> Path | None:
        return None if self.kind == "zero_shot" else self.address.path


def name_source(address: Address) -> tuple[str, str]:
    """Name and kind, as a source, of an adapter or delta folder; a result of this run keeps its own name."""
    kind, _, rest = address.short.partition("/")
    name = rest.removesuffix(f"-{address.hash8}")
    if kind == "merged" and name != rest:
        return f"merged/{name}", "merged"
    if kind == "experts" and name != rest:
        return ("multi_task", "multi_task") if name == "multi_task" else (f"expert/{name}", "expert")
    return f"adapter/{address.path.name}", "adapter"


def explain_full_model(name: str) -> str:
    """Why a full model is no source, and what to do."""
    return (
        f"{name} is a full model, and a source is an adapter or delta folder for the base. Evaluate it as a base of "
        "its own (model.checkpoint=FOLDER source=zero_shot), or merge with merge.out.format=adapter or delta"
    )
