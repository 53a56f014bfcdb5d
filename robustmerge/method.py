"""A merge method as data: space x prune x scale x combine, and a strength.

A published method is one file in `configs/merge/`, which becomes one `Method`. A method outside this algebra is
one function named by `_target_`, which becomes one `OutsideMethod`. Nothing here computes: the rules are in
`rules.py`, the spaces in `spaces.py`, and `algebra.py` takes one module of the model through them. This file
imports no torch, so that a whole run can be planned in a moment.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustmerge.settings import ConfigError, build, outside_identity, suggest

SPACES = ("factors", "delta")
PRUNE_RULES = ("none", "magnitude", "random")
SCOPES = ("tensor",)
COUNTS = ("authors", "released", "exact")
PARTS = ("A", "B")
EMPTY_ROWS = ("error", "drop")
COMBINE_RULES = ("sum", "mean")
PRODUCTS = ("of_sums", "each")
DTYPES = ("float32", "experts")


@dataclass(frozen=True)
class Prune:
    """Which entries of each expert survive.

    density: the fraction kept. scope: what one threshold covers. count: which order statistic is the threshold,
    see `rules.threshold_index`. rescale: divide what is kept by the density, as DARE does.
    """

    rule: str = "none"
    density: float = 1.0
    scope: str = "tensor"
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
class Out:
    """rank: cut the update to its best approximation of this rank (null: exact). dtype: of what is written."""

    rank: int | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class Method:
    """One merge method. Raises ConfigError with every problem at once.

    name: of the file and the folder. title, paper: as tables print them.
    strength: multiplies the update (lambda). With space=factors and product=of_sums it multiplies A and B each, as
    the released code does, so the update gets its square. null: what `strengths` lists for the space (`each`
    stands for factors with product=each).
    weights: a factor for the update of an expert, by name; 1 where nothing is given.
    product, in factor space: of_sums = (sum of B)(sum of A), as released; each = sum of B A, equation 5.

    >>> Method(name="mine", space="factors", strength=0.5).effective_strength
    0.25
    """

    name: str
    space: str = "factors"
    strength: float | None = None
    strengths: dict[str, float] = outside_identity({})
    prune: Prune = field(default_factory=Prune)
    scale: Scale = field(default_factory=Scale)
    combine: str = "sum"
    product: str = "of_sums"
    weights: dict[str, float] | None = None
    seed: int = 0
    out: Out = field(default_factory=Out)
    title: str = outside_identity("")
    paper: str = outside_identity("")

    def __post_init__(self) -> None:
        if self.strength is None and self.strength_key in self.strengths:
            object.__setattr__(self, "strength", self.strengths[self.strength_key])
        problems = [*_unknown_names(self), *_wrong_numbers(self), *_meaningless_cells(self)]
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
    def scaled_parts(self) -> dict[str, str]:
        """Part -> whose statistic scales it; parts that are not scaled are left out."""
        return {part: source for part in PARTS if (source := getattr(self.scale, part)) is not None}

    @property
    def is_linear(self) -> bool:
        """Whether the merged update is a weighted sum of the experts' updates in every space but `factors`."""
        return self.prune.rule == "none" and not self.scaled_parts and self.combine in ("sum", "mean")

    @property
    def needs_equal_ranks(self) -> bool:
        return self.space == "factors"


@dataclass(frozen=True)
class OutsideMethod:
    """A method outside the algebra: a function `merge(pairs, **params) -> LoraPair | Tensor`, once a module.

    target: the function's dotted path. source: sha256 of the file that holds it, so that an edited function is
    another result.
    """

    name: str
    target: str
    params: dict[str, Any] = field(default_factory=dict)
    out: Out = field(default_factory=Out)
    title: str = outside_identity("")
    paper: str = outside_identity("")
    source: str = ""

    def __post_init__(self) -> None:
        problems = [*_choice(self.out.dtype, DTYPES, "out.dtype"), *_rank_problems(self.out)]
        problems += [] if self.name else ["name must not be empty (merge.name)"]
        try:
            object.__setattr__(self, "source", _sha256_of_module(self.target))
        except (ImportError, ValueError, AttributeError) as error:
            problems.append(
                f"cannot find '{self.target}': {error}. Give the dotted path of a function in robustmerge or in a "
                "module that Python can import, as in my_methods.merge (merge._target_)"
            )
        if problems:
            raise ConfigError(problems)


