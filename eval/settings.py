"""Settings of evaluation. No torch here: every address is planned before torch is imported."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from robustmerge.stage.prompts import LABEL, PLACEHOLDERS
from robustmerge.stage.settings import (
    IMAGE_MODES,
    PRECISIONS,
    PRODUCTS,
    Problem,
    later,
    outside_identity,
    refuse,
    suggest,
)

# The keys of PARSERS, ANSWER_METRICS, GROUP_METRICS, OFFICIAL_METRICS and CAPTION_METRICS, repeated because planning
# imports none of them; tests keep them equal.
PARSER_NAMES = ("box", "label", "letter", "number", "raw", "table", "text", "yes_no")
ANSWER_NAMES = ("exact_match", "iou_at_half", "ngram_f1", "top_1", "vqa_soft")
GROUP_NAMES = ("accuracy_plus", "circular", "f1_of_yes")
METRIC_NAMES = (*ANSWER_NAMES, *GROUP_NAMES)
OFFICIAL_NAMES = ("official_equal", "official_ocrvqa", "official_rec", "official_scienceqa", "official_substring")
CAPTION_NAMES = ("cider", "mean_of_seven")
BUILTIN_SUFFIX = "_builtin"  # of a caption metric whose words our own tokenizer split
TOKENIZERS = ("", "ptb", "builtin")
PROTOCOLS = ("corrected", "official", "joint")
LOGGER_NAMES = ("none", "wandb")
WANDB_MODES = ("auto", "offline", "online")
EVALUATION_SPLITS = ("test", "val")
_IN_BRACES = re.compile(r"\{(\w+)\}")


def other_protocol(protocol: str, has_classes: bool) -> str:
    """The protocol by which tasks are also scored.

    has_classes: of the tasks. Questions have `official`, as the published scripts ask and score, beside `corrected`;
    classes have `joint`, in which a picture may be of any class of any task.
    """
    second = "joint" if has_classes else "official"
    return PROTOCOLS[0] if protocol == second else second


@dataclass(frozen=True)
class Selection:
    """A selection of questions: all, the `limit` with the smallest sha256 of their id, or those with the given ids."""

    limit: int | None = None
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        both = (
            [Problem("give either limit or ids, not both", "limit, ids")] if self.limit is not None and self.ids else []
        )
        refuse([*both, *([] if self.limit is None else _problems_of_count("limit", self.limit))])

    @property
    def is_all(self) -> bool:
        return self.limit is None and not self.ids


ALL = Selection()


@dataclass(frozen=True)
class Official:
    """Overrides of a task's settings for the official protocol; None: the same as in the corrected one."""

    prompt: str | None = None
    image: str | None = None
    max_new_tokens: int | None = None
    parse: str | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Task:
    """One task of a benchmark, as `configs/task/<benchmark>/<name>.yaml` describes it.

    title: printed name; mirrors: the paper's task that it stands for ("" if none); seen: it has an expert.
    general: it belongs to no benchmark, seen or unseen, so that no average counts it.
    prompt: `{text}` is the question, `{choices}` its options as lines `A. red`, `{first_line}` the question's first
    line; train_prompt: of training, "" for the same; max_new_tokens: of an answer.
    A task of classes has no question: its prompt is an ensemble of templates, one a line, each with `{label}` for the
    name of a class (classes.json beside the question files), and an answer is no text of tokens.
    image: how a picture becomes square: `pad` it with the mean colour, or `crop` its centre.
    parse, metric: names in eval.parse.PARSERS and METRIC_NAMES; data: read by the prepare stage only.
    official: where the published script differs.
    """

    name: str
    title: str
    seen: bool
    prompt: str
    parse: str
    metric: str
    max_new_tokens: int = 0
    mirrors: str = ""
    image: str = "pad"
    train_prompt: str = ""
    official: Official = Official()
    data: dict = field(default_factory=dict)
    general: bool = False

    def __post_init__(self) -> None:
        train = _problems_of_prompt(self.train_prompt) if self.train_prompt else []
        rule = "a general task has no expert: give general or seen, not both"
        both = [Problem(rule, "general, seen")] if self.general and self.seen else []
        refuse([*_problems_of_name(self.name), *train, *both, *self._problems()])
        if self.official != Official():
            self.under("official")

    @property
    def has_classes(self) -> bool:
        """Whether an answer is one of the task's classes, and not a text that answers a question."""
        return LABEL in self.prompt

    def _problems(self) -> list[Problem]:
        rule = "a prompt with {label} goes with parse=label and no other"
        parser = [] if self.has_classes == (self.parse == "label") else [Problem(f"{rule}, got parse={self.parse}")]
        return [
            *_problems_of_prompt(self.prompt),
            *_problems_of_length(self.prompt, self.max_new_tokens),
            *_problems_of_choice("image", self.image, IMAGE_MODES),
            *_problems_of_scoring(self.parse, self.metric),
            *parser,
        ]

    def under(self, protocol: str) -> Task:
        """The task as a protocol asks and scores it. Raises ConfigError for an official block that is wrong."""
        if protocol != "official":
            return self
        changed = {name: value for name, value in vars(self.official).items() if value is not None}
        return dataclasses.replace(self, **changed, official=Official())

    def scoring(self, only: Selection = ALL, tokenizer: str = "") -> Scoring:
        """The settings of the score stage. tokenizer: of captions, `ptb` where there is Java."""
        return Scoring(self.name, self.parse, self.metric, tokenizer if self.metric in CAPTION_NAMES else "", only)


