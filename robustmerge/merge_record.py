"""Description of a finished merge: its record (with norms of the updates), one-line summary, warnings and card."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from robustmerge.formats.adapter import Adapter
from robustmerge.formats.compatibility import list_modules
from robustmerge.formats.names import show
from robustmerge.formats.output import how_to_load, served_base
from robustmerge.formats.serving import BASE, HERE, serve_command
from robustmerge.function_method import warn_by_function
from robustmerge.graded import Grade, format_grade, is_graded
from robustmerge.method import AnyMethod, FunctionMethod
from robustmerge.module import PairNorms
from robustmerge.stage.address import read_manifest
from robustmerge.stage.settings import ConfigError, Problem, build
from robustmerge.stage.text import plain, shorten

MOST_LACKING = 4  # experts that a summary tells
ALMOST_NOTHING = 0.01  # of the largest expert's norm
CANCELLING = 10.0  # times the update's norm; terms at right angles to one another are as large as their sum
ROUNDING = 1e-6  # of the update's norm; an update of the rank it is cut to loses no more
FRONT = {  # of a card, by format; no library loads a delta folder
    "adapter": "library_name: peft\ntags: [lora, model-merging]\n",
    "delta": "tags: [model-merging]\n",
    "model": "library_name: transformers\ntags: [model-merging]\n",
}


@dataclass
class Norms:
    """Squared Frobenius norms of the updates, added up over modules.

    cut: of what a lower rank left out. terms: of the rank-one terms of each expert.
    """

    merged: float = 0.0
    cut: float = 0.0
    experts: dict[str, float] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)

    def add(self, merged: float, experts: Mapping[str, PairNorms], cut: float = 0.0) -> None:
        self.merged += merged
        self.cut += cut
        for name, norms in experts.items():
            self.experts[name] = self.experts.get(name, 0.0) + cast(float, norms.update)
            self.terms[name] = self.terms.get(name, 0.0) + norms.terms

    @property
    def cancelling(self) -> dict[str, float]:
        """Expert -> how many times as large as its update the terms of it are, of those that cancel."""
        times = {name: math.sqrt(self.terms[name] / value) for name, value in self.experts.items() if value > 0}
        return {name: number for name, number in sorted(times.items()) if number > CANCELLING}


@dataclass(frozen=True)
class MergeRecord:
    """The record of a merge, as its manifest must hold it to be shown; norms are never empty.

    lacking: the modules that an expert lacks and others have. warnings: of the method's own. cancelling: as `Norms`
    has it.
    """

    experts: tuple[str, ...]
    modules: int
    ranks: tuple[int, ...]
    extras: int
    dropped_rows: int
    strength: Grade | None
    effective_strength: float | None
    norm: float
    expert_norms: Mapping[str, float]
    seconds: float
    renamed: tuple[str, ...] = ()
    lacking: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cut: float | None = None
    base: str | None = None
    warnings: tuple[str, ...] = ()
    cancelling: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.expert_norms:
            raise ConfigError(Problem("there must be one for every expert", "expert_norms"))


def read_merge_record(manifest: Path) -> dict[str, Any]:
    """Read the record of a merge. Raises UserError if it is not one."""
    record = read_manifest(manifest)["record"]
    names = [field.name for field in fields(MergeRecord)]
    build(MergeRecord, {name: record[name] for name in names if name in record}, str(manifest))
    return record


def record_merge(
    method: AnyMethod, adapters: Sequence[Adapter], ranks: Mapping[str, int], dropped: int, norms: Norms
) -> dict[str, Any]:
    """Build the record of a merge: inputs, results, omissions. ranks: module -> rank; empty unless it is an adapter."""
    renamed = [a.name for a in adapters if a.renamed]
    modules = list_modules(adapters)
    lacking = {a.name: absent for a in adapters if (absent := [m for m in modules if m not in a.shapes])}
    present = {m: [a.ranks[m] for a in adapters if m in a.ranks] for m in modules}
    warnings = warn_by_function(method, present) if isinstance(method, FunctionMethod) else []
    share = math.sqrt(norms.cut / (norms.cut + norms.merged)) if norms.cut > 0 else 0.0
    return {
        "experts": [a.name for a in adapters],
        "modules": len(modules),
        "ranks": sorted(set(ranks.values())),
        "extras": len(adapters[0].extras),
        "dropped_rows": dropped,
        **({"renamed": renamed} if renamed else {}),
        **({"lacking": lacking} if lacking else {}),
        **({"cut": share} if share > ROUNDING else {}),
        **({"base": served_base(method.out.base, adapters)} if method.out.for_ else {}),
        **({"warnings": warnings} if warnings else {}),
        **({"cancelling": cancelling} if (cancelling := norms.cancelling) else {}),
        "strength": method.strength,
        "effective_strength": method.effective_strength,
        "norm": math.sqrt(max(norms.merged, 0.0)),
        "expert_norms": {name: math.sqrt(max(value, 0.0)) for name, value in sorted(norms.experts.items())},
    }


def summarize_merge(method: AnyMethod, record: Mapping[str, Any]) -> str:
    """Summarise a merge in one line."""
    ranks = record["ranks"]
    parts = [f"{record['modules']} modules"]
    parts.append("dense" if not ranks else f"rank {ranks[0]}" if len(ranks) == 1 else f"rank {ranks[0]} to {ranks[-1]}")
    if record["strength"] is not None:
        space = f" in {method.space}" if method.space else ""
        effective = record["effective_strength"]
        factor = "" if effective is None else f" (the update is multiplied by {effective:g})"
        parts.append(f"strength {format_grade(record['strength'])}{space}{factor}")
    if share := record.get("cut"):
        parts.append(f"cut to this rank, without {100 * share:.2g} % of its norm")
    norms = sorted(record["expert_norms"].values())
    parts.append(f"norm {record['norm']:.3g}, the experts' {norms[0]:.3g} to {norms[-1]:.3g}")
    if record["extras"]:
        parts.append(f"modules_to_save averaged ({record['extras']} tensors)")
    if record["dropped_rows"]:
        parts.append(f"{record['dropped_rows']} empty rank rows left out")
    if "lacking" in record:
        parts.append(f"zero updates where an expert lacks a module: {_list_lacking(record)}")
    if renamed := record.get("renamed"):
        parts.append(f"names of modules of {', '.join(renamed)} brought to today's")
    if method.unused:
        parts.append(f"not used: {', '.join(method.unused)}")
    parts += [f"so {warning}" for warning in find_warnings(method, record)]
    return f"{method.title or method.name}: {count_experts(record['experts'])} merged; " + ", ".join(parts)


def print_merge(folder: Path, method: AnyMethod, out: str, was_there: bool = False) -> None:
    """Print the end of a merge into a folder that the user chose: what went in, and what came out.

    out: the folder as typed. was_there: the same merge had been made there before, so that nothing was done.
    """
    record = read_merge_record(folder / "manifest.json")
    title = method.title or method.name
    print(f"\n{title}: {count_experts(record['experts'])} merged into {out}")
    print("it was there already, from the same experts and settings: nothing was done again\n" if was_there else "")
    rows = describe_merge(method, record)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    written = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    rows |= {"size": written, "time": f"{record['seconds']:.1f} s" + (" when it was made" if was_there else "")}
    for key, value in rows.items():
        print(f"  {key:<20} {plain(value)}")
    for warning in find_warnings(method, record):
        print(f"\nwarning: {warning}")
    if server := method.out.for_:
        base = record["base"].replace(HERE, out)
        command = serve_command(server, base, record["ranks"][0], out, folder.name)
        print(f"\nserve it:\n\n    {command}")


def describe_merge(method: AnyMethod, record: Mapping[str, Any]) -> dict[str, str]:
    """The record of a merge as rows of a table."""
    names, ranks, norms = record["experts"], record["ranks"], list(record["expert_norms"].values())
    mean = sum(norms) / len(norms)
    strength = record["effective_strength"]
    factor = "as the method sets it" if strength is None else f"{strength:g}"
    if is_graded(record["strength"]):
        factor = "by module"
    if method.multiplies_factors or factor == "by module":
        where = " on A and on B" if method.multiplies_factors else ""
        factor += f" (strength {format_grade(record['strength'])}{where})"
    ratio = f"{record['norm'] / mean:.3g} x the experts' mean of {mean:.3g}" if mean else "and the experts' too"
    return {
        "experts": ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else ""),
        "modules": str(record["modules"]),
        "rank": "none: dense updates" if not ranks else "-".join(str(rank) for rank in {ranks[0]: 0, ranks[-1]: 0}),
        **({"left out by the cut": f"{100 * record['cut']:.2g} % of the update's norm"} if "cut" in record else {}),
        "effective factor": factor,
        "norm of the update": f"{record['norm']:.3g}, {ratio}",
        "rank rows dropped": str(record["dropped_rows"]),
        "modules_to_save": f"{record['extras']} tensors averaged" if record["extras"] else "none",
        **({"not used": ", ".join(method.unused)} if method.unused else {}),
        **({"modules lacking": _list_lacking(record)} if "lacking" in record else {}),
        **(
            {"names changed": f"of {', '.join(renamed)}, to those of today"}
            if (renamed := record.get("renamed"))
            else {}
        ),
    }


def count_experts(experts: Sequence[Any]) -> str:
    """`1 expert`, `2 experts`."""
    return f"{len(experts)} expert{'' if len(experts) == 1 else 's'}"


def _list_lacking(record: Mapping[str, Any]) -> str:
    """`a 1 of 4 (layers.0.q), b 2 of 4 (layers.0.q, ...)`."""
    few = [
        f"{name} {len(absent)} of {record['modules']} ({show(absent[0])}{', ...' if len(absent) > 1 else ''})"
        for name, absent in list(record["lacking"].items())[:MOST_LACKING]
    ]
    more = len(record["lacking"]) - len(few)
    return ", ".join([*few, *([f"and {more} more"] if more else [])])


def _list_apart(record: Mapping[str, Any]) -> list[str]:
    """The experts that have no module in common with any other."""
    lacking = {name: set(record.get("lacking", {}).get(name, ())) for name in record["experts"]}
    return [
        name
        for name, absent in lacking.items()
        if len(lacking) > 1
        and all(len(lacking[o] - absent) == record["modules"] - len(absent) for o in lacking if o != name)
    ]


def find_warnings(method: AnyMethod, record: Mapping[str, Any]) -> list[str]:
    """List warnings about a merge that may not be what was meant.

    Reasons are: a single expert; experts that share no module with any other; what the method itself warns of; almost
    nothing left of the updates, with the likely cause; experts whose A and B cannot be changed apart.
    """
    warnings = []
    if len(record["experts"]) == 1:
        warnings.append("there is nothing to merge with: this is one expert alone, as the method changes it")
    if apart := _list_apart(record):
        warnings.append(
            f"no module of {', '.join(map(plain, apart))} is adapted by another expert; if these are the same modules "
            "under other names, rename them (merge.targets=strict refuses such experts)"
        )
    warnings += record.get("warnings", ())
    if record["norm"] < ALMOST_NOTHING * max(record["expert_norms"].values()):
        lost = "almost nothing is left of the updates"
        if method.has_one_threshold_for_factors:
            lost += ": one threshold covers A and B of the whole model; try merge.prune.scope=tensor or"
            lost += " merge.space=delta"
        warnings.append(lost)
    if (cancelling := record.get("cancelling")) and method.space == "factors" and not method.is_linear:
        times, name = max((times, name) for name, times in cancelling.items())
        warnings.append(
            f"A and B of {', '.join(map(plain, cancelling))} cancel, as after a conversion from PiSSA or OLoRA (the "
            f"terms of {plain(name)} are {times:.3g} times as large as its update), and this method changes A and B "
            "apart; take one that works on their product, or merge.space=delta, knots or core"
        )
    return warnings


def _on_one_line(text: str) -> str:
    """A name from elsewhere as it can stand in a line of Markdown, also between backticks."""
    return shorten(plain(text).replace("\n", "\\n").replace("`", "'"), 300)


def write_card(method: AnyMethod, adapters: Sequence[Adapter]) -> str:
    """Write the README of a merged folder: what it is and how to load it; the same bytes for the same merge."""
    title = method.title or method.name
    paper = f" ({method.paper})" if method.paper else ""
    kind = method.output_format
    base = method.out.base if kind == "model" and method.out.base else adapters[0].config.get("base_model_name_or_path")
    base = Path(base).name if base and os.path.isdir(base) else base
    is_in_base = method.out.for_ is not None and bool(adapters[0].extras)
    notes = ["alpha/r is folded into the update, so the scaling is 1."] if kind == "adapter" else []
    notes += [f"What was trained in full is in `{BASE}`: load it as the base."] if is_in_base else []
    notes += ["DoRA magnitudes are the mean of the experts'."] if adapters[0].is_dora else []
    return (
        f"---\n{FRONT[kind]}---\n\n"
        f"# {title} of {count_experts(adapters).replace(' ', ' LoRA ')}\n\n"
        f"Method: {title}{paper}, {method.formula}.\n"
        f"Experts: {', '.join(_on_one_line(a.name) for a in adapters)}.\n"
        f"Base model: `{_on_one_line(str(base))}`.\n\n"
        f"```python\n{how_to_load(kind)}```\n\n"
        f"{' '.join([*notes, 'All settings are in `manifest.json`.'])}\n"
    )
