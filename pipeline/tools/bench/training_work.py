"""The work whose cost the benchmark of training measures, in a process of its own (child.py): one way to train."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration, TrainerCallback

from llava_ext.backend import DTYPES, quiet_libraries
from llava_ext.data import Rows
from llava_ext.footprint import count_operations, measure
from llava_ext.model import open_config
from llava_ext.settings import Expert, Peft, Recipe, Trainer
from llava_ext.train import LLAVA_TRAINING, ConversationTrainer, prepare_for_training, read_conversations, train_expert
from pipeline.tools.bench.random_llava import TEMPLATE, peak_memory
from pipeline.tools.bench.training import WARM_UP
from robustmerge.stage.address import REPOSITORY, Address
from robustmerge.stage.settings import build
from robustmerge.stage.yaml_files import read_yaml

TASK = "bench"
MOST_STEPS = 2000


class Clock(TrainerCallback):
    """Times whole steps after the first ones, and ends the training when they have taken so many seconds."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.started = self.ended = 0.0
        self.steps = 0

    def tick(self, step: int) -> bool:
        """Note the end of a step; whether the time is over."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended, self.steps = time.perf_counter(), step - WARM_UP
        if step <= WARM_UP:
            self.started = self.ended
        return self.steps > 0 and self.ended - self.started >= self.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = self.tick(state.global_step)


def train(
    folder: str, engine: str, device: str, precision: str, batch: int, checkpointing: bool, seconds: float
) -> dict:
    """Train on the rows in `folder` for so many seconds. engine: of configs/trainer, or plain for a loop by hand.

    batch: rows computed together; a step has two of them. Returns seconds, steps, rows, tokens, operations and
    GB of GPU memory.
    """
    quiet_libraries()
    base, clock = Path(folder) / "base", Clock(seconds)
    trainer = describe_trainer(engine, device, precision, batch, checkpointing)
    recipe = Recipe(global_batch=2 * batch, max_steps=MOST_STEPS, save_steps=0)
    settings = Expert((TASK,), peft=Peft(r=16, alpha=32), recipe=recipe, trainer=trainer, template=TEMPLATE)
    data = {TASK: Path(folder) / "data"}
    sizes = measure(open_config(base), settings.peft)  # before ZeRO-3, which would spread the model that is counted
    if engine == "plain":
        train_by_hand(settings, base, data, clock)
    else:
        if trainer.uses_deepspeed:
            set_distributed(device)
        train_by_pipeline(settings, base, data, clock, Path(folder) / f"expert-{os.getpid()}")
    material = read_conversations(settings, base, data)
    rows = clock.steps * recipe.global_batch
    length = sum(material.sizes["tokens"]) / len(material.rows)
    learned = sum(sum(label >= 0 for label in row.labels) for row in material.rows) / len(material.rows)
    return {
        "wall": clock.ended - clock.started,
        "steps": clock.steps,
        "rows": rows,
        "tokens": round(rows * length),
        "operations": count_operations(sizes, round(rows * length), rows, length, round(rows * learned)),
        "memory": peak_memory(),
        "parameters": sizes.base,
    }


def describe_trainer(engine: str, device: str, precision: str, batch: int, checkpointing: bool) -> Trainer:
    """The trainer of configs/trainer with one process; the plain loop has the settings of the device's own."""
    name = {"cpu": "cpu", "cuda": "single_gpu"}[device] if engine == "plain" else engine
    here = {"device": device, "processes": 1, "precision": precision, "per_device_batch": batch}
    here |= {"gradient_checkpointing": checkpointing, "workers": 0 if device == "cpu" else 4}
    return build(Trainer, {**read_yaml(REPOSITORY / f"configs/trainer/{name}.yaml", "a trainer"), **here}, "trainer")


def set_distributed(device: str) -> None:
    """Be the only process of torchrun, which DeepSpeed expects."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ["DS_ACCELERATOR"] = device


def draw_base(settings: Expert, base: Path) -> LlavaForConditionalGeneration:
    """A model of the folder's config with random weights, on the device of training."""
    trainer, config = settings.trainer, open_config(base)
    config.vision_feature_layer = -2  # as LLaVA-1.5 has it
    torch.manual_seed(0)
    options = {"dtype": DTYPES[trainer.precision], "attn_implementation": trainer.kernel}
    if trainer.uses_deepspeed:  # ZeRO-3 spreads what is drawn
        return LlavaForConditionalGeneration._from_config(config, **options)
    with torch.device(trainer.device):
        return LlavaForConditionalGeneration._from_config(config, **options).to(trainer.device)


def train_by_pipeline(settings: Expert, base: Path, data: dict[str, Path], clock: Clock, out: Path) -> None:
    """Train as the train stage does, but for the random base and the end by the clock."""

    class TimedTrainer(ConversationTrainer):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            self.add_callback(clock)

    def load(settings: Expert, base: Path) -> PeftModel:
        return prepare_for_training(draw_base(settings, base), settings, "random")

    training = replace(LLAVA_TRAINING, load=load, trainer=TimedTrainer)
    train_expert(Address(out.parent, out, {"stage": "bench"}), settings, base, data, training, lambda text: None)


def train_by_hand(settings: Expert, base: Path, data: dict[str, Path], clock: Clock) -> None:
    """The plainest loop of peft and transformers over the same batches: LoRA, the projector whole, AdamW."""
    trainer, peft = settings.trainer, settings.peft
    model = draw_base(settings, base)
    model.config.use_cache = False
    lora = LoraConfig(
        r=peft.r, lora_alpha=int(peft.alpha), lora_dropout=peft.dropout, target_modules=peft.targets,
        modules_to_save=list(peft.modules_to_save),
    )  # fmt: skip
    adapted = get_peft_model(model, lora)
    if trainer.gradient_checkpointing:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([weight for weight in adapted.parameters() if weight.requires_grad], lr=2e-4)
    adapted.train()
    batches = iterate_batches(settings, base, data)
    for step in itertools.count(1):
        for batch in itertools.islice(batches, 2):
            with torch.autocast(trainer.device, DTYPES[trainer.precision], enabled=trainer.precision != "fp32"):
                loss = adapted(**batch).loss / 2
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if clock.tick(step):
            return


def iterate_batches(settings: Expert, base: Path, data: dict[str, Path]) -> Iterator[dict[str, torch.Tensor]]:
    """The rows in their order, again and again, on the device of training."""
    material, trainer = read_conversations(settings, base, data), settings.trainer
    rows = Rows(material.rows, list(range(len(material.rows))) * MOST_STEPS)
    loader = DataLoader(rows, trainer.per_device_batch, collate_fn=material.collate, num_workers=trainer.workers)
    for batch in loader:
        yield {name: tensor.to(trainer.device) for name, tensor in batch.items()}
