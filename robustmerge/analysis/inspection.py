"""Inspection of LoRA experts before a merge, measured module by module from their files.

inspection = inspect_folders({"cat": "path/to/one", "dog": "path/to/other"})
inspection.pairs[0]["update_cosine"]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from robustmerge.analysis.direction_robustness import compare_directions, compare_pruning
from robustmerge.analysis.entries import Histogram, count_full_update
from robustmerge.analysis.layers import choose_layers, measure_layer, module_kind
from robustmerge.formats.adapter import Adapter, LoraPair, open_adapters
from robustmerge.formats.adapter_config import scaling_of
from robustmerge.formats.compatibility import find_disagreements
from robustmerge.low_rank import Spectrum, compare, compare_A, decompose, effective_rank, energy_of_first
from robustmerge.module import Module, check_module
from robustmerge.stage.settings import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Inspection:
    """Tables, whose rows are mappings. disagreements: why these experts cannot be merged with one another.

    experts: a row per expert. modules: per expert and module. kinds: per kind of module (q_proj, ...).
    spectra: per expert and index k: the mean singular values over modules as trained, pruned, and pruned and scaled,
    and the mean ratios of the latter two to the first; 0 where no module has a k-th direction. pairs: per pair of
    experts. merged: per merged adapter, expert and index k of the expert's directions. entries: per expert, matrix
    (A, B with alpha/r in it; `full` for a full update) and bin, all modules together. layers: per module of one kind in
    the first, middle and last layer, update (an expert's, the sum of the experts, a merged one) and index k.
    """

    experts: list[Row]
    modules: list[Row]
    kinds: list[Row]
    spectra: list[Row]
    pairs: list[Row]
    merged: list[Row]
    entries: list[Row]
    layers: list[Row]
    density: float
    disagreements: list[str] = field(default_factory=list)


def inspect_folders(
    experts: Mapping[str, Path | str],
    merged: Mapping[str, Path | str] | None = None,
    density: float = 0.2,
    kind: str | None = None,
    full: Path | str | None = None,
) -> Inspection:
    """Measure experts (name -> adapter folder), and what adapters merged from them leave of their directions.

    density: of the pruning that is shown. kind: of the modules that are shown layer by layer, as `q_proj`; the value
    projection where it is not given. full: a delta folder with the update of a full fine-tuning, for its entries.
    Raises UserError with all problems at once: folders that cannot be read, values that are not finite, no module in
    common.
    """
    adapters, others = open_all(experts), open_all(merged or {})
    shared = shared_modules([*adapters, *others])
    if not shared:
        raise UserError("the adapters have no module of the same name and shape in common, nothing can be compared")
    chosen = choose_layers(shared, kind)
    sums, problems = _Sums(), []
    if full is not None:
        sums.entries[Path(full).name, "full"] = count_full_update(Path(full))
    for module in tqdm(sorted({m for a in adapters for m in a.modules}), desc="inspect", unit="module", disable=None):
        owners = [a for a in adapters if module in a.shapes]
        try:
            pairs = [_read(a, module) for a in owners]
            spectra = [decompose(pair) for pair in pairs]
            for adapter, pair, spectrum in zip(owners, pairs, spectra, strict=True):
                sums.add_module(adapter, module, pair, spectrum, density)
            if module in shared:
                sums.add_pairs(module, owners[0].shapes[module], pairs, spectra)
                updates = {a.name: decompose(_read(a, module)) for a in others}
                sums.add_merged([a.name for a in owners], spectra, updates)
                if module in chosen:
                    named = {a.name: pair for a, pair in zip(owners, pairs, strict=True)}
                    about = {"layer": chosen[module], "module": module}
                    sums.layers += [about | row for row in measure_layer(named, spectra, updates)]
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    names = [a.name for a in adapters]
    return Inspection(
        experts=[_describe(a, [row for row in sums.modules if row["expert"] == a.name]) for a in adapters],
        modules=sums.modules,
        kinds=sums.kind_rows(),
        spectra=sums.spectrum_rows(),
        pairs=sums.pair_rows(names),
        merged=sums.merged_rows(),
        entries=sums.entry_rows(),
        layers=sums.layers,
        density=density,
        disagreements=find_disagreements(adapters, equal_ranks=False),
    )


def open_all(folders: Mapping[str, Path | str]) -> list[Adapter]:
    """Open adapter folders, sorted by name. Raises UserError with the problems of all."""
    adapters, problems = open_adapters(folders)
    if problems:
        raise UserError("\n".join(problems))
    return adapters


def shared_modules(adapters: Sequence[Adapter]) -> set[str]:
    """The modules that all adapters share, of one kind with equal d_out and d_in; ranks may differ."""
    sizes = [{(m, a.kinds[m], shape[0], shape[2]) for m, shape in a.shapes.items()} for a in adapters]
    return {module for module, *_ in set.intersection(*sizes)} if sizes else set()


def _read(adapter: Adapter, module: str) -> LoraPair:
    return check_module(Module(module, [adapter.name], [adapter.pair(module)])).pairs[0]


def _describe(adapter: Adapter, rows: Sequence[Row]) -> Row:
    config, ranks = adapter.config, adapter.ranks
    scalings = {m: scaling_of(config, m, ranks[m]) for m in adapter.modules}
    alphas = {round(x * ranks[m] ** (0.5 if config.get("use_rslora") else 1), 6) for m, x in scalings.items()}
    numbers = {key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in MEDIANS}
    return {
        "expert": adapter.name,
        "folder": str(adapter.folder),
        "type": "DoRA" if adapter.is_dora else "rsLoRA" if config.get("use_rslora") else "LoRA",
        "lora_bias": adapter.has_lora_bias,
        "base": config.get("base_model_name_or_path"),
        "modules": len(adapter.modules),
        "targets": sorted({module_kind(m) for m in adapter.modules}),
        "ranks": sorted(set(ranks.values())),
        "alphas": sorted(alphas),
        "scalings": sorted({round(x, 6) for x in scalings.values()}),
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "megabytes": adapter.file.path.stat().st_size / 1e6,
        "modules_to_save": len(adapter.extras),
        "norm": sum(row["norm"] ** 2 for row in rows) ** 0.5,
        "zero_modules": sum(row["norm"] == 0 for row in rows),
        **{key: float(x.median()) for key, x in numbers.items()},
    }


MEDIANS = ("first", "last", "energy_first", "effective_rank")  # of a module; an expert's row has their medians


class _Sums:
    """Collects measurements of modules and sums them up as tables."""

    def __init__(self) -> None:
        self.modules: list[Row] = []
        self.entries: dict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.layers: list[Row] = []
        self._values: dict[str, list[tuple[Tensor, ...]]] = defaultdict(list)
        self._compared: list[Row] = []
        self._directions: dict[tuple[str, str], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)

    def add_module(self, adapter: Adapter, module: str, pair: LoraPair, spectrum: Spectrum, density: float) -> None:
        d_out, rank, d_in = adapter.shapes[module]
        pruning = compare_pruning(pair, spectrum, density)
        self._values[adapter.name].append(tuple(getattr(pruning, key) for key in PRUNING))
        self.entries[adapter.name, "A"].add(pair.A)
        self.entries[adapter.name, "B"].add(pair.B)
        s = pruning.trained
        row: Row = {"expert": adapter.name, "module": module, "kind": module_kind(module)}
        row |= {"d_out": d_out, "d_in": d_in, "rank": rank, "norm": spectrum.norm}
        row |= {"first": float(s[0]), "last": float(s[-1])}
        self.modules.append(row | {"energy_first": energy_of_first(s), "effective_rank": effective_rank(s)})

    def add_pairs(
        self, module: str, shape: tuple[int, int, int], pairs: Sequence[LoraPair], spectra: Sequence[Spectrum]
    ) -> None:
        ranks = torch.tensor([len(x.s) for x in spectra], dtype=torch.float64)
        compared = {**compare(spectra)._asdict(), "a_cosine": compare_A(pairs)}
        chance = torch.maximum(ranks[:, None], ranks[None, :])
        compared |= {"column_chance": chance / shape[0], "row_chance": chance / shape[2]}
        directions = sum(pair.rank for pair in pairs)
        self._compared.append(
            {"kind": module_kind(module), "shape": (shape[0], shape[2]), "directions": directions} | compared
        )

    def add_merged(self, names: Sequence[str], spectra: Sequence[Spectrum], merged: Mapping[str, Spectrum]) -> None:
        for label, update in merged.items():
            for name, spectrum in zip(names, spectra, strict=True):
                robustness = compare_directions(spectrum, update)
                row = (robustness.similarity, robustness.kept, robustness.ratio)
                self._directions[label, name].append(row)

    def entry_rows(self) -> list[Row]:
        counted = self.entries.items()
        return [{"expert": name, "matrix": matrix} | row for (name, matrix), x in counted for row in x.rows()]

    def spectrum_rows(self) -> list[Row]:
        about = {name: {"expert": name} for name in self._values}
        return _mean_rows(about, self._values, PRUNING)

    def merged_rows(self) -> list[Row]:
        about = {key: {"merged": key[0], "expert": key[1]} for key in self._directions}
        return _mean_rows(about, self._directions, ("similarity", "kept", "ratio"))

    def pair_rows(self, names: Sequence[str]) -> list[Row]:
        inner = torch.stack([x["inner"] for x in self._compared]).sum(0)
        length = inner.diagonal().clamp(min=0).sqrt()
        mean = {key: torch.stack([x[key] for x in self._compared]).mean(0) for key in COMPARED}
        return [
            {
                "one": names[i],
                "other": names[j],
                "update_cosine": float(inner[i, j] / (length[i] * length[j])) if length[i] * length[j] > 0 else 0.0,
                **{key: float(x[i, j]) for key, x in mean.items()},
            }
            for i in range(len(names))
            for j in range(i + 1, len(names))
        ]

    def kind_rows(self) -> list[Row]:
        rows = []
        for kind in sorted({x["kind"] for x in self._compared}):
            modules = [x for x in self._compared if x["kind"] == kind]
            (d_out, d_in), directions = modules[0]["shape"], max(x["directions"] for x in modules)
            row = {"kind": kind, "modules": len(modules), "d_out": d_out, "d_in": d_in, "directions": directions}
            rows.append(row | {"share": max(x["directions"] / min(x["shape"]) for x in modules)})
        return rows


PRUNING = ("trained", "pruned", "scaled", "pruned_ratio", "scaled_ratio")
COMPARED = ("a_cosine", "columns", "rows", "column_chance", "row_chance")


def _mean_rows(
    about: Mapping[Any, Row], values: Mapping[Any, Sequence[tuple[Tensor, ...]]], keys: Sequence[str]
) -> list[Row]:
    """Average spectra over modules: a row for each index k, over the modules that have a k-th direction; 0 if none."""
    rows = []
    for key, row in about.items():
        parts = zip(*values[key], strict=True)
        padded = [pad_sequence(list(x), batch_first=True, padding_value=float("nan")) for x in parts]
        means = [x.nanmean(0).nan_to_num() for x in padded]
        for k in range(len(means[0])):
            rows.append(row | {"k": k + 1} | {name: float(x[k]) for name, x in zip(keys, means, strict=True)})
    return rows
