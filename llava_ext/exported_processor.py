"""The processor of an exported model folder, which gives other programs the same prompts and pixels as here.

Programs that read a Hugging Face folder build the prompt by its chat template and the pixels by its image processor.
Published folders of LLaVA crop pictures, and have no template or one for another form of messages; with a wrong one a
question can be lost without an error.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoTokenizer, LlavaConfig, LlavaProcessor, PreTrainedTokenizerBase

from llava_ext.conversation import TEMPLATES
from llava_ext.model import count_class_tokens
from llava_ext.pixels import open_image_processor
from robustmerge.stage.files import read_json
from robustmerge.stage.settings import IMAGE_MODES, choose

STALE = ("preprocessor_config.json", "chat_template.json", "chat_template.jinja")  # replaced by files of newer names


def chat_template(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Translate a template of `llava_ext.conversation` to Jinja; a message's content is a text or typed parts.

    The beginning-of-sequence token is written out only where the tokenizer does not add it itself.
    Raises UserError for an unknown template.
    """
    texts = TEMPLATES[choose(template, TEMPLATES, "template")]
    adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    begin = ("" if adds_bos or not texts.begins else tokenizer.bos_token) + texts.system
    image, assistant, answer = _quote(f"<image>{texts.image}"), _quote(texts.assistant), _quote(texts.answer)
    after = f" + {_quote(texts.after)}" if texts.after else ""
    return (
        f"{{{{ {_quote(begin)} }}}}"
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}"
        f"{{{{ {assistant} + {answer} }}}}"
        f"{{% else %}}{{{{ {_quote(texts.user)} }}}}{{% endif %}}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        f"{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{{{{ {image} }}}}{{% endif %}}"
        "{% endfor %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% endif %}"
        f"{{% if message['role'] == 'assistant' %}}{{{{ eos_token{after} }}}}{{% endif %}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {assistant} }}}}{{% endif %}}"
    )


def _quote(text: str) -> str:
    """Quote a text as a Jinja string literal, whose escapes are Python's."""
    return json.dumps(text)


def _prepend_space_to_each_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer put a space before each text, as LLaVA is trained, and not before the first one alone.

    Llama's newer files (`legacy` false) are such: the text after the picture would begin with another token.
    """
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(splitter, Metaspace) and splitter.prepend_scheme == "first":
        splitter.prepend_scheme = "always"
        tokenizer.backend_tokenizer.pre_tokenizer = splitter


def set_processor(folder: Path, template: str, image: str) -> None:
    """Replace the processor of the LLaVA in `folder`. image: `pad` pictures to a square, or `crop` their centre.

    Raises UserError for an unknown template or mode.
    """
    choose(image, IMAGE_MODES, "image mode")
    model = LlavaConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _prepend_space_to_each_text(tokenizer)
    processor = LlavaProcessor(
        image_processor=open_image_processor(folder, image == "pad"),
        tokenizer=tokenizer,
        patch_size=model.vision_config.patch_size,
        vision_feature_select_strategy=model.vision_feature_select_strategy,
        chat_template=chat_template(template, tokenizer),
        num_additional_image_tokens=count_class_tokens(model),
    )
    for name in STALE:
        (folder / name).unlink(missing_ok=True)
    processor.save_pretrained(folder)
    path = folder / "processor_config.json"
    config = read_json(path, "the config of a processor")
    config["image_processor"]["image_processor_type"] = "LlavaImageProcessorPil"  # torchvision's gives other pixels
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
