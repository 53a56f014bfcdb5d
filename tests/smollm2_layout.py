"""SmolLM2 in the layout in which the Hub keeps it, scaled down to two layers; shared by tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llava_ext.small.build import draw_weights
from tests.interleave_layout import END, END_OF_TEXT, SPECIAL, START, build_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_language(
    folder: Path, seed: int = 0, tied: bool = True, spare: int = 0, special: Sequence[str] = (END_OF_TEXT, START, END)
) -> Path:
    """A random Llama of SmolLM2's architecture: grouped queries, one matrix for both embeddings, no `<image>` token.

    tied: False for two matrices. spare: rows of embeddings that stand for no token. special: the tokenizer's tokens.
    """
    rows = SPECIAL[END] + 1 + spare
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        bos_token_id=SPECIAL[START],
        eos_token_id=SPECIAL[END],
        pad_token_id=SPECIAL[END],
    )
    model = LlamaForCausalLM(config)
    draw_weights(model, seed)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = build_tokenizer([*special])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=END, pad_token=END, chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder)
    return folder
