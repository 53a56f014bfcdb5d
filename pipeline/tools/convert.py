"""What `convert.py` does: find the adapters, convert one after the other, leave alone what is complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.stages.convert import ADAPTER_FILES
from robustmerge.hub.places import fetch, find_place, name_of, split_name
from robustmerge.stage.settings import ConfigError, Problem, UserError, build, refuse, suggest

DIRECTIONS = ("peft", "original")
KEYS = ("to", "adapters", "out", "base", "like", "vision_tower", "allow_no_projector")


@dataclass(frozen=True)
class Request:
    """What configs/convert.yaml says of each key."""

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
        if self.like is not None and not Path(self.like).expanduser().is_dir():
            problems.append(Problem(f"there is no folder {self.like}", "like"))
        refuse(problems)

    @property
    def places(self) -> dict[str, str]:
        """Adapters by the name of their subfolder. Raises ConfigError if a name is taken twice."""
        found: dict[str, str] = {}
        for entry in self.adapters:
            name, where = split_name(entry)
            name = name or self._name(name_of(where))
            if name in found or not name or "/" in name or name.startswith("."):
                raise ConfigError(
                    Problem(f"'{name}' is no name, or of two adapters; name them as name:folder", "adapters")
                )
            found[name] = where
        return found

    def _name(self, name: str) -> str:
        """LLaVA's own loader wants to find both words in a folder's name."""
        fits = self.to == "peft" or all(word in name.lower() for word in ("llava", "lora"))
        return name if fits else f"llava-lora-{name}"


def convert(points: Sequence[Mapping[str, Any]]) -> None:
    """Convert every adapter that can be converted. Raises UserError at the end with why the others cannot."""
    if len(points) > 1:
        raise UserError("one command converts any number of adapters, 'adapters=[a,b]'; there is nothing to sweep over")
    (point,) = points
    request = build(Request, {key: point[key] for key in KEYS}, "")
    out, pins = Path(request.out).expanduser().absolute(), Path(point["paths"]["runs"]) / "hub.json"
    problems, made = [], []
    for number, (name, where) in enumerate(request.places.items(), 1):
        try:
            told = _convert_one(request, fetch(find_place(where), ADAPTER_FILES, pins), out / name)
            made.append(name)
        except UserError as error:
            told = "failed"
            problems.append(f"{name}: {error}")
        print(f"  [{number}/{len(request.places)}] {name}: {told}", flush=True)
    print(f"\n{len(made)} of {len(request.places)} adapters are there: {out}")
    if made and request.to == "peft":
        listed = ",".join(f"{name}:{out / name}" for name in made)
        print(f"merge them: python scripts/merge.py merge=robustmerge 'experts=[{listed}]' out=FOLDER")
    if problems:
        raise UserError("\n".join(problems))


def _convert_one(request: Request, source: Path, folder: Path) -> str:
    """Convert one adapter, and what is to be said of it."""
    from llava_ext.original import from_peft, record, to_peft

    if request.to == "peft":
        given = (request.base or "",)
        asked, act = to_peft.peft_request(*given), to_peft.convert_to_peft
    else:
        given = (Path(request.like).expanduser() if request.like else None, request.vision_tower)
        asked, act = from_peft.original_request(*given), from_peft.convert_to_original
    if record.is_converted(source, folder, asked):
        return "complete, left alone"
    record = act(source, folder, *given, allow_no_projector=request.allow_no_projector)
    saved = f"{record['projector_tensors']} of the projector" if record["projector_tensors"] else "no projector"
    told = (
        f"{2 * record['modules']} LoRA tensors ({record['layers']} layers, rank {record['rank']}, alpha "
        f"{record['alpha']}, {record['dtype']}), {saved}, for {record['base'] or 'an unnamed base'}"
    )
    return "\n        ".join([told, *record.get("notes", [])])
