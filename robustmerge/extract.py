"""A LoRA adapter out of a fully fine-tuned checkpoint: the best low-rank approximation of what the tuning changed.

    from robustmerge.extract import extract
    record = extract("path/base", "path/tuned", "path/adapter", rank=16)

Both checkpoints are read tensor by tensor, safetensors or .bin (never unpickled), in one file or several; memory holds
one pair of tensors a worker.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustmerge.formats.adapter_writer import AdapterWriter
from robustmerge.formats.checkpoint import CONV1D, HEADS, TIED, Checkpoint, open_checkpoint
from robustmerge.formats.names import PARTS, PREFIX, is_saved_whole
from robustmerge.formats.output import how_to_load
from robustmerge.formats.patterns import list_ends
from robustmerge.formats.tensors import all_finite
from robustmerge.hub.pins import Repository
from robustmerge.hub.places import fetch_weights, find_place
from robustmerge.low_rank import Approximation, approximate, approximate_randomly
from robustmerge.merging import Say
from robustmerge.method_parts import TORCH_DTYPES
from robustmerge.stage.address import address_chosen, address_foreign, read_manifest, run_stage
from robustmerge.stage.progress import Bar
from robustmerge.stage.settings import Problem, UserError, first_few, refuse, suggest
from robustmerge.workers import map_in_threads, set_up_for_merging

SCHEMA = 1  # of what an extraction writes
SHOWN = 20  # tensors of those left out that are printed

CARD = """---
library_name: peft
tags: [lora]
---

# LoRA of rank {rank}, extracted from a fully fine-tuned model

The best approximation of rank {rank}, by singular values, of what the tuning changed in each of these layers; it keeps
{retained:.2%} of the squared norm of that. Base model: `{base}`.

```python
{loading}```

