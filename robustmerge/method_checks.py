"""What a method may be made of, and what is wrong with one: every problem in words, with its key.

The choices are written here and again as the tables of rules and spaces, because this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from robustmerge.settings import suggest

if TYPE_CHECKING:
    from robustmerge.method import Method, Out, OutsideMethod, Prune

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


def problems_of(method: Method) -> list[str]:
    """Everything that is wrong with a method."""
    return [*_unknown_names(method), *_wrong_numbers(method), *_meaningless_cells(method), *problems_of_out(method.out)]


def problems_of_out(out: Out) -> list[str]:
    """Everything that is wrong with what is to be written."""
    problems = choice(out.dtype, DTYPES, "out.dtype")
    problems += [] if out.format is None else choice(out.format, FORMATS, "out.format")
    if isinstance(out.rank, str) and out.rank != "experts":
        problems.append(f"rank must be null, a whole number or experts, got '{out.rank}' (merge.out.rank)")
    if isinstance(out.rank, int) and out.rank < 1:
        problems.append(f"rank must be at least 1, got {out.rank} (merge.out.rank)")
    if out.format != "model" and out.base is not None:
        problems.append(f"a base is for format=model only, got format {out.format or 'null'} (merge.out.base)")
    return problems


def choice(value: Any, choices: Iterable[str], key: str) -> list[str]:
    """A problem if the value is none of the choices."""
    choices = tuple(choices)
    if value in choices:
        return []
    return [f"unknown {key.rpartition('.')[2]} '{value}'; {suggest(value, choices)} (merge.{key})"]


def _unknown_names(method: Method) -> list[str]:
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
    problems = [line for value, choices, key in chosen for line in choice(value, choices, key)]
    for part in PARTS:
        source = getattr(method.scale, part)
        if source is not None and source not in PARTS:
            problems.append(f"scale.{part} must be null, A or B, got '{source}' (merge.scale.{part})")
    for key in method.strengths:
        problems += choice(key, (*SPACES, "each"), "strengths")
    return problems


def _wrong_numbers(method: Method) -> list[str]:
    problems = [] if method.name else ["name must not be empty (merge.name)"]
    densities = {"prune": method.prune.density, "balance": method.balance.density}
    densities |= {} if method.first is None else {"first": method.first.density}
    for key, density in densities.items():
        if not 0 < density <= 1:
            problems.append(f"density must be in (0, 1], got {density} (merge.{key}.density)")
    if not 0 <= method.scale.floor < 1:
        problems.append(f"floor must be in [0, 1), got {method.scale.floor} (merge.scale.floor)")
    most = 1.0 if method.basis.relative else float("inf")
    if not 0 <= method.basis.cut < most:
        below = f" and below {most:g}" if method.basis.cut >= most else ""
        problems.append(f"cut must be at least 0{below}, got {method.basis.cut} (merge.basis.cut)")
    if method.strength is None and method.space in SPACES and not _needs_factors(method):
        problems.append(
            f"strength must be given: merge.strengths lists no default for {method.strength_key} (merge.strength)"
        )
    numbers = {"strength": method.strength} if method.strength is not None else {}
    numbers |= {f"weights.{name}": weight for name, weight in (method.weights or {}).items()}
    for key, value in numbers.items():
        if not abs(value) < float("inf"):
            problems.append(f"{key.rpartition('.')[2]} must be a finite number, got {value} (merge.{key})")
    return problems


def _meaningless_cells(method: Method) -> list[str]:
    problems, prune = [*_unused_settings(method.prune), *_unused_range(method.first)], method.prune
    if prune.count == "exact" and (prune.scope == "model" or method.space == "delta") and prune.rule == "magnitude":
        problems.append(
            "count=exact needs a tensor that is held whole, so scope=tensor and a space other than delta; choose "
            "count=authors or released (merge.prune.count)"
        )
    if method.strength_key == "factors" and method.strength is not None and method.strength < 0:
        problems.append(
            "strength multiplies A and B each, so that a negative one does not turn the update round; take another "
            f"space than factors, or product=each; got {method.strength} (merge.strength)"
        )
    if method.strength_key == "each" and method.combine in ("elected", "balanced"):
        problems.append(f"product=each is a sum of products, got combine {method.combine} (merge.product)")
    if method.combine == "balanced" and method.scaled_parts and prune.scope == "model":
        problems.append(
            "scores over the whole model are measured before anything is scaled; with combine=balanced take "
            "merge.prune.scope=tensor, or scale nothing (merge.scale)"
        )
    if method.space in SPACES:
        problems += _needs_factors(method)
    if method.out.format == "adapter" and not method.is_low_rank:
        problems.append(
            f"a pruned or elected update in space {method.space} has full rank, which no adapter holds exactly; give "
            "the rank to cut it to, merge.out.rank=R, or take delta (merge.out.format)"
        )
    return problems


def _needs_factors(method: Method) -> list[str]:
    """What works on A and B apart, and so in no other space than factors."""
    if method.space == "factors":
        return []
    needs = f"needs merge.space=factors, got space {method.space}"
    problems = [f"scaling works on A and B apart, so it {needs} (merge.scale.{part})" for part in method.scaled_parts]
    return [*problems, *([f"product=each {needs} (merge.product)"] if method.product == "each" else [])]


def ways_past_ranks(method: Method | OutsideMethod) -> str:
    """What to set so that a method in factor space takes experts of different ranks; empty if nothing helps."""
    ways = []
    if not getattr(method, "scaled_parts", True):
        ways.append("merge.space=delta, knots or core")
    if getattr(method, "combine", None) in ("sum", "mean") and method.prune.rule != "sign":
        ways.append("merge.product=each")
    return f"in factor space ranks must be equal: take {', or '.join(ways)}" if ways else ""


def _unused_settings(prune: Prune) -> list[str]:
    """What is said of a density that the rule does not use."""
    if prune.rule not in ("none", "sign"):
        return []
    others = ", ".join(rule for rule in PRUNE_RULES if rule not in ("none", "sign"))
    unused = f"while prune.rule is {prune.rule}; set"
    problems = []
    if prune.density != 1:
        what = "prunes nothing" if prune.rule == "none" else "is not used"
        problems.append(
            f"density {prune.density} {what} {unused} prune.density=1, or prune.rule to one of {others} "
            "(merge.prune.density)"
        )
    if prune.rescale:
        problems.append(
            f"rescale divides by a density that is not used {unused} prune.rescale=false, or prune.rule to one of "
            f"{others} (merge.prune.rescale)"
        )
    return problems


def _unused_range(first: Prune | None) -> list[str]:
    """A random pruning has no threshold, so neither the range of one nor a way to count."""
    keys = {"scope": None, "count": "released"}  # as they are if nothing is said
    return [
        f"{key} is of thresholds, and a random pruning has none; leave it out (merge.first.{key})"
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