@dataclass(frozen=True)
class Generation:
    """Everything that changes predictions, including the batch size (through the rounding of padded batches).

    template: name of the conversation template around the prompt, "" where classes are the answers. split: whose
    questions are asked; test for what is reported, val for what is chosen. products: how a CPU multiplies matrices,
    exact or fast. image: pad or crop. precision: of the weights. only: the questions that are asked. pooled: prompts of
    the tasks whose classes are candidates, by task; empty for the task's own classes.
    """

    task: str
    prompt: str
    template: str
    max_new_tokens: int
    batch_size: int
    split: str = later("test")
    products: str = later("exact")
    image: str = later("pad")
    precision: str = later("fp32")
    only: Selection = later(ALL)
    pooled: dict[str, str] = later({})

    def __post_init__(self) -> None:
        refuse(
            [
                *_problems_of_prompt(self.prompt),
                *_problems_of_length(self.prompt, self.max_new_tokens),
                *_problems_of_count("batch_size", self.batch_size),
                *_problems_of_choice("split", self.split, EVALUATION_SPLITS),
                *_problems_of_choice("products", self.products, PRODUCTS),
                *_problems_of_choice("image", self.image, IMAGE_MODES),
                *_problems_of_choice("precision", self.precision, PRECISIONS),
            ]
        )


@dataclass(frozen=True)
class Scoring:
    """How answers of one task are read and compared. tokenizer: of captions, `ptb` or `builtin`; "" for the rest."""

    task: str
    parse: str
    metric: str
    tokenizer: str = later("")
    only: Selection = later(ALL)

    def __post_init__(self) -> None:
        tokenizer = _problems_of_choice("tokenizer", self.tokenizer, TOKENIZERS)
        refuse([*_problems_of_scoring(self.parse, self.metric), *tokenizer])


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: 95 % percentile bootstrap, questions resampled within their task."""

    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        seed = [] if self.seed >= 0 else [Problem(f"seed must be at least 0, got {self.seed}")]
        refuse([*_problems_of_count("draws", self.draws), *seed])


@dataclass(frozen=True)
class PaperTable:
    """The table of the paper beside which a report is shown; none of it changes a result.

    name: in results/paper.yaml. rows: name of a method here -> its row there, where the two differ.
    """

    name: str = "table_2_mm_mergebench"
    rows: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Logger:
    """Where results are also sent. name: none | wandb.

    mode: auto (online if wandb knows a key, otherwise offline) | offline | online. artifacts: experts and merged models
    themselves are sent, too. None of it changes a result.
    """

    name: str = outside_identity("none")
    project: str = outside_identity("robustmerge")
    entity: str | None = outside_identity(None)
    mode: str = outside_identity("auto")
    artifacts: bool = outside_identity(False)

    def __post_init__(self) -> None:
        project = [] if self.project.strip() else [Problem("project is empty")]
        name = _problems_of_choice("logger", self.name, LOGGER_NAMES)
        refuse([*name, *project, *_problems_of_choice("mode", self.mode, WANDB_MODES)])


def _problems_of_choice(what: str, name: str, choices: Iterable[str]) -> list[Problem]:
    return [] if name in choices else [Problem(f"unknown {what} '{name}'; {suggest(name, choices)}")]


def _problems_of_count(what: str, value: int) -> list[Problem]:
    return [] if value >= 1 else [Problem(f"{what} must be at least 1, got {value}")]


def _problems_of_name(name: str) -> list[Problem]:
    if re.fullmatch(r"[a-z0-9_]+", name):
        return []
    return [Problem(f"a task's name is made of a-z, 0-9 and _ (it becomes a file name), got '{name}'")]


def _problems_of_length(prompt: str, max_new_tokens: int) -> list[Problem]:
    if LABEL not in prompt:
        return _problems_of_count("max_new_tokens", max_new_tokens)
    rule = "classes are not written in tokens: leave max_new_tokens out"
    return [Problem(f"{rule}, got {max_new_tokens}")] if max_new_tokens else []


def _problems_of_prompt(prompt: str) -> list[Problem]:
    named = _IN_BRACES.findall(prompt)
    if LABEL in prompt:
        odd = [line for line in prompt.splitlines() if _IN_BRACES.findall(line) != ["label"]]
        rule = f"each line of a prompt with {LABEL} is a template that holds it once and nothing else in braces"
        return [Problem(f"{rule}, got {odd[0]!r}")] if odd else []
    problems = [
        Problem(f"unknown placeholder '{{{name}}}' in prompt; {suggest(name, PLACEHOLDERS)}")
        for name in named
        if name not in PLACEHOLDERS
    ]
    if "text" not in named and "first_line" not in named:
        problems.append(Problem(f"prompt must hold {{text}} or {{first_line}}, got {prompt!r}"))
    return problems


def _problems_of_scoring(parse: str, metric: str) -> list[Problem]:
    problems = [
        *_problems_of_choice("parse", parse, PARSER_NAMES),
        *_problems_of_choice("metric", metric, (*METRIC_NAMES, *OFFICIAL_NAMES, *CAPTION_NAMES)),
    ]
    if problems:
        return problems
    given = f"got parse={parse} and metric={metric}"
    if (parse == "box") != (metric == "iou_at_half"):
        problems.append(Problem(f"parse=box and metric=iou_at_half go together, {given}"))
    if (parse == "raw") != (metric in OFFICIAL_NAMES):
        problems.append(Problem(f"parse=raw goes with the official_* metrics, {given}"))
    if (parse == "label") != (metric == "top_1"):
        problems.append(Problem(f"parse=label and metric=top_1 go together, {given}"))
    if metric == "f1_of_yes" and parse != "yes_no":
        problems.append(Problem(f"metric=f1_of_yes goes with parse=yes_no, got parse={parse}"))
    if metric in CAPTION_NAMES and parse != "text":
        problems.append(Problem(f"metric={metric} goes with parse=text, got parse={parse}"))
    return problems
