"""Write bases that are trained here as they are shipped: folders with weights in bf16, training record and card."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.settings import GENERATOR
from eval.report.section_base_model import format_base_section
from llava_ext.settings import TRAINING_RECORD, BaseModel, Part
from pipeline.plan import Plan
from pipeline.stages.base import make_bases
from pipeline.words import format_command
from robustmerge.stage.address import Address, read_manifest, settings_in_identity
from robustmerge.stage.files import expand, read_text, sha256_of, write_atomically
from robustmerge.stage.settings import UserError

KNOWS = {
    "nothing": "It answers none of the benchmark's questions in the form that the tasks want.",
    "half": "It knows half as much of the form that the tasks want as the paper's base does.",
    "paper": "It knows as much of the form that the tasks want as the paper's base does, by its table 2.",
}


def ship(plans: Sequence[Plan]) -> list[Path]:
    """Train the bases of all points, unless they are trained, and write their folders; returns these.

    Raises UserError, before anything is trained, for a folder that is there and for points that share one.
    """
    folders = [find_folder(plan) for plan in plans]
    if len(set(folders)) < len(folders):
        raise UserError("points of the sweep share one folder (model.checkpoint or out); ship them one by one")
    make_bases(plans)
    for plan, folder in zip(plans, folders, strict=True):
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _write(plan, draft, folder.name)
        os.replace(draft, folder)
    return folders


def find_folder(plan: Plan) -> Path:
    """The folder that a base goes to, which is not there yet. Raises UserError if it is, or if nothing is trained."""
    model = plan.config.model
    if model.trained_base is None:
        raise UserError("a base is shipped after it has been trained here: add model.base.train=true")
    place = plan.config.out or model.checkpoint
    if place is None:
        raise UserError("there is no model.checkpoint to say where the base goes: give out=FOLDER")
    folder = expand(place).absolute()
    if folder.exists():
        raise UserError(f"{folder} is there already, and nothing is overwritten: move it away, or give out=FOLDER")
    return folder


def _write(plan: Plan, folder: Path, name: str) -> None:
    from llava_ext.small.ship import save_rounded

    base = plan.config.model.trained_base
    assert base is not None
    record = save_rounded(plan.base.path, folder, base, plan.corpus.path, lambda text: print(f"  {text}"))
    write_atomically(folder / TRAINING_RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    card = format_card(plan, base, {**record, "name": name}, folder / "model.safetensors")
    write_atomically(folder / "README.md", card)


def format_card(plan: Plan, base: BaseModel, record: Mapping[str, Any], weights: Path) -> str:
    """The card of a base. record: of its training, with its name; weights: the file that holds them."""
    side = base.pretraining.vision.image_size
    seconds = sum(read_manifest(part.manifest)["record"]["seconds"] for part in plan.base_parts)
    words = [word for word in plan.config.overrides if not re.match(r"\W*(out|jobs|paths\.\w+|logger)=", word)]
    paragraphs = [
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\nlicense: apache-2.0\ntags: [llava]\n---",
        f"# {record['name']}: a base of the mini benchmark",
        f"A LLaVA of {record['parameters'] / 1e6:.1f} million parameters (`model={plan.config.model.name}`), trained "
        f"from scratch on drawn pictures of {side} x {side} pixels. {KNOWS[base.knows]} It is there to train LoRA "
        "experts on it and to merge them, and good for nothing else.",
        format_base_section([record]).rstrip(),
        "The skills are those of the weights in this folder. Heads and probe read the vision tower before its weights "
        "were rounded to bf16.",
        "## How it was made",
        f"Data: drawn by `data_prep/mini`, version {GENERATOR} of the generator: {_format_counts(plan)}.",
        _format_parts(plan, base),
        "What the parts are: `llava_ext/small/pretrain.py`, and for habits `train_base.py` beside it.",
        f"Seeds: {base.pretraining.seed} of the pretraining, {base.seed} of the habits. "
        f"Vocabulary: {record['vocabulary']:,} tokens. Time: {seconds / 60:.0f} minutes. "
        f"Commit: {_format_commits(plan.base_parts)}.",
        "To train it again (on another processor sums round otherwise, and the last digits of the weights differ):",
        f"```bash\n{format_command(['python', 'scripts/ship_base.py', *words, 'out=FOLDER'])}\n```",
        "## Files",
        f"`{weights.name}`: {weights.stat().st_size:,} bytes in bf16, sha256 `{sha256_of(weights)}`. "
        f"`{TRAINING_RECORD}`: the accuracies above. Licence: Apache License 2.0, as the repository's.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _format_counts(plan: Plan) -> str:
    """The settings of the corpus: `images 90,000, dialogues 72,000, seed 0`."""
    counts = settings_in_identity(plan.config.benchmark.corpus)
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _format_parts(plan: Plan, base: BaseModel) -> str:
    """A table of the parts of the training, in their order."""
    parts = [(plan.pretrained, name, part) for name, part in vars(base.pretraining).items() if isinstance(part, Part)]
    lines = ["| part | steps | batch | learning rate |", "| --- | ---: | ---: | ---: |"]
    for address, name, part in [*parts, (plan.base, "habits", base.habits)]:
        losses = read_text(address.path / f"losses_{name}.jsonl", "the losses of a training")
        lines.append(f"| {name} | {len(losses.splitlines()):,} | {part.batch} | {part.learning_rate:g} |")
    return "\n".join(lines)


def _format_commits(parts: Sequence[Address]) -> str:
    """The commits at which the parts of a base were made, each once."""
    records = [read_manifest(part.manifest)["record"] for part in parts]
    commits = [f"`{one['commit']}`{' with changes' if one['dirty'] else ''}" for one in records if one.get("commit")]
    return ", ".join(dict.fromkeys(commits)) or "not known"
