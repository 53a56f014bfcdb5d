"""A LLaVA put together of a pretrained language model and an alignment, which is a folder of three things.

`vision_tower/`: the vision tower; an adapter in PEFT's format: the projector, whole, and a low-rank update of the
language model, which is merged into it; `training.json`: what the alignment was trained with, and what it can do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import (
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llava_ext.adapters import list_changed_weights, load_adapter
from llava_ext.backend import quiet_libraries
from llava_ext.model import read_folder, refuse_lacking_tokens, refusing_faults
from llava_ext.small.build import build_processor, draw_weights, save_base
from llava_ext.small.tokenizer import IMAGE
from llava_ext.trainer import finish_training, read_training_record
from robustmerge.formats.checkpoint import find_weight_files
from robustmerge.stage.address import UNFINISHED, Address, run_stage
from robustmerge.stage.files import cached_sha256
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote

Config = TypeVar("Config", bound=PreTrainedConfig)
TOWER = "vision_tower"  # the folder of an alignment that holds it
KEY = "model.base.alignment"
REMEDY = "take a folder as HuggingFaceTB/SmolLM2-135M-Instruct is one (model.base.language)"


def join_base(address: Address, language: Path, alignment: Path, say: Callable[[str], None] = print) -> Path:
    """Put a base together of a language model (a GGUF file or a folder) and an alignment, and save it at `address`.

    Raises UserError if one of them is damaged, or if they do not fit each other.
    """

    def work(folder: Path) -> dict:
        quiet_libraries()
        record = _read_record(alignment)
        own, met = describe_language(language), record["language"]
        if own["sha256"] != met["sha256"]:
            trained = f"trained with the weights of {met['file']}"
            say(f"the alignment was {trained}: what it can do with {own['file']} is not known")
            record.pop("skills", None)
        model, tokenizer = join(language, alignment)
        save_base(folder, model, build_processor(model.config.vision_config, tokenizer))
        return finish_training(folder, folder / UNFINISHED, {**record, "language": own})

    return run_stage(address, work, say)


def _read_record(alignment: Path) -> dict:
    """What an alignment was trained with. Raises UserError for a folder that is none."""
    record = read_training_record(alignment) or {}
    language = record.get("language")
    if not (isinstance(language, dict) and {"file", "sha256"} <= language.keys()):
        raise UserError(f"{alignment} is no alignment: no training.json names its language model ({KEY})")
    if not (alignment / TOWER).is_dir():
        raise UserError(f"{alignment} is no alignment: {TOWER} is not there ({KEY})")
    return record


def join(language: Path, alignment: Path) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """The LLaVA of a language model and an alignment, in bfloat16, and its tokenizer.

    Raises UserError if one of them is damaged, or if they do not fit each other.
    """
    tower = _load(CLIPVisionModel, f"the vision tower of {alignment}", alignment / TOWER)
    model, tokenizer = build_joined(language, tower, seed=0)
    projector = [name for name, _ in model.named_parameters() if "multi_modal_projector" in name]
    adapted = load_adapter(model, alignment)
    if missing := sorted({*projector} - {*list_changed_weights(adapted, projector)}):
        raise UserError(f"{alignment} is no alignment: its adapter has no {missing[0]} ({KEY})")
    return merge_rounded(adapted), tokenizer


def merge_rounded(adapted: PeftModel) -> LlavaForConditionalGeneration:
    """Merge an alignment in float32 and round all weights to bfloat16.

    Only the weights: `bfloat16()` of the whole model would also round the frequencies of its rotary embeddings, which
    are in no file.
    """
    model = adapted.float().merge_and_unload(safe_merge=True)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    return model


def build_joined(
    language: Path, tower: CLIPVisionModel, seed: int
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """A LLaVA of a language model and a vision tower, in float32, and its tokenizer, which gets a token for pictures.

    The projector is drawn by the seed; a picture's tokens are about as large then as those of words.
    """
    words, tokenizer = open_language(language)
    scale = words.get_input_embeddings().weight.std().item()
    is_new = bool(tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}))
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    if len(tokenizer) > words.config.vocab_size:
        words.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # which draws the new rows at random
    if is_new:
        with torch.no_grad():  # the mean is never the likeliest
            for side in (words.get_input_embeddings(), words.get_output_embeddings()):
                side.weight[image:] = side.weight[:image].mean(dim=0)
    vision = tower.config
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=_clean(vision),
            text_config=_clean(words.config),
            image_token_index=image,
            image_seq_length=(vision.image_size // vision.patch_size) ** 2,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=words.config.tie_word_embeddings,
        )
    ).float()
    draw_weights(model.model.multi_modal_projector, seed)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(scale)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(words.model.state_dict())
    model.lm_head.load_state_dict(words.lm_head.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model, tokenizer


def open_language(place: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """A language model in float32 and its tokenizer, from a GGUF file or from a folder in the Hub's layout.

    Raises UserError for another kind of model, and for one that cannot be read.
    """
    folder, options = (place, {}) if place.is_dir() else (place.parent, {"gguf_file": place.name})
    if place.is_dir() and (kind := read_folder(place, REMEDY).get("model_type")) != "llama":
        raise UserError(f"{place} is no Llama: its config.json says model_type {quote(kind)}; {REMEDY}")
    with refusing_faults(f"the tokenizer of {place} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    refuse_lacking_tokens(tokenizer, place)
    return _load(LlamaForCausalLM, f"the language model {place}", folder, **options), tokenizer


def _load(kind: type[PreTrainedModel], title: str, folder: Path, **options: str) -> Any:
    """A model in float32. Raises UserError if it cannot be read, or lacks weights, which the library would draw."""
    with refusing_faults(f"{title} cannot be loaded"):
        model, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{title} is incomplete: {len(missing)} weights are missing; the first is '{missing[0]}'")
    return model


def describe_language(place: Path) -> dict[str, str]:
    """The name and the sha256 of a language model's weights: of its first file, if there are several."""
    file = next(iter(find_weight_files(place)), place) if place.is_dir() else place
    return {"file": file.name, "sha256": cached_sha256(file)}


def _clean(config: Config) -> Config:
    """The config without what says where the weights lay and how they were packed."""
    packed = ("quantization_config", "_name_or_path", "dtype", "transformers_version")
    return type(config)(**{key: value for key, value in config.to_dict().items() if key not in packed})
