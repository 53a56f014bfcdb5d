"""The identity of a function: a digest of all source that it computes with, but for comments and docstrings.

That text is the function and, transitively, every definition (function, class, constant) of its top-level package that
it names. Docstrings, comments, blank lines and what is raised compute nothing and do not count; nor do definitions that
only annotations name, nor the file that one stands in. Files are read, not imported, so that planning takes a moment.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from robustmerge.stage.settings import Problem, refuse, suggest

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def digest_functions(targets: Mapping[str, str | None]) -> str:
    """Digest all source that the functions compute with (sha256); the same in every version of Python.

    targets: key of the setting -> dotted path, or None. Raises ConfigError naming every function that is not there.
    """
    texts: dict[tuple[Path, str], set[str]] = {}
    problems: list[Problem] = []
    for key, target in targets.items():
        if target is None:
            continue
        try:
            source, name = _open_target(target)
            _gather(source, name, texts)
        except (ImportError, ValueError, AttributeError, SyntaxError) as error:
            text = "Give the dotted path of a function in robustmerge or in a module that Python can import, as in"
            problems.append(Problem(f"cannot find '{target}': {error}. {text} my_methods.merge", key))
            continue
        if not {name, "*", "__getattr__"} & {*source.definitions, *source.imports}:
            functions = [name for name, nodes in source.definitions.items() if isinstance(nodes[0], DEFINITIONS[:2])]
            module = target.rpartition(".")[0]
            problems.append(Problem(f"module '{module}' has no function '{name}'; {suggest(name, functions)}", key))
    refuse(problems)
    return hashlib.sha256("\n\n".join(sorted(set().union(*texts.values()))).encode()).hexdigest()


def _open_target(target: str) -> tuple[Source, str]:
    module, _, name = target.rpartition(".")
    if not module or not name:
        raise ValueError("it names no function of a module")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ImportError(f"there is no module '{module}'")
    file = Path(spec.origin)
    if file.suffix != ".py":
        raise ImportError(f"the source of '{module}' is not there to be read, only {file.name}")
    return _open(file, file.parents[module.count(".") + (file.name == "__init__.py")]), name


def _gather(source: Source, name: str, texts: dict[tuple[Path, str], set[str]]) -> None:
    """Gather the text of a name's definition in a module, and of every definition that it uses.

    What is imported from another package is told by where it is imported from.
    """
    seen: set[tuple[Path, tuple[str, ...]]] = set()
    waiting = [(source, [name])]
    while waiting:
        source, path = waiting.pop()
        root, *rest = path
        if (source.file, tuple(path)) in seen:  # modules may import from each other in a circle
            continue
        seen.add((source.file, tuple(path)))
        if root in source.definitions:
            if (source.file, root) not in texts:
                texts[source.file, root] = {source.text_of(statement) for statement in source.definitions[root]}
                waiting += [(source, other) for node in source.definitions[root] for other in _names_in(node)]
        elif root in source.imports:
            parts = [*source.imports[root].split("."), *rest]
            modules = ((source.open_module(".".join(parts[:cut])), cut) for cut in range(len(parts) - 1, 0, -1))
            module, cut = next((pair for pair in modules if pair[0] is not None), (None, 0))
            if module is None:
                texts[source.file, root] = {f"{root} = {source.imports[root]}"}
            else:
                waiting.append((module, parts[cut:]))


@dataclass(frozen=True)
class Source:
    """The source text of one module. root: the folder that holds its top-level package, or the module itself."""

    file: Path
    root: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.file))

    @cached_property
    def definitions(self) -> dict[str, list[ast.stmt]]:
        """Name -> the module-level statements that bind it, or may change its value."""
        statements: dict[str, list[ast.stmt]] = {}
        for statement in self.tree.body:
            for name in _names_bound(statement):
                statements.setdefault(name, []).append(statement)
        return statements

    @cached_property
    def imports(self) -> dict[str, str]:
        """Name -> the dotted path of what is imported under it, anywhere in the module; `*` where that is unknown."""
        paths: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    paths |= {alias.asname: alias.name} if alias.asname else {top: top}
            elif isinstance(node, ast.ImportFrom):
                folder = self.file.parents[node.level - 1].relative_to(self.root).parts if node.level else ()
                origin = ".".join([*folder, *([node.module] if node.module else [])])
                names = {alias.asname or alias.name: alias.name for alias in node.names}
                if "*" in names and (module := self.open_module(origin)):
                    names = {name: name for name in (*module.definitions, *module.imports)}
                paths |= {name: f"{origin}.{attribute}" for name, attribute in names.items()}
        return paths

    def open_module(self, name: str) -> Source | None:
        """A module of the same top-level package; None where it is of another, or no module."""
        package = self.file.relative_to(self.root).with_suffix("").parts[0]
        place = self.root.joinpath(*name.split("."))
        files = [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
        return _open(files[0], self.root) if files and name.partition(".")[0] == package else None

    def text_of(self, statement: ast.stmt) -> str:
        """The lines of a module-level statement, without those that compute nothing."""
        first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
        return "\n".join(filter(None, self._lines[first - 1 : statement.end_lineno]))

    @cached_property
    def _lines(self) -> list[str | None]:
        """The lines of the file; None for one that computes nothing."""
        lines: list[str | None] = list(self.text.split("\n"))
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            row, column = token.start[0] - 1, token.start[1]
            if token.type in (tokenize.COMMENT, tokenize.NL):  # NL: a blank line, among others
                lines[row] = (lines[row] or "")[:column].rstrip() or None
        for node in ast.walk(self.tree):
            if isinstance(node, ast.stmt) and _computes_nothing(node):
                first, last = node.lineno - 1, node.end_lineno or node.lineno
                if not (lines[first] or "")[: node.col_offset].strip():  # it begins its line
                    lines[first:last] = [None] * (last - first)
        return lines


def _open(file: Path, root: Path) -> Source:
    with tokenize.open(file) as opened:
        return _parsed(file, root, opened.read())


_parsed = lru_cache(maxsize=128)(Source)  # methods are built many times, each file is parsed once


def _names_bound(statement: ast.stmt) -> set[str]:
    """What a module-level statement binds; where that is nothing, as in `register(f)`, what it may change."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return set()
    if isinstance(statement, DEFINITIONS):
        return {statement.name}
    nodes = list(ast.walk(statement))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.name for node in nodes if isinstance(node, DEFINITIONS)}
    return names or {node.id for node in nodes if isinstance(node, ast.Name)}


def _names_in(node: ast.AST) -> Iterator[list[str]]:
    """The names that code uses (`a.b.c` as its parts), except in annotations and in what is raised."""
    parts: list[str] = []
    inner = node
    while isinstance(inner, ast.Attribute):
        parts.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        yield [inner.id, *parts]
    elif not isinstance(node, ast.Raise):
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                    yield from _names_in(child)


def _computes_nothing(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, or any other string that stands by itself, or raises an error."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    return isinstance(statement, ast.Raise)
