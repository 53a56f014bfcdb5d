"""Batched greedy generation of answers; the base is loaded once for all sources."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_ext.adapters import LLAVA
from llava_ext.backend import fast_matmul, quiet_libraries
from llava_ext.data import encode_prompt, load_reader, pad
from llava_ext.model import load_model
from llava_ext.sources import SourceModel
from robustmerge.stage.pictures import read_picture
from robustmerge.stage.records import Example

FEATURE_BUDGET = 256 * 2**20  # bytes of vision features that are cached for the next source


def generation_config(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """The generation config of answers: greedy, until the end token; the model folder's own config is ignored."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class Generator(SourceModel):
    """Generates answers with a base model: alone, or with the adapter or dense deltas of a source.

    fast: on a CPU, answer with `fast_matmul`: 1.4 times the answers a second, but a near tie may fall the other way.
    """

    def __init__(
        self,
        base: Path | str,
        template: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        fast: bool = False,
    ):
        quiet_libraries()
        self.fast = fast and device == "cpu"
        self.reader = load_reader(base, template)
        self.base, self.device, self.dtype = base, device, dtype
        super().__init__(LLAVA)
        self.features: dict[tuple, Tensor] = {}
        self.prefetches = torch.device(device).type != "cpu"  # on a CPU generation itself needs the cores
        self.thread = ThreadPoolExecutor(1)
        self.prefetched: dict[tuple, Future[Tensor]] = {}

    def load(self) -> LlavaForConditionalGeneration:
        attention = "eager" if self.fast else None  # the fused CPU kernel is slow with fast products
        model = load_model(self.base, self.dtype, attention)
        model.lm_head.register_forward_pre_hook(_make_contiguous)
        return model.to(self.device).eval().requires_grad_(False)

    def __call__(
        self, examples: Sequence[Example], image_root: Path, max_new_tokens: int, image: str = "pad"
    ) -> list[str]:
        """Answer every example. Their texts are whole prompts; some of them may have no picture.

        image: `pad` pictures to a square, or `crop` their centre. Raises PictureError for one that cannot be read.
        """
        if not examples:
            return []
        with torch.inference_mode(), fast_matmul() if self.fast else nullcontext():
            return self._answer(examples, image_root, max_new_tokens, image)

    def prefetch(self, examples: Sequence[Example], image_root: Path, image: str = "pad") -> None:
        """Start to read the pictures of the next batch while the GPU works on the current one.

        Changes no answer; a picture that cannot be read is an error of its own batch.
        """
        pictures = _list_pictures(examples, image_root)
        key = (image, *pictures)
        if self.prefetches and pictures and key not in self.features:
            last = list(self.prefetched.items())[-1:]  # drops the pictures of a batch that failed
            self.prefetched = dict([*last, (key, self.thread.submit(self._read, pictures, image))])

    def _answer(self, examples: Sequence[Example], image_root: Path, max_new_tokens: int, image: str) -> list[str]:
        tokenizer = self.reader.tokenizer
        prompts = [encode_prompt(self.reader, example) for example in examples]
        inputs = {
            "input_ids": pad(prompts, tokenizer.pad_token_id, "left"),
            "attention_mask": pad([[1] * len(prompt) for prompt in prompts], 0, "left"),
        }
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        pictures = _list_pictures(examples, image_root)
        if pictures:
            inputs["mm_encoder_outputs"] = {"image": self._encode_pictures(pictures, image)}
        ids = self.model.generate(**inputs, generation_config=generation_config(tokenizer, max_new_tokens))
        answers = ids[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._decode(answer) for answer in answers]

    def _decode(self, ids: Sequence[int]) -> str:
        """The text before the end token; bytes that are not UTF-8 become the replacement character."""
        end = self.reader.tokenizer.eos_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        return self.reader.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _encode_pictures(self, pictures: Sequence[Path], image: str) -> BaseModelOutputWithPooling:
        """Projected features of the pictures. The tower is frozen, so its features are cached for the next source."""
        key = (image, *pictures)
        if key not in self.features:
            features = self._tower_features(pictures, image)
            if sum(cached.nbytes for cached in self.features.values()) + features.nbytes > FEATURE_BUDGET:
                self.features.clear()
            self.features[key] = features
        projected = self.model.model.multi_modal_projector(self.features[key])
        return BaseModelOutputWithPooling(pooler_output=list(projected))

    def _read(self, pictures: Sequence[Path], image: str) -> Tensor:
        pixels = self.reader.pixels if image == "pad" else self.reader.cropped
        return pixels([read_picture(picture) for picture in pictures])

    def _tower_features(self, pictures: Sequence[Path], image: str) -> Tensor:
        config = self.model.config
        prefetched = self.prefetched.pop((image, *pictures), None)
        pixels = prefetched.result() if prefetched is not None else self._read(pictures, image)
        pixels = pixels.to(self.model.device, self.model.dtype)
        layer = config.vision_feature_layer
        states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features = torch.cat([states[index] for index in ([layer] if isinstance(layer, int) else layer)], dim=-1)
        return features[:, 1:] if config.vision_feature_select_strategy == "default" else features


def _make_contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last position of every prompt is a slice with gaps, for which PyTorch copies the output matrix per prompt."""
    return tuple(tensor.contiguous() for tensor in inputs)


def _list_pictures(examples: Sequence[Example], image_root: Path) -> list[Path]:
    return [Path(image_root) / example.image for example in examples if example.image is not None]
