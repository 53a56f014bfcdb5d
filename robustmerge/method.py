"""A merge method as data: space x prune x scale x combine, and a strength.

A published method is one file in `configs/merge/`, which becomes one `Method`. A method outside this algebra is
one function named by `_target_`, which becomes one `FunctionMethod`. Both answer the same questions. Nothing here
computes: the rules are in `rules.py`, the spaces in `spaces.py`, and `algebra.py` takes one module of the model through
them. This file imports no torch, so that a whole run can be planned in a moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from robustmerge.function_source import digest_functions
from robustmerge.graded import (
    Grade,
    find_wrong_numbers,
    format_grade,
    is_graded,
    list_numbers,
    map_numbers,
    order_patterns,
    resolve,
)
from robustmerge.method_parts import (
    COMBINE_RULES,
    DISJOINT,
    PRODUCTS,
    SPACES,
    TARGET_RULES,
    USUAL_SCOPE,
    Balance,
    Basis,
    Calibrate,
    Equalize,
    Out,
    Prune,
    ReshapeSpectrum,
    Scale,
    check_choice,
)
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import (
    ConfigError,
    Problem,
    UserError,
    build,
    choose,
    convert,
    key_of,
    later,
    outside_identity,
    refuse,
    suggest,
)
from robustmerge.stage.text import quote
from robustmerge.stage.yaml_files import read_yaml

MERGE_SCHEMA = 2  # of what a merge writes: increased when the same method gives other numbers than before

_INSTALLED = Path(__file__).parent / "methods"  # where pyproject.toml puts configs/merge when the package is installed
METHODS = _INSTALLED if _INSTALLED.is_dir() else REPOSITORY / "configs" / "merge"


# --- the two kinds of methods ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """One merge method. Raises ConfigError with every problem at once.

    name: of the file and the folder. title, paper: as tables print them.
    strength: multiplies the update (lambda). With space=factors and product=of_sums it multiplies A and B each, as
    the released code does, so the update is multiplied by its square. null: the default that `strengths` lists for the
    space (under `each` for factors with product=each).
    weights: a factor for the update of each expert, by name; 1 where none is given.
    Strength and weights are numbers, or differ by module: by patterns of names or over the layers, see `graded.py`.
    first: a random pruning before `prune`: DARE-TIES drops before TIES trims.
    disjoint: of combine=elected, whether the agreeing experts are averaged or summed; energy: averaged with the mean
    square of each as its weight.
    product, in factor space: of_sums = (sum of B)(sum of A), as released; each = sum of B A, equation 5.
    check_base: refuse experts of different base models.
    equalize, calibrate, spectrum: steps before and after any rule, see `steps.py`.
    targets: what to do if experts adapt different modules: union = a module that an expert lacks counts as a zero
    update, so that a mean still divides by the number of all experts; strict = refuse the experts.

    >>> Method(name="mine", space="factors", strength=0.5).effective_strength
    0.25
    """

    name: str
    space: str = "factors"
    strength: Grade = field(default=None)  # type: ignore[assignment]  # there as soon as it is checked
    strengths: dict[str, Grade] = outside_identity({})
    first: Prune | None = later(None)
    prune: Prune = field(default_factory=Prune)
    scale: Scale = field(default_factory=Scale)
    combine: str = "sum"
    disjoint: str = later("mean")
    balance: Balance = later(Balance())
    product: str = "of_sums"
    weights: dict[str, Grade] | None = None
    seed: int = 0
    basis: Basis = later(Basis())
    equalize: Equalize = later(Equalize())
    calibrate: Calibrate = later(Calibrate())
    spectrum: ReshapeSpectrum = later(ReshapeSpectrum())
    out: Out = field(default_factory=Out)
    check_base: bool = outside_identity(True)
    targets: str = outside_identity("union")
    title: str = outside_identity("")
    paper: str = outside_identity("")

    def __post_init__(self) -> None:
        if self.strength is None and self.strength_key in self.strengths:
            object.__setattr__(self, "strength", self.strengths[self.strength_key])
        object.__setattr__(self, "strength", order_patterns(self.strength))
        if self.weights is not None:
            object.__setattr__(self, "weights", {name: order_patterns(grade) for name, grade in self.weights.items()})
        if self.prune.scope is None and self.space in USUAL_SCOPE:
            object.__setattr__(self, "prune", replace(self.prune, scope=USUAL_SCOPE[self.space]))
        refuse(_problems_between_parts(self))

    @property
    def strength_key(self) -> str:
        """The key of the default in `strengths`: the space, or `each`."""
        return "each" if (self.space, self.product) == ("factors", "each") else self.space

    @property
    def multiplies_factors(self) -> bool:
        """Whether the strength multiplies A and B each, so that the update gets its square."""
        return self.strength_key == "factors"

    @property
    def is_graded(self) -> bool:
        """Whether strength or a weight differs by module; `by_module` gives the methods of the modules then."""
        return is_graded(self.strength) or any(map(is_graded, (self.weights or {}).values()))

    def by_module(self, modules: Sequence[str]) -> dict[str, Method]:
        """The method of each module, whose strength and weights are numbers. Raises UserError as `resolve` does."""
        if not self.is_graded:
            return dict.fromkeys(modules, self)
        strengths = resolve(self.strength, modules, "merge.strength")
        weights = {name: resolve(w, modules, f"merge.weights.{name}") for name, w in (self.weights or {}).items()}
        return {
            module: replace(self, strength=number, weights={name: w[module] for name, w in weights.items()})
            for module, number in strengths.items()
        }

    @property
    def factor(self) -> float:
        """The strength as a number, which it is in one module."""
        return cast(float, self.strength)

    @property
    def effective_strength(self) -> float | None:
        """The factor by which the update is multiplied in the end; None where it differs by module."""
        if is_graded(self.strength):
            return None
        return self.factor * self.factor if self.multiplies_factors else self.factor

    def with_factor(self, factor: float) -> Method:
        """Return the method with its update multiplied by `factor` (> 0).

        Where the strength multiplies A and B each, it gets the square root of `factor`. All numbers of a strength that
        differs by module are multiplied.

        >>> Method(name="mine", space="factors", strength=2.0).with_factor(0.25).strength
        1.0
        """
        by = math.sqrt(factor) if self.multiplies_factors else factor
        return self if factor == 1 else replace(self, strength=map_numbers(lambda x: x * by, self.strength))

    def weights_of(self, experts: Sequence[str]) -> list[float]:
        """The factor of each expert's update in one module, by `weights`."""
        return [cast(float, (self.weights or {}).get(name, 1.0)) for name in experts]

    def shares_of(self, experts: Sequence[str]) -> list[float]:
        """The factor of each expert's update in one module: strength and weight, in a mean divided by T."""
        share = cast(float, self.effective_strength) / (len(experts) if self.combine == "mean" else 1)
        return [share * weight for weight in self.weights_of(experts)]

    def linear_shares_of(self, experts: Sequence[str]) -> list[float] | None:
        """The experts' shares, if each factor (or else the update) is a weighted sum over them; None otherwise."""
        return self.shares_of(experts) if self.is_linear and not list_steps(self) else None

    @property
    def prunings(self) -> tuple[Prune, ...]:
        """The pruning steps, in order."""
        return tuple(step for step in (self.first, self.prune) if step is not None and step.rule != "none")

    @property
    def scaled_parts(self) -> dict[str, str]:
        """Part -> the part whose statistic scales it; parts that are not scaled are left out."""
        return {part: source for part, source in (("A", self.scale.A), ("B", self.scale.B)) if source is not None}

    @property
    def is_linear(self) -> bool:
        """Whether each factor (or else the update) is a weighted sum over the experts."""
        return not self.prunings and not self.scaled_parts and self.combine in ("sum", "mean")

    @property
    def is_sum_of_updates(self) -> bool:
        """Whether the merged update is a weighted sum of the experts' updates, which an adapter holds exactly."""
        return self.is_linear and not self.multiplies_factors

    @property
    def weighs_by_energy(self) -> bool:
        """Whether the experts that agree with an elected sign are weighted by their mean squares."""
        return self.combine == "elected" and self.disjoint == "energy"

    @property
    def is_low_rank(self) -> bool:
        """Whether an adapter holds the merged update: exactly, or as closely as the rank asked for allows."""
        return self.space != "delta" or self.is_linear or self.out.is_cut

    @property
    def output_format(self) -> str:
        """What is written: adapter, delta or model."""
        return self.out.format or ("adapter" if self.is_low_rank else "delta")

    @property
    def needs_equal_ranks(self) -> bool:
        """Whether all experts must have the same rank."""
        return self.multiplies_factors or (self.space == "factors" and self.prune.rule in ("sign", "variance"))

    @property
    def needs_full_zeros(self) -> bool:
        """Whether the zero update of an expert that lacks a module must have the rank of the others'."""
        return self.needs_equal_ranks

    @property
    def rank_advice(self) -> str:
        """What to set so that experts of different ranks can be merged; empty if nothing helps."""
        ways = [] if self.scaled_parts else ["merge.space=delta, knots or core"]
        if self.combine in ("sum", "mean") and self.prune.rule not in ("sign", "variance"):
            ways.append("merge.product=each")
        return f"in factor space ranks must be equal: take {', or '.join(ways)}" if ways else ""

    @property
    def needs_whole_model(self) -> bool:
        """Whether something must be measured over all modules before one can be merged."""
        return self.prune.scope == "model" and self.measures_range

    @property
    def measures_range(self) -> bool:
        """Whether anything is measured over a range, which `prune.scope` says."""
        prunes = self.prune.rule in ("magnitude", "variance") or self.prune.rescale == "l1"
        return prunes or self.combine in ("elected", "balanced")

    @property
    def has_one_threshold_for_factors(self) -> bool:
        """Whether one threshold covers A and B of the whole model; B, often much smaller, may then lose everything."""
        return self.space == "factors" and self.prune.scope == "model"

    @property
    def formula(self) -> str:
        """The method in a few words, for the card of a merged folder."""
        return ", ".join([f"strength {format_grade(self.strength)} in {self.space}", *list_steps(self)])

    @property
    def unused(self) -> tuple[str, ...]:
        """The keys (`balance.density`) of settings that differ from their default but have no effect."""
        rules = {step.rule for step in self.prunings}
        is_scaled, is_balanced = bool(self.scaled_parts), self.combine == "balanced"
        has_basis = self.space == "knots" and not self.is_sum_of_updates
        is_used = {
            "out.dtype": self.output_format != "model",  # a model has the dtype of its base
            "prune.scope": self.measures_range,
            "prune.count": "magnitude" in rules,
            "prune.skip": "magnitude" in rules and self.prune.density < 1,
            "prune.epsilon": self.prune.rule == "random",
            "scale.normalize": is_scaled,
            "scale.floor": is_scaled and bool(rules),  # without pruning all scales are 1, and no row is emptied
            "scale.empty_row": is_scaled,
            "disjoint": self.combine == "elected",
            "balance.density": is_balanced,
            "balance.variant": is_balanced,
            "weights": any(number != 1 for weight in (self.weights or {}).values() for number in list_numbers(weight)),
            "seed": "random" in rules,
            "basis.cut": has_basis,
            "basis.relative": has_basis,
            **_steps_in_use(self),
        }
        return _not_at_default(self, (key for key, used in is_used.items() if not used))

    @property
    def as_used(self) -> Method:
        """The method with unused settings at their defaults, which identifies the result."""
        return _with_defaults(self, self.unused)


