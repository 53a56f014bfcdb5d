"""QLoRA: the frozen language model in 4 or 8 bits, by bitsandbytes, while an expert of it is trained.

Vision tower, projector, embeddings and norms stay in the precision of training, and LoRA is trained as usual. Answers
and merges use the base as it is, not quantised.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from robustmerge.stage.settings import UserError

if TYPE_CHECKING:
    import torch

KEPT = ("model.vision_tower", "model.multi_modal_projector", "lm_head")  # modules whose linears stay as they are


def require_bitsandbytes(quantize: str) -> None:
    """Raises UserError unless bitsandbytes is installed. Loads nothing."""
    if find_spec("bitsandbytes") is None:
        advice = "install it with .venv/bin/pip install bitsandbytes, or take model.quantize=null"
        raise UserError(f"model.quantize={quantize} needs bitsandbytes, which is not installed here; {advice}")


def quantizing_options(quantize: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Options of transformers' `from_pretrained` that load a LLaVA so, on this process's device. dtype: of products."""
    require_bitsandbytes(quantize)
    from transformers import BitsAndBytesConfig

    four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    config = BitsAndBytesConfig(
        load_in_4bit=quantize == "4bit",
        load_in_8bit=quantize == "8bit",
        llm_int8_skip_modules=[*KEPT],
        **(four_bits if quantize == "4bit" else {}),
    )
    place = "cpu" if device == "cpu" else int(os.environ.get("LOCAL_RANK", "0"))
    return {"quantization_config": config, "device_map": {"": place}}
