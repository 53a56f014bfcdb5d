"""Models and the families that they belong to: all that the stages need to know of a kind of model is named here.

The functions of a family import its libraries when they are called: planning loads none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_ext.settings import ClipBase
from data_prep.settings import BaseCorpus, CaptionCorpus
from llava_ext.settings import AlignedBase, BaseModel, Recipe, positive, problems_of_precision, problems_of_quantize
from robustmerge.stage.process import loading_libraries
from robustmerge.stage.settings import PRODUCTS, Problem, refuse, suggest

if TYPE_CHECKING:
    from llava_ext.train import Training


@dataclass(frozen=True)
class Lora:
    """Default rank and alpha of a model's experts, chosen by its width: N experts span at most N r dimensions."""

    r: int = 16
    alpha: float = 32

    def __post_init__(self) -> None:
        refuse(positive(self, "r", "alpha"))


@dataclass(frozen=True)
class Model:
    """A model to train experts of and to evaluate: the base at `checkpoint`, or one that is trained here.

    family: a name of FAMILIES. base: how a small one is trained; a checkpoint is used in its place where there is one,
    unless base.train is true. recipe: of its experts; lora: defaults of `peft.r` and `peft.alpha`; template: a name of
    llava_ext.conversation, "" for a model that does not converse; generation_batch: questions answered together.
    products: how a CPU multiplies matrices for answers: exact, in float32 throughout; fast, with bfloat16 inside where
    the CPU has units for it (as in training). precision: of the weights for answers, fp32, fp16 or bf16. quantize: 4bit
    or 8bit, for the frozen language model while experts are trained (QLoRA). parameters: how many it has, given for a
    checkpoint that is too large for a CPU.
    """

    name: str
    family: str = "llava"
    template: str = "vicuna_v1"
    base: BaseModel | AlignedBase | ClipBase | None = None
    checkpoint: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    lora: Lora = field(default_factory=Lora)
    generation_batch: int = 64
    products: str = "exact"
    precision: str = "fp32"
    quantize: str | None = None
    parameters: float | None = None

    def __post_init__(self) -> None:
        problems = [*positive(self, "generation_batch", "parameters"), *problems_of_precision(self.precision)]
        problems += problems_of_quantize(self.quantize)
        if self.quantize is not None and self.family != "llava":
            problems.append(Problem("only the language model of a LLaVA is quantised; take null", "quantize"))
        for key, choices in (("products", PRODUCTS), ("family", FAMILIES)):
            if (name := getattr(self, key)) not in choices:
                problems.append(Problem(f"unknown {key} '{name}'; {suggest(name, choices)}", key))
        if self.recipe.group_by_length and self.family in FAMILIES and self.kind.answers_with_classes:
            problems.append(Problem("pictures without a question are all of one length", "recipe.group_by_length"))
        if self.base is None and self.checkpoint is None:
            problems.append(Problem("a model needs a checkpoint, or a base that is trained here", "base, checkpoint"))
        if self.base is not None and self.family in FAMILIES and not isinstance(self.base, self.kind.bases):
            problems.append(Problem(f"these are no settings of a base of family '{self.family}'", "base"))
        elif isinstance(base := self.trained_base, BaseModel | AlignedBase) and base.template != self.template:
            trained = base.template
            problems.append(
                Problem(f"the base is trained with template '{trained}', not '{self.template}'", "template")
            )
        refuse(problems)

    @property
    def kind(self) -> Family:
        """What the stages need to know of the model's family."""
        return FAMILIES[self.family]

    @property
    def trained_base(self) -> BaseModel | AlignedBase | ClipBase | None:
        """How the base is made here, trained or put together; None where it is a checkpoint."""
        is_trained = self.base is not None and (self.base.train or self.checkpoint is None)
        return self.base if is_trained else None


@dataclass(frozen=True)
class Family:
    """A kind of model.

    title: its name in a sentence; bases, corpus: classes of the settings of a base that is made here, and of what it
    is trained on. answers_with_classes: whether it names the class of a picture instead of writing an answer.
    training: returns how its experts are trained. load: returns a base that answers (eval.predict.AnswerModel) and has
    the `use` of llava_ext.sources; takes its folder, template, whether a CPU may multiply fast, device and precision.
    """

    title: str
    bases: tuple[type, ...]
    corpus: type
    answers_with_classes: bool
    training: Callable[[], Training]
    load: Callable[[Path, str, bool, str, str], Any]


def _train_llava() -> Training:
    with loading_libraries():
        from llava_ext.train import LLAVA_TRAINING
    return LLAVA_TRAINING


def _load_llava(base: Path, template: str, fast: bool, device: str, precision: str) -> Any:
    with loading_libraries():
        from llava_ext.backend import DTYPES
        from llava_ext.generate import Generator
    return Generator(base, template, choose_gpu(device), DTYPES[precision], fast)


def _train_clip() -> Training:
    with loading_libraries():
        from clip_ext.train import CLIP_TRAINING
    return CLIP_TRAINING


def _load_clip(base: Path, template: str, fast: bool, device: str, precision: str) -> Any:
    with loading_libraries():
        from clip_ext.classify import Classifier
        from llava_ext.backend import DTYPES
    return Classifier(base, choose_gpu(device), DTYPES[precision], fast)


def choose_gpu(device: str) -> str:
    """The device of this process; on GPUs that of its rank, which becomes the current device."""
    if device != "cuda":
        return device
    import torch

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    return device


FAMILIES = {
    "llava": Family("LLaVA", (BaseModel, AlignedBase), BaseCorpus, False, _train_llava, _load_llava),
    "clip": Family("CLIP", (ClipBase,), CaptionCorpus, True, _train_clip, _load_clip),
}