@dataclass(frozen=True)
class FunctionMethod:
    """A method outside the algebra: a function `merge(pairs, **params) -> LoraPair | Tensor`, called for each module.

    target: the function's dotted path. collect: the path of a function `collect(modules, **params)`, called once
    beforehand, with an iterator over (module, pairs); `merge` gets its result as `collected=`.
    params: the function's parameters. One called strength multiplies the update and may differ by module, as that of a
    `Method` may; the function gets the number for its module.
    source: sha256 of the source that both functions compute with, so that an edited function gives another result.
    equalize, calibrate, spectrum, targets: as in `Method`; for an expert that lacks a module, the function gets a pair
    of zeros.
    """

    name: str
    target: str
    collect: str | None = later(None)
    params: dict[str, Any] = field(default_factory=dict)
    equalize: Equalize = later(Equalize())
    calibrate: Calibrate = later(Calibrate())
    spectrum: ReshapeSpectrum = later(ReshapeSpectrum())
    out: Out = field(default_factory=Out)
    check_base: bool = outside_identity(True)
    targets: str = outside_identity("union")
    title: str = outside_identity("")
    paper: str = outside_identity("")
    source: str = ""

    def __post_init__(self) -> None:
        problems = [] if self.name else [Problem("name must not be empty", "name")]
        problems += check_choice(self.targets, TARGET_RULES, "targets")
        try:
            object.__setattr__(self, "source", digest_functions({"_target_": self.target, "collect": self.collect}))
        except ConfigError as error:
            problems += error.problems
        if self.is_graded:
            problems += self._grade_strength()
        elif self.strength is not None:
            problems += [Problem(text, "params.strength") for text in find_wrong_numbers(self.strength, "strength")]
        refuse(problems)

    def _grade_strength(self) -> list[Problem]:
        """Convert a strength that differs by module as that of a `Method` is, and return its problems."""
        key = "params.strength"
        try:
            strength = order_patterns(convert(Grade, self.params["strength"], key))
        except ConfigError as error:
            return list(error.problems)
        object.__setattr__(self, "params", self._params_with(strength))
        problems = [Problem(text, key) for text in find_wrong_numbers(strength, "strength")]
        if self.collect is not None:
            problems.append(Problem(f"it must be one number, since {self.collect} is called once for all modules", key))
        return problems

    def _params_with(self, strength: Grade) -> dict[str, Any]:
        return {**self.params, "strength": strength}

    @property
    def strength(self) -> Grade | None:
        """What multiplies the update: `params.strength`, as of `Method`; None where the function has no such number."""
        value = self.params.get("strength")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number or self.is_graded else None

    @property
    def is_graded(self) -> bool:
        """Whether the strength differs by module; `by_module` gives the methods of the modules then."""
        return is_graded(self.params.get("strength"))

    @property
    def effective_strength(self) -> float | None:
        """The factor by which the update is multiplied in the end; None where it differs by module."""
        return None if self.is_graded else cast("float | None", self.strength)

    def with_factor(self, factor: float) -> FunctionMethod:
        """The method, its update multiplied by `factor` (> 0). Raises UserError for one without a strength."""
        if self.strength is None:
            raise UserError(f"{self.name} has no strength to multiply (merge.strength)")
        strength = map_numbers(lambda x: x * factor, self.strength)
        return self if factor == 1 else replace(self, params=self._params_with(strength))

    def by_module(self, modules: Sequence[str]) -> dict[str, FunctionMethod]:
        """The method of each module, whose strength is a number. Raises UserError as `resolve` does."""
        if not self.is_graded:
            return dict.fromkeys(modules, self)
        numbers = resolve(cast(Grade, self.strength), modules, "merge.params.strength")
        methods = {number: replace(self, params=self._params_with(number)) for number in set(numbers.values())}
        return {module: methods[number] for module, number in numbers.items()}

    def linear_shares_of(self, experts: Sequence[str]) -> None:
        """None: what a function does is not known to be a weighted sum."""
        return

    @property
    def output_format(self) -> str:
        """What is written: adapter, delta or model."""
        return self.out.format or "adapter"

    @property
    def needs_whole_model(self) -> bool:
        """Whether something is collected over all modules before one is merged."""
        return self.collect is not None

    @property
    def formula(self) -> str:
        """The method in a few words, for the card of a merged folder."""
        graded = [f"strength {format_grade(self.strength)}"] if self.is_graded else []
        return ", ".join([self.target, *graded, *list_steps(self)])

    @property
    def unused(self) -> tuple[str, ...]:
        """The keys of settings that differ from their default but have no effect."""
        is_used = {"out.dtype": self.output_format != "model", **_steps_in_use(self)}
        return _not_at_default(self, (key for key, used in is_used.items() if not used))

    @property
    def as_used(self) -> FunctionMethod:
        """The method with unused settings at their defaults, which identifies the result."""
        return _with_defaults(self, self.unused)

    # What only the algebra has.
    space = None
    combine = None
    weights = None
    multiplies_factors = False
    needs_equal_ranks = False
    needs_full_zeros = True  # a function may stack the pairs, or divide by the number of their directions
    rank_advice = ""
    has_one_threshold_for_factors = False


