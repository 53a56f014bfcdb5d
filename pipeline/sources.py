"""What is evaluated: the base alone, an expert, the multi-task model, a merged model, any folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.settings import Task
from robustmerge.method import Method, OutsideMethod
from robustmerge.stage.address import Address

TITLES = {"zero_shot": "Zero-shot", "multi_task": "Multi-task"}
SOURCE_FILES = ("adapter_config.json", "delta_config.json")


@dataclass(frozen=True)
class Source:
    """What is evaluated: zero_shot | expert/<task> | multi_task | merged/<method> | any adapter or delta folder.

    address: of the adapter or the deltas; of the base for zero_shot. tasks: what it is evaluated on.
    variant: "" as configured; `chosen`: the method at the strength chosen on val.
    """

    name: str
    kind: str
    address: Address
    tasks: tuple[Task, ...]
    method: Method | OutsideMethod | None = None
    variant: str = ""

    @property
    def label(self) -> str:
        """What `source=` calls it."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def title(self) -> str:
        """What tables call it, whatever its variant."""
        return TITLES.get(self.kind) or getattr(self.method, "title", "") or self.name.removeprefix("merged/")

    @property
    def folder(self) -> str:
        """Where its predictions and scores lie: the name, with the hash of what it is."""
        return f"{self.name}-{self.address.hash8}"

    @property
    def adapter(self) -> Path | None:
        return None if self.kind == "zero_shot" else self.address.path


def source_of_folder(address: Address, tasks: tuple[Task, ...]) -> Source:
    """An adapter or delta folder as a source; a result of this run keeps its own name."""
    kind, _, rest = address.short.partition("/")
    name = rest.removesuffix(f"-{address.hash8}")
    if kind == "merged" and name != rest:
        return Source(f"merged/{name}", "merged", address, tasks)
    if kind == "experts" and name != rest:
        multi_task = name == "multi_task"
        found = ("multi_task", "multi_task") if multi_task else (f"expert/{name}", "expert")
        return Source(*found, address, tasks)
    return Source(f"adapter/{address.path.name}", "adapter", address, tasks)


def full_model(name: str) -> str:
    """Why a full model is no source, and what to do."""
    return (
        f"{name} is a full model, and a source is an adapter or delta folder for the base. Evaluate it as a base of "
        "its own (model.base=null +model.checkpoint=FOLDER source=zero_shot), "
        "or merge with merge.out.format=adapter or delta"
    )
