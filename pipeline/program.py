"""Start of an entry point: Hydra composes the command line, and one function gets all points of a sweep at once.

In a sweep (`-m`) Hydra's own launcher only collects the points, so that whatever they share is done once. Another one
(`hydra/launcher=joblib`, `submitit_slurm`) runs each point as a job. Hydra is imported inside the functions: child
processes, which import this for the words of commands, do without it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.words import MULTIRUN, explain_words, format_command, quote_values
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.failures import run_guarded
from robustmerge.stage.files import expand
from robustmerge.stage.process import count_cores
from robustmerge.stage.settings import UserError, suggest
from robustmerge.stage.text import plain, quote

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIGS = REPOSITORY / "configs"
IN_THIS_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"

SHELL_PROGRAMS = (
    "prepare",
    "train_all",
    "merge_eval",
    "reproduce",
)  # each has a script that sets everything up

# Keys of common.yaml that say nothing of the merged model, and those that train_all need not have either.
NOT_OF_MERGING = (
    "source",
    "report",
    "out",
    "limit",
    "ids",
    "protocol",
    "other_protocol",
    "device",
    "paper_table",
    "pdf",
)
NOT_OF_TRAINING = (
    *NOT_OF_MERGING,
    "merge",
    "methods",
    "merge_count",
    "strength_grid",
    "weight_search",
    "search_budget",
)


def run(program: str, main: Callable[[list[dict]], None]) -> None:
    """Compose `configs/<program>.yaml` with the command line and hand all points, as plain mappings, to `main`.

    Ends the process with a status other than 0 where `run_guarded` says so.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us whole; we print them ourselves
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: children end, and what to type is told
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in MULTIRUN)  # Hydra wants it first
    run_guarded(lambda: _compose_and_call(program, main), command(program))


def _compose_and_call(program: str, main: Callable[[list[dict]], None]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    composed: list[tuple[DictConfig, Iterable[str]]] = []
    _register_resolvers()
    _refuse_words(sys.argv[1:])

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=program)
    def collect(config: DictConfig) -> None:
        words = HydraConfig.get().overrides.task
        if HydraConfig.get().launcher._target_ == IN_THIS_PROCESS:
            composed.append((config, words))
        else:  # in a process of the launcher: each point is a job of its own
            sys.argv[1:] = list(words)
            main([{**_as_mapping(config), "overrides": list(words)}])

    typed = sys.argv[1:]
    try:
        sys.argv[1:] = quote_values(typed)
        collect()
        points = [{**_as_mapping(config), "overrides": list(words)} for config, words in composed]
    except Exception as error:  # for a wrong word or file Hydra and OmegaConf let errors of many kinds through
        is_of_hydra = isinstance(error, HydraException)
        is_of_a_job = any(word.startswith("hydra/launcher=") for word in typed) and not is_of_hydra
        is_of_the_disk = isinstance(error, OSError) and not is_of_hydra
        if is_of_a_job or is_of_the_disk or isinstance(error, UserError):
            raise
        raise UserError(_explain_composition(program, error)) from error
    finally:
        sys.argv[1:] = typed
    if points:  # --help and --cfg end before there is one
        main(points)


def _refuse_words(words: Sequence[str]) -> None:
    """Raises UserError for words that no program has a use for, whatever Hydra makes of them."""
    for word in words:
        if plain(word) != word:
            raise UserError(f"the word {quote(word)} holds control characters, or bytes that are not UTF-8")
        if re.fullmatch(r"~[^.]+", word):
            raise UserError(f"{word} would remove a key that is needed; what may be left out is set to null")


def compose(program: str, overrides: list[str]) -> dict:
    """Compose a config as a plain mapping, outside of a Hydra program."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _register_resolvers()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            return _as_mapping(hydra.compose(program, overrides=quote_values(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(str(error)) from error


def _as_mapping(config: DictConfig) -> dict:
    """The resolved config as a plain mapping; `???` stays, to be refused with its key's name."""
    from omegaconf import OmegaConf

    mapping: Any = OmegaConf.to_container(config, resolve=True)
    return mapping


def _register_resolvers() -> None:
    """Register the resolvers of the configs: `${repository:...}`, `${cores:}`, `${groups:}` and `${times:2,3}`."""
    from omegaconf import OmegaConf

    resolvers: dict[str, Callable[..., Any]] = {
        "repository": lambda path: str(REPOSITORY / expand(path)),
        "cores": count_cores,
        "groups": format_groups,
        "times": lambda one, other: one * other,
    }
    for name, resolve in resolvers.items():
        OmegaConf.register_new_resolver(name, resolve, replace=True)


def runs_folder() -> Path:
    """The default folder of results, from configs/paths/default.yaml; a relative path starts at the repository."""
    return REPOSITORY / expand(os.environ.get("ROBUSTMERGE_RUNS", "runs"))


def list_groups() -> list[str]:
    """The config groups: `merge`, `model`, ..."""
    return sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())


