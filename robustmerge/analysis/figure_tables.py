"""Figures 3, 7 and 8 of the paper for the adapters of an inspection: the rows drawn, and captions that stand alone.

The paper (https://arxiv.org/abs/2502.17159) gives no values for these figures, so there is nothing published to show
beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from robustmerge.analysis.inspection import Inspection, Row
from robustmerge.analysis.layers import VALUE_KINDS
from robustmerge.formats.names import find_layer

STAGES = {"trained": "as trained", "pruned": "pruned", "scaled": "pruned, B scaled by A"}
LARGEST, REST = "largest", "rest"


def tabulate_pruning(inspection: Inspection) -> list[Row]:
    """Figures 3a and 3b: a row for each stage (as trained, pruned, pruned and scaled) and index k of a singular value.

    value: s_k of the stage over s_1 as trained. ratio: s_k of the stage over s_k as trained. Both are means over
    modules, then over the experts that have a k-th direction, with the lowest and the highest of these.
    """
    curves = [rows for rows in group_by_expert(inspection.spectra).values() if rows[0]["trained"] > 0]
    table = []
    for stage in STAGES:
        for k in range(max(map(len, curves), default=0)):
            rows = [(curve[0]["trained"], curve[k]) for curve in curves if len(curve) > k and curve[k]["trained"] > 0]
            if rows:
                values = [row[stage] / first for first, row in rows]
                ratios = [1.0 if stage == "trained" else row[f"{stage}_ratio"] for _, row in rows]
                spread = _spread("value", values) | _spread("ratio", ratios)
                table.append({"stage": stage, "k": k + 1, "experts": len(rows)} | spread)
    return table


def _spread(key: str, values: Sequence[float]) -> Row:
    return {key: fmean(values), f"{key}_lowest": min(values), f"{key}_highest": max(values)}


def tabulate_entries(inspection: Inspection) -> list[Row]:
    """Figure 3c: the distribution of the entries of A, of B and of a full update, if one was given, a row for each bin.

    All modules of an expert are taken together; alpha/r is included in B. density: the share of the entries in a bin,
    divided by its width.
    """
    return inspection.entries


def tabulate_directions(inspection: Inspection) -> list[Row]:
    """Figure 7: similarity, kept length and ratio of singular values, a row for each merged adapter, expert and group.

    directions: the group: `largest`, the direction of the largest singular value, or `rest`, the mean over all others
    of the expert. Numbers are means over modules. What is compared with what: see `compare_directions`.
    """
    table = []
    for label in dict.fromkeys(row["merged"] for row in inspection.merged):
        for name, rows in group_by_expert([row for row in inspection.merged if row["merged"] == label]).items():
            groups = {LARGEST: [row for row in rows if row["k"] == 1], REST: [row for row in rows if row["k"] > 1]}
            for group, members in groups.items():
                if members:
                    means = {key: fmean(row[key] for row in members) for key in ("similarity", "kept", "ratio")}
                    table.append({"merged": label, "expert": name, "directions": group} | means)
    return table


def tabulate_layers(inspection: Inspection) -> list[Row]:
    """Figure 8: the singular values of one kind of module in the first, the middle and the last layer.

    There is a row for each update and index. The updates are those of each expert, of the plain sum of the experts
    ("original") and of the merged adapters as they are, strengths included.
    """
    return inspection.layers


def group_by_expert(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of every expert, in the order of the table."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["expert"], []).append(row)
    return groups


TABLES = {  # figure -> its tables
    "figure3": {"figure3_pruning": tabulate_pruning, "figure3_entries": tabulate_entries},
    "figure7": {"figure7": tabulate_directions},
    "figure8": {"figure8": tabulate_layers},
}


# --- in words -----------------------------------------------------------------------------------------------------


def explain_missing(inspection: Inspection) -> dict[str, str]:
    """The figures that these adapters cannot give, and why."""
    missing = {}
    if not tabulate_pruning(inspection):
        missing["figure3"] = "the updates of all experts are zero"
    if not inspection.merged:
        missing["figure7"] = "it needs merged adapters (merged), and experts with an update other than zero"
    if not inspection.layers:
        kinds = ", ".join(sorted({row["kind"] for row in inspection.modules if find_layer(row["module"])})) or "none"
        values = f"an update of a value projection ({', '.join(VALUE_KINDS)})"
        missing["figure8"] = f"no layer that all adapters share has {values}; other kinds, for kind: {kinds}"
    return missing


def write_captions(inspection: Inspection) -> dict[str, str]:
    """The caption of every figure that can be drawn: what is shown, of which adapters, the mean over what."""
    writers = {"figure3": _describe_figure3, "figure7": _describe_figure7, "figure8": _describe_figure8}
    missing = explain_missing(inspection)
    return {figure: " ".join(write(inspection)) for figure, write in writers.items() if figure not in missing}


def _describe_figure3(inspection: Inspection) -> Iterator[str]:
    n_modules, several = len({row["module"] for row in inspection.modules}), len(inspection.experts) > 1
    yield f"Pruning of {_list_experts(inspection)}, and their entries."
    yield (
        "(a) Singular values of B A by index, over the largest as trained: as trained; with A and B pruned by "
        f"magnitude to {inspection.density:g} of their entries; and with B scaled, too, by what pruning took from A. "
        f"(b) The same over the value as trained. Means over {n_modules} modules"
        + (", then over the experts that have a k-th direction; bands: their range." if several else ".")
    )
    yield "(c) Density of the entries of A and of B (alpha/r in it), all modules together, a line an expert."
    full = [row["expert"] for row in inspection.entries if row["matrix"] == "full"]
    if full:
        yield f"Full fine-tuning: the entries of the update in {full[0]}."
    else:
        yield "Full fine-tuning, which the paper shows, too, is not trained here, and no update of one was given."


def _describe_figure7(inspection: Inspection) -> Iterator[str]:
    labels = dict.fromkeys(row["merged"] for row in inspection.merged)
    yield f"What {_list(labels)} left of the singular directions of {_list_experts(inspection)}."
    yield (
        "Left: similarity of an expert's singular vectors to the nearest direction of the merged update, "
        "(u . u')(v . v'). Right: ratio of singular values, the merged one over the expert's, place by place. "
        "Circles: the direction of the largest singular value; squares: the mean of all others. Small marks: an "
        "expert, the mean over the modules that all share; large marks: the mean over experts."
    )


def _describe_figure8(inspection: Inspection) -> Iterator[str]:
    layers = {row["layer"]: row["module"] for row in inspection.layers}
    labels = dict.fromkeys(row["name"] for row in inspection.layers if row["role"] == "merged")
    yield f"Singular values of B A in {_list([f'{module} (layer {n})' for n, module in layers.items()])}."
    yield f"Of {_list_experts(inspection)}, each on its own; of their sum, every update with factor 1 (the original);"
    yield f"and of {_list(labels)}." if labels else "no merged adapter was given."
    yield "Merged updates have their strengths in them. Values that are only rounding are left out."


def _list_experts(inspection: Inspection) -> str:
    names = [row["expert"] for row in inspection.experts]
    return f"{len(names)} experts ({', '.join(names)})" if len(names) > 1 else f"the expert {names[0]}"


def _list(names: Sequence[str] | Mapping[str, None]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
