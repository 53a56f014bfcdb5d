"""Convert adapters between LLaVA's format and PEFT's, one after the other; complete conversions are left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.stages.convert import ADAPTER_FILES
from pipeline.words import format_command
from robustmerge.hub.places import fetch, find_place, name_of, split_name
from robustmerge.stage.files import expand
from robustmerge.stage.settings import ConfigError, Problem, UserError, build, refuse, suggest

DIRECTIONS = ("peft", "original")
KEYS = ("to", "adapters", "out", "base", "like", "vision_tower", "allow_no_projector")


@dataclass(frozen=True)
class ConvertRequest:
    """The keys of convert.py, as configs/convert.yaml describes them."""

    to: str
    adapters: tuple[str, ...]
    out: str
    base: str | None = None
    like: str | None = None
    vision_tower: str | None = None
    allow_no_projector: bool = False

    def __post_init__(self) -> None:
        problems: list[Problem] = []
        if self.to not in DIRECTIONS:
            problems.append(Problem(f"unknown format '{self.to}'; {suggest(self.to, DIRECTIONS)}", "to"))
        if not self.adapters:
            problems.append(Problem("name at least one adapter, as 'adapters=[name:folder,user/repo]'", "adapters"))
        for key, to in (("base", "peft"), ("like", "original"), ("vision_tower", "original")):
            if getattr(self, key) is not None and self.to != to:
                problems.append(Problem(f"{key} is for to={to}", key))
        if self.like is not None and not expand(self.like).is_dir():
            problems.append(Problem(f"there is no folder {self.like}", "like"))
        refuse(problems)

    @property
    def places(self) -> dict[str, str]:
        """Adapters by the name of their subfolder. Raises ConfigError if a name is taken twice."""
        places: dict[str, str] = {}
        for entry in self.adapters:
            name, where = split_name(entry)
            name = name or self._name(name_of(where))
            if name in places or not name or "/" in name or name.startswith("."):
                raise ConfigError(
                    Problem(f"'{name}' is no name, or of two adapters; name them as name:folder", "adapters")
                )
            places[name] = where
        return places

    def _name(self, name: str) -> str:
        """The subfolder's name; with `llava` and `lora` in it, which LLaVA's own loader looks for."""
        fits = self.to == "peft" or all(word in name.lower() for word in ("llava", "lora"))
        return name if fits else f"llava-lora-{name}"


def convert(points: Sequence[Mapping[str, Any]]) -> None:
    """Convert every adapter that can be converted. Raises UserError at the end with why the others cannot."""
    if len(points) > 1:
        raise UserError("one command converts any number of adapters, 'adapters=[a,b]'; there is nothing to sweep over")
    (point,) = points
    request = build(ConvertRequest, {key: point[key] for key in KEYS}, "")
    out, pins = expand(request.out).absolute(), Path(point["paths"]["runs"]) / "hub.json"
    problems, converted = [], []
    for number, (name, where) in enumerate(request.places.items(), 1):
        try:
            outcome = _convert_one(request, fetch(find_place(where), ADAPTER_FILES, pins), out / name)
            converted.append(name)
        except UserError as error:
            outcome = "failed"
            problems.append(f"{name}: {error}")
        print(f"  [{number}/{len(request.places)}] {name}: {outcome}", flush=True)
    print(f"\n{len(converted)} of {len(request.places)} adapters are there: {out}")
    if converted and request.to == "peft":
        experts = ",".join(f"{name}:{out / name}" for name in converted)
        words = ["python", "scripts/merge.py", "merge=robustmerge", f"experts=[{experts}]", "out=FOLDER"]
        print(f"merge them: {format_command(words)}")
    if problems:
        raise UserError("\n".join(problems))


def _convert_one(request: ConvertRequest, source: Path, folder: Path) -> str:
    """Convert one adapter unless that is done, and say what became of it."""
    from llava_ext.original import from_peft, to_peft
    from llava_ext.original.record import is_converted

    like, base = expand(request.like) if request.like else None, request.base or ""
    if request.to == "peft":
        identity = to_peft.peft_request(base)
        act = partial(to_peft.convert_to_peft, base=base)
    else:
        identity = from_peft.original_request(like, request.vision_tower)
        act = partial(from_peft.convert_to_original, like=like, vision_tower=request.vision_tower)
    if is_converted(source, folder, identity):
        return "complete, left alone"
    record = act(source, folder, allow_no_projector=request.allow_no_projector)
    saved = f"{record['projector_tensors']} of the projector" if record["projector_tensors"] else "no projector"
    tensors = (
        f"{2 * record['modules']} LoRA tensors ({record['layers']} layers, rank {record['rank']}, alpha "
        f"{record['alpha']}, {record['dtype']}), {saved}, for {record['base'] or 'an unnamed base'}"
    )
    return "\n        ".join([tensors, *record.get("notes", [])])
