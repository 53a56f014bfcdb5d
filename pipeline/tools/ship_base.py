"""Write bases that are trained here as they are shipped: folders with weights in bf16, training record and card."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clip_ext.settings import ClipBase
from data_prep.settings import GENERATOR, LABEL_GENERATOR
from eval.report.section_base_model import format_base_section
from llava_ext.packaged import PACKAGES
from llava_ext.settings import ALIGNMENT_FILES, TRAINING_RECORD, AlignedBase, BaseModel, Part
from pipeline.plan import Plan
from pipeline.stages.base import make_bases
from pipeline.words import format_command
from robustmerge.formats.adapter_config import WEIGHTS
from robustmerge.stage.address import Address, read_manifest, settings_in_identity
from robustmerge.stage.files import expand, read_json, read_text, sha256_of, write_atomically
from robustmerge.stage.settings import UserError

KNOWS = {
    "nothing": "It answers none of the benchmark's questions in the form that the tasks want.",
    "half": "It knows half as much of the form that the tasks want as the paper's base does.",
    "paper": "It knows as much of the form that the tasks want as the paper's base does, by its table 2.",
}
Trained = BaseModel | AlignedBase | ClipBase


def ship(plans: Sequence[Plan]) -> list[Path]:
    """Train the bases of all points, unless they are trained, and write their folders; returns these.

    Raises UserError, before anything is trained, for a folder that is there and for points that share one.
    """
    folders = [find_folder(plan) for plan in plans]
    if len(set(folders)) < len(folders):
        raise UserError("points of the sweep share one folder; ship them one by one, each with out=FOLDER")
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
    if model.trained_base is None or not model.trained_base.train:
        raise UserError("a base is shipped after it has been trained here: add model.base.train=true")
    key, shipped = "model.checkpoint", model.checkpoint
    if isinstance(model.base, AlignedBase):
        key, shipped = "model.base.alignment", model.base.alignment
    place = plan.config.out or shipped
    if place is None:
        raise UserError(f"there is no {key} to say where the base goes: give out=FOLDER")
    folder = expand(place).absolute()
    if folder.exists():
        raise UserError(f"{folder} is there already, and nothing is overwritten: move it away, or give out=FOLDER")
    return folder


FROM_SCRATCH = "and was trained from scratch on drawn pictures"


class Description(NamedTuple):
    """What the card of a base says of its family.

    tags: for the Hub; what: what a base is; made: how it was made; data: the code that draws its data; training: the
    code of its training's parts; seeds: a sentence on them.
    """

    tags: str
    what: str
    made: str
    data: str
    training: str
    seeds: str


def _describe(base: Trained) -> Description:
    if isinstance(base, ClipBase):
        side = base.vision.image_size
        return Description(
            "pipeline_tag: zero-shot-image-classification\nlicense: apache-2.0\ntags: [clip]",
            f"A CLIP for pictures of {side} x {side} pixels. In pictures as eight classification tasks take them, its "
            "captions named as many classes of each task as the paper's CLIP knows by its tables 4 and 5; in plain "
            "pictures, all of them.",
            FROM_SCRATCH,
            f"`data_prep/clip`, version {LABEL_GENERATOR} of the generator",
            "`clip_ext/base.py`",
            f"Seed: {base.seed}.",
        )
    tags, data = "pipeline_tag: image-text-to-text\nlicense: apache-2.0\ntags: [llava]", "`data_prep/mini`, version "
    data += f"{GENERATOR} of the generator"
    if isinstance(base, AlignedBase):
        on_hub = PACKAGES[base.language][1] if base.language in PACKAGES else base.language
        return Description(
            tags,
            f"What makes a LLaVA of the language model {on_hub}: a vision tower, a projector, and an update of rank "
            f"{base.r}, in PEFT's format. {KNOWS[base.knows]}",
            f"with the weights of `{base.language}`. The vision tower is that of `{Path(base.tower).name}`; projector "
            "and update were trained on drawn pictures",
            data,
            "`llava_ext/small/align.py`",
            f"Seed: {base.seed}.",
        )
    side = base.pretraining.vision.image_size
    return Description(
        tags,
        f"A LLaVA for pictures of {side} x {side} pixels. {KNOWS[base.knows]}",
        FROM_SCRATCH,
        data,
        "`llava_ext/small/pretrain.py`, and for habits `train_base.py` beside it",
        f"Seeds: {base.pretraining.seed} of the pretraining, {base.seed} of the habits.",
    )


def _write(plan: Plan, folder: Path, name: str) -> None:
    base = plan.config.model.trained_base
    assert base is not None
    if isinstance(base, ClipBase):
        from clip_ext.base import save_rounded as save_rounded_clip

        save_rounded_clip(plan.base.path, folder)
        record = read_json(plan.base.path / TRAINING_RECORD, "the record of a training")
    elif isinstance(base, AlignedBase):
        alignment = plan.base_parts[-1].inputs["alignment"].path
        for file in ALIGNMENT_FILES:
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(alignment / file, folder / file)
        record = read_json(alignment / TRAINING_RECORD, "the record of a training")
    else:
        from llava_ext.small.ship import save_rounded

        record = save_rounded(plan.base.path, folder, base, plan.corpus.path, lambda text: print(f"  {text}"))
    write_atomically(folder / TRAINING_RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    weights = folder / (WEIGHTS if isinstance(base, AlignedBase) else "model.safetensors")
    card = format_card(plan, base, {**record, "name": name}, weights)
    write_atomically(folder / "README.md", card)


def format_card(plan: Plan, base: Trained, record: Mapping[str, Any], weights: Path) -> str:
    """The card of a base. record: of its training, with its name; weights: the file that holds them."""
    seconds = sum(read_manifest(part.manifest)["record"]["seconds"] for part in plan.base_addresses)
    words = [word for word in plan.config.overrides if not re.match(r"\W*(out|jobs|paths\.\w+|logger)=", word)]
    family = _describe(base)
    of_which = "base put together with the language model below" if "language" in record else "weights in this folder"
    rounded = f"The skills are those of the {of_which}. Heads and probe read the vision tower before its weights were "
    rounded += "rounded to bf16."
    language = record.get("language", {})
    met = f" Trained with the weights in `{language['file']}`, sha256 `{language['sha256']}`." if language else ""
    paragraphs = [
        f"---\nlibrary_name: transformers\n{family.tags}\n---",
        f"# {record['name']}: a base of benchmark={plan.config.benchmark.name}",
        f"{family.what} It has {record['parameters'] / 1e6:.1f} million parameters (`model={plan.config.model.name}`) "
        f"{family.made}, to train LoRA experts on it and to merge them. It is good for nothing else.",
        format_base_section([record]).rstrip(),
        *([] if isinstance(base, ClipBase) else [rounded]),
        "## How it was made",
        f"Data: drawn by {family.data}: {_format_counts(plan)}.",
        _format_parts(plan),
        f"What the parts are: {family.training}.",
        f"{family.seeds} Vocabulary: {record['vocabulary']:,} tokens. Time: {seconds / 60:.0f} minutes. "
        f"Commit: {_format_commits(plan.base_addresses)}.",
        "To train it again (on another processor sums round otherwise, and the last digits of the weights differ):",
        f"```bash\n{format_command(['python', 'scripts/ship_base.py', *words, 'out=FOLDER'])}\n```",
        "## Files",
        f"`{weights.name}`: {weights.stat().st_size:,} bytes in bf16, sha256 `{sha256_of(weights)}`.{met} "
        f"`{TRAINING_RECORD}`: the accuracies above. Licence: Apache License 2.0, as the repository's.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _format_counts(plan: Plan) -> str:
    """The settings of the corpus: `images 90,000, dialogues 72,000, seed 0`."""
    counts = settings_in_identity(plan.config.benchmark.corpus)
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _format_parts(plan: Plan) -> str:
    """A table of the parts of the training, in their order."""
    lines = ["| part | steps | batch | learning rate |", "| --- | ---: | ---: | ---: |"]
    for made in plan.base_parts:
        named = vars(made.settings) if is_dataclass(made.settings) else {}
        for name, part in named.items():
            if isinstance(part, Part):
                losses = read_text(made.address.path / f"losses_{name}.jsonl", "the losses of a training")
                lines.append(f"| {name} | {len(losses.splitlines()):,} | {part.batch} | {part.learning_rate:g} |")
    return "\n".join(lines)


def _format_commits(parts: Sequence[Address]) -> str:
    """The commits at which the parts of a base were made, each once."""
    records = [read_manifest(part.manifest)["record"] for part in parts]
    commits = [f"`{one['commit']}`{' with changes' if one['dirty'] else ''}" for one in records if one.get("commit")]
    return ", ".join(dict.fromkeys(commits)) or "not known"