def build_method(values: Mapping[str, Any], where: str = "merge") -> Method | OutsideMethod:
    """Build the method that a config node describes. Raises ConfigError with every problem at once."""
    values = {key: value for key, value in values.items() if key != "source"}
    if "_target_" in values:
        values["target"] = values.pop("_target_")
    return build(OutsideMethod if "target" in values else Method, values, where)


def _sha256_of_module(target: str) -> str:
    module, _, function = target.rpartition(".")
    if not module or not function:
        raise ValueError("it names no function of a module")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ImportError(f"there is no module '{module}'")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _choice(value: Any, choices: Iterable[str], key: str) -> list[str]:
    choices = tuple(choices)
    if value in choices:
        return []
    return [f"unknown {key.rpartition('.')[2]} '{value}'; {suggest(value, choices)} (merge.{key})"]


def _unknown_names(method: Method) -> list[str]:
    chosen = [
        (method.space, SPACES, "space"),
        (method.prune.rule, PRUNE_RULES, "prune.rule"),
        (method.prune.scope, SCOPES, "prune.scope"),
        (method.prune.count, COUNTS, "prune.count"),
        (method.scale.empty_row, EMPTY_ROWS, "scale.empty_row"),
        (method.combine, COMBINE_RULES, "combine"),
        (method.product, PRODUCTS, "product"),
        (method.out.dtype, DTYPES, "out.dtype"),
    ]
    problems = [line for value, choices, key in chosen for line in _choice(value, choices, key)]
    for part in PARTS:
        source = getattr(method.scale, part)
        if source is not None and source not in PARTS:
            problems.append(f"scale.{part} must be null, A or B, got '{source}' (merge.scale.{part})")
    for key in method.strengths:
        problems += _choice(key, (*SPACES, "each"), "strengths")
    return problems


def _wrong_numbers(method: Method) -> list[str]:
    problems = [] if method.name else ["name must not be empty (merge.name)"]
    if not 0 < method.prune.density <= 1:
        problems.append(f"density must be in (0, 1], got {method.prune.density} (merge.prune.density)")
    if not 0 <= method.scale.floor < 1:
        problems.append(f"floor must be in [0, 1), got {method.scale.floor} (merge.scale.floor)")
    if method.strength is None:
        problems.append(
            f"strength must be given: merge.strengths lists no default for {method.strength_key} (merge.strength)"
        )
    numbers = {"strength": method.strength} if method.strength is not None else {}
    numbers |= {f"weights.{name}": weight for name, weight in (method.weights or {}).items()}
    for key, value in numbers.items():
        if not abs(value) < float("inf"):
            problems.append(f"{key.rpartition('.')[2]} must be a finite number, got {value} (merge.{key})")
    return problems + _rank_problems(method.out)


def _rank_problems(out: Out) -> list[str]:
    if out.rank is None or out.rank >= 1:
        return []
    return [f"rank must be at least 1, got {out.rank} (merge.out.rank)"]


def _meaningless_cells(method: Method) -> list[str]:
    problems, prune = [], method.prune
    if prune.rule == "none" and prune.density != 1:
        problems.append(
            f"density {prune.density} prunes nothing while prune.rule is none; set prune.density=1, or prune.rule "
            f"to one of {', '.join(PRUNE_RULES[1:])} (merge.prune.density)"
        )
    if method.space == "factors":
        return problems
    needs = f"needs merge.space=factors, got space {method.space}"
    problems += [f"scaling {needs} (merge.scale.{part})" for part in method.scaled_parts]
    if method.product != "of_sums":
        problems.append(f"product={method.product} {needs} (merge.product)")
    if prune.rule != "none" and method.out.rank is None:
        problems.append(
            f"a pruned update in space {method.space} has full rank, which no adapter holds exactly; give the "
            "rank to cut it to, or merge in factors (merge.out.rank)"
        )
    return problems
