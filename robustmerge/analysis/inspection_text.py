"""The text of an inspection: plain tables, and conclusions for a merge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from robustmerge.analysis.figure_tables import LARGEST, REST, tabulate_directions
from robustmerge.analysis.inspection import Inspection, Row
from robustmerge.stage.tables import format_columns

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


def format_inspection(inspection: Inspection) -> str:
    """Format all tables and then the conclusions."""
    blocks = [experts_table(inspection), norms_table(inspection), pairs_table(inspection), merged_table(inspection)]
    words = [f"- {sentence}" for sentence in conclude(inspection)]
    return "\n\n".join(["\n".join(block) for block in blocks if block] + ["What follows\n" + "\n".join(words)])


def experts_table(inspection: Inspection) -> list[str]:
    """The table of experts: one line each; spectra by their medians over modules."""
    titles = ["expert", "type", "rank", "alpha", "scaling", "modules", "dtype", "MB", "norm"]
    titles += ["s_1", "s_r", "energy in s_1", "effective rank"]
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
        for row in inspection.experts
    ]
    about = "Experts: norm = ||B A||_F over all modules; s_1, s_r, energy, effective rank = medians over modules"
    bases = sorted({str(row["base"]) for row in inspection.experts})
    targets = sorted({kind for row in inspection.experts for kind in row["targets"]})
    return [
        about,
        *_table(titles, rows),
        f"base: {', '.join(bases)}; targets: {', '.join(targets)}",
        *_saved(inspection),
    ]


def _saved(inspection: Inspection) -> list[str]:
    saved = sorted({row["modules_to_save"] for row in inspection.experts} - {0})
    if not saved:
        return []
    return [f"modules_to_save: {' or '.join(map(str, saved))} tensors an expert, averaged whatever the method"]


def norms_table(inspection: Inspection) -> list[str]:
    """||B A||_F by kind of module, and how many directions the experts have for how much room."""
    kinds = sorted({row["kind"] for row in inspection.modules})
    squares = {(row["expert"], row["kind"]): 0.0 for row in inspection.modules}
    for row in inspection.modules:
        squares[row["expert"], row["kind"]] += row["norm"] ** 2
    rows = [
        (name, *(f"{squares[name, kind] ** 0.5:.3g}" if (name, kind) in squares else "—" for kind in kinds))
        for name in (row["expert"] for row in inspection.experts)
    ]
    room = {row["kind"]: f"{row['share']:.0%}" for row in inspection.kinds}
    rows.append(("N r / d", *(room.get(kind, "—") for kind in kinds)))
    return [
        "Norm by kind of module; N r / d: directions of all experts in proportion to the room",
        *_table(("", *kinds), rows),
    ]


def pairs_table(inspection: Inspection) -> list[str]:
    """Mean and extremes over all pairs of experts."""
    if not inspection.pairs:
        return []
    rows = []
    for key, (title, chance) in MEASURES.items():
        low, high = (choose(inspection.pairs, key=lambda row: row[key]) for choose in (min, max))  # noqa: B023
        by_chance = f"{fmean(row[chance] for row in inspection.pairs):.3f}" if chance else "0"
        rows.append((title, f"{mean_of(inspection.pairs, key):.3f}", by_chance, _pair(low, key), _pair(high, key)))
    title = f"{len(inspection.pairs)} pairs of experts" if len(inspection.pairs) > 1 else "The pair of experts"
    return [title, *_table(("", "mean", "by chance", "lowest", "highest"), rows)]


def _pair(row: Row, key: str) -> str:
    return f"{row[key]:.3f} ({row['one']}, {row['other']})"


def merged_table(inspection: Inspection) -> list[str]:
    """The table of merged adapters: how much of the experts' first and other directions is left, means over experts."""
    rows = []
    for name in dict.fromkeys(row["merged"] for row in inspection.merged):
        cells = [
            f"{value:.3f}" for key in ("similarity", "kept", "ratio") for value in head_and_rest(inspection, name, key)
        ]
        rows.append((name, *cells))
    titles = ("merged", "similarity s_1", "rest", "kept s_1", "rest", "ratio s_1", "rest")
    about = "Direction robustness (figure 7), means over modules and experts: the largest direction and the rest"
    return [about, *_table(titles, rows)] if rows else []


def head_and_rest(inspection: Inspection, merged: str, key: str) -> tuple[float, float]:
    """The mean over experts, of the first direction and of all others; nan where there is none."""
    rows = [row for row in tabulate_directions(inspection) if row["merged"] == merged]
    first, rest = ([row for row in rows if row["directions"] == group] for group in (LARGEST, REST))
    return mean_of(first, key), mean_of(rest, key)