AnyMethod = Method | FunctionMethod
M = TypeVar("M", Method, FunctionMethod)


def list_steps(method: AnyMethod) -> list[str]:
    """The steps before and after the rule, as `spectrum svc`."""
    rules = {"equalize": method.equalize.rule, "calibrate": method.calibrate.rule, "spectrum": method.spectrum.rule}
    return [f"{step} {rule}" for step, rule in rules.items() if rule != "none"]


def has_step_after_rule(method: AnyMethod) -> bool:
    """Whether the update that the rule returns is changed, by its norm or its spectrum."""
    restores = method.calibrate.rule != "none" and method.calibrate.norm == "merge"
    return restores or method.spectrum.rule != "none"


def _steps_in_use(method: AnyMethod) -> dict[str, bool]:
    steps: dict[str, Equalize | Calibrate | ReshapeSpectrum]
    steps = {"equalize": method.equalize, "calibrate": method.calibrate, "spectrum": method.spectrum}
    return {f"{name}.{key}": used for name, step in steps.items() for key, used in step.in_use.items()}


def _not_at_default(method: AnyMethod, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(key for key in keys if _value_of(method, key) != _default_of(method, key))


def _with_defaults(method: M, keys: Sequence[str]) -> M:
    changes: dict[str, Any] = {}
    for key in keys:
        name, _, inner = key.partition(".")
        value = _default_of(method, key)
        changes[name] = replace(changes.get(name, getattr(method, name)), **{inner: value}) if inner else value
    return replace(method, **changes) if changes else method


def _value_of(method: AnyMethod, key: str) -> Any:
    name, _, inner = key.partition(".")
    value = getattr(method, name)
    return getattr(value, inner) if inner else value


def _default_of(method: AnyMethod, key: str) -> Any:
    if key == "prune.scope" and method.space is not None:
        return USUAL_SCOPE[method.space]
    name, _, inner = key.partition(".")
    return getattr(type(getattr(method, name)), inner) if inner else getattr(type(method), name)


# --- what is wrong with a method ---------------------------------------------------------------------------------


def _problems_between_parts(method: Method) -> list[Problem]:
    """Problems between the parts of a method, each of which is valid by itself."""
    return [*_unknown_names(method), *_wrong_numbers(method), *_meaningless_cells(method)]


def _unknown_names(method: Method) -> list[Problem]:
    problems = [
        *check_choice(method.space, SPACES, "space"),
        *check_choice(method.combine, COMBINE_RULES, "combine"),
        *check_choice(method.disjoint, DISJOINT, "disjoint"),
        *check_choice(method.product, PRODUCTS, "product"),
        *check_choice(method.targets, TARGET_RULES, "targets"),
    ]
    for key in method.strengths:
        problems += check_choice(key, (*SPACES, "each"), "strengths")
    if method.first is not None:
        problems += check_choice(method.first.rule, ("random",), "first.rule")
        without = "of thresholds, and a random pruning has none; leave it out"
        if method.first.scope is not None:
            problems.append(Problem(f"scope is {without}", "first.scope"))
        if method.first.count != "released":
            problems.append(Problem(f"count is {without}", "first.count"))
        if method.first.skip:
            problems.append(Problem(f"skip is {without}", "first.skip"))
        if method.first.rescale == "l1":
            problems.append(Problem("rescale=l1 is for `prune` alone; take true or false", "first.rescale"))
    return problems


def _wrong_numbers(method: Method) -> list[Problem]:
    problems = [] if method.name else [Problem("name must not be empty", "name")]
    if method.strength is None and method.space in SPACES and not _needs_factors(method):
        text = f"strength must be given: merge.strengths lists no default for {method.strength_key}"
        problems.append(Problem(text, "strength"))
    grades = {"strength": method.strength} if method.strength is not None else {}
    grades |= {f"strengths.{space}": strength for space, strength in method.strengths.items()}
    grades |= {f"weights.{name}": weight for name, weight in (method.weights or {}).items()}
    for key, grade in grades.items():
        problems += [Problem(text, key) for text in find_wrong_numbers(grade, key.partition(".")[2] or key)]
    return problems


def _meaningless_cells(method: Method) -> list[Problem]:
    problems, prune = [], method.prune
    if prune.count == "exact" and (prune.scope == "model" or method.space == "delta") and prune.rule == "magnitude":
        text = "count=exact needs a tensor that is held whole, so scope=tensor and a space other than delta; choose"
        problems.append(Problem(f"{text} count=authors or released", "prune.count"))
    if method.multiplies_factors and method.strength is not None and min(list_numbers(method.strength), default=0) < 0:
        text = "strength multiplies A and B each, so that a negative one does not turn the update round; take another"
        got = method.strength if isinstance(method.strength, float) else format_grade(method.strength)
        problems.append(Problem(f"{text} space than factors, or product=each; got {got}", "strength"))
    if method.strength_key == "each" and method.combine in ("elected", "balanced"):
        problems.append(Problem(f"product=each is a sum of products, got combine {method.combine}", "product"))
    if method.combine == "balanced" and method.scaled_parts and prune.scope == "model":
        text = "scores over the whole model are measured before anything is scaled; with combine=balanced take"
        problems.append(Problem(f"{text} merge.prune.scope=tensor, or scale nothing", "scale"))
    if method.weighs_by_energy and method.scaled_parts and prune.scope == "model":
        text = "mean squares over the whole model are measured before anything is scaled; with disjoint=energy take"
        problems.append(Problem(f"{text} merge.prune.scope=tensor, or scale nothing", "scale"))
    if prune.rescale == "l1" and method.scaled_parts:
        text = "rescale=l1 restores what pruning takes, and so does scaling; take merge.prune.rescale=false, or scale"
        problems.append(Problem(f"{text} nothing", "prune.rescale"))
    if method.space in SPACES:
        problems += _needs_factors(method)
    if method.out.format == "adapter" and not method.is_low_rank:
        text = f"a pruned or elected update in space {method.space} has full rank, which no adapter holds exactly; give"
        problems.append(Problem(f"{text} the rank to cut it to, merge.out.rank=R, or take delta", "out.format"))
    return problems


def _needs_factors(method: Method) -> list[Problem]:
    """The settings in use that work on A and B apart, and so only in factor space."""
    if method.space == "factors":
        return []
    needs = f"needs merge.space=factors, got space {method.space}"
    scaled = f"scaling works on A and B apart, so it {needs}"
    problems = [Problem(scaled, f"scale.{part}") for part in method.scaled_parts]
    return [*problems, *([Problem(f"product=each {needs}", "product")] if method.product == "each" else [])]


def problems_of_weights(weights: Mapping[str, Any] | None, experts: Iterable[str]) -> list[str]:
    """Problems of weights that name unknown experts."""
    experts = tuple(experts)
    return [
        f"weights names an unknown expert '{name}'; {suggest(name, experts)} (merge.weights)"
        for name in weights or ()
        if name not in experts
    ]


# --- method files, read without Hydra ----------------------------------------------------------------------------


def build_method(values: Mapping[str, Any], where: str = "merge") -> AnyMethod:
    """Build the method that a config node describes. Raises ConfigError with every problem at once."""
    values = {key: value for key, value in values.items() if key != "source"}
    if "_target_" in values:
        refuse([Problem("a function is named once, by _target_", f"{where}.target")] if "target" in values else [])
        values["target"] = values.pop("_target_")
    if "target" in values:
        _refuse_keys_of_the_algebra(values, where)
        return build(FunctionMethod, values, where)
    if values.get("strength", 0) is None:  # the default for the space
        del values["strength"]
    return build(Method, values, where)


def _refuse_keys_of_the_algebra(values: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for keys that methods of the algebra have and a function has not, as `weights`."""
    own, others = ({key_of(field) for field in fields(cls)} for cls in (FunctionMethod, Method))
    given = values.get("params")
    params = ", ".join(f"params.{name}" for name in (given if isinstance(given, Mapping) else {})) or "none"
    refuse(
        Problem(
            f"{values.get('name')} is a function, which has no {key}; its settings are {params}",
            f"{where}.{key}",
        )
        for key in values
        if key in others - own
    )


def list_methods() -> list[str]:
    """The names of all method files; `_neutral` holds their common settings and is not a method."""
    return sorted(file.stem for file in METHODS.glob("[!_]*.yaml"))


def read_method(name: str | Path, /, **changes: Any) -> AnyMethod:
    """Read the method of `configs/merge/<name>.yaml`, or of a file elsewhere, whose name ends in .yaml.

    changes: values by key, `__` for a dot, as in read_method("ties", space="delta", prune__density=0.1).
    Raises UserError for an unknown name or file, ConfigError for what is wrong in the file or the changes.
    """
    values = _read(find_method_file(name))
    for key, value in changes.items():
        for part in reversed(key.split("__")):
            value = {part: value}
        values = overlay(values, value)
    return build_method(values)


def find_method_file(name: str | Path) -> Path:
    """The file of a method, or the one of that path. Raises UserError with the choices for an unknown name."""
    file = Path(name)
    return file if file.suffix == ".yaml" else METHODS / f"{choose(str(name), list_methods(), 'method')}.yaml"


def list_bases(file: Path) -> list[Path]:
    """The files that a method's file builds on by its `defaults`, the lowest first; they are read by `read_method`."""
    files: list[Path] = []
    for name in read_yaml(file, "a method file").get("defaults", []):
        if name != "_self_":
            below = METHODS / f"{name}.yaml"
            files += [*list_bases(below), below]
    return files


def _read(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file on top of those that its `defaults` name, as Hydra composes them. above: the files that led to it."""
    above = (*above, file.resolve())
    content = read_yaml(file, "a method file")
    values: dict[str, Any] = {}
    defaults = content.pop("defaults", ["_self_"])
    names = [other.stem for other in METHODS.glob("*.yaml") if other not in above]
    if not isinstance(defaults, list):
        raise UserError(f"{file}: defaults must be a list of names, got {quote(defaults)}")
    if wrong := [name for name in defaults if name not in ("_self_", *names)]:
        raise UserError(f"{file}: defaults: unknown method {quote(wrong[0])}; {suggest(wrong[0], names)}")
    for name in defaults:
        values = overlay(values, content if name == "_self_" else _read(METHODS / f"{name}.yaml", above))
    return values


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Overlay one mapping on another: the values of `above` replace those of `below`, level by level."""
    values = dict(below)
    for key, value in above.items():
        are_mappings = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        values[key] = overlay(values[key], value) if are_mappings else value
    return values
