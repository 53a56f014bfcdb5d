"""Settings of the model stages: the small base, the adapters, the trainers. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from robustmerge.stage.settings import PRECISIONS, PRODUCTS, ConfigError, Problem, outside_identity, refuse, suggest

LANGUAGE_LINEARS = (
    r".*language_model\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
)
ENGINES = ("cpu", "single_gpu", "ddp", "zero2", "zero3", "zero3_offload")
DEEPSPEED_ENGINES = ("zero2", "zero3", "zero3_offload")
MULTI_TASK = "multi_task"


def _positive(owner: object, *names: str) -> list[Problem]:
    return [
        Problem(f"{name} must be above 0, got {getattr(owner, name)}", name)
        for name in names
        if getattr(owner, name) is not None and getattr(owner, name) <= 0
    ]


def _problems_of_precision(precision: str) -> list[Problem]:
    if precision in PRECISIONS:
        return []
    return [Problem(f"unknown precision '{precision}'; {suggest(precision, PRECISIONS)}", "precision")]


@dataclass(frozen=True)
class Vision:
    """A CLIP-type vision tower for square pictures of `image_size` pixels, `patch_size` pixels a patch."""

    layers: int = 3
    width: int = 128
    mlp: int = 512
    heads: int = 4
    image_size: int = 48
    patch_size: int = 12

    def __post_init__(self):
        problems = _positive(self, "layers", "width", "mlp", "heads", "image_size", "patch_size")
        if not problems and self.width % self.heads:
            problems.append(Problem(f"width must be a multiple of heads, got {self.width} and {self.heads}", "width"))
        if not problems and self.image_size % self.patch_size:
            problems.append(Problem(f"image_size must be a multiple of patch_size {self.patch_size}", "image_size"))
        refuse(problems)


@dataclass(frozen=True)
class Language:
    """A Llama-type language model."""

    layers: int = 4
    width: int = 160
    mlp: int = 384
    heads: int = 5

    def __post_init__(self):
        problems = _positive(self, "layers", "width", "mlp", "heads")
        if not problems and self.width % (2 * self.heads):
            problems.append(Problem(f"width must be a multiple of 2 x heads, got {self.width}, {self.heads}", "width"))
        refuse(problems)


@dataclass(frozen=True)
class Part:
    """One part of the base's training. max_steps, where given, ends it early (the schedule knows it)."""

    epochs: float = 1.0
    batch: int = 64
    learning_rate: float = 2e-3
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_steps: int | None = None

    def __post_init__(self):
        refuse(_positive(self, "epochs", "batch", "learning_rate", "max_steps"))


@dataclass(frozen=True)
class BaseModel:
    """The small LLaVA that is trained here from nothing, and how.

    vocabulary: the most tokens the tokenizer may have; held_out: share of the labelled pictures that
    the vision tower is not trained on, to measure it.
    """

    vision: Vision = field(default_factory=Vision)
    language: Language = field(default_factory=Language)
    vocabulary: int = 1024
    template: str = "vicuna_v1_short"
    see: Part = field(default_factory=Part)
    talk: Part = field(default_factory=Part)
    held_out: float = 0.05
    seed: int = 0
    save_steps: int = outside_identity(250)

    def __post_init__(self):
        problems = _positive(self, "save_steps")
        if self.vocabulary < 300:
            problems.append(
                Problem(f"vocabulary must be at least 300 (256 bytes and some words), got {self.vocabulary}")
            )
        if not 0 < self.held_out < 0.5:
            problems.append(Problem(f"held_out must be in (0, 0.5), got {self.held_out}", "held_out"))
        refuse(problems)