def mean_of(rows: Sequence[Row], key: str) -> float:
    return fmean(row[key] for row in rows) if rows else float("nan")


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of aligned columns, the titles underlined."""
    head, *lines = format_columns(titles, rows)
    return [head, "-" * max(map(len, [head, *lines])), *lines]


def conclude(inspection: Inspection) -> Iterator[str]:
    """Conclude from the inspection, in sentences for someone who is about to merge these experts."""
    yield from (f"they cannot be merged with one another: {problem}" for problem in inspection.disagreements)
    modules = len({row["module"] for row in inspection.modules})
    if lacking := [row["expert"] for row in inspection.experts if row["modules"] < modules]:
        yield f"modules that others adapt are lacking in {', '.join(lacking)}: zero updates there (merge.targets)"
    ranks = sorted({rank for row in inspection.experts for rank in row["ranks"]})
    if len({str(row["ranks"]) for row in inspection.experts}) > 1:
        listed = ", ".join(map(str, ranks))
        yield f"ranks differ ({listed}): factor space needs equal ranks, take merge.space=delta, knots or core"
    dora = [row["expert"] for row in inspection.experts if row["type"] == "DoRA"]
    if dora:
        yield f"DoRA magnitudes are left out of all numbers here; only B A is compared ({', '.join(dora)})"
    biased = [row["expert"] for row in inspection.experts if row["lora_bias"]]
    if biased:
        yield f"lora_bias vectors are left out of all numbers here ({', '.join(biased)})"
    zero = [row["expert"] for row in inspection.experts if row["norm"] == 0]
    if zero:
        yield f"the update is zero, so that it adds nothing: {', '.join(zero)}"
    if inspection.pairs:
        yield from _conclude_pairs(inspection)
        yield _room(inspection)
    yield from _conclude_norms(inspection)
    yield from _conclude_spectra(inspection)
    yield from _conclude_merged(inspection)


def _conclude_pairs(inspection: Inspection) -> Iterator[str]:
    low, high = (choose(row["a_cosine"] for row in inspection.pairs) for choose in (min, max))
    if low >= SAME_A:
        yield f"the experts share their initial A (cosine {low:.2f} or more): in factor space A adds up, B differs"
    elif high <= OTHER_A:
        yield (
            f"the experts began with different A (cosine {high:.2f} at most): in factor space (sum B)(sum A) has cross "
            "terms B_n A_m that no expert learned; the exact sum is merge.space=delta"
        )
    else:
        several = f"from {low:.2f} to {high:.2f}): see pairs.csv for who shares with whom"
        yield f"their A are alike in part (cosine {several if len(inspection.pairs) > 1 else f'{low:.2f})'}"
    overlaps, times = [], []
    for key, by_chance in (("columns", "column_chance"), ("rows", "row_chance")):
        value, chance = mean_of(inspection.pairs, key), mean_of(inspection.pairs, by_chance)
        overlaps.append(f"{key} {value:.3f}, by chance {chance:.3f}")
        times.append(value / chance if chance else 0.0)
    how = "overlap little" if max(times) < MUCH else f"overlap {max(times):.1f} times as much as by chance"
    yield f"their subspaces {how} ({'; '.join(overlaps)}; the same subspace 1)"
    low, high = (choose(inspection.pairs, key=lambda row: row["update_cosine"]) for choose in (min, max))
    if high["update_cosine"] > 0.1:
        yield f"most alike are {high['one']} and {high['other']} (cosine of updates {high['update_cosine']:.2f})"
    if low["update_cosine"] < -0.1:
        yield f"{low['one']} and {low['other']} work against one another (cosine of updates {low['update_cosine']:.2f})"


def _room(inspection: Inspection) -> str:
    fullest = max(inspection.kinds, key=lambda row: row["share"])
    room = f"{fullest['directions']} directions in {min(fullest['d_out'], fullest['d_in'])} ({fullest['share']:.0%})"
    alike = len({(row["directions"], row["share"]) for row in inspection.kinds}) == 1 < len(inspection.kinds)
    kind = "every kind of module" if alike else fullest["kind"]
    if fullest["share"] > 1:
        return f"together they have more directions than there is room: {room} in {kind}; they must overlap"
    return f"together they have at most {room}, in {kind}"


def _conclude_norms(inspection: Inspection) -> Iterator[str]:
    nonzero = [row for row in inspection.experts if row["norm"] > 0]
    if len(nonzero) < 2:
        return
    low, high = (choose(nonzero, key=lambda row: row["norm"]) for choose in (min, max))
    times = high["norm"] / low["norm"]
    if times < UNEQUAL:
        yield f"the updates are of similar size (largest {times:.1f} times the smallest)"
    else:
        yield (
            f"the update of {high['expert']} is {times:.1f} times that of {low['expert']}: a sum is mostly the large "
            "one; merge.weights can balance them"
        )


def _conclude_spectra(inspection: Inspection) -> Iterator[str]:
    nonzero = [row for row in inspection.experts if row["norm"] > 0]
    if not nonzero:
        return
    energy, effective = mean_of(nonzero, "energy_first"), mean_of(nonzero, "effective_rank")
    yield f"one direction holds {energy:.0%} of a module's energy; the effective rank is {effective:.1f}"
    gaps = {}
    for key in ("trained", "pruned", "scaled"):
        ends = [(rows[0][key], rows[-1][key]) for rows in _by_expert(inspection) if len(rows) > 1]
        ends = [(first, last) for first, last in ends if last > NOTHING * first]
        gaps[key] = fmean(first / last for first, last in ends) if ends else None
    if None not in gaps.values():
        yield (
            f"the largest singular value is {gaps['trained']:.0f} times the smallest; pruned to "
            f"{inspection.density:g}, {gaps['pruned']:.0f} times; pruned and scaled as RobustMerge does, "
            f"{gaps['scaled']:.0f} times"
        )


def _by_expert(inspection: Inspection) -> list[list[Row]]:
    names = [row["expert"] for row in inspection.experts if row["norm"] > 0]
    return [[row for row in inspection.spectra if row["expert"] == name] for name in names]


def _conclude_merged(inspection: Inspection) -> Iterator[str]:
    for name in dict.fromkeys(row["merged"] for row in inspection.merged):
        (first, rest), kept = head_and_rest(inspection, name, "similarity"), head_and_rest(inspection, name, "kept")
        text = f"{name} keeps the direction of the largest singular value with similarity {first:.2f}"
        if math.isnan(rest):
            yield f"{text}, and contains {kept[0]:.2f} times its length; there are no others"
        else:
            yield f"{text}, of the others {rest:.2f}, and contains {kept[0]:.2f} and {kept[1]:.2f} times their lengths"
