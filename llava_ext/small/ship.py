"""The form in which a small base is shipped: weights in bfloat16, and what it can do with these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llava_ext.backend import DTYPES, fast_matmul, quiet_libraries
from llava_ext.data import Collator, load_reader
from llava_ext.model import load_model
from llava_ext.settings import BaseModel
from llava_ext.small.build import build_processor, save_base
from llava_ext.small.networks import AnswerModel
from llava_ext.small.parts import eager_attention, measure_skills
from llava_ext.trainer import read_training_record


def save_rounded(base: Path, folder: Path, settings: BaseModel, corpus: Path, say: Callable[[str], None]) -> dict:
    """Save the base in `base` with its weights rounded to bfloat16 into the new folder `folder`; returns its record.

    `skills` in the record are measured again, with the rounded weights, on held_out/ of `corpus`. `heads` and `probe`
    stay as they were measured on the vision tower before: that takes far longer.
    """
    quiet_libraries()
    rounded, reader = load_model(base, DTYPES["bf16"]), load_reader(base, settings.pretraining.template)
    save_base(folder, rounded, build_processor(settings.pretraining.vision, reader.tokenizer))
    model = load_model(folder, DTYPES["fp32"]).eval()
    with fast_matmul(), eager_attention(model):
        skills = measure_skills(AnswerModel(model), reader, corpus, Collator(reader), say)
    return {**(read_training_record(base) or {}), "skills": skills}
