"""Loading of base models: folders are checked before anything large is read, and no weight may be missing.

The libraries are lenient with a faulty folder: a config of another model gets LLaVA's defaults, a missing weight is
drawn at random. Here both are errors. Code that a folder brings along (`auto_map`) is never run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from robustmerge.formats.checkpoint import find_weight_files
from robustmerge.formats.tensors import TensorFile
from robustmerge.stage.files import read_json
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote

TOKENIZERS = ("tokenizer.json", "tokenizer.model")
PIXELS = ("preprocessor_config.json", "processor_config.json")
OBJECTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", *PIXELS,
)  # fmt: skip
TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # tokens before those of the patches: CLIP's class token
REMEDY = "take a folder as llava-hf/llava-1.5-7b-hf is one (model.checkpoint)"


def open_config(folder: Path | str) -> LlavaConfig:
    """Read the config of a base model's folder and check everything in the folder but the weights.

    Raises UserError if it is no LLaVA in the Hub's layout, or lacks a tokenizer or an image processor.
    """
    folder, config = Path(folder), read_folder(folder, REMEDY)
    kind, vision = config.get("model_type"), config.get("vision_config") or {}
    if kind == "llava_llama" or "mm_vision_tower" in config:
        raise UserError(f"{folder} is a LLaVA in the layout of the original code, not in that of the Hub; {REMEDY}")
    if kind != "llava":
        raise UserError(f"{folder} is no LLaVA: its config.json says model_type {quote(kind)}, not 'llava'; {REMEDY}")
    tower = vision.get("model_type", "clip_vision_model") if isinstance(vision, dict) else vision
    if tower not in TOWERS:
        raise UserError(f"the vision tower of {folder} is a {tower}; allowed: {', '.join(TOWERS)}")
    require_files(folder, (TOKENIZERS, PIXELS))
    with refusing_faults(f"{folder / 'config.json'} is no config of a LLaVA"):
        checked = LlavaConfig.from_pretrained(folder)
        count_image_tokens(checked)  # the library takes null for any number
    return checked


def read_folder(folder: Path | str, remedy: str) -> dict[str, Any]:
    """Read every JSON file that the libraries read of a base model's folder; returns config.json.

    remedy: what to take instead. Raises UserError if there is no such folder, no config.json in it, or a damaged file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the base model {folder} is no folder; {remedy}")
    if not (folder / "config.json").exists():
        raise UserError(f"the base model {folder} is incomplete: it has no config.json")
    contents = {name: read_json(folder / name, "a file of a model") for name in OBJECTS if (folder / name).exists()}
    return contents["config.json"]


def require_files(folder: Path, alternatives: Iterable[Sequence[str]]) -> None:
    """Raises UserError unless the folder has one file at least of each of the alternatives."""
    for names in alternatives:
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"the base model {folder} is incomplete: it has neither {' nor '.join(names)}")


@contextmanager
def refusing_faults(problem: str) -> Iterator[None]:
    """Raise UserError that begins with `problem` for anything that a library raises inside, on reading a folder.

    The libraries check little, so that a faulty file makes them raise errors of any type.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(f"{problem}: {' '.join(str(error).split())} ({type(error).__name__})") from error


def open_tokenizer(folder: Path | str, config: LlavaConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model's folder. Raises UserError if it does not fit the model."""
    with refusing_faults(f"the tokenizer of {folder} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    image, rows = config.image_token_id, config.text_config.vocab_size
    text = tokenizer.convert_ids_to_tokens(image) if image < len(tokenizer) else None
    if text is not None and text not in tokenizer.get_added_vocab():
        raise UserError(
            f"pictures stand at token {image} in {folder} (image_token_index), but that is the text '{text}'; the "
            f"tokenizer's '<image>' is {tokenizer.get_added_vocab().get('<image>')}"
        )
    if image >= rows or len(tokenizer) > rows:
        raise UserError(
            f"{folder} has {len(tokenizer)} tokens and pictures at token {image}, but embeddings for {rows} "
            "(text_config.vocab_size)"
        )
    refuse_lacking_tokens(tokenizer, folder)
    return tokenizer


def refuse_lacking_tokens(tokenizer: PreTrainedTokenizerBase, place: Path | str) -> None:
    """Raises UserError if the tokenizer of a model has no token for the end of an answer, or for padding."""
    missing = [kind for kind in ("eos", "pad") if getattr(tokenizer, f"{kind}_token_id") is None]
    if missing:
        raise UserError(f"the tokenizer of {place} has no {' and no '.join(missing)} token (tokenizer_config.json)")


def count_image_tokens(config: LlavaConfig) -> int:
    """The number of tokens of a picture: those of the vision tower, without the first one unless `full` keeps it."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side**2 + count_class_tokens(config) - (config.vision_feature_select_strategy == "default")


def count_class_tokens(config: LlavaConfig) -> int:
    """The number of tokens that the vision tower has before those of the patches."""
    return TOWERS[config.vision_config.model_type]


def load_model(
    folder: Path | str, dtype: torch.dtype, attention: str | None = None, **options: Any
) -> LlavaForConditionalGeneration:
    """Load the LLaVA in a folder in the given precision; every weight must come from its files.

    options: further ones of transformers. Raises UserError if a weight is missing, of another shape, or not of a LLaVA.
    """
    return load_weights(LlavaForConditionalGeneration, "a LLaVA", folder, dtype, attention, **options)


def load_weights(
    kind: type[PreTrainedModel],
    title: str,
    folder: Path | str,
    dtype: torch.dtype,
    attention: str | None = None,
    **options: Any,
) -> Any:
    """Load a model of a class of transformers, called `title`, from a folder; every weight must come from its files.

    Raises UserError if a weight is missing, of another shape, or not of such a model.
    """
    _refuse_implausible_sizes(kind, title, Path(folder))  # the library draws what is missing at random
    with refusing_faults(f"the weights of {folder} cannot be loaded"):
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = kind.from_pretrained(folder, dtype=dtype, attn_implementation=attention, **options)
    mismatched = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in report["mismatched_keys"])
    unused = sorted(name for name in report["unexpected_keys"] if name.endswith((".weight", ".bias")))
    missing = sorted(report["missing_keys"])
    for names, problem in (
        (mismatched, "have another shape than config.json says"),
        (missing, "are missing"),
        (unused, f"belong to no part of {title}"),
    ):
        if names:
            raise UserError(f"{len(names)} weights of {folder} {problem}; the first is '{names[0]}'")
    return model


def _refuse_implausible_sizes(kind: type[PreTrainedModel], title: str, folder: Path) -> None:
    """Raises UserError if config.json describes a far larger model than the weights hold, before memory is taken."""
    files = [TensorFile(path) for path in find_weight_files(folder)]
    tensors = sum(len(file.names) for file in files)
    held = sum(math.prod(file.shape(name)) for file in files for name in file.names)
    with refusing_faults(f"{folder / 'config.json'} is no config of {title}"):
        config = kind.config_class.from_pretrained(folder)
        layers = config.text_config.num_hidden_layers + config.vision_config.num_hidden_layers
        size = 0
        if layers <= tensors and not is_deepspeed_zero3_enabled():  # it would partition what has no memory
            with torch.device("meta"):  # shapes without memory
                size = kind(config).num_parameters()
    if layers > tensors or size > 2 * held:
        described = f"{size} numbers" if size else f"{layers} layers"
        raise UserError(
            f"{folder} is incomplete: its config.json describes a model of {described}, its weights are {tensors} "
            f"tensors of {held} numbers"
        )
