"""An inspection as plain tables, and in words what follows from it for a merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from robustmerge.analysis.inspection import Inspection, Row

SAME_A, OTHER_A = 0.9, 0.1  # cosines of A from which experts share their initial A, below which they do not
MUCH = 2.0  # an overlap this many times the chance one is worth a word
NOTHING = 1e-6  # of the largest singular value: what is below is rounding
UNEQUAL = 3.0  # a norm this many times another's is worth a word
MEASURES = {  # of a pair: key -> (title, key of what two random subspaces would have)
    "a_cosine": ("cosine of A", None),
    "update_cosine": ("cosine of B A", None),
    "columns": ("column overlap", "column_chance"),
    "rows": ("row overlap", "row_chance"),
}


def tell(found: Inspection) -> str:
    """All tables and then the words."""
    blocks = [tell_experts(found), tell_norms(found), tell_pairs(found), tell_merged(found)]
    words = [f"- {sentence}" for sentence in conclude(found)]
    return "\n\n".join(["\n".join(block) for block in blocks if block] + ["What follows\n" + "\n".join(words)])


def tell_experts(found: Inspection) -> list[str]:
    """One line an expert; spectra are told by their medians over modules."""
    titles = ("expert", "type", "rank", "alpha", "scaling", "modules", "dtype", "MB", "norm")
    titles += ("s_1", "s_r", "energy in s_1", "effective rank")
    rows = [
        (
            row["expert"],
            row["type"],
            *(" ".join(f"{x:g}" for x in row[key]) for key in ("ranks", "alphas", "scalings")),
            row["modules"],
            row["dtype"],
            f"{row['megabytes']:.1f}",
            *(f"{row[key]:.3g}" for key in ("norm", "first", "last")),
            f"{row['energy_first']:.0%}",
            f"{row['effective_rank']:.1f}",
        )
        for row in found.experts
    ]
    about = "Experts: norm = ||B A||_F over all modules; s_1, s_r, energy, effective rank = medians over modules"
    bases = sorted({str(row["base"]) for row in found.experts})
    targets = sorted({kind for row in found.experts for kind in row["targets"]})
    return [about, *table(titles, rows), f"base: {', '.join(bases)}; targets: {', '.join(targets)}", *_saved(found)]


def _saved(found: Inspection) -> list[str]:
    saved = sorted({row["modules_to_save"] for row in found.experts} - {0})
    if not saved:
        return []
    return [f"modules_to_save: {' or '.join(map(str, saved))} tensors an expert, averaged whatever the method"]


def tell_norms(found: Inspection) -> list[str]:
    """||B A||_F by kind of module, and how many directions the experts have for how much room."""
    kinds = sorted({row["kind"] for row in found.modules})
    squares = {(row["expert"], row["kind"]): 0.0 for row in found.modules}
    for row in found.modules:
        squares[row["expert"], row["kind"]] += row["norm"] ** 2
    rows = [
        (name, *(f"{squares[name, kind] ** 0.5:.3g}" if (name, kind) in squares else "—" for kind in kinds))
        for name in (row["expert"] for row in found.experts)
    ]
    room = {row["kind"]: f"{row['share']:.0%}" for row in found.kinds}
    rows.append(("N r / d", *(room.get(kind, "—") for kind in kinds)))
    return [
        "Norm by kind of module; N r / d: directions of all experts in proportion to the room",
        *table(("", *kinds), rows),
    ]


def tell_pairs(found: Inspection) -> list[str]:
    """Mean and extremes over all pairs of experts."""
    if not found.pairs:
        return []
    rows = []
    for key, (title, chance) in MEASURES.items():
        low, high = (choose(found.pairs, key=lambda row: row[key]) for choose in (min, max))  # noqa: B023
        by_chance = f"{fmean(row[chance] for row in found.pairs):.3f}" if chance else "0"
        rows.append((title, f"{mean_of(found.pairs, key):.3f}", by_chance, _pair(low, key), _pair(high, key)))
    title = f"{len(found.pairs)} pairs of experts" if len(found.pairs) > 1 else "The pair of experts"
    return [title, *table(("", "mean", "by chance", "lowest", "highest"), rows)]


def _pair(row: Row, key: str) -> str:
    return f"{row[key]:.3f} ({row['one']}, {row['other']})"


def tell_merged(found: Inspection) -> list[str]:
    """What each merged adapter left of the experts' directions: the largest and the rest, means over experts."""
    rows = []
    for name in dict.fromkeys(row["merged"] for row in found.merged):
        cells = [f"{value:.3f}" for key in ("similarity", "kept", "ratio") for value in head_and_rest(found, name, key)]
        rows.append((name, *cells))
    titles = ("merged", "similarity s_1", "rest", "kept s_1", "rest", "ratio s_1", "rest")
    about = "Direction robustness (figure 7), means over modules and experts: the largest direction and the rest"
    return [about, *table(titles, rows)] if rows else []


def head_and_rest(found: Inspection, merged: str, key: str) -> tuple[float, float]:
    """The mean of the first direction and of all others; nan where there is none."""
    rows = [row for row in found.merged if row["merged"] == merged]
    return tuple(mean_of([row for row in rows if (row["k"] == 1) == first], key) for first in (True, False))


