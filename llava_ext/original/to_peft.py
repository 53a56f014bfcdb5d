"""Adapters between LLaVA's own format and ours: nothing is computed, every tensor keeps its numbers and its dtype.

Ours is a PEFT adapter of transformers' LLaVA, the trained projector in it as `modules_to_save`, its targets a regular
expression that no module of the vision tower matches. What is not understood is refused, as a tensor that no one
loads is a wrong model in silence. The last file written makes a folder complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_ext.original.checks import Layout, check_adapter_config, check_llava_config, layout_of
from llava_ext.original.configs import LLAVA15, SAVED, our_adapter_config
from llava_ext.original.from_peft import convert_to_original, original_request
from llava_ext.original.names import (
    ADAPTER_CONFIG,
    LLAVA_CONFIG,
    PROJECTOR,
    PROJECTOR_NAMES,
    Place,
    find_weights,
    is_original,
    lora_name,
    parse_lora_name,
    projector_name,
    projector_part,
    read_if_there,
)
from llava_ext.original.old_peft import has_old_names, rename
from llava_ext.original.record import (
    RECORD,
    build_record,
    check_finite,
    check_projector_shapes,
    check_values,
    finish,
    is_converted,
    raise_problems,
    start,
    with_location,
)
from robustmerge.formats.adapter import PREFIX, WEIGHTS
from robustmerge.formats.tensors import TensorFile, TensorWriter, room_for
from robustmerge.stage.settings import UserError

__all__ = [
    "RECORD", "original_request", "peft_request", "convert_to_original", "convert_to_peft",
    "is_converted", "is_original",
]  # fmt: skip


def convert_to_peft(original: Path, folder: Path, base: str, allow_no_projector: bool = False) -> dict[str, Any]:
    """Write an adapter in LLaVA's own format as one of ours, and return the record of it (`conversion.json`).

    One of PEFT with the names that transformers had before 4.52 gets those of today (`llava_ext.original.old_peft`).
    base: what `base_model_name_or_path` becomes, a checkpoint of transformers' LLaVA; "": that of the adapter's size.
    allow_no_projector: an adapter without a projector of its own is meant so, and leaves that of the base.
    Raises UserError, with nothing written that could be loaded, for all that is not exactly LoRA of every linear of
    the language model beside a projector; for a lora_B that is zero, or numbers that are not finite.
    """
    if not is_original(original) and has_old_names(original):
        return rename(original, folder, base, peft_request(base))
    config, layout, lora = _open_lora(original)
    _check_base(original, layout, base)
    projector = _open_projector(original, layout.sizes, allow_no_projector)
    sources = {_our_name(place): (lora, name) for place, name in layout.names.items()}
    if projector is not None:
        for name in projector.names:
            part = PROJECTOR_NAMES[projector_part(name)]
            sources[f"{PREFIX}model.{SAVED}.{part}"] = (projector, name)
    problems = [*check_values(lora, layout), *check_finite(projector)]
    raise_problems(original, problems)
    saved = [projector.get(name) for name in projector.names] if projector else []
    record = build_record("peft", original, layout, config["lora_alpha"], lora, saved, peft_request(base))
    base = base or _known_base(layout) or ""
    record |= {"base": base, "adapter_config": config, "config": read_if_there(original / LLAVA_CONFIG)}
    start(original, folder)
    with TensorWriter(folder / WEIGHTS, room_for(sources)) as writer:
        for name, (file, stored) in sorted(sources.items()):
            writer.add(name, file.get(stored))
    text = "Converted from LLaVA's own format, tensor by tensor, without any change of the numbers."
    ours = our_adapter_config(config, base, projector is not None)
    finish(folder, record, "library_name: peft\n", text, {ADAPTER_CONFIG: ours})
    return record


def peft_request(base: str) -> dict[str, Any]:
    """What a conversion to ours depends on beside the adapter."""
    return {"to": "peft", "base": base}


def _known_base(layout: Layout) -> str | None:
    known = LLAVA15.get((layout.sizes["layers"], layout.sizes["hidden"]))
    return known.checkpoint if known else None


def _check_base(original: Path, layout: Layout, base: str) -> None:
    """Raises UserError if the base is a LLaVA-1.5 of the Hub of another size than the adapter."""
    known = _known_base(layout)
    if known not in (None, base) and base in {size.checkpoint for size in LLAVA15.values()}:
        raise UserError(f"{original} is an adapter of the size of {known}, and the base is {base}")


def _open_lora(original: Path) -> tuple[dict[str, Any], Layout, TensorFile]:
    """The adapter's config and its LoRA tensors, every one of them understood."""
    weights, config = find_weights(original), read_if_there(original / ADAPTER_CONFIG)
    if weights is None or config is None:
        found = ", ".join(sorted(file.name for file in original.iterdir())) if original.is_dir() else "no such folder"
        raise UserError(
            f"{original} is no adapter in LLaVA's own format: it needs {ADAPTER_CONFIG} and adapter_model.bin or "
            f"{WEIGHTS}, found: {found or 'nothing'}"
        )
    raise_problems(original / ADAPTER_CONFIG, check_adapter_config(config))
    file = TensorFile(weights)
    if not is_original(original):
        raise UserError(
            f"{original} is no adapter in LLaVA's own format: its tensors are called {file.names[:1]}, "
            f"not '{lora_name((0, 'self_attn.q_proj', 'A'))}', or it has neither {PROJECTOR} nor LLaVA's {LLAVA_CONFIG}"
        )
    shapes = {name: file.shape(name) for name in file.names}
    layout = with_location(
        weights, lambda: layout_of({n: parse_lora_name(n) for n in file.names}, shapes, int(config["r"]))
    )
    llava = read_if_there(original / LLAVA_CONFIG)
    raise_problems(original / LLAVA_CONFIG, check_llava_config(llava or {}, layout.sizes))
    return config, layout, file


def _open_projector(original: Path, sizes: Mapping[str, int], allow_none: bool) -> TensorFile | None:
    """The four tensors of the projector; None if there is none and that is meant."""
    path = original / PROJECTOR
    file = TensorFile(path) if path.is_file() else None
    if file is None or not file.names:
        if allow_none:
            return None
        raise UserError(
            f"{path} {'is missing' if file is None else 'is empty'}: without it the projector of the base is taken, "
            "which is another model than was trained; if that is meant, say allow_no_projector=true to "
            "scripts/convert.py"
        )
    problems, found = [], {}
    for name in file.names:
        part = projector_part(name)
        if part not in PROJECTOR_NAMES:
            problems.append(
                f"{name} is no tensor of the projector; allowed: {', '.join(map(projector_name, PROJECTOR_NAMES))}"
            )
        elif part in found:
            problems.append(f"{found[part]} and {name} are two spellings of one tensor")
        else:
            found[part] = name
    problems += [f"{projector_name(part)} is missing" for part in PROJECTOR_NAMES if part not in found]
    if not problems:
        problems = check_projector_shapes({part: file.shape(name) for part, name in found.items()}, sizes["hidden"])
    llava = read_if_there(original / LLAVA_CONFIG) or {}
    if not problems:
        problems = check_llava_config(llava, {"picture": file.shape(found["0.weight"])[1]})
    raise_problems(path, problems)
    return file


def _our_name(place: Place) -> str:
    return f"{PREFIX}model.language_model.layers.{place[0]}.{place[1]}.lora_{place[2]}.weight"
