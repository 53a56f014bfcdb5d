"""What the base is trained as, and measured as: a tower under attribute heads, a LLaVA that answers.

Both modules return {"loss": ...}, which is what the Trainer of transformers wants of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_ext.data import Row
from llava_ext.small.probe import accuracies

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

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the projector reads: features [n, patches, width], without the class token."""
        return self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]

    def logits(self, pixel_values: Tensor) -> list[Tensor]:
        """Logits of every head."""
        return self.heads(self.features(pixel_values))

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
def measure_heads(seer: Seer, kept: Sequence, collate: Collate, names: Iterable[str]) -> dict[str, float]:
    """Accuracy of every head over the kept rows to which it applies (see `probe.accuracies`)."""
    found, wanted = [], []
    for start in range(0, len(kept), MEASURE_BATCH):
        batch = collate(kept[start : start + MEASURE_BATCH])
        found.append(torch.stack([logits.argmax(-1) for logits in seer.logits(batch["pixel_values"])], dim=1))
        wanted.append(batch["targets"])
    return accuracies(torch.cat(found), torch.cat(wanted), names)


@torch.no_grad()
def read_features(seer: Seer, rows: Sequence, collate: Collate) -> tuple[Tensor, Tensor]:
    """Features of every row, flattened [rows, patches x width], and its targets [rows, heads]."""
    features, targets = [], []
    for start in range(0, len(rows), MEASURE_BATCH):
        batch = collate(rows[start : start + MEASURE_BATCH])
        features.append(seer.features(batch["pixel_values"]).flatten(1))
        targets.append(batch["targets"])
    return torch.cat(features), torch.cat(targets)


@torch.inference_mode()
def measure_answers(
    speaker: Speaker, kept: Sequence[Row], skills: Sequence[Sequence[str]], collate: Collate
) -> dict[str, float]:
    """Share of answers whose every token is the most likely one, given the true tokens before it; by skill, and `all`.

    skills: name of what each turn of each row asks for. Every question has to have one right answer, so that all of
    them can be right.
    """
    right: dict[str, list[bool]] = {}
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
            for name in (skills[start + row][turn], "all"):
                right.setdefault(name, []).append(hit)
    return {name: round(sum(hits) / len(hits), 4) for name, hits in sorted(right.items())}
