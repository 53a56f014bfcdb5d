"""Methods outside the algebra: calls of the function that a config names, and of its collecting function before it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

from torch import Tensor

from robustmerge.formats.adapter import LoraPair
from robustmerge.method import FunctionMethod
from robustmerge.module import Module
from robustmerge.stage.settings import UserError, convert_each


def collect_over_model(method: FunctionMethod, modules: Iterable[tuple[str, Sequence[LoraPair]]]) -> Any:
    """Call the method's `collect` on (name, pairs) of all modules and return its result; None if it has none.

    Raises UserError, before any module is read, if a function of the method does not take what it is given.
    """
    _read_params(method, method.target, "_target_", [] if method.collect is None else ["collected"])
    if method.collect is None:
        return None
    params = _read_params(method, method.collect, "collect")
    with _note_on_errors(method.collect):
        return find_function(method.collect, "collect")(modules, **params)


def merge_by_function(module: Module, method: FunctionMethod, collected: Any) -> LoraPair | Tensor:
    """Merge one module with the method's function. Raises UserError if it returns no update of the module's shape."""
    function = find_function(method.target, "_target_")
    _refuse_edited(function, method)
    others = {} if method.collect is None else {"collected": collected}
    params = _read_params(method, method.target, "_target_", others)
    with _note_on_errors(f"{method.target}, module '{module.name}'"):
        update = function(module.pairs, **params, **others)
    if isinstance(update, LoraPair) and (update.B.shape[0], update.A.shape[1]) == module.shape:
        return update
    if isinstance(update, Tensor) and update.shape == module.shape:
        return update
    returned = type(update).__name__ + (f" {list(update.shape)}" if isinstance(update, Tensor) else "")
    raise UserError(
        f"module '{module.name}': {method.target} returned {returned}; it must return a LoraPair or a Tensor of shape "
        f"{list(module.shape)}"
    )


_sources: WeakKeyDictionary[Callable[..., Any], dict[str | None, str]] = WeakKeyDictionary()


def _refuse_edited(function: Callable[..., Any], method: FunctionMethod) -> None:
    """Raises UserError if the source that identifies the method is no longer that of the imported function."""
    if _sources.setdefault(function, {}).setdefault(method.collect, method.source) != method.source:
        raise UserError(
            f"{method.target} was edited after this process imported it, and would run as it was before: start a new "
            "process, or restart the notebook's kernel"
        )


def warn_by_function(method: FunctionMethod, ranks: Mapping[str, Sequence[int]]) -> list[str]:
    """Call `find_warnings(ranks, **params)` in the module of the method's function, if it is there, for its warnings.

    It is not part of the method's identity. ranks: module -> the ranks of the experts that adapt it.
    """
    find_warnings = getattr(importlib.import_module(method.target.rpartition(".")[0]), "find_warnings", None)
    return [] if find_warnings is None else find_warnings(ranks, **method.params)


def find_function(target: str, key: str) -> Callable[..., Any]:
    """Import the function of a dotted path. Raises UserError if its module has no such function."""
    module, _, name = target.rpartition(".")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise UserError(f"module '{module}' has no function '{name}' (merge.{key})")
    return function


def _read_params(method: FunctionMethod, target: str, key: str, others: Iterable[str] = ()) -> dict[str, Any]:
    """The method's params as a function takes them: 16.0 is 16 for one annotated as a whole number.

    A parameter that is annotated with plain types (numbers, texts, booleans, None) takes these alone.
    Raises UserError if the function does not take them, and the other arguments by name.
    """
    function = find_function(target, key)
    signature = inspect.signature(function)
    try:
        signature.bind(None, **method.params, **dict.fromkeys(others))
    except TypeError as error:
        names = ", ".join(list(signature.parameters)[1:])
        raise UserError(f"{target}: {error}; after its first argument it takes {names} (merge.params)") from error
    annotated: dict[str, Any] = {}
    with contextlib.suppress(NameError, AttributeError, TypeError):  # annotations that cannot be read say nothing
        annotated = get_type_hints(function)
    plain = {name: kind for name, kind in annotated.items() if name in method.params and _is_plain(kind)}
    return convert_each(plain, method.params, "merge.params")


def _is_plain(kind: Any) -> bool:
    """Whether an annotation is a plain type, or a union of such."""
    if isinstance(kind, types.UnionType) or get_origin(kind) is Union:
        return all(map(_is_plain, get_args(kind)))
    return kind in (bool, int, float, str, type(None))


@contextlib.contextmanager
def _note_on_errors(where: str) -> Iterator[None]:
    """Context manager: add a note to errors of the user's function, keeping their traceback."""
    try:
        yield
    except UserError:  # one message, without a traceback
        raise
    except Exception as error:
        error.add_note(f"raised in the method's function {where}")
        raise
