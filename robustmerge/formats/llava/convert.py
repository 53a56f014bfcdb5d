"""Conversion of one adapter folder in either direction; a complete conversion is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robustmerge.stage.files import expand
from robustmerge.stage.settings import Problem, refuse, suggest

DIRECTIONS = ("peft", "original")


@dataclass(frozen=True)
class Conversion:
    """The settings of a conversion.

    to: peft, from LLaVA's own format; or original, back. base: of to=peft, see `convert_to_peft`; like, vision_tower:
    of to=original, see `convert_to_original`. allow_no_projector: accept an adapter without a trained projector.
    """

    to: str
    base: str | None = None
    like: str | None = None
    vision_tower: str | None = None
    allow_no_projector: bool = False

    def __post_init__(self) -> None:
        refuse(self.find_problems())

    def find_problems(self) -> list[Problem]:
        """What is wrong with the settings."""
        problems: list[Problem] = []
        if self.to not in DIRECTIONS:
            problems.append(Problem(f"unknown format '{self.to}'; {suggest(self.to, DIRECTIONS)}", "to"))
        for key, to in (("base", "peft"), ("like", "original"), ("vision_tower", "original")):
            if getattr(self, key) is not None and self.to != to:
                problems.append(Problem(f"{key} is for to={to}", key))
        if self.like is not None and not expand(self.like).is_dir():
            problems.append(Problem(f"there is no folder {self.like}", "like"))
        return problems


def convert_folder(source: Path, folder: Path, settings: Conversion) -> str:
    """Convert one adapter unless that is done, and say what became of it. Raises UserError if it cannot be."""
    from robustmerge.formats.llava import from_peft, to_peft
    from robustmerge.formats.llava.record import is_converted

    like, base = expand(settings.like) if settings.like else None, settings.base or ""
    if settings.to == "peft":
        identity = to_peft.peft_request(base)
        act = partial(to_peft.convert_to_peft, base=base)
    else:
        identity = from_peft.original_request(like, settings.vision_tower)
        act = partial(from_peft.convert_to_original, like=like, vision_tower=settings.vision_tower)
    if is_converted(source, folder, identity):
        return "complete, left alone"
    record = act(source, folder, allow_no_projector=settings.allow_no_projector)
    saved = f"{record['projector_tensors']} of the projector" if record["projector_tensors"] else "no projector"
    tensors = (
        f"{2 * record['modules']} LoRA tensors ({record['layers']} layers, rank {record['rank']}, alpha "
        f"{record['alpha']}, {record['dtype']}), {saved}, for {record['base'] or 'an unnamed base'}"
    )
    return "\n        ".join([tensors, *record.get("notes", [])])
