"""Words of a command line: paths and texts in one layer of shell quotes, whatever characters they hold.

Hydra has a grammar of its own for values, in which `lr=2e-4`, `x[1]` or `été` is an error, `a,b` a sweep and `100` a
number. Keys that hold paths or a text are therefore quoted here before Hydra reads them: where something of that name
is there, or Hydra would not read the value as text.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from robustmerge.stage.text import plain

TEXT_KEYS = re.compile(
    r"out|source|folder|image|question|base|like|vision_tower|include|environment|model\.checkpoint|merge\.out\.base"
    r"|paths\.\w+|benchmark\.released\.\w+|task\.\w+\.data\.(train|val|test|images)"
)
LIST_KEYS = re.compile(r"experts|adapters|sources|merged|methods")  # of paths or names, each perhaps as NAME:PATH
MULTIRUN = ("-m", "--multirun")
_WORD = re.compile(r"(\+{0,2}([\w.]+)=)(.*)", re.DOTALL)
_MOST_COMMAS = 20  # in a path within a list


def quote_values(words: Sequence[str]) -> list[str]:
    """Quote for Hydra the values of a command line that are paths or texts, where Hydra would read something else."""
    is_sweep = any(word in MULTIRUN for word in words)
    return [_quote_value(word, is_sweep) for word in words]


def _quote_value(word: str, is_sweep: bool) -> str:
    match = _WORD.fullmatch(word)
    if match is None:
        return word
    start, key, value = match.groups()
    if LIST_KEYS.fullmatch(key) and (_exists(value) or not _is_cut(value)):
        is_list = value.startswith("[") and value.endswith("]") and not _is_sweep(value)
        return start + (f"[{_quote_items(value[1:-1])}]" if is_list else _quote_text(value, _is_place(value), True))
    return start + _quote_text(value, _exists(value), is_sweep) if TEXT_KEYS.fullmatch(key) else word


def _quote_text(text: str, is_there: bool, is_sweep: bool = False) -> str:
    """Quote a value unless Hydra reads it as that text anyway; the name of something that exists is no sweep."""
    parsed = _parse(text)
    if parsed is not None and parsed.is_sweep_override():
        return text if is_sweep and not is_there else quote(text)
    value = None if parsed is None else parsed.value()
    if is_there:
        is_plain = value == text and "${" not in text and "\\" not in text
        return text if is_plain else quote(_escape_interpolation(text))
    is_text = isinstance(value, str) or value is None
    return text if parsed is not None and is_text else quote(text)


def _quote_items(text: str) -> str:
    return ",".join(map(_quote_item, _split(text)))


def _quote_item(item: str) -> str:
    """Quote an item of a list, without the spaces around it, which Hydra leaves out."""
    name = item if _exists(item) else item.strip()
    quoted = _quote_text(name, _is_place(name))
    return item if quoted == name else quoted


def _split(text: str) -> list[str]:
    """Split the items of a list at its commas, but for those within quotes or in the name of something that exists."""
    parts, items = text.split(","), []
    while parts:
        count = next(n for n in range(min(len(parts), _MOST_COMMAS), 0, -1) if n == 1 or _is_one(parts[:n]))
        items.append(",".join(parts[:count]))
        parts = parts[count:]
    return items


def _is_one(parts: Sequence[str]) -> bool:
    item = ",".join(parts).strip()
    if item[0] in "'\"" and item[-1] == item[0]:
        parsed = _parse(item)
        return parsed is not None and isinstance(parsed.value(), str)
    return _is_place(item) and not all(map(_is_place, parts))


def _is_place(item: str) -> bool:
    """Whether an item of a list is a path that exists, or NAME:PATH of one."""
    return _exists(item.strip()) or _exists(item.strip().partition(":")[2])


def _exists(text: str) -> bool:
    return bool(text) and os.path.exists(os.path.expanduser(text))


def _is_sweep(value: str) -> bool:
    parsed = _parse(value)
    return parsed is not None and parsed.is_sweep_override()


def _parse(value: str) -> Any:
    """Hydra's reading of a value; None for what its grammar has no place for."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, RecursionError, ValueError):  # ValueError: a number of thousands of digits
        return None


def explain_words(words: Sequence[str]) -> str | None:
    """Why Hydra cannot read one of the words, with what to type instead; None if it can read them all."""
    is_sweep = any(word in MULTIRUN for word in words)
    quoted = quote_values(words)
    for place, (word, read) in enumerate(zip(words, quoted, strict=True)):
        key, equals, value = read.partition("=")
        if read.startswith(("-", "~")):
            continue
        if not equals:
            return f"'{word}' is no override, which is KEY=VALUE; one with spaces needs quotes, as 'KEY=A B'"
        parsed = _parse(value)
        if parsed is None and _is_cut(value):
            return f"a list with spaces needs quotes: {format_command([_join_cut(words[place:])])}"
        if parsed is None:
            return f"cannot read '{word}': {_suggest(key, value)}"
        if parsed.is_sweep_override() and not is_sweep:
            a_list = format_command([f"{key}=[{value}]"])
            return f"'{word}' is a sweep, which needs -m; a list is typed as {a_list}; {_suggest(key, value)}"
    return None


def _suggest(key: str, value: str) -> str:
    """What to type for a value that is a text, or a list of texts."""
    if value.startswith("{"):
        return "names in braces are made of letters, digits and _; an expert gets one by 'experts=[NAME:FOLDER]'"
    fixed = quote(value)
    if value.startswith("[") and value.endswith("]"):
        fixed = "[" + ",".join(item if _parse(item) else quote(item.strip()) for item in _split(value[1:-1])) + "]"
    return f"a text with such characters is quoted twice: {format_command([f'{key}={fixed}'])}"


def _is_cut(value: str) -> bool:
    return any(value.startswith(start) and not value.endswith(end) for start, end in ("[]", "{}"))


def _join_cut(words: Sequence[str]) -> str:
    """The word that a shell has cut at its spaces; one that lacks its closing bracket gets one."""
    end = {"[": "]", "{": "}"}[words[0].partition("=")[2][0]]
    last = next((n for n, word in enumerate(words) if word.endswith(end)), None)
    return words[0] + end if last is None else " ".join(words[: last + 1])


def quote(text: str) -> str:
    """Quote a text for Hydra.

    >>> print(quote("a,b"), quote('5"'))
    "a,b" "5\\""
    """
    body = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return '"' + re.sub(r"(\\+)\Z", r"\1\1", body) + '"'


def _escape_interpolation(text: str) -> str:
    """Escape every `${`, so that OmegaConf turns the result back into this text."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def format_command(words: Iterable[str]) -> str:
    r"""Format a command as it can be typed in a shell.

    >>> print(format_command(["merge.py", "out=a b", "source=\x1b[2J"]))
    merge.py 'out=a b' $'source=\x1b[2J'
    """
    return " ".join(map(_quote_for_shell, words))


def _quote_for_shell(word: str) -> str:
    if plain(word) == word and "\n" not in word:
        return shlex.quote(word)
    escaped = "".join(
        f"\\x{byte:02x}" if byte < 32 or byte > 126 else f"\\{chr(byte)}" if chr(byte) in "\\'" else chr(byte)
        for byte in os.fsencode(word)
    )
    return f"$'{escaped}'"
