"""Text and files from elsewhere: what is not understood is refused in one message that any terminal can show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robustmerge.stage.files import check_file_name, parse_json, read_json, require_file
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import MESSAGE, format_message, plain


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[" * 100_000, "nested deeper"),
        ("[" * 150 + "]" * 150, "nested deeper"),
        ("1" * 5000, "thousands of digits"),
        (r'{"a": "\ud800"}', "surrogate"),
        ("{", "Expecting"),
    ],
)
def test_json_that_cannot_be_used_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_whole_surrogate_pairs_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "a.json", "a config") == {"a": "\N{GRINNING FACE}"}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "a\\b", "..", "", "a\0b", "a\nb", "x" * 300, 5, None, ["x"]])
def test_only_a_plain_file_name_names_a_file(name: object) -> None:
    with pytest.raises(UserError, match="the name of a file beside it"):
        check_file_name(name, "index.json: weight_map")


def test_whatever_is_no_file_is_named_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for path, kind in {
        tmp_path: "is a folder",
        tmp_path / "pipe": "is a named pipe",
        tmp_path / "link": "link to nowhere",
        tmp_path / "pointer": "git lfs pull",
        Path("/dev/zero"): "is a device",
        tmp_path / ("x" * 300): "too long",
        tmp_path / "none": "does not exist",
    }.items():
        with pytest.raises(UserError, match=kind):
            require_file(path, "a config")


def test_no_message_obeys_or_floods_a_terminal() -> None:
    hostile = "\x1b[2J\x1b[1;1H all good \x07\u202e" + "\ud800" + "x" * 10**6 + "\n" + "line\n" * 10**5 + "what to do"
    message = str(UserError(hostile))
    assert len(message.encode()) <= MESSAGE and message.endswith("\nwhat to do") and message.startswith(r"\x1b[2J")
    assert plain(message) == message == format_message(message)