def mean_of(rows: Sequence[Row], key: str) -> float:
    return fmean(row[key] for row in rows) if rows else float("nan")


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of aligned columns: the first to the left, the others to the right."""
    cells = [list(map(str, row)) for row in (titles, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in cells
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def conclude(found: Inspection) -> Iterator[str]:
    """Sentences for someone who is about to merge these experts."""
    yield from (f"they cannot be merged with one another: {problem}" for problem in found.disagreements)
    ranks = sorted({rank for row in found.experts for rank in row["ranks"]})
    if len({str(row["ranks"]) for row in found.experts}) > 1:
        told = ", ".join(map(str, ranks))
        yield f"ranks differ ({told}): factor space needs equal ranks, take merge.space=delta, knots or core"
    dora = [row["expert"] for row in found.experts if row["type"] == "DoRA"]
    if dora:
        yield f"DoRA magnitudes are left out of all numbers here; only B A is compared ({', '.join(dora)})"
    biased = [row["expert"] for row in found.experts if row["lora_bias"]]
    if biased:
        yield f"lora_bias vectors are left out of all numbers here ({', '.join(biased)})"
    zero = [row["expert"] for row in found.experts if row["norm"] == 0]
    if zero:
        yield f"the update is zero, so that it adds nothing: {', '.join(zero)}"
    if found.pairs:
        yield from _conclude_pairs(found)
        yield _room(found)
    yield from _conclude_norms(found)
    yield from _conclude_spectra(found)
    yield from _conclude_merged(found)


def _conclude_pairs(found: Inspection) -> Iterator[str]:
    low, high = (choose(row["a_cosine"] for row in found.pairs) for choose in (min, max))
    if low >= SAME_A:
        yield f"the experts share their initial A (cosine {low:.2f} or more): in factor space A adds up, B differs"
    elif high <= OTHER_A:
        yield (
            f"the experts began with different A (cosine {high:.2f} at most): in factor space (sum B)(sum A) has cross "
            "terms B_n A_m that no expert learned; the exact sum is merge.space=delta"
        )
    else:
        told = f"from {low:.2f} to {high:.2f}): see pairs.csv for who shares with whom" if len(found.pairs) > 1 else ""
        yield f"their A are alike in part (cosine {told or f'{low:.2f})'}"
    told, times = [], []
    for key, by_chance in (("columns", "column_chance"), ("rows", "row_chance")):
        value, chance = mean_of(found.pairs, key), mean_of(found.pairs, by_chance)
        told.append(f"{key} {value:.3f}, by chance {chance:.3f}")
        times.append(value / chance if chance else 0.0)
    how = "overlap little" if max(times) < MUCH else f"overlap {max(times):.1f} times as much as by chance"
    yield f"their subspaces {how} ({'; '.join(told)}; the same subspace 1)"
    low, high = (choose(found.pairs, key=lambda row: row["update_cosine"]) for choose in (min, max))
    if high["update_cosine"] > 0.1:
        yield f"most alike are {high['one']} and {high['other']} (cosine of updates {high['update_cosine']:.2f})"
    if low["update_cosine"] < -0.1:
        yield f"{low['one']} and {low['other']} work against one another (cosine of updates {low['update_cosine']:.2f})"


def _room(found: Inspection) -> str:
    fullest = max(found.kinds, key=lambda row: row["share"])
    room = f"{fullest['directions']} directions in {min(fullest['d_out'], fullest['d_in'])} ({fullest['share']:.0%})"
    alike = len({(row["directions"], row["share"]) for row in found.kinds}) == 1 < len(found.kinds)
    kind = "every kind of module" if alike else fullest["kind"]
    if fullest["share"] > 1:
        return f"together they have more directions than there is room: {room} in {kind}; they must overlap"
    return f"together they have at most {room}, in {kind}"


def _conclude_norms(found: Inspection) -> Iterator[str]:
    known = [row for row in found.experts if row["norm"] > 0]
    if len(known) < 2:
        return
    low, high = (choose(known, key=lambda row: row["norm"]) for choose in (min, max))
    times = high["norm"] / low["norm"]
    if times < UNEQUAL:
        yield f"the updates are of similar size (largest {times:.1f} times the smallest)"
    else:
        yield (
            f"the update of {high['expert']} is {times:.1f} times that of {low['expert']}: a sum is mostly the large "
            "one; merge.weights can balance them"
        )


def _conclude_spectra(found: Inspection) -> Iterator[str]:
    known = [row for row in found.experts if row["norm"] > 0]
    if not known:
        return
    energy, effective = mean_of(known, "energy_first"), mean_of(known, "effective_rank")
    yield f"one direction holds {energy:.0%} of a module's energy; the effective rank is {effective:.1f}"
    gaps = {}
    for key in ("trained", "pruned", "scaled"):
        ends = [(rows[0][key], rows[-1][key]) for rows in _by_expert(found) if len(rows) > 1]
        ends = [(first, last) for first, last in ends if last > NOTHING * first]
        gaps[key] = fmean(first / last for first, last in ends) if ends else None
    if None not in gaps.values():
        yield (
            f"the largest singular value is {gaps['trained']:.0f} times the smallest; pruned to {found.density:g}, "
            f"{gaps['pruned']:.0f} times; pruned and scaled as RobustMerge does, {gaps['scaled']:.0f} times"
        )


def _by_expert(found: Inspection) -> list[list[Row]]:
    names = [row["expert"] for row in found.experts if row["norm"] > 0]
    return [[row for row in found.spectra if row["expert"] == name] for name in names]


def _conclude_merged(found: Inspection) -> Iterator[str]:
    for name in dict.fromkeys(row["merged"] for row in found.merged):
        (first, rest), kept = head_and_rest(found, name, "similarity"), head_and_rest(found, name, "kept")
        yield (
            f"{name} keeps the direction of the largest singular value with similarity {first:.2f}, of the others "
            f"{rest:.2f}, and contains {kept[0]:.2f} and {kept[1]:.2f} times their lengths"
        )
