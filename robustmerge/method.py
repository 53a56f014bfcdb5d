"""A merge method as data: space x prune x scale x combine, and a strength.

A published method is one file in `configs/merge/`, which becomes one `Method`. A method outside this algebra is
one function named by `_target_`, which becomes one `OutsideMethod`. Nothing here computes: the rules are in
`rules.py`, the spaces in `spaces.py`, and `algebra.py` takes one module of the model through them. This file
imports no torch, so that a whole run can be planned in a moment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from robustmerge.method_checks import PARTS, USUAL_SCOPE, problems_of, problems_of_out
from robustmerge.settings import ConfigError, UserError, build, later, outside_identity
from robustmerge.signatures import read_functions
from robustmerge.unused import without_unused

MERGE_SCHEMA = 2  # of what a merge writes: raised where the same method gives other numbers than before


@dataclass(frozen=True)
class Prune:
    """Which entries of each expert survive.

    density: the fraction kept. scope: what one threshold covers: each tensor, or the whole model; null: what is usual
    in the space, see `method_checks.USUAL_SCOPE`. What `elected` and `balanced` measure follows it. count: which order
    statistic is the threshold, see `rules.threshold_index`.
    rescale: divide what is kept by the density, as DARE does.
    """

    rule: str = "none"
    density: float = 1.0
    scope: str | None = None
    count: str = "released"
    rescale: bool = False


@dataclass(frozen=True)
class Scale:
    """How each rank index of a part is scaled; a cell of table 7 of the paper.

    A, B: whose statistic scales that part: null (not scaled), A or B. The statistic of a part is, for each rank
    index, sum|x| before pruning over sum|x| after it (equation 3). RobustMerge is {A: null, B: A}.
    normalize: divide by the sum of the scale over experts (equation 4); a part that is not scaled is not divided.
    floor: raise every scale of an expert to its value at this fraction of the sorted scales; 0 is the paper,
    0.8 the released code. empty_row: a rank row that pruning leaves empty has no scale: refuse, or leave it out.
    """

    A: str | None = None
    B: str | None = None
    normalize: bool = False
    floor: float = 0.0
    empty_row: str = "error"


@dataclass(frozen=True)
class Balance:
    """Of PCB's competition. density: the fraction of scores above zero. variant: which of the authors' two programs."""

    density: float = 0.1
    variant: str = "main"


@dataclass(frozen=True)
class Basis:
    """Of KnOTS. cut: singular values up to this are noise; relative: times the largest of the module."""

    cut: float = 1e-5
    relative: bool = False


@dataclass(frozen=True)
class Out:
    """What is written.

    rank: cut the update to its best approximation of this rank; `experts`: their largest; null: exact.
    format: adapter (a PEFT folder), delta (dense updates), model (a full checkpoint, made from `base`, by default the
    one that the experts name); null: an adapter where one holds the update, a delta otherwise.
    """

    rank: int | str | None = None
    dtype: str = "float32"
    format: str | None = later(None)
    base: str | None = later(None)


@dataclass(frozen=True)
class Method:
    """One merge method. Raises ConfigError with every problem at once.

    name: of the file and the folder. title, paper: as tables print them.
    strength: multiplies the update (lambda). With space=factors and product=of_sums it multiplies A and B each, as
    the released code does, so the update gets its square. null: what `strengths` lists for the space (`each`
    stands for factors with product=each).
    weights: a factor for the update of an expert, by name; 1 where nothing is given.
    first: a random pruning before `prune`: DARE-TIES drops before TIES trims.
    disjoint: of combine=elected, whether the agreeing experts are averaged or summed.
    product, in factor space: of_sums = (sum of B)(sum of A), as released; each = sum of B A, equation 5.
    check_base: refuse experts of different base models.

    >>> Method(name="mine", space="factors", strength=0.5).effective_strength
    0.25
    """

    name: str
    space: str = "factors"
    strength: float | None = None
    strengths: dict[str, float] = outside_identity({})
    first: Prune | None = later(None)
    prune: Prune = field(default_factory=Prune)
    scale: Scale = field(default_factory=Scale)
    combine: str = "sum"
    disjoint: str = later("mean")
    balance: Balance = later(Balance())
    product: str = "of_sums"
    weights: dict[str, float] | None = None
    seed: int = 0
    basis: Basis = later(Basis())
    out: Out = field(default_factory=Out)
    check_base: bool = outside_identity(True)
    title: str = outside_identity("")
    paper: str = outside_identity("")

    def __post_init__(self) -> None:
        if self.strength is None and self.strength_key in self.strengths:
            object.__setattr__(self, "strength", self.strengths[self.strength_key])
        if self.prune.scope is None and self.space in USUAL_SCOPE:
            object.__setattr__(self, "prune", replace(self.prune, scope=USUAL_SCOPE[self.space]))
        problems = problems_of(self)
        if problems:
            raise ConfigError(problems)

    @property
    def strength_key(self) -> str:
        return "each" if (self.space, self.product) == ("factors", "each") else self.space

    @property
    def effective_strength(self) -> float:
        """By what the update is multiplied in the end."""
        return self.strength**2 if self.strength_key == "factors" else self.strength

    @property
    def prunings(self) -> tuple[Prune, ...]:
        """The steps that take entries away, in their order."""
        return tuple(step for step in (self.first, self.prune) if step is not None and step.rule != "none")

    @property
    def scaled_parts(self) -> dict[str, str]:
        """Part -> whose statistic scales it; parts that are not scaled are left out."""
        return {part: source for part in PARTS if (source := getattr(self.scale, part)) is not None}

    @property
    def is_linear(self) -> bool:
        """Whether each factor, or else the update, is a weighted sum over the experts."""
        return not self.prunings and not self.scaled_parts and self.combine in ("sum", "mean")

    @property
    def is_sum_of_updates(self) -> bool:
        """Whether the merged update is a weighted sum of the experts' updates, which an adapter holds exactly."""
        return self.is_linear and self.strength_key != "factors"

    @property
    def is_low_rank(self) -> bool:
        """Whether an adapter holds the merged update: exactly, or as closely as the rank asked for allows."""
        return self.space != "delta" or self.is_linear or self.out.rank is not None

    @property
    def output_format(self) -> str:
        """What is written: adapter, delta or model."""
        return self.out.format or ("adapter" if self.is_low_rank else "delta")

    @property
    def as_used(self) -> Method:
        """What the result is known by: without settings that nothing uses."""
        return without_unused(self)

    @property
    def needs_equal_ranks(self) -> bool:
        return self.strength_key == "factors" or (self.space == "factors" and self.prune.rule == "sign")

    @property
    def looks_at_whole_model(self) -> bool:
        """Whether something must be measured over all modules before one can be merged."""
        covers = self.prune.scope == "model"
        return covers and (self.prune.rule == "magnitude" or self.combine in ("elected", "balanced"))


