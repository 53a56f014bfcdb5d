"""Recipes of mergekit (https://github.com/arcee-ai/mergekit) whose models are LoRA adapters, as `base+adapter`.

mergekit adds every adapter to its base and merges whole models. The same change is computed here without the base, on
the products: merge.space=delta. D_n is the update of adapter n, w_n its weight, W the sum of the weights, l `lambda`:

    merge_method     update                                                   here
    linear           sum of w_n D_n / W; without normalize only where W = 1   average, weights N w_n / W, strength 1
    task_arithmetic  l times sum of w_n D_n; with normalize divided by W      task_arithmetic, strength l or l / W
    dare_linear      the same of entries kept at random, rescaled             dare, strength l or l / W
    ties             every module of an expert trimmed to its density,        ties, prune.scope=tensor, strength l;
                     signs elected of sum w_n D_n, the sum of what agrees,    disjoint=mean with normalize, which needs
                     with normalize (by default) over its weights' sum        equal weights; else disjoint=sum
    dare_ties        the same of entries kept at random, rescaled;            dare_ties, not trimmed again
                     normalize is off by default
    breadcrumbs      l times sum of w_n D_n without the largest and the       breadcrumbs, prune.skip=gamma
                     smallest entries of every module; with normalize / W
    breadcrumbs_ties the same as of ties; normalize is off by default         breadcrumbs, combine=elected
    della_linear     as dare_linear, smaller entries of a row being           della, combine=sum
                     kept less often, by epsilon
    della            the same as of ties                                      della
    sce              mean of the D_n of the elected sign, weighted by mean    sce
                     squares, where the variance over n is largest

`weight` and `lambda` may be lists of numbers over the layers, as in `graded.py`. Where the formula divides by W, the
lists must add up to the same number in all layers, since 1 / W would be no such list. mergekit spreads a list over the
model's layers, we over those that the adapters adapt, so these must begin with 0; and all modules must be in layers.

`dtype` or `out_dtype` becomes out.dtype; everything is computed in float32. `int8_mask` changes no result. `base_model`
is the base of a full model; listed among the models, it has no update. Everything else has no equal here and is
refused: slices, values by filter, tokenizers, other methods, densities (gammas, epsilons) that differ between models,
and adapters that are not plain LoRA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from robustmerge.formats.names import find_layer
from robustmerge.graded import Grade, find_depths, is_graded, list_numbers, map_numbers
from robustmerge.hub.places import name_of
from robustmerge.recipe import Recipe
from robustmerge.stage.settings import ConfigError, Problem, build, refuse, suggest
from robustmerge.stage.text import quote

SAME = 1e-6  # sums of weights that differ by no more than this are the same
OVER_LAYERS = ("weight", "lambda")  # the parameters that may be lists
SHARED = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15}  # those of models that must be equal here, by default
NOTHING = 1e-8  # mergekit does not divide by a sum of weights below this
REFUSED = {
    "slices": "adapters are merged whole, not by layers",
    "modules": "adapters are merged whole, not by parts of the model",
    "tokenizer_source": "an adapter has no tokenizer, remove it",
    "tokenizer": "an adapter has no tokenizer, remove it",
    "chat_template": "an adapter has no tokenizer, remove it",
}


@dataclass(frozen=True)
class Model:
    """A model of a recipe, `base+adapter` or the base alone."""

    model: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def adapter(self) -> str:
        return self.model.partition("+")[2] or self.model


@dataclass(frozen=True)
class MergekitFile:
    """The keys of a recipe that have an equal here."""

    merge_method: str
    models: tuple[Model, ...]
    base_model: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None

    @property
    def adapters(self) -> list[Model]:
        return [model for model in self.models if model.model != self.base_model]

    @property
    def bases(self) -> list[str]:
        """The bases that are named, each once."""
        named = [model.model.partition("+")[0] for model in self.models if "+" in model.model]
        return list(dict.fromkeys([*([self.base_model] if self.base_model else []), *named]))


@dataclass(frozen=True)
class Parameters:
    """The parameters of a merge. weights: by expert; base_weight: of the base among the models, 0 without it."""

    weights: dict[str, Grade]
    base_weight: Grade
    density: float
    normalize: bool
    rescale: bool = False
    factor: Grade = 1.0
    gamma: float = 0.0
    epsilon: float = 0.0

    @property
    def total(self) -> float:
        """W. Raises ConfigError unless it is the same in all layers."""
        grades = [*self.weights.values(), self.base_weight]
        lists = [list_numbers(grade) for grade in grades if is_graded(grade)]
        if len({len(numbers) for numbers in lists}) > 1:
            text = "with normalize lists of weights must be equally long, to add up to one number in all layers"
            raise ConfigError(Problem(text, "models.parameters.weight"))
        constant = sum(list_numbers(grade)[0] for grade in grades if not is_graded(grade))
        totals = [constant + sum(numbers) for numbers in zip(*lists, strict=True)] or [constant]
        if max(totals) - min(totals) > SAME:
            listed = ", ".join(f"{total:g}" for total in totals)
            text = f"with normalize the weights must add up to one number in all layers, got {listed}"
            raise ConfigError(Problem(text, "models.parameters.weight"))
        return totals[0]

    @property
    def strength(self) -> Grade:
        """The factor of the sum of weighted updates."""
        if not self.normalize or abs(total := self.total) < NOTHING:
            return self.factor
        return map_numbers(lambda factor: factor / total, self.factor)


@dataclass(frozen=True)
class Equal:
    """The equal of a method of mergekit: which parameters it has, and what it is here.

    of_models, of_merge: their names, with the defaults of the latter. translate: to the settings of `method`.
    """

    method: str
    of_models: tuple[str, ...]
    of_merge: Mapping[str, Any]
    translate: Callable[[Parameters], dict[str, Any]]


def read_mergekit(content: Mapping[str, Any], where: str) -> Recipe:
    """Read the content of a recipe. where: its file, for messages. Raises ConfigError for what is not the same here."""
    refuse(Problem(f"{key} has no equal here: {why}", where) for key, why in REFUSED.items() if key in content)
    file = build(MergekitFile, content, where)
    if file.merge_method not in EQUALS:
        choices = suggest(file.merge_method, EQUALS)
        raise ConfigError(Problem(f"mergekit's '{file.merge_method}' has no equal here; {choices}", where))
    equal = EQUALS[file.merge_method]
    refuse(problem.under(where) for problem in [*_find_wrong_models(file), *_find_wrong_values(file, equal)])
    experts = _name_experts(file)
    parameters = _collect_parameters(file, equal, experts, where)
    try:
        settings = equal.translate(parameters)
    except ConfigError as error:
        raise ConfigError(*(problem.under(where) for problem in error.problems)) from None
    dtype = file.out_dtype or file.dtype
    settings |= {"space": "delta", "out": {"dtype": dtype.removeprefix("torch.")} if dtype else {}}
    notes = tuple(_note(file.merge_method, parameters, settings))
    return Recipe(experts, equal.method, settings, base=next(iter(file.bases), None), notes=notes, plain_lora=True)


def _find_wrong_models(file: MergekitFile) -> Iterator[Problem]:
    if len(file.bases) > 1:
        yield Problem(f"the adapters must have one base, got {', '.join(file.bases)}", "models")
    places = Counter(model.adapter for model in file.adapters)
    yield from (Problem(f"'{place}' stands there twice", "models") for place, count in places.items() if count > 1)
    if not places:
        yield Problem("there is no adapter to merge, as base+adapter", "models")
    if file.merge_method == "linear" and file.base_model and len(file.adapters) == len(file.models):
        yield Problem("linear has no base, unless as one of the models, with its weight", "base_model")


def _find_wrong_values(file: MergekitFile, equal: Equal) -> Iterator[Problem]:
    kinds = {**dict.fromkeys(equal.of_models, 1.0), **equal.of_merge}
    groups = [("parameters", file.parameters, tuple(kinds))]
    groups += [(f"models[{n}].parameters", model.parameters, equal.of_models) for n, model in enumerate(file.models)]
    for where, values, names in groups:
        for name, value in values.items():
            wants_flag = isinstance(kinds.get(name), bool)
            if name not in names:
                text = f"'{name}' has no equal with {file.merge_method}; {suggest(name, names)}"
            elif wants_flag and not isinstance(value, bool) or not wants_flag and not _is_grade(name, value):
                of_layers = "one number, or a list of numbers over the layers"
                rule = of_layers if name in OVER_LAYERS else "one number for the whole model, no list"
                rule = "true or false" if wants_flag else rule
                text = f"{name} must be {rule}, got {quote(value)}"
            else:
                continue
            yield Problem(text, f"{where}.{name}")


def _is_grade(name: str, value: Any) -> bool:
    """Whether a parameter is a number, or a list of numbers where it may be one."""
    numbers = value if isinstance(value, list) and name in OVER_LAYERS else [value]
    return bool(numbers) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in numbers)


def _read_grade(value: Any) -> Grade:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def find_other_depths(recipe: Recipe, modules: list[str]) -> list[str]:
    """Why the lists of a recipe are other numbers here than in mergekit, for these modules of the adapters."""
    if not _has_lists(recipe.settings):
        return []
    outside = [module for module, depth in find_depths(modules).items() if depth is None]
    firsts: dict[str, int] = {}
    for stack, layer in filter(None, map(find_layer, modules)):
        firsts[stack] = min(layer, firsts.get(stack, layer))
    problems = [
        f"{quote(m)} is in no numbered layer, where mergekit takes the first number or the last" for m in outside
    ]
    problems = problems[:1] + [
        f"the layers {quote(s)} begin with {n}, and mergekit's with 0" for s, n in firsts.items() if n
    ]
    return [f"lists of numbers differ from mergekit's: {problem}; give one number" for problem in problems]


def _has_lists(settings: Mapping[str, Any]) -> bool:
    return any(map(is_graded, (settings.get("strength"), *settings.get("weights", {}).values())))


def _name_experts(file: MergekitFile) -> dict[str, str]:
    """The adapters by the names of their folders or repositories; by all that is written where two have one name."""
    counts = Counter(name_of(model.adapter) for model in file.adapters)
    named = {model.adapter: name_of(model.adapter) for model in file.adapters}
    return {name if counts[name] == 1 else place: place for place, name in named.items()}


def _collect_parameters(file: MergekitFile, equal: Equal, experts: Mapping[str, str], where: str) -> Parameters:
    """Collect the parameters; a model's default to the merge's. Raises ConfigError for missing or unequal ones."""
    values = [{**file.parameters, **model.parameters} for model in file.adapters]
    bases = [{**file.parameters, **model.parameters} for model in file.models if model.model == file.base_model]
    counted = [*values, *bases] if file.merge_method == "linear" else values
    problems = []
    has_weights = "weight" in equal.of_models
    if has_weights and any("weight" not in one for one in counted):
        problems.append(Problem("every model needs a weight", "models.parameters.weight"))
    shared = {}
    for name in (name for name in SHARED if name in equal.of_models):
        numbers = sorted({float(one.get(name, SHARED[name])) for one in values})
        if len(numbers) > 1:
            listed = ", ".join(f"{number:g}" for number in numbers)
            problems.append(Problem(f"the models must have one {name} here, got {listed}", f"models.parameters.{name}"))
        shared[name] = numbers[0]
    refuse(problem.under(where) for problem in problems)
    of_merge = {**equal.of_merge, **{name: file.parameters[name] for name in equal.of_merge if name in file.parameters}}
    grades = [_read_grade(one["weight"]) for one in values] if has_weights else []
    return Parameters(
        weights=dict(zip(experts, grades, strict=has_weights)),
        base_weight=_read_grade(bases[0]["weight"]) if bases and file.merge_method == "linear" else 0.0,
        normalize=of_merge.get("normalize", False),
        rescale=of_merge.get("rescale", False),
        factor=_read_grade(of_merge.get("lambda", 1.0)),
        **{"density": float(of_merge.get("select_topk", SHARED["density"])), **shared},
    )


def _translate_linear(parameters: Parameters) -> dict[str, Any]:
    total = parameters.total
    if not parameters.normalize and abs(total - 1) > SAME:
        text = f"without normalize the weights must add up to 1, or they would also multiply the base; got {total:g}"
        raise ConfigError(Problem(text, "parameters.normalize"))
    if abs(total) < NOTHING:
        raise ConfigError(Problem("the weights add up to 0", "models.parameters.weight"))
    number = len(parameters.weights)
    weights = {name: map_numbers(lambda w: number * w / total, grade) for name, grade in parameters.weights.items()}
    return {"strength": 1.0, "weights": weights}


def _translate_sum(parameters: Parameters) -> dict[str, Any]:
    return {"strength": parameters.strength, "weights": parameters.weights}


def _translate_random_sum(parameters: Parameters) -> dict[str, Any]:
    return {**_translate_sum(parameters), "prune": _prune_at_random(parameters)}


def _translate_elected(parameters: Parameters) -> dict[str, Any]:
    rule = "magnitude" if parameters.density != 1 else "none"
    return {**_elect(parameters), "prune": {"rule": rule, "density": parameters.density, "scope": "tensor"}}


def _translate_random_elected(parameters: Parameters) -> dict[str, Any]:
    return {**_elect(parameters), "first": None, "prune": {**_prune_at_random(parameters), "scope": "tensor"}}


def _translate_skipping_sum(parameters: Parameters) -> dict[str, Any]:
    return {**_translate_sum(parameters), "prune": _prune_both_ends(parameters)}


def _translate_skipping_elected(parameters: Parameters) -> dict[str, Any]:
    return {**_elect(parameters), "combine": "elected", "prune": _prune_both_ends(parameters)}


def _translate_by_rank_sum(parameters: Parameters) -> dict[str, Any]:
    return {**_translate_sum(parameters), "combine": "sum", "prune": _prune_by_rank(parameters)}


def _translate_by_rank_elected(parameters: Parameters) -> dict[str, Any]:
    return {**_elect(parameters), "prune": _prune_by_rank(parameters)}


def _translate_varied(parameters: Parameters) -> dict[str, Any]:
    rule = "variance" if parameters.density < 1 else "none"
    return {"strength": 1.0, "prune": {"rule": rule, "density": min(parameters.density, 1.0)}}


def _elect(parameters: Parameters) -> dict[str, Any]:
    if not parameters.normalize:
        return {"strength": parameters.factor, "disjoint": "sum", "weights": parameters.weights}
    numbers = list_numbers(next(iter(parameters.weights.values())))
    if len(set(parameters.weights.values())) > 1 or min(numbers) <= 0 <= max(numbers):
        text = "with normalize the weights must be equal and not 0; set normalize: false to add up what agrees"
        raise ConfigError(Problem(text, "models.parameters.weight"))
    return {"strength": parameters.factor, "disjoint": "mean"}


def _prune_at_random(parameters: Parameters) -> dict[str, Any]:
    if parameters.density == 1:
        return {"rule": "none", "density": 1.0, "rescale": False}
    return {"rule": "random", "density": parameters.density, "rescale": parameters.rescale}


def _prune_both_ends(parameters: Parameters) -> dict[str, Any]:
    if parameters.density == 1:
        return {"rule": "none", "density": 1.0, "count": "released", "skip": 0.0}
    if not parameters.gamma:
        text = "with gamma 0 mergekit drops every entry; take ties or task_arithmetic, or a gamma above 0"
        raise ConfigError(Problem(text, "models.parameters.gamma"))
    rescale = "l1" if parameters.rescale else False
    return {"density": parameters.density, "skip": parameters.gamma, "rescale": rescale}


def _prune_by_rank(parameters: Parameters) -> dict[str, Any]:
    if parameters.density == 1:
        return {"rule": "none", "density": 1.0, "rescale": False, "epsilon": 0.0}
    rescale = "l1" if parameters.rescale else False
    return {"density": parameters.density, "epsilon": parameters.epsilon, "rescale": rescale}


def _note(merge_method: str, parameters: Parameters, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on everything that does not match mergekit's result to the last entry."""
    if _has_lists(settings):
        yield "a list of numbers ends at the last layer that an adapter adapts, mergekit's at the model's last"
    if merge_method == "sce":
        yield "the experts' weights are equal in mergekit where their mean squares add up to less than 1e-6; not here"
    if parameters.density == 1:
        return
    if merge_method == "ties":
        yield "of the n entries of a module an expert keeps one more than mergekit's int(density n)"
    if merge_method.startswith("breadcrumbs"):
        yield "modules of less than 1 / gamma entries, where mergekit drops all, lose none of their largest here"
    if merge_method.startswith(("dare", "della")):
        yield "which entries are kept is drawn here, by --seed, so that they are others than mergekit's"
        if parameters.rescale and merge_method.startswith("dare"):
            yield "what is kept is divided by the density; mergekit matches the sum of magnitudes, on average the same"