What is kept of every layer, and what changed but is not in here, is in `manifest.json`.
"""


@dataclass(frozen=True)
class Extraction:
    """Settings of an extraction. modules: names of modules, or ends of names; None: all linear ones except the head.

    exact_up_to: a matrix whose smaller side is at most this gets a whole SVD, a larger one a randomised SVD, drawn by
    `seed`. dtype: that of the adapter.
    """

    rank: int
    modules: tuple[str, ...] | None = None
    dtype: str = "float32"
    exact_up_to: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [] if self.rank >= 1 else [Problem(f"rank must be at least 1, got {self.rank}", "rank")]
        if self.modules is not None and not self.modules:
            problems.append(Problem("modules must be None or names, got none", "modules"))
        if self.dtype not in TORCH_DTYPES:
            problems.append(Problem(f"unknown dtype '{self.dtype}'; {suggest(self.dtype, TORCH_DTYPES)}", "dtype"))
        refuse(problems)


def extract(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    rank: int,
    modules: Sequence[str] | None = None,
    dtype: str = "float32",
    exact_up_to: int = 1024,
    seed: int = 0,
    workers: int = 1,
    say: Say = print,
    device: str = "cpu",
) -> dict[str, Any]:
    """Write the LoRA of rank `rank` nearest to tuned - base to the new folder `out`, and return its record.

    base, tuned: folders of checkpoints, or hub ids. The other settings: see `Extraction`. workers: how many tensors are
    processed side by side; it does not change the result. device: where they are decomposed, such as `cuda`; the
    numbers are those of the CPU except for rounding, and the device is not part of the adapter's identity.
    A linear weight is a matrix whose name ends in `.weight` and is not, by its name, that of an embedding or an output
    head; a head is taken if `modules` names it. A checkpoint tells only names and shapes: where a matrix is not an
    nn.Linear in the model (the router of some mixtures of experts), name the modules that are. B = U sqrt(S) and
    A = sqrt(S) V^T of the leading singular directions, alpha = rank, so the scaling is 1.
    The record, also in `manifest.json`, has for every module the share of the squared norm that is kept (`retained`),
    the norm of what is lost (`error`, before rounding to `dtype`) and whether no LoRA of this rank is nearer (`best`);
    `retained` and `error` of all modules together; and `left_out`: every tensor that changed but is not in the adapter,
    with its relative change, of which `say` warns too.
    Raises UserError if nothing differs, names or shapes differ, a value is not finite, or the device is not there;
    nothing is written then.
    """
    settings = Extraction(rank, None if modules is None else tuple(modules), dtype, exact_up_to, seed)
    places = {"base": _find(base, "base"), "tuned": _find(tuned, "tuned")}
    place, folders = places["base"], {name: fetch_weights(place) for name, place in places.items()}
    inputs = {name: address_foreign(folder) for name, folder in folders.items()}
    address = address_chosen(Path(out), "extraction", SCHEMA, settings, inputs, "models")
    work = partial(
        write_extracted, folders=folders, place=place, settings=settings, workers=workers, say=say, device=device
    )
    run_stage(address, work, say, True)
    return read_manifest(address.manifest)["record"]


def _find(text: str | Path, which: str) -> Path | Repository:
    try:
        return find_place(text)
    except UserError as error:
        raise UserError(f"{error} ({which})") from error


def write_extracted(
    folder: Path,
    folders: Mapping[str, Path],
    place: Path | Repository,
    settings: Extraction,
    workers: int = 1,
    say: Say = print,
    device: str = "cpu",
) -> dict[str, Any]:
    """Extract into `folder` and return the record. folders: of `base` and `tuned`. place: what the base is called."""
    with set_up_for_merging(device):
        base, tuned = (open_checkpoint(folders[name]) for name in ("base", "tuned"))
        changes = Changes(base, tuned, match_tensors(base, tuned), settings, device)
        linear = changes.find_linear()
        like = describe_base(base, place, changes.names_conv1d(linear))
        names = [f"{PREFIX}{module}.{PARTS[part]}" for module in linear.values() for part in "AB"]
        record: dict[str, Any] = {"modules": {}, "left_out": {}}
        squared_norm = squared_error = 0.0
        with AdapterWriter(folder, like, names, getattr(torch, settings.dtype)) as writer:
            writer.wider = "dtype='float32'"
            bar = Bar(sorted(changes.places), "extract", unit="tensor")
            for change in map_in_threads(lambda name: changes.measure(name, linear.get(name)), bar, workers):
                if change is None:
                    continue
                if (near := change.approximation) is None:
                    record["left_out"][change.name] = change.relative
                    continue
                module = linear[change.name]
                writer.add_pair(module, near.pair.to("cpu"))
                squared_norm, squared_error = squared_norm + near.squared_norm, squared_error + near.squared_error
                record["modules"][module] = {"rank": len(near.s), **describe(near), "relative_change": change.relative}
            if not writer.ranks:
                raise UserError(_explain_nothing(base, tuned, list(record["left_out"])))
            record |= _shares(squared_norm, squared_error)
            base_name = like["base_model_name_or_path"]
            writer.card = CARD.format(
                rank=settings.rank, retained=record["retained"], base=base_name, loading=how_to_load("adapter")
            )
    for line in summarize(record):
        say(line)
    return record if device == "cpu" else {**record, "device": device}


# --- which tensors ------------------------------------------------------------------------------------------------


def match_tensors(base: Checkpoint, tuned: Checkpoint) -> dict[str, tuple[str, str]]:
    """Today's name of every tensor -> its names in base and tuned.

    A head that one of the two leaves out, since it is the embeddings, is no difference.
    Raises UserError with the names and shapes that differ.
    """
    for checkpoint in (base, tuned):
        if len(checkpoint.today) < len(checkpoint.where):
            raise UserError(f"{checkpoint} has tensors by their names of before and of today; two would become one")
    problems = []
    for holder, other in ((base, tuned), (tuned, base)):
        lacking = [name for name in sorted(holder.today) if name not in other.today]
        lacking = [name for name in lacking if not (other.is_tied and _is_tied_head(holder, name))]
        problems += [f"'{name}' is in {holder}, but not in {other}" for name in lacking]
    places = {name: (base.today[name], tuned.today[name]) for name in base.today if name in tuned.today}
    for name, stored in places.items():
        shapes = [list(one.shape(key)) for one, key in zip((base, tuned), stored, strict=True)]
        if shapes[0] != shapes[1]:
            resized = "; its vocabulary was resized" if is_saved_whole(name) else ""
            problems.append(f"'{name}' is {shapes[0]} in {base}, {shapes[1]} in {tuned}{resized}")
    if problems:
        raise UserError("\n".join([*first_few(problems), "the two must be one architecture, before and after tuning"]))
    return places


def _is_tied_head(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is an output head that equals the embeddings beside it."""
    if name not in HEADS:
        return False
    stored = checkpoint.today[name]
    head, shape = checkpoint.get(stored), checkpoint.shape(stored)
    others = [other for today, other in checkpoint.today.items() if today != name and TIED.search(today)]
    return any(checkpoint.shape(other) == shape and torch.equal(checkpoint.get(other), head) for other in others)


def describe_base(base: Checkpoint, place: Path | Repository, fan_in_fan_out: bool) -> dict[str, Any]:
    """What of an adapter's config its base decides."""
    architecture = next(iter(base.config.get("architectures") or []), "")
    name, revision = (place.name, place.revision) if isinstance(place, Repository) else (str(place), "main")
    return {
        "base_model_name_or_path": name,
        "revision": None if revision == "main" else revision,
        "task_type": "CAUSAL_LM" if str(architecture).endswith("ForCausalLM") else None,
        "fan_in_fan_out": fan_in_fan_out,
    }


class Change(NamedTuple):
    """A tensor that differs. relative: ||tuned - base|| / ||base||, None for a base of zeros."""

    name: str
    relative: float | None
    approximation: Approximation | None


