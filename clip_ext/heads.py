"""Zero-shot classifiers: the rows of a head are the embeddings of class names in an ensemble of templates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from llava_ext.model import refusing_faults
from robustmerge.stage.files import parse_json, read_text
from robustmerge.stage.prompts import LABEL
from robustmerge.stage.records import CLASSES
from robustmerge.stage.settings import UserError

TEXTS_AT_ONCE = 256


def read_classes(folder: Path) -> tuple[str, ...]:
    """The classes of a task's data. Raises UserError unless the file is a list of different names."""
    file = folder / CLASSES
    try:
        classes = parse_json(read_text(file, "the list of a task's classes"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) and name for name in classes)):
        raise UserError(f"{file} must be a list of the names of classes")
    if doubled := sorted({name for name in classes if classes.count(name) > 1}):
        raise UserError(f"{file} names a class twice: {', '.join(doubled[:5])}")
    return tuple(classes)


def open_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a CLIP's folder."""
    with refusing_faults(f"the tokenizer of {folder} cannot be loaded"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@torch.no_grad()  # not inference mode: training differentiates products with it
def build_head(clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, prompt: str, classes: Sequence[str]) -> Tensor:
    """The head of a task, float32 [classes, width].

    For each class the text embeddings of all templates, each of length one, are averaged; the mean is scaled to length
    one and multiplied by the exponential of the logit scale. A picture's logits are then the rows times its embedding
    of length one (Radford et al. 2021, section 3.1.4). prompt: one template per line, `{label}` for the class.
    Raises UserError for a name that is too long for the text encoder.
    """
    templates = prompt.splitlines()
    texts = [template.replace(LABEL, name) for name in classes for template in templates]
    longest = clip.config.text_config.max_position_embeddings
    ids = tokenizer(texts, padding=False, truncation=False)["input_ids"]
    if long := next((text for text, tokens in zip(texts, ids, strict=True) if len(tokens) > longest), None):
        raise UserError(f"the text encoder reads {longest} tokens at most, and '{long}' has more")
    embeddings = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = tokenizer(texts[start : start + TEXTS_AT_ONCE], padding=True, return_tensors="pt").to(clip.device)
        pooled = clip.get_text_features(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        embeddings.append(normalize(pooled.pooler_output.float(), dim=-1))
    by_class = torch.cat(embeddings).reshape(len(classes), len(templates), -1)
    return normalize(by_class.mean(dim=1), dim=-1) * clip.logit_scale.exp().float()
