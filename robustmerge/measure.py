"""What a method must know of more than one tensor before it can merge any: thresholds over a range of tensors.

The range is one tensor too large to hold, or, with scope=model, every tensor of every module. Tensors are given block
by block and as often as they are asked for; nothing but counts is kept of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from robustmerge.method import Method, Prune
from robustmerge.rules import PRUNE, generator_for, threshold_index
from robustmerge.selection import Selector
from robustmerge.spaces import Blocks


@dataclass(frozen=True)
class Known:
    """limits: of magnitude pruning, an expert's smallest magnitude that is kept; None: found tensor by tensor.

    majority: of an election, the sign that wins where the sum is zero; None: found tensor by tensor.
    """

    limits: tuple[float, ...] | None = None
    majority: int | None = None


Visit = Callable[[Callable[[str, str, Blocks], None]], None]  # calls a function on (module, part, blocks) of a range


def pruned_blocks(
    blocks: Blocks, method: Method, names: Sequence[str], where: tuple[str, str], known: Known, steps: int | None = None
) -> Iterator[list[Tensor]]:
    """The blocks of one part after the first `steps` prunings of the method (None: all). where: module and part."""
    prunings = method.prunings[:steps]
    module, part = where
    draws = []
    for number, step in enumerate(prunings):
        own = part if number == 0 else f"{part}.{number}"
        draws.append([generator_for(method.seed, name, module, own) for name in names] if step.rule == "random" else ())
    for block in blocks:
        xs = block()
        for step, draw in zip(prunings, draws, strict=True):
            xs = PRUNE[step.rule](xs, step, known.limits, draw)
            if step.rescale:
                xs = [x / step.density for x in xs]
        yield xs


def measure(method: Method, names: Sequence[str], visit: Visit) -> Known:
    """Measure a range of tensors for the experts `names`. visit: walks the range, as often as it is called."""
    limits = _measure_limits(method, names, visit) if method.prune.rule == "magnitude" else None
    return Known(limits, majority=1)


def _measure_limits(method: Method, names: Sequence[str], visit: Visit) -> tuple[float, ...]:
    step, before = method.prune, len(method.prunings) - 1
    selectors = [Selector(lambda n: [min(max(threshold_index(n, step.density, step.count), 1), n)]) for _ in names]

    def add(module: str, part: str, blocks: Blocks) -> None:
        for xs in pruned_blocks(blocks, method, names, (module, part), Known(), before):
            for selector, x in zip(selectors, xs, strict=True):
                if not selector.is_done:
                    selector.add(x.abs())

    while not all(selector.is_done for selector in selectors):
        visit(add)
        for selector in selectors:
            selector.end_pass()
    return tuple(_limit(step, selector.n, selector.values[0]) for selector in selectors)


def _limit(step: Prune, n: int, value: float) -> float:
    k = threshold_index(n, step.density, step.count)
    return 0.0 if k < 1 else value if k <= n else float("inf")