@dataclass(frozen=True)
class Changes:
    """What differs between two checkpoints. places: today's name of a tensor -> its names in both.

    device: where what differs is decomposed.
    """

    base: Checkpoint
    tuned: Checkpoint
    places: Mapping[str, tuple[str, str]]
    settings: Extraction
    device: str = "cpu"

    def find_linear(self) -> dict[str, str]:
        """Today's name of every weight that may become LoRA -> its module.

        Raises UserError if `modules` has a name of none, or of the head of a model that ties it to its embeddings.
        """
        asked = self.settings.modules
        matrices = [name for name in self.places if name.endswith(".weight") and len(self._shape(name)) == 2]
        linear = {}
        for name in sorted(matrices):
            module = name.removesuffix(".weight")
            is_asked = asked is None or any(end in asked for end in list_ends(module))
            is_head = module.rpartition(".")[2] in [head.removesuffix(".weight") for head in HEADS]
            if is_asked and (not _is_embedding(name) or (is_head and asked is not None)):
                linear[name] = module
        ends = {end for module in linear.values() for end in list_ends(module)}
        if unknown := [name for name in asked or () if name not in ends]:
            known = {name.removesuffix(".weight").rpartition(".")[2] for name in matrices if not _is_embedding(name)}
            raise UserError(f"no linear layer is named '{unknown[0]}'; {suggest(unknown[0], known)} (modules)")
        if tied := [name for name in linear if self.base.is_tied and TIED.search(name)]:
            raise UserError(f"'{tied[0]}' is one weight with the embeddings of {self.base}; leave it out (modules)")
        return linear

    def names_conv1d(self, names: Mapping[str, str]) -> bool:
        """Whether there are layers among these that keep their weights as [d_in, d_out]."""
        return any(map(self._is_conv1d, names))

    def measure(self, name: str, module: str | None) -> Change | None:
        """Compare one tensor; None if it is the same. module: what it belongs to, if it may become LoRA.

        Raises UserError if a value is not finite, or the numbers are those of a quantised weight.
        """
        before, after = (one.get(key) for one, key in zip((self.base, self.tuned), self.places[name], strict=True))
        if torch.equal(before, after.to(before.dtype)) and torch.equal(before.to(after.dtype), after):
            return None
        for tensor, checkpoint in ((before, self.base), (after, self.tuned)):
            if not all_finite(tensor):
                raise UserError(f"'{name}' holds NaN or infinity in {checkpoint}")
            if module is not None and not tensor.is_floating_point():
                raise UserError(f"'{name}' is {tensor.dtype} in {checkpoint}: quantised weights cannot be subtracted")
        is_small = min(before.shape, default=0) <= self.settings.exact_up_to
        dtype = torch.float64 if is_small else torch.float32
        before, after = (tensor.to(self.device, dtype) for tensor in (before, after))
        size = float(torch.linalg.vector_norm(before, dtype=torch.float64))
        difference = after - before
        norm = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
        near = None if module is None else self._approximate(difference, name, is_small)
        return Change(name, norm / size if size else None, near)

    def _approximate(self, difference: torch.Tensor, name: str, exactly: bool) -> Approximation:
        update, rank = difference.T if self._is_conv1d(name) else difference, self.settings.rank
        if exactly:
            return approximate(update, rank)
        digest = hashlib.sha256(f"{self.settings.seed} {name}".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return approximate_randomly(update, rank, draw)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(self.places[name][0])

    def _is_conv1d(self, name: str) -> bool:
        """Whether a weight is that of a Conv1D of transformers, by the model and the names of its layers."""
        kind = name.removesuffix(".weight").rpartition(".")[2]
        return self.base.config.get("model_type") in CONV1D and (kind.startswith("c_") or kind == "q_attn")


def _is_embedding(name: str) -> bool:
    """Whether a matrix is, by its name, an embedding, an output head or a norm."""
    kind = name.removesuffix(".weight").rpartition(".")[2].lower()
    return is_saved_whole(name) or "embed" in kind or kind == "relative_attention_bias"


# --- what is said of it -------------------------------------------------------------------------------------------


def describe(near: Approximation) -> dict[str, Any]:
    """What the record says of one module."""
    return {**_shares(near.squared_norm, near.squared_error), "best": near.is_best}


def _shares(squared_norm: float, squared_error: float) -> dict[str, float]:
    kept = 1 - squared_error / squared_norm
    return {"norm": math.sqrt(squared_norm), "error": math.sqrt(squared_error), "retained": kept}


def _explain_nothing(base: Checkpoint, tuned: Checkpoint, left_out: Sequence[str]) -> str:
    if not left_out:
        return f"nothing differs between {base} and {tuned}"
    what = f"only {', '.join(first_few([repr(name) for name in left_out]))}"
    return f"nothing differs between {base} and {tuned} that LoRA of linear layers can hold, {what} (modules)"


def summarize(record: Mapping[str, Any]) -> list[str]:
    """The lines that are printed: what is kept, and a warning of every tensor that is left out."""
    modules, left_out = record["modules"], record["left_out"]
    worst = min(modules, key=lambda module: modules[module]["retained"])
    kept = f"{record['retained']:.2%} of the squared norm kept"
    lines = [f"{len(modules)} modules, {kept}; least in {worst}: {modules[worst]['retained']:.2%}"]
    if left_out:
        changes = [
            f"  {name}: {'from zero' if relative is None else f'{relative:.2%}'}" for name, relative in left_out.items()
        ]
        lines.append(f"warning: {len(left_out)} tensors changed and are not in the adapter; relative change:")
        lines += first_few(changes, SHOWN)
    return lines
