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
    """What `merge` is given besides the params: nothing, or `collected`, made of every module.

    Raises UserError, before any module is read, if the functions do not take what they are given.
    """
    _check_call(method.target, "_target_", method, ["collected"] if method.collect else [])
    if method.collect is None:
        return {}
    _check_call(method.collect, "collect", method, [])
    with _noting(method.collect):
        return {"collected": find_function(method.collect, "collect")(modules, **method.params)}


def merge_outside(module: Module, told: dict[str, Any]) -> Merged:
    """Merge one module with the method's function.

    Raises UserError if it returns no update of the module's shape.
    """
    method: OutsideMethod = module.method
    function = find_function(method.target, "_target_")
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


def _check_call(target: str, key: str, method: OutsideMethod, others: Sequence[str]) -> None:
    """Raises UserError if a function does not take the params of the method, and the other arguments by name."""
    signature = inspect.signature(find_function(target, key))
    try:
        signature.bind(None, **method.params, **dict.fromkeys(others))
    except TypeError as error:
        names = ", ".join(list(signature.parameters)[1:])
        raise UserError(f"{target}: {error}; after its first argument it takes {names} (merge.params)") from error


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
