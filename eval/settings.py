"""What can be set about evaluation. No torch here: every address is planned before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from robustmerge.settings import later, outside_identity, refuse, suggest

# The names of eval.parse.PARSERS, eval.metrics.METRICS; a test keeps them equal.
PARSER_NAMES = ("box", "letter", "number", "text")
METRIC_NAMES = ("exact_match", "iou_at_half", "ngram_f1", "vqa_soft")
LOGGER_NAMES = ("none", "wandb")
WANDB_MODES = ("auto", "offline", "online")
PRODUCTS = ("exact", "fast")
ASKED_SPLITS = ("test", "val")
PLACEHOLDERS = ("choices", "text")
PLACEHOLDER = re.compile(r"\{(\w+)\}")  # any other word in braces is refused as misspelt; other braces stay


@dataclass(frozen=True)
class Task:
    """One task of a benchmark, as `configs/task/<benchmark>/<name>.yaml` describes it.

    title: printed name; mirrors: the paper's task that it stands for ("" if none); seen: it has an expert.
    prompt: `{text}` is the question, `{choices}` its options as lines `A. red`; max_new_tokens: of an answer.
    parse, metric: names in eval.parse.PARSERS and eval.metrics.METRICS; data: read by the prepare stage only.
    """

    name: str
    title: str
    seen: bool
    prompt: str
    max_new_tokens: int
    parse: str
    metric: str
    mirrors: str = ""
    data: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse(
            [
                *_problems_of_name(self.name),
                *_problems_of_prompt(self.prompt),
                *_problems_of_count("max_new_tokens", self.max_new_tokens),
                *_problems_of_scoring(self.parse, self.metric),
            ]
        )

    def generation(self, template: str, batch_size: int, split: str = "test", products: str = "exact") -> Generation:
        """What the predict stage needs of this task; template, batch size and products are the model's."""
        return Generation(self.name, self.prompt, template, self.max_new_tokens, batch_size, split, products)

    def scoring(self) -> Scoring:
        """What the score stage needs of this task."""
        return Scoring(self.name, self.parse, self.metric)


@dataclass(frozen=True)
class Generation:
    """Everything that changes predictions. The batch size does, by the rounding of padded batches.

    template: name of the conversation template around the prompt. split: whose questions are asked; test for what is
    reported, val for what is chosen. products: how a CPU multiplies matrices, exact or fast (llava_ext.settings.Model).
    """

    task: str
    prompt: str
    template: str
    max_new_tokens: int
    batch_size: int
    split: str = later("test")
    products: str = later("exact")

    def __post_init__(self) -> None:
        refuse(
            [
                *_problems_of_prompt(self.prompt),
                *_problems_of_count("max_new_tokens", self.max_new_tokens),
                *_problems_of_count("batch_size", self.batch_size),
                *_problems_of_choice("split", self.split, ASKED_SPLITS),
                *_problems_of_choice("products", self.products, PRODUCTS),
            ]
        )


@dataclass(frozen=True)
class Scoring:
    """How answers of one task are read and compared."""

    task: str
    parse: str
    metric: str

    def __post_init__(self) -> None:
        refuse(_problems_of_scoring(self.parse, self.metric))


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: 95 % percentile bootstrap, questions resampled within their task."""

    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        seed = [] if self.seed >= 0 else [f"seed must be at least 0, got {self.seed}"]
        refuse([*_problems_of_count("draws", self.draws), *seed])


@dataclass(frozen=True)
class Logger:
    """Where a report is also sent. name: none | wandb.

    mode: auto (online if wandb knows a key, otherwise offline) | offline | online. None of it changes a result.
    """

    name: str = outside_identity("none")
    project: str = outside_identity("robustmerge")
    entity: str | None = outside_identity(None)
    mode: str = outside_identity("auto")

    def __post_init__(self) -> None:
        project = [] if self.project.strip() else ["project is empty"]
        name = _problems_of_choice("logger", self.name, LOGGER_NAMES)
        refuse([*name, *project, *_problems_of_choice("mode", self.mode, WANDB_MODES)])


def _problems_of_choice(what: str, name: str, choices: Iterable[str]) -> list[str]:
    return [] if name in choices else [f"unknown {what} '{name}'; {suggest(name, choices)}"]


def _problems_of_count(what: str, value: int) -> list[str]:
    return [] if value >= 1 else [f"{what} must be at least 1, got {value}"]


def _problems_of_name(name: str) -> list[str]:
    if re.fullmatch(r"[a-z0-9_]+", name):
        return []
    return [f"a task's name is made of a-z, 0-9 and _ (it becomes a file name), got '{name}'"]


def _problems_of_prompt(prompt: str) -> list[str]:
    found = PLACEHOLDER.findall(prompt)
    unknown = [name for name in found if name not in PLACEHOLDERS]
    problems = [f"unknown placeholder '{{{name}}}' in prompt; {suggest(name, PLACEHOLDERS)}" for name in unknown]
    return problems if "text" in found else [*problems, f"prompt must hold {{text}}, got {prompt!r}"]


def _problems_of_scoring(parse: str, metric: str) -> list[str]:
    problems = [
        *_problems_of_choice("parse", parse, PARSER_NAMES),
        *_problems_of_choice("metric", metric, METRIC_NAMES),
    ]
    if not problems and (parse == "box") != (metric == "iou_at_half"):
        problems.append(f"parse=box and metric=iou_at_half go together, got parse={parse} and metric={metric}")
    return problems
