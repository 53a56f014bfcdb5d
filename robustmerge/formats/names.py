"""Names of an adapter's tensors in one form: that of today's PEFT, in the model that today's transformers build.

A file may have the names of a wrapper (torch.compile, FSDP, DDP), of an adapter with a name, of a model that was
wrapped twice, or of an older transformers. They are changed once, on reading.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustmerge.stage.files import read_json
from robustmerge.stage.text import quote

PREFIX = "base_model.model."
# the linears of the language model in transformers' LLaVA, none of the vision tower
LANGUAGE_LINEARS = (
    r".*language_model\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
)
# part of a module -> its name in the file; A and B are always there, magnitude with DoRA, bias with lora_bias
PARTS = {
    "A": "lora_A.weight",
    "B": "lora_B.weight",
    "bias": "lora_B.bias",
    "magnitude": "lora_magnitude_vector",
}
EMBEDDED = "lora_embedding_"  # before A and B of an embedding, which are parameters and no modules with a weight
# words that torch.compile, FSDP, activation checkpointing and DeepSpeed put into a name, wherever they wrap a module
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
LIBRARIES = ("accelerate", "deepspeed", "peft", "torch", "transformers", "unsloth")  # whose classes have known names
DEFAULT = "default"  # the name that peft gives an adapter
_FRONT = re.compile(r"(?:[^.]+\.)*?base_model\.model\.")
_WRAPPED = re.compile(rf"^((module|{'|'.join(WRAPPERS)})\.)*base_model\.model\.$")
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?:"
    r"(?P<matrix>[AB])(?:\.(?P<name>[^.]+))?\.weight|"
    r"embedding_(?P<embedded>[AB])(?:\.(?!weight$)(?P<embedded_name>[^.]+))?|"
    r"B(?:\.(?P<bias_name>[^.]+))?\.(?P<bias>bias)|"
    r"(?P<magnitude>magnitude_vector)(?:\.(?!weight$)(?P<magnitude_name>[^.]+))?(?:\.weight)?)"
)

_EMBEDDINGS = {
    "embed_in", "embed_out", "embed_tokens", "lm_head", "shared", "tok_embeddings", "word_embeddings", "wpe", "wte",
}  # fmt: skip

# The beginning of a name (a pattern) -> the beginning that it has today: since its version 4.52, transformers keeps all
# parts of a model that reads more than text below `model`. Source: transformers.conversion_mapping of 5.23.
Moves = Sequence[tuple[str, str]]
LLAVA: Moves = (
    (r"language_model\.lm_head\b", "lm_head"),
    (r"(?:model\.)?language_model\b(?:\.model\b)?", "model.language_model"),
    (r"(?:model\.)?(vision_tower|image_tower|video_tower)\b(?:\.vision_model\b)?", r"model.\1"),
    (r"(audio_tower|vision_model|vision_embed_tokens|multi_modal_projector|image_newline)\b", r"model.\1"),
)
QWEN_VL: Moves = (
    (r"visual\b", "model.visual"),
    (r"model\b(?!\.(?:language_model|visual)\b)", "model.language_model"),
)
# CLIP's image encoder by itself: in the whole CLIP it is `vision_model`. Its text encoder has the same names inside.
CLIP: Moves = ((r"(embeddings|encoder|pre_layrnorm|post_layernorm)\b", r"vision_model.\1"),)
_ENCODERS = {"CLIPVisionTransformer": CLIP}  # by class: one that transformers no longer have, so that only a CLIP fits
_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTextTransformer")
ALL_MOVES = (LLAVA, QWEN_VL, CLIP)
FAMILIES = {  # by model_type of a config.json, which is also the module of transformers that holds the class
    **dict.fromkeys(
        (
            "aria", "aya_vision", "fuyu", "gemma3", "got_ocr2", "internvl", "llava", "llava_next", "llava_next_video",
            "llava_onevision", "mistral3", "mllama", "paligemma", "pp_chart2table", "qwen2_audio", "video_llava",
            "vipllava", "voxtral",
        ),
        LLAVA,
    ),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), QWEN_VL),
    "gpt_neox": ((r"embed_out\b", "lm_head"),),
}  # fmt: skip
# bases known by name: repositories of which all are of transformers' own classes
_BASES: Sequence[tuple[str, Moves]] = ((r"^llava-hf/", LLAVA), (r"(?i)(^|/)qwen2(\.5)?-vl[^/]*$", QWEN_VL))


def move(name: str, moves: Moves) -> str:
    """The name that a module or a tensor has in today's transformers; one that it has today stays as it is.

    >>> move("language_model.model.layers.0.mlp", LLAVA), move("visual.blocks.0", QWEN_VL)
    ('model.language_model.layers.0.mlp', 'model.visual.blocks.0')
    """
    for pattern, today in moves:
        if match := re.match(pattern, name):
            return match.expand(today) + name[match.end() :]
    return name


def find_moves(config: Mapping[str, Any]) -> Moves:
    """The moves of names in an adapter's model, where its config, or the folder of its base, says which model that is.

    Empty where neither does: the names of before are those of other models today, of a Llama or of somebody's own code.
    Raises UserError if the config of the base cannot be read.
    """
    library, kind = _class_of_model(config)
    if module := re.match(r"transformers\.models\.(\w+)", library):
        return _ENCODERS.get(kind) or FAMILIES.get(module[1], ())
    if model := read_model_config(config):
        return moves_of_model(model)
    base = str(config.get("base_model_name_or_path"))
    return next((moves for pattern, moves in _BASES if re.search(pattern, base)), ())


def is_text_encoder(config: Mapping[str, Any]) -> bool:
    """Whether an adapter says that it was trained on CLIP's text encoder by itself."""
    return _class_of_model(config)[1] in _TEXT_ENCODERS


