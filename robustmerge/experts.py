"""The experts that a user names: where each is, under which name. No torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from robustmerge.formats.adapter_config import require_adapter
from robustmerge.hub.pins import Repository
from robustmerge.hub.places import fetch_adapter, find_place, name_of, split_name
from robustmerge.stage.settings import Problem, UserError, refuse


def find_experts(experts: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path | Repository]:
    """Find each expert, a local folder or a repository of the Hub, by its name.

    experts: by name, or a list of `PLACE` and `NAME:PLACE`; a bare place has the name of its folder or repository.
    Raises ConfigError with all problems at once: two of one name, no such place, a folder without an adapter.
    """
    named = list(experts.items()) if isinstance(experts, Mapping) else [_split(entry) for entry in experts]
    places: dict[str, Path | Repository] = {}
    problems: list[Problem] = []
    texts: dict[str, str | Path] = {}
    for name, text in named:
        if name in texts:
            both = f"{texts[name]} and {text}"
            problems.append(Problem(f"two experts are called '{name}', {both}; name them as name:folder", "experts"))
            continue
        texts[name] = text
        try:
            places[name] = place = find_place(text)
            if isinstance(place, Path):
                require_adapter(place)
        except UserError as error:
            problems.append(Problem(f"expert '{name}': {error}", "experts"))
    refuse(problems)
    return places


def fetch_experts(experts: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    """Fetch what `find_experts` finds, and return the folders by name; nothing is fetched if any is refused."""
    return {name: fetch_adapter(place) for name, place in find_experts(experts).items()}


def _split(entry: str | Path) -> tuple[str, str]:
    name, place = split_name(str(entry))
    return name or name_of(place), place
