"""The parts of a merge method as data, each of which checks itself; imports no torch, as `method.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from robustmerge.formats.serving import SERVED_RANKS, SERVERS
from robustmerge.stage.settings import Problem, later, refuse, suggest

SPACES = ("factors", "delta", "knots", "core")
PRUNE_RULES = ("none", "magnitude", "random", "sign", "variance")
SCOPES = ("tensor", "model")
# What thresholds cover where nothing is said. Authors of TIES, PCB and KnOTS: the whole model; of Core Space: a module.
# A and B differ in size, so that one threshold over both would leave little of B: in factor space each has its own.
USUAL_SCOPE = {"factors": "tensor", "delta": "model", "knots": "model", "core": "tensor"}
COUNTS = ("authors", "released", "exact", "at_least")
PARTS = ("A", "B")
EMPTY_ROWS = ("error", "drop")
COMBINE_RULES = ("sum", "mean", "elected", "balanced")
DISJOINT = ("mean", "sum", "energy")
VARIANTS = ("main", "vision")
PRODUCTS = ("of_sums", "each")
TORCH_DTYPES = ("float32", "float16", "bfloat16")
DTYPES = (*TORCH_DTYPES, "experts")
FORMATS = ("adapter", "delta", "model")
TARGET_RULES = ("union", "strict")
EQUALIZE_RULES = ("none", "norm", "cap")
CALIBRATE_RULES = ("none", "pico")
KEPT_NORMS = ("none", "experts", "merge")
SPECTRUM_RULES = ("none", "svc", "boost", "power")


def check_choice(value: str, choices: Iterable[str], key: str) -> list[Problem]:
    """A problem if the value is not among the choices."""
    choices = tuple(choices)
    name = key.rpartition(".")[2]
    return [] if value in choices else [Problem(f"unknown {name} '{value}'; {suggest(value, choices)}", key)]


def _check_density(density: float) -> list[Problem]:
    return [] if 0 < density <= 1 else [Problem(f"density must be in (0, 1], got {density}", "density")]


def _check_at_least_0(value: float, key: str) -> list[Problem]:
    return [] if 0 <= value < math.inf else [Problem(f"{key} must be at least 0 and finite, got {value}", key)]


# --- the rule and the output -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prune:
    """Settings of pruning: which entries of each expert are kept.

    density: the fraction kept. scope: what one threshold covers: each tensor, or the whole model; null: what is usual
    in the space, see `USUAL_SCOPE`. `elected` and `balanced` measure over the same scope. count: which order statistic
    is the threshold, see `rules.threshold_index`.
    rescale: divide what is kept by the density, as DARE does; l1: multiply it so that the sum of magnitudes over the
    scope is the same as before, as mergekit does.
    skip: with the magnitude rule, the fraction of the largest entries that is dropped first, at most 1 - density
    (Breadcrumbs). epsilon: with the random rule, how far the probability of being kept is below the density for the
    smallest entry of a row, and above it for the largest (DELLA).
    """

    rule: str = "none"
    density: float = 1.0
    scope: str | None = None
    count: str = "released"
    rescale: bool | str = False
    skip: float = later(0.0)
    epsilon: float = later(0.0)

    def __post_init__(self) -> None:
        problems = [*check_choice(self.rule, PRUNE_RULES, "rule"), *check_choice(self.count, COUNTS, "count")]
        problems += [] if self.scope is None else check_choice(self.scope, SCOPES, "scope")
        problems += _check_density(self.density)
        if self.rescale not in (False, True, "l1"):
            problems.append(Problem(f"rescale must be false, true or l1, got '{self.rescale}'", "rescale"))
        if not 0 <= self.skip < 1:
            problems.append(Problem(f"skip must be in [0, 1), got {self.skip}", "skip"))
        elif self.skip and (self.rule, self.count) == ("magnitude", "exact"):
            problems.append(Problem("skip keeps all of equal values; set prune.count=at_least", "skip"))
        if self.epsilon < 0 or (self.rule == "random" and not self.epsilon < self.density <= 1 - self.epsilon):
            text = f"density - epsilon and density + epsilon must be in (0, 1], got {self.density} and {self.epsilon}"
            problems.append(Problem(text, "epsilon"))
        if self.rule in ("none", "sign"):
            others = ", ".join(rule for rule in PRUNE_RULES if rule not in ("none", "sign"))
            unused = f"while prune.rule is {self.rule}; set"
            if 0 < self.density < 1:
                effect = "prunes nothing" if self.rule == "none" else "is not used"
                way = f"prune.density=1, or prune.rule to one of {others}"
                problems.append(Problem(f"density {self.density} {effect} {unused} {way}", "density"))
            if self.rescale:
                way = f"prune.rescale=false, or prune.rule to one of {others}"
                text = f"rescale restores what pruning to a density takes away, and nothing is pruned {unused} {way}"
                problems.append(Problem(text, "rescale"))
        refuse(problems)


@dataclass(frozen=True)
class Scale:
    """Settings of scaling: how each rank index of a part is scaled (a cell of the paper's table 7).

    A, B: whose statistic scales that part: null (not scaled), A or B. The statistic of a part is, for each rank
    index, sum|x| before pruning over sum|x| after it (equation 3). RobustMerge is {A: null, B: A}.
    normalize: divide by the sum of the scale over experts (equation 4); a part that is not scaled is not divided.
    floor: raise the scales of an expert to at least the value at this fraction of its r sorted scales,
    sorted(S)[int(floor r)]; 0 is the paper, 0.8 the released code. empty_row: what to do with a rank row that pruning
    empties, which has no scale: error = refuse it, drop = leave it out.
    """

    A: str | None = None
    B: str | None = None
    normalize: bool = False
    floor: float = 0.0
    empty_row: str = "error"

    def __post_init__(self) -> None:
        problems = check_choice(self.empty_row, EMPTY_ROWS, "empty_row")
        for part, source in (("A", self.A), ("B", self.B)):
            if source is not None and source not in PARTS:
                problems.append(Problem(f"scale.{part} must be null, A or B, got '{source}'", part))
        if not 0 <= self.floor < 1:
            problems.append(Problem(f"floor must be in [0, 1), got {self.floor}", "floor"))
        refuse(problems)


@dataclass(frozen=True)
class Balance:
    """Settings of PCB. density: the fraction of scores above zero. variant: which of the authors' two programs."""

    density: float = 0.1
    variant: str = "main"

    def __post_init__(self) -> None:
        refuse([*check_choice(self.variant, VARIANTS, "variant"), *_check_density(self.density)])


@dataclass(frozen=True)
class Basis:
    """Settings of KnOTS. cut: singular values up to this, times the module's largest one if `relative`, are noise."""

    cut: float = 1e-5
    relative: bool = False

    def __post_init__(self) -> None:
        most = 1.0 if self.relative else math.inf
        if not 0 <= self.cut < most:
            below = f" and below {most:g}" if self.cut >= most else ""
            refuse([Problem(f"cut must be at least 0{below}, got {self.cut}", "cut")])


@dataclass(frozen=True)
class Out:
    """Settings of the output: rank, dtype and format of what a merge writes.

    rank: cut the update to its best approximation of this rank; `experts`: to the largest of theirs; null: do not cut.
    format: adapter (a PEFT folder), delta (dense updates), model (a full checkpoint, made from `base`, by default the
    one that the experts name); null: an adapter if one can hold the update, a delta otherwise.
    for_: the server for which the adapter is written, see `formats.serving`; what the experts trained in full goes into
    a copy of `base`.
    """

    rank: int | str | None = None
    dtype: str = "float32"
    format: str | None = later(None)
    base: str | None = later(None)
    for_: str | None = later(None)

    def __post_init__(self) -> None:
        problems = check_choice(self.dtype, DTYPES, "dtype")
        problems += [] if self.format is None else check_choice(self.format, FORMATS, "format")
        if isinstance(self.rank, str) and self.rank != "experts":
            problems.append(Problem(f"rank must be null, a whole number or experts, got '{self.rank}'", "rank"))
        if isinstance(self.rank, int) and self.rank < 1:
            problems.append(Problem(f"rank must be at least 1, got {self.rank}", "rank"))
        problems += [] if self.for_ is None else check_choice(self.for_, SERVERS, "for")
        if self.for_ is not None and self.format not in (None, "adapter"):
            text = f"{self.for_} takes adapters: with merge.out.for leave the format away, got {self.format}; a full"
            problems.append(Problem(f"{text} model is served without it", "format"))
        if self.format != "model" and self.base is not None and self.for_ is None:
            text = f"a base is for format=model and for a server (merge.out.for), got format {self.format or 'null'}"
            problems.append(Problem(text, "base"))
        refuse(problems)

    @property
    def is_cut(self) -> bool:
        """Whether an update of full rank is cut to one that an adapter holds."""
        return self.rank is not None or self.for_ is not None

    def rank_for(self, ranks: Iterable[int]) -> int | None:
        """The rank that the merge of experts of these ranks is cut to; None: it is not cut."""
        rank = max(ranks) if isinstance(self.rank, str) else self.rank
        return rank if self.for_ is None else min(rank or SERVED_RANKS[-1], SERVED_RANKS[-1])


# --- the steps that go with any rule, see `steps.py` -----------------------------------------------------------------


@dataclass(frozen=True)
class Equalize:
    """Settings of making the experts' norms more equal.

    rule: norm = every norm towards their median, cap = those far above it down. gamma: of norm, how far, 1 is all the
    way. deviations: of cap, a norm is at most the median plus so many median absolute deviations.
    """

    rule: str = "none"
    gamma: float = 1.0
    deviations: float = 3.0

    def __post_init__(self) -> None:
        refuse([
            *check_choice(self.rule, EQUALIZE_RULES, "rule"),
            *_check_at_least_0(self.gamma, "gamma"),
            *_check_at_least_0(self.deviations, "deviations"),
        ])  # fmt: skip

    @property
    def in_use(self) -> dict[str, bool]:
        """Which settings have an effect, by key."""
        return {"gamma": self.rule == "norm", "deviations": self.rule == "cap"}


@dataclass(frozen=True)
class Calibrate:
    """Settings of a calibration of the experts' B. norm: what gets its norm back: each expert, the merge, or none."""

    rule: str = "none"
    norm: str = "merge"

    def __post_init__(self) -> None:
        refuse([*check_choice(self.rule, CALIBRATE_RULES, "rule"), *check_choice(self.norm, KEPT_NORMS, "norm")])

    @property
    def in_use(self) -> dict[str, bool]:
        """Which settings have an effect, by key."""
        return {"norm": self.rule != "none"}


@dataclass(frozen=True)
class ReshapeSpectrum:
    """Settings for giving the merged update other singular values.

    alpha: with svc, the least that an expert's share of a direction can count; None: 1/N. beta: with boost, the largest
    singular values that make up this share of their sum are left as they are. power: with power, the exponent.
    """

    rule: str = "none"
    alpha: float | None = None
    beta: float = 0.01
    power: float = 0.5

    def __post_init__(self) -> None:
        problems = [*check_choice(self.rule, SPECTRUM_RULES, "rule"), *_check_at_least_0(self.power, "power")]
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            problems.append(Problem(f"alpha must be above 0 and finite, got {self.alpha}", "alpha"))
        if not 0 <= self.beta <= 1:
            problems.append(Problem(f"beta must be in [0, 1], got {self.beta}", "beta"))
        refuse(problems)

    @property
    def in_use(self) -> dict[str, bool]:
        """Which settings have an effect, by key."""
        return {"alpha": self.rule == "svc", "beta": self.rule == "boost", "power": self.rule == "power"}