def read_model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an adapter's base; empty unless the base is a local folder that has one."""
    base = config.get("base_model_name_or_path")
    path = os.path.join(base, "config.json") if isinstance(base, str) and base else ""
    return read_json(Path(path), "the config of a model") if os.path.isfile(path) else {}


def moves_of_model(config: Mapping[str, Any]) -> Moves:
    """The moves of names in a model by its config.json; empty for a model of other code than transformers' own."""
    model_type = config.get("model_type")
    return FAMILIES.get(model_type, ()) if isinstance(model_type, str) and not config.get("auto_map") else ()


def find_layer(module: str) -> tuple[str, int] | None:
    """The stack of layers that a module is in, and its layer's number there; None for a module that is in none.

    >>> find_layer("model.vision_tower.encoder.layers.7.self_attn.q_proj"), find_layer("model.projector.0")
    (('model.vision_tower.encoder.layers', 7), None)
    """
    match = re.match(r"(.*?)\.(\d{1,9})\.", module)
    return (match[1], int(match[2])) if match else None


def stack_of(module: str) -> str:
    """The stack of layers that a module is in; of a module that is in none, its own name."""
    return layer[0] if (layer := find_layer(module)) else module


@dataclass(frozen=True)
class Name:
    """What the name of a tensor says.

    path: the module of LoRA, or the tensor's name in the model. part: of LoRA, of PARTS; None for others. place: the
    module by its name in training, by which the patterns of a config look it up.
    """

    path: str
    part: str | None = None
    place: str = ""


