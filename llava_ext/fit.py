"""A plain training loop for the parts of the base: AdamW, warm-up and cosine, exact continuation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llava_ext.data import training_order
from llava_ext.settings import Part
from robustmerge.runs import UserError, write_atomically

GROUP = 32  # batches whose rows are sorted by length together


def grouped_batches(
    rows: Sequence[int], part: Part, seed: int, lengths: Sequence[int] | None = None
) -> list[list[int]]:
    """The batches of a whole part, in order. With lengths, rows of like length share a batch: less padding."""
    batch = min(part.batch, len(rows))
    steps = part.max_steps or max(1, int(len(rows) // batch * part.epochs))
    order = [rows[index] for index in training_order(len(rows), batch, steps, seed)]
    if lengths is not None:
        span = GROUP * batch
        order = [
            row
            for start in range(0, len(order), span)
            for row in sorted(order[start : start + span], key=lambda row: lengths[row])
        ]
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    shuffled = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed % 2**62 + 1)).tolist()
    return [batches[index] for index in shuffled] if lengths is not None else batches


def rate_at(step: int, steps: int, part: Part) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(steps * part.warmup_ratio))
    if step < warm:
        return part.learning_rate * (step + 1) / warm
    return part.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def fit(
    name: str,
    module: nn.Module,
    losses_of: Callable[[Sequence[int]], Iterable[Tensor]],
    batches: Sequence[Sequence[int]],
    part: Part,
    work: Path,
    save_steps: int,
    say: Callable[[str], None],
) -> None:
    """Train the parameters of `module` over `batches`; losses_of: parts that add up to the loss of a batch.

    Goes on from `work/<name>.pt` if it is there.

    The checkpoint is renamed into place, so it is whole or absent; going on gives the bytes of an uninterrupted run.
    Raises UserError when the loss is no number.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=part.learning_rate, betas=(0.9, 0.99), weight_decay=part.weight_decay, fused=True
    )
    saved = work / f"{name}.pt"
    start, losses = _go_on(saved, module, optimizer)
    if start:
        say(f"{name}: going on from step {start} of {len(batches)}")
    module.train()
    for step in tqdm(
        range(start, len(batches)), initial=start, total=len(batches), desc=f"base: {name}", mininterval=2
    ):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, len(batches), part)
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for share in losses_of(batches[step]):
            share.backward()
            loss += share.item()
        if not math.isfinite(loss):
            raise UserError(f"base, part {name}: the loss is {loss} at step {step + 1}; lower the learning rate")
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(round(loss, 5))
        if (step + 1) % save_steps == 0 or step + 1 == len(batches):
            _keep(saved, module, optimizer, step + 1, losses)
            write_atomically(work / f"{name}.json", json.dumps({"losses": losses, "steps": len(batches)}))


def _keep(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, losses: list[float]) -> None:
    beside = path.with_suffix(".part")
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "losses": losses}
    torch.save(state, beside)
    os.replace(beside, path)


def _go_on(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[float]]:
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["losses"]