@dataclass(frozen=True)
class Peft:
    """LoRA on the linears of the language model; the projector is trained whole (`modules_to_save`).

    targets: a regular expression over the full names of modules, so that no linear of the vision tower is meant.
    shared_a_init: the seed of A leaves the task out, so that all experts start from the same A.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.05
    targets: str = LANGUAGE_LINEARS
    modules_to_save: tuple[str, ...] = ("multi_modal_projector",)
    use_rslora: bool = False
    use_dora: bool = False
    shared_a_init: bool = False

    def __post_init__(self):
        problems = _positive(self, "r", "alpha")
        if not 0 <= self.dropout < 1:
            problems.append(Problem(f"dropout must be in [0, 1), got {self.dropout}", "dropout"))
        refuse(problems)


@dataclass(frozen=True)
class Recipe:
    """What is done to an expert. The defaults are those of LLaVA-1.5's published task training.

    projector_learning_rate: null = learning_rate. max_steps: optimizer steps instead of epochs; multi-task training
    multiplies it by the number of tasks. save_steps: a checkpoint every so many steps, 0 for none.
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

    def __post_init__(self):
        problems = _positive(
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
        refuse(problems)


@dataclass(frozen=True)
class Lora:
    """Rank and alpha that suit a model's width: N experts of rank r span at most N r of its dimensions."""

    r: int = 16
    alpha: float = 32

    def __post_init__(self):
        refuse(_positive(self, "r", "alpha"))


@dataclass(frozen=True)
class Model:
    """What is evaluated: a base trained here (`base`), or a checkpoint from elsewhere (`checkpoint`).

    recipe: of its experts; lora: what `peft.r` and `peft.alpha` are unless set; template: a name of
    llava_ext.conversation; generation_batch: prompts answered together. products: how a CPU multiplies matrices where
    answers are made: exact, in float32 throughout; fast, where its units for bfloat16 may serve (as in training).
    precision: of the weights where answers are made, fp32, fp16 or bf16. parameters: how many, of a checkpoint that is
    too large to answer on a CPU.
    """

    name: str
    template: str = "vicuna_v1"
    base: BaseModel | None = None
    checkpoint: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    lora: Lora = field(default_factory=Lora)
    generation_batch: int = 64
    products: str = "exact"
    precision: str = "fp32"
    parameters: float | None = None

    def __post_init__(self):
        problems = [*_positive(self, "generation_batch", "parameters"), *_problems_of_precision(self.precision)]
        if self.products not in PRODUCTS:
            problems.append(
                Problem(f"unknown products '{self.products}'; {suggest(self.products, PRODUCTS)}", "products")
            )
        if (self.base is None) == (self.checkpoint is None):
            problems.append(Problem("a model has either a base (trained here) or a checkpoint", "base, checkpoint"))
        elif self.base is not None and self.base.template != self.template:
            problems.append(
                Problem(f"the base is trained with template '{self.base.template}', not '{self.template}'", "template")
            )
        refuse(problems)


@dataclass(frozen=True)
class Trainer:
    """How training runs. Only the precision is part of what an expert *is*.

    per_device_batch: the most samples that a process takes at a time, the rest is accumulated; null: no limit.
    device: where the processes compute; `zero2` on `cpu` exists for tests and small machines.
    """

    engine: str = outside_identity("cpu")
    device: str = outside_identity("cpu")
    processes: int = outside_identity(1)
    precision: str = "fp32"
    per_device_batch: int | None = outside_identity(None)
    gradient_checkpointing: bool = outside_identity(False)
    workers: int = outside_identity(0)
    deepspeed: dict = outside_identity({})

    def __post_init__(self):
        problems = _positive(self, "processes", "per_device_batch")
        if self.engine not in ENGINES:
            problems.append(Problem(f"unknown engine '{self.engine}'; {suggest(self.engine, ENGINES)}", "engine"))
        if self.device not in ("cpu", "cuda"):
            problems.append(Problem(f"device must be cpu or cuda, got '{self.device}'", "device"))
        problems += _problems_of_precision(self.precision)
        if self.engine in ("cpu", "single_gpu") and self.processes != 1:
            problems.append(Problem(f"engine {self.engine} has one process, got {self.processes}", "processes"))
        if (self.engine in DEEPSPEED_ENGINES) != bool(self.deepspeed):
            problems.append(
                Problem(f"deepspeed settings go with {', '.join(DEEPSPEED_ENGINES)} and only there", "deepspeed")
            )
        refuse(problems)

    @property
    def uses_deepspeed(self) -> bool:
        """Whether DeepSpeed runs it. Accelerate has it on GPUs only: several processes on CPUs run as ddp instead."""
        return self.engine in DEEPSPEED_ENGINES and (self.device == "cuda" or self.processes == 1)

    def accumulation(self, global_batch: int) -> tuple[int, int]:
        """(per-device batch, accumulation): the largest batch allowed such that, times both counts, it is global.

        Raises ConfigError if the processes cannot share the global batch equally.
        """
        share, rest = divmod(global_batch, self.processes)
        if rest or not share:
            raise ConfigError(
                Problem(
                    f"{self.processes} processes cannot share a global batch of {global_batch} equally",
                    "trainer.processes, model.recipe.global_batch",
                )
            )
        batch = next(size for size in range(min(self.per_device_batch or share, share), 0, -1) if share % size == 0)
        return batch, share // batch


@dataclass(frozen=True)
class Expert:
    """One training run: one task gives an expert, several give the multi-task model.

    Rule for several tasks: the union of their training samples, each as often as an expert sees its own, in one
    shuffled order under the same recipe: as many samples and optimizer steps as the experts have together.

    prompts: per task, what a question is put into (`{text}`, `{choices}`); a task without one is asked as it is.
    base_name: what the adapter calls its base; "" for the name of its folder.
    """

    tasks: tuple[str, ...]
    prompts: dict[str, str] = field(default_factory=dict)
    peft: Peft = field(default_factory=Peft)
    recipe: Recipe = field(default_factory=Recipe)
    trainer: Trainer = field(default_factory=Trainer)
    template: str = "vicuna_v1"
    seed: int = 0
    base_name: str = outside_identity("")

    def __post_init__(self):
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(Problem(f"tasks must be named once each, got {list(self.tasks)}", "tasks"))
        if unknown := sorted(set(self.prompts) - set(self.tasks)):
            raise ConfigError(Problem(f"prompts for tasks that are not trained: {', '.join(unknown)}", "prompts"))
        self.trainer.accumulation(self.recipe.global_batch)

    @property
    def name(self) -> str:
        """What the result is called: the task, or `multi_task`."""
        return self.tasks[0] if len(self.tasks) == 1 else MULTI_TASK
