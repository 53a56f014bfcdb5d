"""Whatever a file from elsewhere holds: the right result, or one message and nothing written.

Seeded mutations of good files. A result that is accepted must load where it belongs and equal an independent reading
of the mutated files, which shares no code with ours.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.prepare import prepare
from data_prep.settings import TaskData
from eval.score import score
from eval.settings import Scoring
from robustmerge.merging import merge_folders
from robustmerge.method import read_method
from robustmerge.stage.address import address_file, address_folder
from robustmerge.stage.failures import run_guarded
from robustmerge.stage.records import read_examples, read_predictions, read_score
from tests.merge_cases import QUIET, Tiny, save_expert
from tests.mutations import mutate_json, mutate_tensors

pytestmark = pytest.mark.filterwarnings("ignore")
SECONDS = 10
MESSAGE_BYTES = 2000
METHOD = read_method("average", space="delta")
Outcome = tuple[bool, str]  # whether it was accepted, and what was printed on standard error


@pytest.fixture
def attempt(capsys: pytest.CaptureFixture[str]) -> Callable[[Callable[[], Any]], Outcome]:
    """Run an action as an entry point does. Anything but an end with status 0 or 2 in time is an error."""

    def run(action: Callable[[], Any]) -> Outcome:
        status: Any = 0
        with _limit_time():
            try:
                run_guarded(lambda: action() and None, "again")
            except SystemExit as end:
                status = end.code
        message = capsys.readouterr().err
        assert status in (0, 2), f"status {status}"
        if status == 2:
            assert message.startswith("error: ") and "Traceback" not in message, message[:500]
            assert len(message.encode()) < MESSAGE_BYTES, f"a message of {len(message.encode())} bytes"
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", message), message
        return status == 0, message

    return run


@contextmanager
def _limit_time() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _try_all(number: int, name: str, one: Callable[[Random], tuple[str, Callable[[], bool]]]) -> int:
    """Try `number` mutations; `one` mutates and returns what it did and a check. Returns how many were accepted."""
    failures, accepted = [], 0
    for seed in range(number):
        done, check = one(Random(f"{name}/{seed}"))
        try:
            accepted += check()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures.append(f"seed {seed}, {done}: {type(error).__name__}: {str(error)[:300]}")
    assert not failures, f"{len(failures)} of {number} mutations:\n" + "\n".join(failures[:20])
    return accepted


# --- adapters and bases ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good experts `a`, `b` and their base in two parts with an index."""
    folder = tmp_path_factory.mktemp("good")
    for seed, name in enumerate("ab"):
        more = {"rank_pattern": {"layers.1.v": 2}, "alpha_pattern": {"layers.0.q": 5}, "use_rslora": bool(seed)}
        save_expert(folder / name, seed, modules_to_save=["projector"], **more)
    weights = {name: x.contiguous() for name, x in Tiny().state_dict().items()}
    where = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights)}
    (folder / "base").mkdir()
    for file in set(where.values()):
        save_file({n: x for n, x in weights.items() if where[n] == file}, folder / "base" / file, {"format": "pt"})
    (folder / "base/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "base/config.json").write_text(json.dumps({"model_type": "tiny", "tie_word_embeddings": False}))
    return folder


def test_a_merge_of_a_mutated_adapter_is_right_or_refused_with_nothing_written(experts, tmp_path, attempt):
    def one(draw: Random) -> tuple[str, Callable[[], bool]]:
        folder = _copy(experts, tmp_path / "case")
        where = folder / "a"
        if draw.random() < 0.5:
            done = mutate_tensors(where / "adapter_model.safetensors", draw)
        else:
            done = mutate_json(where / "adapter_config.json", draw)

        def check() -> bool:
            chosen = {name: folder / name for name in "ab"}
            accepted, _ = attempt(lambda: merge_folders(chosen, METHOD, folder / "out", **QUIET))
            if accepted:
                _assert_equal(_load_with_peft(folder / "out"), _merge_independently(list(chosen.values())))
            else:
                _assert_nothing_written(folder, {"a", "b", "base"})
            return accepted

        return done, check

    accepted = _try_all(240, "adapter", one)
    assert 30 < accepted < 200  # both kinds occur


def test_a_full_model_on_a_mutated_base_is_right_or_refused_and_no_file_outside_changes(experts, tmp_path, attempt):
    def one(draw: Random) -> tuple[str, Callable[[], bool]]:
        folder = _copy(experts, tmp_path / "case")
        index = folder / "base/model.safetensors.index.json"
        part = sorted(json.loads(index.read_text())["weight_map"].values())[0]
        shutil.copy(folder / "base" / part, folder / "precious.safetensors")
        kind = draw.choice(("index", "path", "config"))
        if kind == "path":
            path = draw.choice(
                ("../precious.safetensors", str(folder / "precious.safetensors"), f"./{part}", f"x/../{part}")
            )
            index.write_text(index.read_text().replace(part, done := path))
        else:
            done = mutate_json(index if kind == "index" else folder / "base/config.json", draw)
        before = _digests(folder)

        def check() -> bool:
            method = read_method("average", space="delta", out__format="model", out__base=str(folder / "base"))
            chosen = {name: folder / name for name in "ab"}
            accepted, _ = attempt(lambda: merge_folders(chosen, method, folder / "out", **QUIET))
            assert {name: digest for name, digest in _digests(folder).items() if not name.startswith("out/")} == before
            if accepted:
                files = (folder / "out").glob("*.safetensors")
                _assert_equal(
                    {n: x for f in files for n, x in load_file(f).items()}, _merge_independently([*chosen.values()])
                )
            else:
                _assert_nothing_written(folder, {"a", "b", "base", "precious.safetensors"})
            return accepted

        return done, check

    assert _try_all(60, "base", one) > 5


def _copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def _digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _assert_nothing_written(folder: Path, before: set[str]) -> None:
    assert {path.name for path in folder.iterdir()} == before
    assert not (folder / "out").exists()


def _load_with_peft(folder: Path) -> dict[str, Tensor]:
    """The weights of the tiny model with an adapter in them, as PEFT puts them there."""
    stored = {name for name in load_file(folder / "adapter_model.safetensors") if ".lora_" in name}
    model = PeftModel.from_pretrained(Tiny(), folder)
    present = {name.replace(".default", "") for name, _ in model.named_parameters() if ".lora_" in name}
    assert present == stored, f"PEFT attaches {len(present & stored)} of {len(stored)} tensors"
    return model.merge_and_unload().state_dict()


def _merge_independently(folders: list[Path]) -> dict[str, Tensor]:
    """The base's weights plus the mean update; saved weights are the mean of the saved ones. In float64."""
    weights = {name: x.double() for name, x in Tiny().state_dict().items()}
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_bytes().decode("utf-8-sig"))
        tensors = {_normal(name): x.detach().double() for name, x in _load(folder).items()}
        for name, x in tensors.items():
            if name.endswith(".lora_A"):
                module, B = name.removesuffix(".lora_A"), tensors[name.removesuffix("A") + "B"]
                alpha = next(
                    (a for k, a in (config.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({k})$", module)),
                    config["lora_alpha"],
                )
                scaling = alpha / (math.sqrt(len(x)) if config.get("use_rslora") else len(x))
                weights[f"{module}.weight"] += scaling * B @ x / len(folders)
            elif ".lora_" not in name:
                weights[name] += (x - Tiny().state_dict()[name].double()) / len(folders)
    return weights


def _load(folder: Path) -> dict[str, Tensor]:
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        return load_file(file)
    return torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True)


def _normal(name: str) -> str:
    name = re.sub(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.", "", name)
    name = re.sub(r"^(module\.)?(base_model\.model\.)*", "", name)
    return re.sub(r"\.lora_([AB])(\.\w+)?\.weight$", r".lora_\1", name)


def _assert_equal(merged: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert merged.keys() == expected.keys()
    for name, x in expected.items():
        assert (merged[name].double() - x).abs().max() <= 1e-5 * x.abs().max(), name


# --- questions and predictions -----------------------------------------------------------------------------------


def _write_questions(folder: Path) -> None:
    (folder / "pics").mkdir(parents=True)
    for name, shade in (("a.png", 40), ("b.png", 90)):
        Image.new("RGB", (8, 6), (shade, 0, 0)).save(folder / "pics" / name)
    records = [
        {"question_id": 1, "image": "a.png", "text": "How many?", "answer": "3"},
        {"id": "two", "image": "b.png", "size": [8, 6], "text": "<image>\nWhich?", "answer": "B",
         "choices": ["x", "y"]},
        {"question_id": "3", "text": "Say so.", "answer": "so", "references": ["so", "thus"]},
        {"id": 4, "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                                       {"from": "gpt", "value": "that"}]},
    ]  # fmt: skip
    (folder / "test.json").write_text(json.dumps(records))


def test_a_mutated_question_file_is_read_as_it_says_or_refused_with_nothing_written(tmp_path, attempt):
    _write_questions(tmp_path / "good")
    task = TaskData(task="mine", test=str(tmp_path / "case/test.json"), images=str(tmp_path / "case/pics"))

    def one(draw: Random) -> tuple[str, Callable[[], bool]]:
        folder = _copy(tmp_path / "good", tmp_path / "case")
        done = mutate_json(folder / "test.json", draw)
        address = address_folder(tmp_path / "case/runs", "data", "mine", "prepare", 1, task, {})

        def check() -> bool:
            accepted, _ = attempt(lambda: prepare(address, task, **QUIET))
            if accepted:
                records = json.loads((folder / "test.json").read_bytes().decode("utf-8-sig"))
                examples = read_examples(address.path / "test.jsonl")
                assert len(examples) == len(records)
                for example, record in zip(examples, records, strict=True):
                    _assert_same_question(example, record, address.path)
            else:
                assert not [path for path in (folder / "runs").rglob("*") if path.is_file()]
            return accepted

        return done, check

    assert _try_all(150, "questions", one) > 20


def _assert_same_question(example: Any, record: dict[str, Any], folder: Path) -> None:
    messages = record.get("conversations") or [{"value": record.get("text")}, {"value": record.get("answer")}]
    assert example.question_id == _as_text(record["question_id"] if "question_id" in record else record["id"])
    assert example.text == str(messages[0]["value"]).replace("<image>", "").strip()
    if messages[1]["value"] is not None:
        assert example.answer == _as_text(messages[1]["value"])
    assert example.choices == tuple(map(_as_text, record.get("choices") or ()))
    assert example.references == tuple(map(_as_text, record.get("references") or ()))
    pictures = record.get("image") or (record.get("images") or [None])[0]
    pictures = pictures[0] if isinstance(pictures, list) else pictures
    assert (example.image is None) == (pictures is None)
    assert example.image is None or (folder / example.image).resolve().is_relative_to(folder.resolve())


def _as_text(value: Any) -> str:
    assert isinstance(value, (str, int, float)) and not isinstance(value, bool) and value == value
    return str(int(value)) if isinstance(value, float) and abs(value) < 2**53 and value.is_integer() else str(value)


def test_mutated_predictions_are_scored_as_they_say_or_refused_with_nothing_written(tmp_path, attempt):
    _write_questions(tmp_path / "good")
    answers = [{"question_id": name, "text": "3"} for name in ("1", "two", "3", "4")]
    settings = Scoring(task="mine", parse="text", metric="exact_match")

    def one(draw: Random) -> tuple[str, Callable[[], bool]]:
        folder = _copy(tmp_path / "good", tmp_path / "case")
        line = folder / "line.json"
        line.write_text(json.dumps(answers[0]))
        done = mutate_json(line, draw)
        lines = [line.read_bytes(), *(json.dumps(answer).encode() for answer in answers[1:])]
        (folder / "answers.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        address = address_file(folder, folder / "scores/mine.json", "score", 2, settings, {})

        def check() -> bool:
            questions, predictions = folder / "test.json", folder / "answers.jsonl"
            accepted, _ = attempt(lambda: score(address, settings, questions, predictions, **QUIET))
            if accepted:
                first = json.loads(line.read_bytes().decode("utf-8-sig"))
                assert read_predictions(predictions)[0].text == first["text"]
                right = not first.get("error") and first["text"].strip() == "3"
                assert read_score(address.path).value == pytest.approx(25.0 * right)
            else:
                assert not [path for path in (folder / "scores").rglob("*") if path.is_file()]
            return accepted

        return done, check

    assert _try_all(80, "predictions", one) > 3
