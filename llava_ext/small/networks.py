"""Modules that train the small base: attribute heads on the vision tower, next-token loss on the whole model.

Both return {"loss": ...}, as the Trainer of transformers expects of a model. The functions measure their accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_ext.data import Row
from llava_ext.small.probe import accuracies, head_entropies

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
        attention = (features @ self.query).softmax(dim=1)  # [n, patches, heads]
        pooled = torch.einsum("nph,npd->hnd", attention, features)
        return [functional.linear(pooled[index], weight) for index, weight in enumerate(self.weights)]


class TowerClassifier(nn.Module):
    """A vision tower with attribute heads. Loss: the mean over the heads of their cross entropies."""

    def __init__(self, model: LlavaForConditionalGeneration, heads: Heads):
        super().__init__()
        self.tower, self.heads = model.model.vision_tower, heads
        self.layer = model.config.vision_feature_layer

    def features(self, pixel_values: Tensor) -> Tensor:
        """The features that the projector reads, without the class token, [n, patches, width]."""
        return self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]

    def logits(self, pixel_values: Tensor) -> list[Tensor]:
        """Logits of every head, each [n, size]."""
        return self.heads(self.features(pixel_values))

    def forward(self, pixel_values: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss on pictures. targets: [n, heads], -1 where a head does not apply."""
        return {"loss": head_entropies(self.logits(pixel_values), targets).mean()}


class AnswerModel(nn.Module):
    """A LLaVA with a next-token loss on answers; logits are computed at their positions only."""

    accepts_loss_kwargs = True  # the Trainer then counts the answers' tokens in all micro-batches of a step

    def __init__(self, model: LlavaForConditionalGeneration):
        super().__init__()
        self.model = model

    def logits(self, labels: Tensor, **batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [tokens of answers, vocabulary], the true tokens, and row and column of each [2, tokens]."""
        hidden = self.model.model(**batch).last_hidden_state
        row, column = torch.nonzero(labels[:, 1:] >= 0, as_tuple=True)
        return self.model.lm_head(hidden[row, column]), labels[row, column + 1], torch.stack([row, column])

    def forward(self, num_items_in_batch: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        """Cross entropy of the answers' tokens, summed and divided by their number in the whole step."""
        logits, targets, _ = self.logits(**batch)
        return {"loss": functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch}


@torch.inference_mode()
def measure_heads(
    classifier: TowerClassifier, rows: Sequence, collate: Collate, names: Iterable[str]
) -> dict[str, float]:
    """Accuracy of every head over the rows to which it applies (see `probe.accuracies`)."""
    classes, targets = [], []
    for start in range(0, len(rows), MEASURE_BATCH):
        batch = collate(rows[start : start + MEASURE_BATCH])
        classes.append(torch.stack([logits.argmax(-1) for logits in classifier.logits(batch["pixel_values"])], dim=1))
        targets.append(batch["targets"])
    return accuracies(torch.cat(classes), torch.cat(targets), names)


@torch.no_grad()
def read_features(classifier: TowerClassifier, rows: Sequence, collate: Collate) -> tuple[Tensor, Tensor]:
    """Features of every row, flattened [rows, patches x width], and its targets [rows, heads]."""
    features, targets = [], []
    for start in range(0, len(rows), MEASURE_BATCH):
        batch = collate(rows[start : start + MEASURE_BATCH])
        features.append(classifier.features(batch["pixel_values"]).flatten(1))
        targets.append(batch["targets"])
    return torch.cat(features), torch.cat(targets)


@torch.inference_mode()
def measure_answers(
    answer_model: AnswerModel, rows: Sequence[Row], skills: Sequence[Sequence[str]], collate: Collate
) -> dict[str, float]:
    """Accuracy by skill, and over `all`: the share of answers whose tokens are all the likeliest after the true ones.

    skills: the skill of each turn of each row. Every question should have one right answer, so that all can be right.
    """
    right: dict[str, list[bool]] = {}
    for start in range(0, len(rows), MEASURE_BATCH):
        logits, targets, positions = answer_model.logits(**collate(rows[start : start + MEASURE_BATCH]))
        hits = logits.argmax(-1) == targets
        turns: dict[tuple[int, int], bool] = {}
        previous, turn = (-1, -1), 0
        for hit, row, column in zip(hits.tolist(), *positions.tolist(), strict=True):
            turn = 0 if row != previous[0] else turn + (column != previous[1] + 1)
            turns[row, turn] = turns.get((row, turn), True) and hit
            previous = (row, column)
        for (row, turn), hit in turns.items():
            for name in (skills[start + row][turn], "all"):
                right.setdefault(name, []).append(hit)
    return {name: round(sum(hits) / len(hits), 4) for name, hits in sorted(right.items())}
