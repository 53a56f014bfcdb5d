"""What the base is trained as, and measured as: a tower under attribute heads, a LLaVA that answers.

Both modules return {"loss": ...}, which is what the Trainer of transformers wants of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_ext.data import Row

MEASURE_BATCH = 32
Collate = Callable[[Sequence], dict[str, Tensor]]


class Heads(nn.Module):
    """Linear classifiers, each over its own attention-weighted mean of the patch features [n, patches, width]."""

    def __init__(self, width: int, sizes: Sequence[int], seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.sizes = tuple(sizes)
        self.query = nn.Parameter(torch.randn(width, len(sizes), generator=generator) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(size, width, generator=generator) * width**-0.5) for size in sizes
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits of every head, each [n, size]."""
        features = self.norm(features)
        shares = (features @ self.query).softmax(dim=1)  # [n, patches, heads]
        pooled = torch.einsum("nph,npd->hnd", shares, features)
        return [functional.linear(pooled[index], weight) for index, weight in enumerate(self.weights)]


class Seer(nn.Module):
    """A vision tower under its heads. Loss: the mean over the heads of each one's, on the pictures it applies to."""

    def __init__(self, model: LlavaForConditionalGeneration, heads: Heads):
        super().__init__()
        self.tower, self.heads = model.model.vision_tower, heads
        self.layer = model.config.vision_feature_layer

    def logits(self, pixel_values: Tensor) -> list[Tensor]:
        """Logits of every head over what the projector reads: patch features without the class token."""
        hidden = self.tower(pixel_values, output_hidden_states=True).hidden_states
        return self.heads(hidden[self.layer][:, 1:])

    def forward(self, pixel_values: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """targets: [n, heads], -1 where a head does not apply."""
        losses = [
            functional.cross_entropy(found, wanted, ignore_index=-1, reduction="sum") / (wanted >= 0).sum().clamp(min=1)
            for found, wanted in zip(self.logits(pixel_values), targets.unbind(1), strict=True)
        ]
        return {"loss": torch.stack(losses).mean()}


class Speaker(nn.Module):
    """A LLaVA whose logits are computed where an answer's tokens are wanted; other positions cost nothing."""

    accepts_loss_kwargs = True  # the Trainer then counts the wanted tokens of all micro-batches of a step

    def __init__(self, model: LlavaForConditionalGeneration):
        super().__init__()
        self.model = model

    def logits(self, labels: Tensor, **batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [answers' tokens, vocabulary], the tokens wanted, and row and column of each [2, tokens]."""
        hidden = self.model.model(**batch).last_hidden_state
        row, column = torch.nonzero(labels[:, 1:] >= 0, as_tuple=True)
        return self.model.lm_head(hidden[row, column]), labels[row, column + 1], torch.stack([row, column])

    def forward(self, num_items_in_batch: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        found, wanted, _ = self.logits(**batch)
        return {"loss": functional.cross_entropy(found, wanted, reduction="sum") / num_items_in_batch}


@torch.inference_mode()
def measure_heads(seer: Seer, kept: Sequence, collate: Collate) -> list[float]:
    """Accuracy of every head over the kept rows to which it applies."""
    right, asked = 0, 0
    for start in range(0, len(kept), MEASURE_BATCH):
        batch = collate(kept[start : start + MEASURE_BATCH])
        found = torch.stack([logits.argmax(-1) for logits in seer.logits(batch["pixel_values"])], dim=1)
        right = right + (found == batch["targets"]).sum(0)
        asked = asked + (batch["targets"] >= 0).sum(0)
    return [round(value, 4) for value in (right / asked.clamp(min=1)).tolist()]


@torch.inference_mode()
def measure_answers(
    speaker: Speaker,
    kept: Sequence[Row],
    skills: Sequence[Sequence[str | None]] | None,
    collate: Collate,
) -> dict[str, float]:
    """Share of answers whose every token is the most likely one, given the true tokens before it; by skill, and `all`.

    Only tagged questions count: a tag settles which of two conventions answers, so all of them can be right, except
    that of descriptions (`scene`) the wording is drawn among three, and about a third can be. An untagged question is
    answered in the first convention six times in ten, and no model can tell when. With `skills` None (a corpus that
    does not name them) every answer counts, under `all`. A few dozen answers a skill: good to about 0.1.
    """
    right: dict[str, list[bool]] = {"all": []}
    for start in range(0, len(kept), MEASURE_BATCH):
        found, wanted, where = speaker.logits(**collate(kept[start : start + MEASURE_BATCH]))
        hits = found.argmax(-1) == wanted
        turns: dict[tuple[int, int], bool] = {}
        previous, turn = (-1, -1), 0
        for hit, row, column in zip(hits.tolist(), *where.tolist(), strict=True):
            turn = 0 if row != previous[0] else turn + (column != previous[1] + 1)
            turns[row, turn] = turns.get((row, turn), True) and hit
            previous = (row, column)
        for (row, turn), hit in turns.items():
            skill = "all" if skills is None else skills[start + row][turn]
            for name in {skill, "all"} if skill else ():
                right.setdefault(name, []).append(hit)
    return {name: round(sum(hits) / max(1, len(hits)), 4) for name, hits in sorted(right.items())}
