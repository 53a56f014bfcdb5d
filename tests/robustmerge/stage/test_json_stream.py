"""Large JSON files, element by element: the same values as at once, and the same faults refused. Needs nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustmerge.stage import json_stream
from robustmerge.stage.json_stream import iterate_members, iterate_records
from robustmerge.stage.settings import UserError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8)


@pytest.fixture
def by_bytes(monkeypatch):
    """The window grows by as few bytes as possible, so that every value lies across its end."""
    monkeypatch.setattr(json_stream, "CHUNK", 1)


@settings(max_examples=60, deadline=None)
@given(elements=st.lists(values), indent=st.sampled_from([None, 0, 2]), escaped=st.booleans(), chunk=st.integers(1, 40))
def test_the_elements_of_a_list_are_those_of_the_whole(tmp_path_factory, elements, indent, escaped, chunk):
    path = tmp_path_factory.mktemp("json") / "list.json"
    path.write_text(json.dumps(elements, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        read = list(iterate_records(path, "a list"))
    assert [one.value for one in read] == elements
    assert [one.place for one in read] == [f"record {number}" for number in range(1, len(elements) + 1)]


@settings(max_examples=60, deadline=None)
@given(content=st.dictionaries(texts, values))
def test_the_members_of_an_object_are_its_values_and_the_elements_of_its_lists(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "object.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    read = list(iterate_members(path, "an object"))
    flat = [(key, one) for key, value in content.items() for one in (value if isinstance(value, list) else [value])]
    assert [(one.key, one.value) for one in read] == flat


@given(rows=st.lists(st.dictionaries(texts, scalars), min_size=2))
def test_lines_are_records_whatever_the_file_is_called(tmp_path_factory, rows):
    for name in ("rows.jsonl", "rows.json"):
        path = tmp_path_factory.mktemp("json") / name
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
        assert [one.value for one in iterate_records(path, "rows")] == rows


def test_one_object_is_one_record_also_over_several_lines(tmp_path):
    (tmp_path / "one.json").write_text('{\n "a": 1\n}\n')
    assert [one.value for one in iterate_records(tmp_path / "one.json", "rows")] == [{"a": 1}]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert [one.value for one in iterate_records(tmp_path / "a.json", "rows")] == [1]


@pytest.mark.usefixtures("by_bytes")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1},\n {"a": 2,}]', r"record 2, is not valid JSON.*\(line 2\)"),
        ('[{"a": 1}, {"a": 1, "a": 2}]', "record 2, .*the key 'a' occurs twice"),
        ('[{"a": 1}', "it ends where ',' should come"),
        ('[{"a": 1}] [2]', "Extra data"),
        ("[1 2]", "expected ',', got '2'"),
        ("[" + "[" * 200 + "]" * 200 + "]", "record 1, .*nested"),
        ('["\\ud800"]', "half of a surrogate pair"),
        (f"[{'1' * 5000}]", "a number of thousands of digits|Exceeds the limit"),
        ("nothing", "line 1 is not valid JSON"),
    ],
)
def test_what_is_no_json_is_named_with_its_place_after_what_came_before(tmp_path, text, problem):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=rf"bad\.json(?s:.*)({problem})"):
        list(iterate_records(tmp_path / "bad.json", "rows"))


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[1]", '{"a"', '{"a": 1}}', "{1: 2}", "{[1]: 2}"])
def test_an_object_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=r"bad\.json.* is not valid JSON"):
        list(iterate_members(tmp_path / "bad.json", "an object"))


def test_an_element_that_is_too_large_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 8)
    monkeypatch.setattr(json_stream, "LARGEST_ELEMENT", 32)
    (tmp_path / "bad.json").write_text(json.dumps(["a", "b" * 100]))
    with pytest.raises(UserError, match=r"bad\.json, record 2, .*: no value ends within 32 characters"):
        list(iterate_records(tmp_path / "bad.json", "rows"))


@pytest.mark.parametrize("read", [iterate_records, iterate_members])
@pytest.mark.parametrize("content", [b'["\xff"]', b'{"a": "\xff"}', b'{"a": 1}\n{"a": "\xff"}'])
def test_bytes_that_are_no_text_are_refused(tmp_path, read, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.json.*(is not UTF-8|is not valid JSON)"):
        list(read(tmp_path / "bad.json", "rows"))
