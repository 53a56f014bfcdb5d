"""Methods outside the algebra: a function that a config names, and what it collects over the whole model before."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import truncate
from robustmerge.method import OutsideMethod
from robustmerge.module import Merged, Module
from robustmerge.stage.settings import UserError


def collect(method: OutsideMethod, modules: Iterable[tuple[str, Sequence[LoraPair]]]) -> dict[str, Any]:
    """What `merge` is told besides the params: nothing, or `collected`, made of every module."""
    if method.collect is None:
        return {}
    with _noting(method.collect):
        return {"collected": find_function(method.collect, "collect")(modules, **method.params)}


def merge_outside(module: Module, told: dict[str, Any]) -> Merged:
    """Merge one module with the method's function.

    Raises UserError if it does not have these settings, or returns no update of the module's shape.
    """
    method: OutsideMethod = module.method
    function = find_function(method.target, "_target_")
    try:
        inspect.signature(function).bind(module.pairs, **method.params, **told)
    except TypeError as error:
        settings = ", ".join(list(inspect.signature(function).parameters)[1:])
        raise UserError(f"{method.target}: {error}; it takes {settings} (merge.params)") from error
    with _noting(f"{method.target}, module '{module.name}'"):
        update = function(module.pairs, **method.params, **told)
    shape = (module.pairs[0].B.shape[0], module.pairs[0].A.shape[1])
    if isinstance(update, LoraPair) and (update.B.shape[0], update.A.shape[1]) == shape:
        return Merged(truncate(update, module.rank))
    if isinstance(update, Tensor) and update.shape == shape:
        return Merged(truncate(update, module.rank))
    found = type(update).__name__ + (f" {list(update.shape)}" if isinstance(update, Tensor) else "")
    raise UserError(
        f"module '{module.name}': {method.target} returned {found}; it must return a LoraPair or a Tensor of shape "
        f"{list(shape)}"
    )


@contextlib.contextmanager
def _noting(where: str) -> Iterator[None]:
    """Put a note on the errors of a function of the user's, whose traceback is kept."""
    try:
        yield
    except UserError:  # one message, without a traceback
        raise
    except Exception as error:
        error.add_note(f"raised in the method's function {where}")
        raise


def find_function(target: str, key: str) -> Callable[..., Any]:
    """The function of that dotted path. Raises UserError if its module has none of that name."""
    module, _, name = target.rpartition(".")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise UserError(f"module '{module}' has no function '{name}' (merge.{key})")
    return function
