"""Settings of the small CLIP that is trained here. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from llava_ext.settings import Part, Vision
from robustmerge.stage.settings import Problem, outside_identity, refuse


@dataclass(frozen=True)
class Text:
    """Sizes of a CLIP text encoder. longest: tokens of a caption, with those of its beginning and its end."""

    layers: int = 2
    width: int = 128
    mlp: int = 512
    heads: int = 4
    longest: int = 32

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("layers", "width", "mlp", "heads", "longest")}
        problems = [Problem(f"{name} must be above 0, got {size}", name) for name, size in sizes.items() if size < 1]
        if not problems and self.width % self.heads:
            problems.append(Problem(f"width must be a multiple of heads, got {self.width} and {self.heads}", "width"))
        refuse(problems)


@dataclass(frozen=True)
class ClipBase:
    """A small CLIP, trained from scratch on pictures with captions (data_prep.clip.corpus).

    width: of the space that pictures and captions share; vocabulary: the most tokens of the tokenizer. learn: the
    training; train: true to train it here in place of the shipped one.
    """

    vision: Vision = field(default_factory=Vision)
    text: Text = field(default_factory=Text)
    width: int = 128
    vocabulary: int = 1024
    learn: Part = field(default_factory=Part)
    seed: int = 0
    save_steps: int = outside_identity(250)
    train: bool = outside_identity(False)

    def __post_init__(self) -> None:
        problems = []
        for name, least in (("width", 1), ("vocabulary", 300), ("save_steps", 1)):
            if (value := getattr(self, name)) < least:
                problems.append(Problem(f"{name} must be at least {least}, got {value}", name))
        refuse(problems)
