"""Recipes: a merge in a YAML file.

    experts:                # a list, as on the command line, or a mapping
      vqa: path/to/vqa
      rec: user/repo@v1
    weights: {vqa: 0.5}     # factors of the experts' updates
    method:                 # a name (or the path of a method's file), alone or with what is changed of it
      name: ties
      space: delta
      prune: {density: 0.1}
    out: path/to/merged     # the new folder

Paths start at the current folder, as on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustmerge.graded import Grade
from robustmerge.stage.settings import ConfigError, Problem, build


@dataclass(frozen=True)
class Recipe:
    """A merge as a user describes it.

    experts: as `find_experts` takes them. method: a name or a file; settings: what is changed of it, level by level.
    out: the new folder. base: of a full model. notes: what the user should know of the result. plain_lora: whether the
    recipe holds for plain LoRA alone.
    """

    experts: Mapping[str, str] | tuple[str, ...]
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    out: str | None = None
    base: str | None = None
    notes: tuple[str, ...] = ()
    plain_lora: bool = False


@dataclass(frozen=True)
class RecipeFile:
    """The keys of a recipe."""

    experts: dict[str, str] | tuple[str, ...]
    method: str | dict[str, Any]
    weights: dict[str, Grade] | None = None
    out: str | None = None


def read_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Read the content of a recipe. where: its file, for messages. Raises ConfigError with what is wrong in it."""
    if isinstance(content.get("out"), Mapping):
        text = "out is the new folder, as in `out: path/to/merged`; what is written there is set below the method, as"
        raise ConfigError(Problem(f"{text} `method: {{name: ties, out: {{for: vllm}}}}`", f"{where}.out"))
    file = build(RecipeFile, content, where)
    settings: dict[str, Any] = {"name": file.method} if isinstance(file.method, str) else dict(file.method)
    method = settings.pop("name", None)
    if not isinstance(method, str):
        raise ConfigError(Problem("the method needs its name, as in `method: {name: ties, space: delta}`", where))
    if file.weights is not None:
        if settings.get("weights") is not None:
            text = "weights stand twice, the second time below the method; give them once"
            raise ConfigError(Problem(text, f"{where}.weights"))
        settings["weights"] = file.weights
    return Recipe(file.experts, method, settings, file.out)
