"""Settings of the small CLIP that is trained here. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from llava_ext.settings import Part, Vision, positive
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
        problems = positive(self, "layers", "width", "mlp", "heads", "longest")
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
        problems = positive(self, "width", "save_steps")
        if self.vocabulary < 300:
            problems.append(Problem(f"vocabulary must be at least 300, got {self.vocabulary}", "vocabulary"))
        refuse(problems)
