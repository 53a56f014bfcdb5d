"""A merge method as data: space x prune x scale x combine, and a strength.

A published method is one file in `configs/merge/`, which becomes one `Method`. A method outside this algebra is
one function named by `_target_`, which becomes one `OutsideMethod`. Nothing here computes: the rules are in
`rules.py`, the spaces in `spaces.py`, and `algebra.py` takes one module of the model through them. This file
imports no torch, so that a whole run can be planned in a moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from robustmerge.function_source import digest_functions
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import (
    ConfigError,
    Problem,
    UserError,
    build,
    choose,
    later,
    outside_identity,
    refuse,
    suggest,
)

MERGE_SCHEMA = 2  # of what a merge writes: raised where the same method gives other numbers than before

SPACES = ("factors", "delta", "knots", "core")
PRUNE_RULES = ("none", "magnitude", "random", "sign")
SCOPES = ("tensor", "model")
# What thresholds cover where nothing is said. Authors of TIES, PCB and KnOTS: the whole model; of Core Space: a module.
# A and B differ in size, so that one threshold over both would leave little of B: in factor space each has its own.
USUAL_SCOPE = {"factors": "tensor", "delta": "model", "knots": "model", "core": "tensor"}
COUNTS = ("authors", "released", "exact")
PARTS = ("A", "B")
EMPTY_ROWS = ("error", "drop")
COMBINE_RULES = ("sum", "mean", "elected", "balanced")
DISJOINT = ("mean", "sum")
VARIANTS = ("main", "vision")
PRODUCTS = ("of_sums", "each")
DTYPES = ("float32", "float16", "bfloat16", "experts")
FORMATS = ("adapter", "delta", "model")

METHODS = REPOSITORY / "configs" / "merge"


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
        refuse(problems_of(self))

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
    source: sha256 of the text that they compute with, so that an edited function is another result.
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
        problems += [] if self.name else [Problem("name must not be empty", "name")]
        try:
            object.__setattr__(self, "source", digest_functions({"_target_": self.target, "collect": self.collect}))
        except ConfigError as error:
            problems += error.problems
        refuse(problems)

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


def problems_of(method: Method) -> list[Problem]:
    """Everything that is wrong with a method."""
    return [*_unknown_names(method), *_wrong_numbers(method), *_meaningless_cells(method), *problems_of_out(method.out)]


def problems_of_out(out: Out) -> list[Problem]:
    """Everything that is wrong with what is to be written."""
    problems = choice(out.dtype, DTYPES, "out.dtype")
    problems += [] if out.format is None else choice(out.format, FORMATS, "out.format")
    if isinstance(out.rank, str) and out.rank != "experts":
        problems.append(Problem(f"rank must be null, a whole number or experts, got '{out.rank}'", "out.rank"))
    if isinstance(out.rank, int) and out.rank < 1:
        problems.append(Problem(f"rank must be at least 1, got {out.rank}", "out.rank"))
    if out.format != "model" and out.base is not None:
        problems.append(Problem(f"a base is for format=model only, got format {out.format or 'null'}", "out.base"))
    return problems


def choice(value: Any, choices: Iterable[str], key: str) -> list[Problem]:
    """A problem if the value is none of the choices."""
    choices = tuple(choices)
    if value in choices:
        return []
    return [Problem(f"unknown {key.rpartition('.')[2]} '{value}'; {suggest(value, choices)}", key)]


def _unknown_names(method: Method) -> list[Problem]:
    chosen = [
        (method.space, SPACES, "space"),
        (method.prune.rule, PRUNE_RULES, "prune.rule"),
        (method.prune.count, COUNTS, "prune.count"),
        (method.scale.empty_row, EMPTY_ROWS, "scale.empty_row"),
        (method.combine, COMBINE_RULES, "combine"),
        (method.disjoint, DISJOINT, "disjoint"),
        (method.balance.variant, VARIANTS, "balance.variant"),
        (method.product, PRODUCTS, "product"),
    ]
    if method.prune.scope is not None:  # an unknown space has no usual one
        chosen.append((method.prune.scope, SCOPES, "prune.scope"))
    if method.first is not None:
        chosen.append((method.first.rule, ("random",), "first.rule"))
    problems = [problem for value, choices, key in chosen for problem in choice(value, choices, key)]
    for part in PARTS:
        source = getattr(method.scale, part)
        if source is not None and source not in PARTS:
            problems.append(Problem(f"scale.{part} must be null, A or B, got '{source}'", f"scale.{part}"))
    for key in method.strengths:
        problems += choice(key, (*SPACES, "each"), "strengths")
    return problems


def _wrong_numbers(method: Method) -> list[Problem]:
    problems = [] if method.name else [Problem("name must not be empty", "name")]
    densities = {"prune": method.prune.density, "balance": method.balance.density}
    densities |= {} if method.first is None else {"first": method.first.density}
    for key, density in densities.items():
        if not 0 < density <= 1:
            problems.append(Problem(f"density must be in (0, 1], got {density}", f"{key}.density"))
    if not 0 <= method.scale.floor < 1:
        problems.append(Problem(f"floor must be in [0, 1), got {method.scale.floor}", "scale.floor"))
    most = 1.0 if method.basis.relative else float("inf")
    if not 0 <= method.basis.cut < most:
        below = f" and below {most:g}" if method.basis.cut >= most else ""
        problems.append(Problem(f"cut must be at least 0{below}, got {method.basis.cut}", "basis.cut"))
    if method.strength is None and method.space in SPACES and not _needs_factors(method):
        problems.append(
            Problem(f"strength must be given: merge.strengths lists no default for {method.strength_key}", "strength")
        )
    numbers = {"strength": method.strength} if method.strength is not None else {}
    numbers |= {f"weights.{name}": weight for name, weight in (method.weights or {}).items()}
    for key, value in numbers.items():
        if not abs(value) < float("inf"):
            problems.append(Problem(f"{key.rpartition('.')[2]} must be a finite number, got {value}", key))
    return problems


def _meaningless_cells(method: Method) -> list[Problem]:
    problems, prune = [*_unused_settings(method.prune), *_unused_range(method.first)], method.prune
    if prune.count == "exact" and (prune.scope == "model" or method.space == "delta") and prune.rule == "magnitude":
        problems.append(
            Problem(
                "count=exact needs a tensor that is held whole, so scope=tensor and a space other than delta; choose "
                "count=authors or released",
                "prune.count",
            )
        )
    if method.strength_key == "factors" and method.strength is not None and method.strength < 0:
        problems.append(
            Problem(
                "strength multiplies A and B each, so that a negative one does not turn the update round; take "
                f"another space than factors, or product=each; got {method.strength}",
                "strength",
            )
        )
    if method.strength_key == "each" and method.combine in ("elected", "balanced"):
        problems.append(Problem(f"product=each is a sum of products, got combine {method.combine}", "product"))
    if method.combine == "balanced" and method.scaled_parts and prune.scope == "model":
        problems.append(
            Problem(
                "scores over the whole model are measured before anything is scaled; with combine=balanced take "
                "merge.prune.scope=tensor, or scale nothing",
                "scale",
            )
        )
    if method.space in SPACES:
        problems += _needs_factors(method)
    if method.out.format == "adapter" and not method.is_low_rank:
        problems.append(
            Problem(
                f"a pruned or elected update in space {method.space} has full rank, which no adapter holds exactly; "
                "give the rank to cut it to, merge.out.rank=R, or take delta",
                "out.format",
            )
        )
    return problems


def _needs_factors(method: Method) -> list[Problem]:
    """What works on A and B apart, and so in no other space than factors."""
    if method.space == "factors":
        return []
    needs = f"needs merge.space=factors, got space {method.space}"
    scaled = f"scaling works on A and B apart, so it {needs}"
    problems = [Problem(scaled, f"scale.{part}") for part in method.scaled_parts]
    return [*problems, *([Problem(f"product=each {needs}", "product")] if method.product == "each" else [])]


def ways_past_ranks(method: Method | OutsideMethod) -> str:
    """What to set so that a method in factor space takes experts of different ranks; empty if nothing helps."""
    ways = []
    if not getattr(method, "scaled_parts", True):
        ways.append("merge.space=delta, knots or core")
    if getattr(method, "combine", None) in ("sum", "mean") and method.prune.rule != "sign":
        ways.append("merge.product=each")
    return f"in factor space ranks must be equal: take {', or '.join(ways)}" if ways else ""


def _unused_settings(prune: Prune) -> list[Problem]:
    """What is said of a density that the rule does not use."""
    if prune.rule not in ("none", "sign"):
        return []
    others = ", ".join(rule for rule in PRUNE_RULES if rule not in ("none", "sign"))
    unused = f"while prune.rule is {prune.rule}; set"
    problems = []
    if prune.density != 1:
        what = "prunes nothing" if prune.rule == "none" else "is not used"
        problems.append(
            Problem(
                f"density {prune.density} {what} {unused} prune.density=1, or prune.rule to one of {others}",
                "prune.density",
            )
        )
    if prune.rescale:
        problems.append(
            Problem(
                f"rescale divides by a density that is not used {unused} prune.rescale=false, or prune.rule to one of "
                f"{others}",
                "prune.rescale",
            )
        )
    return problems


def _unused_range(first: Prune | None) -> list[Problem]:
    """A random pruning has no threshold, so neither the range of one nor a way to count."""
    keys = {"scope": None, "count": "released"}  # as they are if nothing is said
    return [
        Problem(f"{key} is of thresholds, and a random pruning has none; leave it out", f"first.{key}")
        for key, value in keys.items()
        if first is not None and getattr(first, key) != value
    ]


def problems_of_weights(weights: Mapping[str, float] | None, experts: Iterable[str]) -> list[str]:
    """Weights of experts that are not there."""
    experts = tuple(experts)
    return [
        f"weights names an unknown expert '{name}'; {suggest(name, experts)} (merge.weights)"
        for name in weights or ()
        if name not in experts
    ]


def find_unused(method: Method | OutsideMethod) -> tuple[str, ...]:
    """The keys, as `balance.density`, of settings that are not at their default and change nothing."""
    return tuple(key for key in _idle_keys(method) if _value_of(method, key) != _default_of(method, key))


def without_unused(method: Method | OutsideMethod) -> Method | OutsideMethod:
    """The method with the settings that it does not use at their defaults."""
    changes: dict[str, Any] = {}
    for key in find_unused(method):
        name, _, inner = key.partition(".")
        value = _default_of(method, key)
        changes[name] = replace(changes.get(name, getattr(method, name)), **{inner: value}) if inner else value
    return replace(method, **changes) if changes else method


def _idle_keys(method: Method | OutsideMethod) -> list[str]:
    """The keys that change nothing in this method, whatever they are."""
    used = {"out.dtype": method.output_format != "model"}  # a model has the dtype of its base
    if hasattr(method, "prunings"):
        rules = {step.rule for step in method.prunings}
        is_scaled, is_balanced = bool(method.scaled_parts), method.combine == "balanced"
        has_basis = method.space == "knots" and not method.is_sum_of_updates
        used |= {
            "prune.scope": "magnitude" in rules or method.combine in ("elected", "balanced"),
            "prune.count": "magnitude" in rules,
            "scale.normalize": is_scaled,
            "scale.floor": is_scaled and bool(rules),  # without pruning all scales are 1, and no row is emptied
            "scale.empty_row": is_scaled and bool(rules),
            "disjoint": method.combine == "elected",
            "balance.density": is_balanced,
            "balance.variant": is_balanced,
            "weights": any(weight != 1 for weight in (method.weights or {}).values()),
            "seed": "random" in rules,
            "basis.cut": has_basis,
            "basis.relative": has_basis,
        }
    return [key for key, is_used in used.items() if not is_used]


def _value_of(method: Method | OutsideMethod, key: str) -> Any:
    name, _, inner = key.partition(".")
    value = getattr(method, name)
    return getattr(value, inner) if inner else value


def _default_of(method: Method | OutsideMethod, key: str) -> Any:
    if key == "prune.scope":
        return USUAL_SCOPE[method.space]
    name, _, inner = key.partition(".")
    return getattr(type(getattr(method, name)), inner) if inner else getattr(type(method), name)


def list_methods() -> list[str]:
    """The names of all method files; `_neutral` holds what they have in common and is none."""
    return sorted(file.stem for file in METHODS.glob("[!_]*.yaml"))


def read_method(name: str | Path, **changes: Any) -> Method | OutsideMethod:
    """The method of `configs/merge/<name>.yaml`, or of a file elsewhere.

    changes: values by key, `__` for a dot, as in read_method("ties", space="delta", prune__density=0.1).
    Raises UserError for an unknown name or file, ConfigError for what is wrong in the file or the changes.
    """
    file = Path(name)
    if file.suffix != ".yaml":
        file = METHODS / f"{choose(str(name), list_methods(), 'method')}.yaml"
    elif not file.is_file():
        raise UserError(f"there is no method file {file}")
    values = _read(file)
    for key, value in changes.items():
        for part in reversed(key.split("__")):
            value = {part: value}
        values = _merged(values, value)
    return build_method(values)


def _read(file: Path) -> dict[str, Any]:
    """A file on top of those that its `defaults` name, as Hydra composes them."""
    own = yaml.safe_load(file.read_text())
    values: dict[str, Any] = {}
    for name in own.pop("defaults", ["_self_"]):
        values = _merged(values, own if name == "_self_" else _read(METHODS / f"{name}.yaml"))
    return values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        values[key] = _merged(values[key], value) if both else value
    return values
