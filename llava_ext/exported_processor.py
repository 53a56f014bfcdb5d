"""What an exported model folder tells other programs about prompts and pictures: the same as ours are.

Programs that take a Hugging Face folder build the prompt by its chat template and the pixels by its image processor.
Published folders of LLaVA crop pictures, and have no template, or one of another form of messages; with the wrong one
a question can be lost without an error.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoTokenizer, LlavaConfig, LlavaProcessor, PreTrainedTokenizerBase
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava_ext.conversation import TEMPLATES
from robustmerge.stage.settings import IMAGE_MODES, choose

STALE = ("preprocessor_config.json", "chat_template.json", "chat_template.jinja")  # newer names hold the same


def chat_template(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """One of our conversation templates in Jinja; the content of a message is a text, or a list of typed parts.

    The beginning-of-sequence token is written out only where the tokenizer does not add it itself.
    Raises UserError for an unknown template.
    """
    style = TEMPLATES[choose(template, TEMPLATES, "template")]
    adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    begin = ("" if adds_bos else tokenizer.bos_token) + style.system
    image, assistant, answer = _quote(f"<image>{style.image}"), _quote(style.assistant), _quote(style.answer)
    return (
        f"{{{{ {_quote(begin)} }}}}"
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}"
        f"{{{{ {assistant} + {answer} }}}}"
        f"{{% else %}}{{{{ {_quote(style.user)} }}}}{{% endif %}}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        f"{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{{{{ {image} }}}}{{% endif %}}"
        "{% endfor %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% endif %}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {assistant} }}}}{{% endif %}}"
    )


def _quote(text: str) -> str:
    """A string of Jinja, which reads Python's escapes."""
    return json.dumps(text)


def _begin_each_chunk(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer that puts a space before the first text only put one before each text, as LLaVA is trained.

    Llama's newer files (`legacy` false) do so; the text behind the picture would begin with another token.
    """
    cut = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(cut, Metaspace) and cut.prepend_scheme == "first":
        cut.prepend_scheme = "always"
        tokenizer.backend_tokenizer.pre_tokenizer = cut


def set_processor(folder: Path, template: str, image: str) -> None:
    """Give the LLaVA in `folder` the processor that asks as we do. image: `pad` pictures, or `crop` their centre.

    Raises UserError for an unknown template or mode.
    """
    choose(image, IMAGE_MODES, "image mode")
    config, tokenizer = LlavaConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    _begin_each_chunk(tokenizer)
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil.from_pretrained(folder, do_pad=image == "pad"),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=chat_template(template, tokenizer),
        num_additional_image_tokens=1,
    )
    for name in STALE:
        (folder / name).unlink(missing_ok=True)
    processor.save_pretrained(folder)
    path = folder / "processor_config.json"
    told = json.loads(path.read_text())
    told["image_processor"]["image_processor_type"] = "LlavaImageProcessorPil"  # torchvision's resizes otherwise
    path.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