@dataclass
class Names:
    """The names of a file: name in the file -> what it says. problems: why some cannot be understood."""

    parsed: dict[str, Name] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def unwrap(name: str) -> str:
    """The name without the words of wrappers.

    >>> unwrap("_orig_mod.model.layers.0._checkpoint_wrapped_module.mlp")
    'model.layers.0.mlp'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def parse_names(stored: Collection[str], config: Mapping[str, Any]) -> Names:
    """Read the names of an adapter's file. config: of the adapter, which may say what class its model has."""
    names, adapters = Names(), set()
    fronts = {name: match[0] if (match := _FRONT.match(name)) else "" for name in stored}
    places = {name: name.removeprefix(front) for name, front in fronts.items()}
    paths = {name: unwrap(place) for name, place in places.items()}
    holders = {name: _WRAPPED.sub("", front) for name, front in fronts.items()}  # attributes that hold the PeftModel
    if len(set(holders.values())) > 1:
        held = [name for name, holder in holders.items() if holder]
        names.problems.append(f"{count_tensors(held)} named with words before {PREFIX} that others do not have")
    if partly := [name for name in stored if not fronts[name] and re.match(r"base_model\.|model\.model\.", name)]:
        names.problems.append(f"{count_tensors(partly)} named with only a part of the prefix {PREFIX}")
    if empty := [name for name in stored if not all(name.split("."))]:
        names.problems.append(f"{count_tensors(empty)} named with nothing between two dots, or before or after one")
    if flat := [name for name in stored if "_flat_param" in name]:
        names.problems.append(f"{count_tensors(flat)} of FSDP's flattened weights; save the full state dict instead")
    inner = _find_inner(paths)
    if inner and (kind := _foreign_class(config)):
        names.problems.append(
            f"{count_tensors(list(inner))} named with '{min(inner.values())}' after {PREFIX}, which may be a wrapper's "
            f"(DDP, a second PeftModel) or of the model's class {kind}; rename the tensors to the names in that class"
        )
    patterns = [str(config.get(key)) for key in ("rank_pattern", "alpha_pattern")]
    if not any(word in pattern for pattern in patterns for word in (*WRAPPERS, "base_model", "module")):
        places = paths
    for name, path in paths.items():
        path = path.removeprefix(inner.get(name, ""))
        if (match := _LORA.fullmatch(path)) is None:
            names.parsed[name] = Name(path)
            continue
        given = ("name", "embedded_name", "bias_name", "magnitude_name")
        adapters.add(next((match[group] for group in given if match[group]), DEFAULT))
        part = match["matrix"] or match["embedded"] or match["bias"] or "magnitude"
        names.parsed[name] = Name(match["module"], part, places[name].rpartition(".lora_")[0])
    if len(adapters) > 1:
        which = " and ".join(f"'{adapter}'" for adapter in sorted(adapters)[:4])
        names.problems.append(f"it holds the tensors of several adapters, {which}; save each in a folder of its own")
    own = {f".modules_to_save.{adapter}.": ".modules_to_save." for adapter in (*sorted(adapters)[:1], DEFAULT)}
    for name, said in names.parsed.items():
        if said.part is None and ".modules_to_save." in said.path:
            names.parsed[name] = Name(_replace(said.path, own))
    return names


def _replace(text: str, words: Mapping[str, str]) -> str:
    for word, other in words.items():
        text = text.replace(word, other)
    return text


def _find_inner(paths: Mapping[str, str]) -> dict[str, str]:
    """What wrappers put after the prefix of names: a second prefix, or `module.` in all of them."""
    inner = dict.fromkeys(paths, "")
    while True:
        rest = {name: path[len(inner[name]) :] for name, path in paths.items()}
        if twice := [name for name in rest if rest[name].startswith(PREFIX)]:
            inner |= {name: inner[name] + PREFIX for name in twice}
        elif rest and all(re.match(r"module\.(?!lora_)[^.]+\.", path) for path in rest.values()):
            inner = {name: f"{front}module." for name, front in inner.items()}
        else:
            return {name: front for name, front in inner.items() if front}


def _class_of_model(config: Mapping[str, Any]) -> tuple[str, str]:
    """Library and name of the model's class, which peft notes where there is no task type; else empty."""
    mapping = config.get("auto_mapping")
    mapping = mapping if isinstance(mapping, Mapping) else {}
    return str(mapping.get("parent_library") or ""), str(mapping.get("base_model_class") or "")


def _foreign_class(config: Mapping[str, Any]) -> str:
    """The model's class if it is of no library; any attribute may have any name there."""
    library, name = _class_of_model(config)
    return name if library and library.partition(".")[0] not in LIBRARIES else ""


def count_tensors(names: Sequence[str]) -> str:
    """`tensor a`, `tensors a and 2 more`.

    >>> count_tensors(["a"]), count_tensors(["a", "b", "c"])
    ('tensor a is', 'tensors a and 2 more are')
    """
    first = show(names[0])
    return f"tensor {first} is" if len(names) == 1 else f"tensors {first} and {len(names) - 1} more are"


def is_saved_whole(name: str) -> bool:
    """Whether a tensor may be saved though no config lists it.

    Embeddings and heads are saved whole by peft where they were resized; norms are trained beside LoRA.

    >>> [is_saved_whole(name) for name in ("model.embed_tokens.weight", "h.0.ln_1.bias", "layers.0.mlp.up.weight")]
    [True, True, False]
    """
    module, _, last = name.lower().rpartition(".")
    kind = module.rpartition(".")[2]
    return last in ("weight", "bias") and (
        kind in _EMBEDDINGS or "norm" in kind or bool(re.fullmatch(r"ln(_\w+|\d*)", kind))
    )


def show(name: str) -> str:
    """A name from a file on one line of a message, shortened."""
    return quote(name, 200)[1:-1]
