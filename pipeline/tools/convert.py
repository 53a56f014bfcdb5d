"""Convert adapters between LLaVA's format and PEFT's, one after the other; complete conversions are left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from pipeline.words import format_command
from robustmerge.formats.llava.convert import Conversion, convert_folder
from robustmerge.formats.llava.names import ADAPTER_FILES
from robustmerge.hub.places import fetch, find_place, name_of, split_name
from robustmerge.stage.files import expand
from robustmerge.stage.settings import ConfigError, Problem, UserError, build

KEYS = ("to", "adapters", "out", "base", "like", "vision_tower", "allow_no_projector")


@dataclass(frozen=True)
class ConvertRequest(Conversion):
    """The keys of convert.py, as configs/convert.yaml describes them."""

    _: KW_ONLY
    adapters: tuple[str, ...]
    out: str

    def find_problems(self) -> list[Problem]:
        """What is wrong with the keys."""
        problems = super().find_problems()
        if not self.adapters:
            problems.append(Problem("name at least one adapter, as 'adapters=[name:folder,user/repo]'", "adapters"))
        return problems

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
            outcome = convert_folder(fetch(find_place(where), ADAPTER_FILES, pins), out / name, request)
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
