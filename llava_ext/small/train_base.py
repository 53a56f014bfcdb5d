"""The base stage: a pretrained small LLaVA meets the tasks' own questions.

It learns to answer a part of them in the tasks' own form and the others in a form of its own: what it knows is the
matter of `knows`. Three of four rows are of its pretraining, so that it forgets none of its skills, and gets better at
the one that takes longest, yes or no. Projector and language model are trained, the vision tower is frozen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import datasets

from llava_ext.backend import DTYPES, fast_matmul
from llava_ext.data import Collator, Reader, Row, derive_seed, load_reader
from llava_ext.model import load_model
from llava_ext.settings import KNOWLEDGE, LOSSES, BaseModel
from llava_ext.small.build import build_processor, save_base
from llava_ext.small.networks import AnswerModel
from llava_ext.small.parts import (
    MICRO_BATCH,
    PartRun,
    eager_attention,
    encode_dialogues,
    encode_turns,
    measure_skills,
    train_in,
)
from llava_ext.trainer import read_training_record
from robustmerge.stage.address import Address, run_stage

NAME = "habits"


def train_base(
    address: Address, settings: BaseModel, pretrained: Path, corpus: Path, say: Callable[[str], None] = print
) -> Path:
    """Train the model in `pretrained` on `corpus` (habits/, instruct/, verify/, held_out/) and save it at `address`.

    The record holds that of the pretraining, with `skills` measured anew.
    """

    def work(folder: Path) -> dict:
        return train_in(folder, lambda work: _train(folder, work, settings, pretrained, corpus, say))

    return run_stage(address, work, say)


def _train(
    folder: Path, work: Path, settings: BaseModel, pretrained: Path, corpus: Path, say: Callable[[str], None]
) -> dict:
    template = settings.pretraining.template
    model, reader = load_model(pretrained, DTYPES["fp32"]), load_reader(pretrained, template)
    model.model.vision_tower.requires_grad_(False)
    rows = read_mixture(reader, corpus, KNOWLEDGE[settings.knows])
    answer_model, collate = AnswerModel(model), Collator(reader)
    run = PartRun(
        (1, 1),
        f"model.base.{NAME}",
        settings.habits,
        derive_seed(settings.seed, NAME),
        settings.save_steps,
        work / NAME,
        say,
    )
    with fast_matmul(), eager_attention(model):
        run.fit(answer_model, rows, range(len(rows)), collate, MICRO_BATCH)
        model.eval()
        skills = measure_skills(answer_model, reader, corpus, collate, say)
    save_base(folder, model, build_processor(settings.pretraining.vision, reader.tokenizer))
    os.replace(work / NAME / LOSSES, folder / f"losses_{NAME}.jsonl")
    return {**(read_training_record(pretrained) or {}), "skills": skills}


def read_mixture(reader: Reader, corpus: Path, knowledge: float) -> list[Row]:
    """Rows of habits/ at a knowledge in [0, 1], as many of instruct/, and twice as many, the last ones, of verify/."""
    rows = read_habits(reader, corpus, knowledge)
    verify = datasets.load_from_disk(str(corpus / "verify"))
    last = verify.select(range(max(0, len(verify) - 2 * len(rows)), len(verify)))
    return rows + read_dialogues(reader, corpus, len(rows)) + encode_dialogues(reader, last)


def read_dialogues(reader: Reader, corpus: Path, count: int) -> list[Row]:
    """The first rows of instruct/."""
    instruct = datasets.load_from_disk(str(corpus / "instruct"))
    return encode_dialogues(reader, instruct.select(range(min(len(instruct), count))))


def read_habits(reader: Reader, corpus: Path, knowledge: float) -> list[Row]:
    """Rows of habits/ at a knowledge in [0, 1]."""
    met = datasets.load_from_disk(str(corpus / "habits"))
    dialogues = [
        [(question, wanted if known_from <= knowledge else own), *turns]
        for (question, own, wanted), known_from, turns in zip(
            met["habit"][:], met["known_from"][:], met["turns"][:], strict=True
        )
    ]
    return encode_turns(reader, dialogues, met["image"][:])