def list_options(group: str) -> list[str]:
    """The options of a config group: its files without suffix, but not those that begin with _ (building blocks)."""
    return sorted(file.stem for file in (CONFIGS / group).glob("[!_]*.yaml"))


def format_groups() -> str:
    """Every group with its options, for --help."""
    groups = [*list_groups(), *(f"task/{folder.name}" for folder in (CONFIGS / "task").iterdir() if folder.is_dir())]
    options = {group: list_options(group) for group in sorted(groups)}
    return "".join(f"{group}: {', '.join(names)}\n" for group, names in options.items() if names)


def command(program: str, keep: Callable[[str], bool] = lambda word: True) -> str:
    """The command that runs `program` with the words of this command line, quoted; `keep` leaves words out."""
    words = [word for word in sys.argv[1:] if keep(word.lstrip("+~"))]
    if not any("," in re.sub(r"\[.*?\]|\{.*?\}", "", word) for word in words):  # nothing is swept over any more
        words = [word for word in words if word not in MULTIRUN]
    return format_command([*start_of(program), *words])


def start_of(program: str) -> list[str]:
    """The words that a program's command begins with."""
    return ["bash", f"scripts/{program}.sh"] if program in SHELL_PROGRAMS else ["python", f"scripts/{program}.py"]


def train_all_command() -> str:
    """The command that makes the base and the experts which this command line asks for."""
    return command("train_all", lambda word: _is_common(word) and _topmost_key(word) not in NOT_OF_TRAINING)


def merge_command() -> str:
    """The command that makes the merged models which this command line asks for."""
    return command("merge", lambda word: _is_common(word) and _topmost_key(word) not in NOT_OF_MERGING)


def _is_common(word: str) -> bool:
    """Whether every program has the keys that a word sets; a command for another program must leave out the rest."""
    key, _, value = word.partition("=")
    chosen = [f"experiment={name}" for name in value.split(",")] if key == "experiment" else []
    return _topmost_key(word) in _list_common_keys() and all(_list_keys(choice) <= _list_keys() for choice in chosen)


def _list_common_keys() -> frozenset[str]:
    return frozenset({*_list_keys(), *list_groups(), "task"})


@cache
def _list_keys(*choices: str) -> frozenset[str]:
    return frozenset(compose("merge_eval", list(choices)))


def _topmost_key(word: str) -> str:
    """The topmost key that a word of the command line sets: `merge` of `+merge.prune.density=0.3`."""
    return word.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]


def parse_overrides(words: Iterable[str]) -> dict[str, str]:
    """The words of a command line as keys and values: `+peft.r=8` is `{"peft.r": "8"}`."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    return {key: value for key, _, value in pairs}


def _explain_composition(program: str, error: Exception) -> str:
    """Rephrase Hydra's composition errors, with the choices."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        what = {"merge": "method", "": "config"}.get(group, group)
        options = [option for option in error.options or [] if not option.startswith("_")]
        if group.partition("/")[0] == "task":
            what = f"there is no file configs/{error.missing_cfg_file}.yaml"
            return f"{what}; +task=NAME adds the task of configs/task/NAME.yaml"
        if group.partition("/")[0] == "merge" and name.endswith(".yaml"):
            return "merge= takes a name in configs/merge; a file elsewhere is given as 'methods=[path/to/file.yaml]'"
        return f"unknown {what} '{name}'; {suggest(name, options)}"
    if explained := explain_words(sys.argv[1:]):
        return explained
    key = re.search(r"Could not override '([^']+)'", str(error))
    if isinstance(error, ConfigCompositionException) and key:
        return _explain_key(program, key[1])
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return str(error)
    return f"the configuration cannot be composed of these words and files: {type(error).__name__}: {error}"


def _explain_key(program: str, key: str) -> str:
    """Why a key cannot be set, with the choices."""
    if key == "task":
        return "a task is added with +task=NAME; a subset of the benchmark's tasks is 'tasks=[NAME,NAME]'"
    *parents, last = key.split(".")
    node: Any = _compose_chosen(program)
    for depth, parent in enumerate(parents):
        if parent == "merge" and node.get("merge") is None:
            return f"{key} can be set for one method only: add merge=NAME; {suggest('', list_options('merge'))}"
        if parent in node and not isinstance(node[parent], dict):
            whole = ".".join(parents[: depth + 1])
            return f"{whole} has no keys of its own; give it whole, as '{whole}={{{last}: VALUE}}'"
        if parent not in node:
            last, parents = parent, parents[:depth]
            break
        node = node[parent]
    choices = [name for name in node if parents or name != "hydra"]
    where = f" under {'.'.join(parents)}" if parents else ""
    return f"unknown key '{last}'{where}; {suggest(last, {*choices, *([] if parents else list_groups())})}"


def _compose_chosen(program: str) -> dict:
    """The config with the command line's choices of groups alone (`merge=ties`), the rest left out."""
    groups = set(list_groups())
    chosen = [word for word in sys.argv[1:] if word.partition("=")[0] in groups and "," not in word]
    try:
        return compose(program, chosen)
    except UserError:
        return compose(program, [])
