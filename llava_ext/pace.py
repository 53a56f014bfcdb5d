"""How fast an expert is trained and in how much memory, step by step."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerState

# In losses.jsonl: tokens a second of all processes, padding left out; gigabytes of the first process, on a GPU the most
# that its tensors have taken so far.
MEASURED = ("tokens_per_second", "memory_gb")


class Pace(TrainerCallback):
    """Measures each step from the end of the one before it.

    The first step after the start, a resume or a checkpoint is measured from its own beginning, so that neither the
    loading of a model nor the writing of a checkpoint counts as training.
    """

    def __init__(self) -> None:
        self.since: tuple[float, int] | None = None  # when the clock was started, and the tokens seen until then

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.since is None:
            self.since = (time.perf_counter(), state.num_input_tokens_seen)

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.since = None

    def measure(self, state: TrainerState, device: torch.device) -> dict[str, float]:
        """The values of `MEASURED` for the step that has just ended; no tokens where the Trainer counts none."""
        assert self.since is not None, "a step ends that has not begun"
        now, (start, before) = (time.perf_counter(), state.num_input_tokens_seen), self.since
        self.since = now
        values = {"memory_gb": round(_count_bytes(device) / 1e9, 3)}
        if now[1] > before:
            values["tokens_per_second"] = round((now[1] - before) / (now[0] - start), 1)
        return values


def _count_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