_ARITHMETIC = {"normalize": False, "lambda": 1.0, "int8_mask": False}
_SKIPPING = ("weight", "density", "gamma")
_BY_RANK = ("weight", "density", "epsilon")
EQUALS = {
    "linear": Equal("average", ("weight",), {"normalize": True}, _translate_linear),
    "task_arithmetic": Equal("task_arithmetic", ("weight",), _ARITHMETIC, _translate_sum),
    "dare_linear": Equal("dare", ("weight", "density"), {**_ARITHMETIC, "rescale": True}, _translate_random_sum),
    "ties": Equal("ties", ("weight", "density"), {**_ARITHMETIC, "normalize": True}, _translate_elected),
    "dare_ties": Equal("dare_ties", ("weight", "density"), {**_ARITHMETIC, "rescale": True}, _translate_random_elected),
    "breadcrumbs": Equal("breadcrumbs", _SKIPPING, {**_ARITHMETIC, "rescale": False}, _translate_skipping_sum),
    "breadcrumbs_ties": Equal("breadcrumbs", _SKIPPING, {**_ARITHMETIC, "rescale": False}, _translate_skipping_elected),
    "della_linear": Equal("della", _BY_RANK, {**_ARITHMETIC, "rescale": True}, _translate_by_rank_sum),
    "della": Equal("della", _BY_RANK, {**_ARITHMETIC, "normalize": True, "rescale": True}, _translate_by_rank_elected),
    "sce": Equal("sce", (), {"select_topk": 1.0, "int8_mask": False}, _translate_varied),
}
