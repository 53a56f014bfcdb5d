"""The align stage: a pretrained language model learns to read the pictures of a small vision tower.

The one can read and the other can see: what is trained is a projector between them and a low-rank update of the
language model. Half of the rows are dialogues about pictures, half of them begin with a task's own question, which is
answered in the task's own form where the base is to know that (`train_base.py`). The loss is over answers only. The
training resumes from its last checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from llava_ext.adapters import add_adapter, save_adapter
from llava_ext.backend import DTYPES, fast_matmul
from llava_ext.conversation import check_template
from llava_ext.data import Collator, Reader, derive_seed
from llava_ext.model import load_model
from llava_ext.pixels import PixelReader
from llava_ext.settings import KNOWLEDGE, LOSSES, AlignedBase, Peft
from llava_ext.small.build import build_processor
from llava_ext.small.join import TOWER, build_joined, describe_language, merge_rounded
from llava_ext.small.networks import AnswerModel
from llava_ext.small.parts import MICRO_BATCH, PartRun, eager_attention, measure_skills, train_in
from llava_ext.small.train_base import read_dialogues, read_habits
from llava_ext.trainer import read_training_record
from robustmerge.stage.address import Address, run_stage

NAME = "learn"


def align(
    address: Address,
    settings: AlignedBase,
    language: Path,
    tower: Path,
    corpus: Path,
    say: Callable[[str], None] = print,
) -> Path:
    """Train an alignment on `corpus` (instruct/, habits/, held_out/) and save it at `address`, in bfloat16.

    language: a GGUF file or a folder; tower: a small base, whose vision tower is taken.
    The record holds that of the tower's base, with `skills` of the base that is put together with the alignment.
    """

    def work(folder: Path) -> dict:
        return train_in(folder, lambda work: _train(folder, work, settings, language, tower, corpus, say))

    return run_stage(address, work, say)


def _train(
    folder: Path,
    work: Path,
    settings: AlignedBase,
    language: Path,
    tower: Path,
    corpus: Path,
    say: Callable[[str], None],
) -> dict:
    vision = load_model(tower, DTYPES["fp32"]).model.vision_tower
    vision.to(DTYPES["bf16"]).save_pretrained(folder / TOWER)
    model, tokenizer = build_joined(language, vision.float(), derive_seed(settings.seed, "projector"))
    check_template(settings.template, tokenizer, language)
    adapted = add_adapter(model, Peft(settings.r, settings.alpha, dropout=0.0), language.name, settings.seed, "align")
    processor = build_processor(vision.config, tokenizer)
    pixels = PixelReader(processor.image_processor)  # pictures have the model's size: nothing is padded or cropped
    image_ids = (model.config.image_token_id,) * model.config.image_seq_length
    reader = Reader(tokenizer, pixels, pixels, image_ids, settings.template)
    trained, collate = TrainedPart(adapted), Collator(reader)
    rows = read_habits(reader, corpus, KNOWLEDGE[settings.knows])
    rows += read_dialogues(reader, corpus, len(rows))
    seed = derive_seed(settings.seed, NAME)
    run = PartRun((1, 1), f"model.base.{NAME}", settings.learn, seed, settings.save_steps, work / NAME, say)
    with fast_matmul(), eager_attention(model):
        run.fit(trained, rows, range(len(rows)), collate, MICRO_BATCH)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(DTYPES["bf16"])
    save_adapter(adapted, folder)
    joined = merge_rounded(adapted)  # what `join` makes of the files
    with fast_matmul(), eager_attention(joined):
        skills = measure_skills(AnswerModel(joined.float().eval()), reader, corpus, collate, say)
    os.replace(work / NAME / LOSSES, folder / f"losses_{NAME}.jsonl")
    return {
        **(read_training_record(tower) or {}),
        "skills": skills,
        "parameters": joined.num_parameters(),
        "vocabulary": len(tokenizer),
        "language": describe_language(language),
    }


class TrainedPart(AnswerModel):
    """An `AnswerModel` of a model with an adapter, whose checkpoints hold what is trained alone."""

    def __init__(self, adapted: PeftModel):
        super().__init__(adapted.get_base_model())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        return {name: weight for name, weight in super().state_dict(*args, **kwargs).items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({**super().state_dict(), **state_dict}, *args, **kwargs)
