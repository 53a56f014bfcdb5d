"""Functions that a config names, as their source tells of them: where they are, and which settings they take.

They are read, not imported, so that a whole run is checked in a moment and before any of it is made.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robustmerge.stage.settings import Problem, suggest


def read_functions(targets: Mapping[str, str | None], params: Mapping[str, Any]) -> tuple[str, list[Problem]]:
    """The sha256 of the files that hold the functions, and all that is wrong with them and their settings.

    targets: key -> dotted path, `_target_` and, or None, `collect`, whose result the other is given as `collected`.
    """
    digests: list[str] = []
    problems: list[Problem] = []
    for key, target in targets.items():
        if target is None:
            continue
        try:
            file = _file_of(target)
            tree = ast.parse(file.read_bytes()) if file.suffix == ".py" else None
        except (ImportError, ValueError, AttributeError, SyntaxError) as error:
            problems.append(
                Problem(
                    f"cannot find '{target}': {error}. Give the dotted path of a function in robustmerge or in a "
                    "module that Python can import, as in my_methods.merge",
                    key,
                )
            )
            continue
        digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
        told = {"collected"} if key == "_target_" and targets.get("collect") else set()
        problems += _problems_of(tree, target, key, params, told) if tree else []
    return "+".join(dict.fromkeys(digests)), list(dict.fromkeys(problems))


def _file_of(target: str) -> Path:
    module, _, function = target.rpartition(".")
    if not module or not function:
        raise ValueError("it names no function of a module")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ImportError(f"there is no module '{module}'")
    return Path(spec.origin)


def _problems_of(
    tree: ast.Module, target: str, key: str, params: Mapping[str, Any], told: set[str]
) -> Iterator[Problem]:
    """What is wrong with a function's name and with its settings, as far as the source says it.

    Only a plain function tells its settings; what is decorated, assigned or imported is seen when it is called.
    """
    module, _, name = target.rpartition(".")
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    bound = Counter(map(_bound_by, ast.walk(tree)))
    if name not in functions:
        if not bound.keys() & {name, "*", "__getattr__"}:
            yield Problem(f"module '{module}' has no function '{name}'; {suggest(name, functions)}", key)
        return
    if bound[name] > 1 or functions[name].decorator_list:
        return
    takes, needs = _settings_of(functions[name].args)
    if functions[name].args.kwarg is None:
        for given in (given for given in params if given not in takes):
            choices = [setting for setting in takes if setting not in told]
            yield Problem(f"unknown key '{given}' of {target}; {suggest(given, choices)}", f"params.{given}")
        for given in told - set(takes):
            yield Problem(f"{target} must take '{given}', which it is given where there is a collect", "collect")
    for needed in (needed for needed in needs if needed not in params and needed not in told):
        yield Problem(f"missing value, which {target} needs", f"params.{needed}")


def _bound_by(node: ast.AST) -> str | None:
    """The name that a node gives to something, wherever in the file."""
    if isinstance(node, ast.Name):
        return node.id if isinstance(node.ctx, ast.Store) else None
    if isinstance(node, ast.alias):
        return node.asname or node.name
    return node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else None


def _settings_of(arguments: ast.arguments) -> tuple[list[str], list[str]]:
    """The names that a function takes after its first argument, and those of them that have no default."""
    by_place = [*arguments.posonlyargs, *arguments.args]
    without = by_place[1 : len(by_place) - len(arguments.defaults)]
    takes = [a.arg for a in by_place[1:] if a not in arguments.posonlyargs]
    needs = [a.arg for a in without]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        takes.append(argument.arg)
        needs += [] if default else [argument.arg]
    return takes, needs