@dataclass(frozen=True)
class OutsideMethod:
    """A method outside the algebra: a function `merge(pairs, **params) -> LoraPair | Tensor`, once a module.

    target: the function's dotted path. collect: that of a function `collect(modules, **params)`, called once before,
    with an iterator over (module, pairs); `merge` gets what it returns as `collected=`.
    source: sha256 of the files that hold them, so that an edited function is another result.
    """

    name: str
    target: str
    collect: str | None = later(None)
    params: dict[str, Any] = field(default_factory=dict)
    out: Out = field(default_factory=Out)
    check_base: bool = outside_identity(True)
    title: str = outside_identity("")
    paper: str = outside_identity("")
    source: str = ""

    def __post_init__(self) -> None:
        problems = problems_of_out(self.out)
        problems += [] if self.name else ["name must not be empty (merge.name)"]
        source, more = read_functions({"_target_": self.target, "collect": self.collect}, self.params)
        object.__setattr__(self, "source", source)
        problems += more
        if problems:
            raise ConfigError(problems)

    @property
    def output_format(self) -> str:
        """What is written: adapter, delta or model."""
        return self.out.format or "adapter"

    @property
    def as_used(self) -> OutsideMethod:
        """What the result is known by: without settings that nothing uses."""
        return without_unused(self)


def strength_of(method: Method | OutsideMethod) -> float | None:
    """What multiplies the method's update: its strength, or a function's `params.strength`; None where it has none."""
    found = method.strength if isinstance(method, Method) else method.params.get("strength")
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def times(method: Method | OutsideMethod, factor: float) -> Method | OutsideMethod:
    """The method, its update multiplied by `factor` (> 0): in factor space A and B each by the square root.

    Raises UserError for a method without a strength.

    >>> times(Method(name="mine", space="factors", strength=2.0), 0.25).strength
    1.0
    """
    strength = strength_of(method)
    if strength is None:
        raise UserError(f"{method.name} has no strength to multiply (merge.strength)")
    if factor == 1:
        return method
    if isinstance(method, OutsideMethod):
        return replace(method, params={**method.params, "strength": strength * factor})
    return replace(method, strength=strength * (math.sqrt(factor) if method.strength_key == "factors" else factor))


def build_method(values: Mapping[str, Any], where: str = "merge") -> Method | OutsideMethod:
    """Build the method that a config node describes. Raises ConfigError with every problem at once."""
    values = {key: value for key, value in values.items() if key != "source"}
    if "_target_" in values:
        values["target"] = values.pop("_target_")
    return build(OutsideMethod if "target" in values else Method, values, where)
