"""Pins and downloads of the Hub, against a small Hub on this machine (tests/tiny_hub.py)."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from pipeline.config import read_config
from pipeline.plan import Plan
from pipeline.program import compose
from robustmerge.experts import find_experts
from robustmerge.hub.download import fetch_pinned, is_fetched
from robustmerge.hub.pins import DATASET, Pinned, Repository, parse_repository, pin, snapshot_folder, storage_folder
from robustmerge.hub.places import fetch, fetch_adapter, fetch_model, find_place, name_of, split_name
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import ConfigError, UserError
from tests.tiny_hub import COMMIT, OLD, TinyHub, serve, use

SAFE, BIN, CONFIG = "adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
LONG = bytes(range(256)) * 40  # a file of 10,240 bytes, in chunks of 1,000
MODEL = ("*.json", "model*.safetensors")
WHOLE = Pinned("ann/base", COMMIT)
NOWHERE = "http://127.0.0.1:9"  # nobody listens there


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyHub]:
    index = json.dumps({"weight_map": {"one": SHARDS[0], "two": SHARDS[1]}}).encode()
    repositories = {
        "ann/both": {CONFIG: b"{}", SAFE: b"safe", BIN: b"bin", "README.md": b"card", "optimizer.pt": b"large"},
        "ann/bin": {CONFIG: b"{}", BIN: b"bin", "non_lora_trainables.bin": b"projector"},
        "ann/model": {"config.json": b"{}", "pytorch_model.bin": b"large"},
        "ann/base": {"config.json": b"{}", INDEX: index, SHARDS[0]: LONG, SHARDS[1]: LONG[::-1], "flax.msgpack": b"x"},
        "ann/gated": {CONFIG: b"{}", SAFE: b"safe"},
        "ann/pictures": {"data/train-0.parquet": b"train", "data/test-0.parquet": b"test"},
    }
    with serve(repositories) as served:
        use(monkeypatch, served.address, tmp_path / "cache")
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        yield served


def test_settings_of_the_environment_hold_and_planning_stays_light(hub: TinyHub, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from robustmerge.hub.places import fetch_adapter, find_place\n"
        "assert not {'torch', 'huggingface_hub'} & set(sys.modules)\n"
        "print(sorted(file.name for file in fetch_adapter(find_place('ann/both')).iterdir()))\n"
        "assert 'torch' not in sys.modules\n"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    env = {**kept, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"}
    told = ""
    for more in ({}, {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOWHERE}):
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, env={**env, **more}, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.endswith(f"{['README.md', CONFIG, SAFE]}\n")
        told += ran.stdout
    assert told.count("fetching ann/both@aaaaaaaaaa: adapter_config.json, ") == 1
    tokens = {token for first, token in hub.tokens if first in ("ann", "cdn")}
    assert tokens == {"Bearer hf_secret", None}
    assert ("cdn", None) in hub.tokens
    assert ("cdn", "Bearer hf_secret") not in hub.tokens


def test_the_hub_gives_an_adapters_files_and_says_why_not(
    hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(text: str) -> dict[str, str]:
        return {file.name: file.read_text() for file in fetch_adapter(find_place(text)).iterdir()}

    both, only_bin = look("ann/both"), look("ann/bin")
    assert both == {CONFIG: "{}", SAFE: "safe", "README.md": "card"}
    assert look("ann/both@old")[SAFE] == "safe old"
    assert only_bin == {CONFIG: "{}", BIN: "bin", "non_lora_trainables.bin": "projector"}
    for text, reason in {
        "ann/none": r"there is no repository ann/none \(if it is private: log in with",
        "ann/gated": "it is gated; ask for access on its page",
        "ann/both@new": "ann/both has no revision new",
        f"ann/both@{'d' * 40}": f"ann/both has no revision {'d' * 40}",
    }.items():
        with pytest.raises(
            UserError, match=f"is no folder here, and cannot be had from the Hugging Face Hub: {reason}"
        ):
            look(text)
    with pytest.raises(UserError, match="'ann/model' of the Hugging Face Hub is no adapter: no adapter_config.json"):
        look("ann/model")
    for offline in (False, True):  # no network, and none allowed
        use(monkeypatch, NOWHERE, tmp_path / "cache", offline)
        assert look("ann/both") == both
        assert look("ann/bin") == only_bin
        with pytest.raises(UserError, match="not whole in the cache, and the rest was not fetched"):
            look("ann/none")


def test_reading_a_configuration_asks_nobody_and_its_experts_stay_what_they_were(
    hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["merge=ties", "experts=[ann/bin,two:ann/both@main]", "model.checkpoint=ann/base"]
    point = {**compose("merge", [*words, f"paths.runs={tmp_path / 'runs'}"]), "overrides": words}
    with monkeypatch.context() as patch:
        patch.setattr("socket.socket.connect", refuse_to_connect)
        config = read_config(point)
    assert config.experts == (("bin", Repository("ann/bin")), ("two", Repository("ann/both")))
    assert not hub.asked
    first = Plan(config).experts
    assert [address.path for address in first.values()] == [
        snapshot_folder(Pinned(name, COMMIT)) for name in ("ann/bin", "ann/both")
    ]
    asked, hub.refs["main"] = len(hub.asked), OLD
    assert Plan(config).experts == first
    assert len(hub.asked) == asked and COMMIT in config.paths.pins.read_text()


def refuse_to_connect(*_: object) -> None:
    raise AssertionError("a connection is opened")


def test_all_experts_of_the_hub_that_cannot_be_had_are_named(hub: TinyHub, tmp_path: Path) -> None:
    words = ["merge=ties", "experts=[ann/none,ann/both,m:ann/model]", f"paths.runs={tmp_path / 'runs'}"]
    with pytest.raises(ConfigError) as refused:
        Plan(read_config({**compose("merge", words), "overrides": words})).experts  # noqa: B018
    first, second = map(str, refused.value.problems)
    assert first.startswith("expert 'none': 'ann/none' is no folder here") and first.endswith(" (experts)")
    assert second.startswith("expert 'm': the repository 'ann/model' of the Hugging Face Hub is no adapter")


def test_a_pinned_revision_stays_what_it_was(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "runs" / "hub.json"
    assert pin(Repository("ann/both"), pins) == pin(Repository("ann/both", "main"), pins) == Pinned("ann/both", COMMIT)
    hub.refs["main"] = OLD  # somebody uploads
    assert pin(Repository("ann/both"), pins).revision == COMMIT
    assert pin(Repository("ann/both")).revision == pin(Repository("ann/both", "old"), pins).revision == OLD
    assert json.loads(pins.read_text()) == {"ann/both@main": COMMIT, "ann/both@old": OLD}
    hub.asked.clear()
    assert pin(Repository("ann/none", COMMIT), pins) == Pinned("ann/none", COMMIT)
    assert not hub.asked
    use(monkeypatch, NOWHERE, tmp_path / "cache", offline=True)
    assert pin(Repository("ann/both"), pins).revision == COMMIT
    assert pin(Repository("ann/both"), tmp_path / "other.json").revision == OLD  # what the cache was told last
    with pytest.raises(UserError, match="'ann/bin' is no folder here.* not whole in the cache"):
        pin(Repository("ann/bin"), pins)


def test_pins_that_cannot_be_read_are_refused_and_stay(tmp_path: Path) -> None:
    pins = tmp_path / "hub.json"
    for text, reason in (("{", "cannot be read"), ('{"ann/both@main": "main"}', "must be a commit of 40 hexadecimal")):
        pins.write_text(text)
        with pytest.raises(UserError, match=reason):
            pin(Repository("ann/both"), pins)
        assert pins.read_text() == text
    for text in ("both", "ann/both/deep", "/ann/both", "ann/both@"):
        assert parse_repository(text) is None


def test_what_is_there_is_not_asked_for_again(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_fetched(WHOLE, MODEL)
    said: list[str] = []
    folder = fetch_pinned(WHOLE, MODEL, said.append)
    assert folder == snapshot_folder(WHOLE)
    assert sorted(file.name for file in folder.iterdir()) == sorted(["config.json", INDEX, *SHARDS])
    assert (folder / SHARDS[1]).read_bytes() == LONG[::-1]
    assert [line.split(":")[0].split(" in ")[0] for line in said] == [f"fetching {WHOLE}", f"fetched {WHOLE}"]
    use(monkeypatch, NOWHERE, tmp_path / "cache", offline=True)
    assert fetch_pinned(WHOLE, MODEL, said.append) == folder
    assert len(said) == 2
    (folder / SHARDS[0]).resolve().unlink()
    assert is_fetched(WHOLE, ["*.json"])
    assert not is_fetched(WHOLE, MODEL)
    with pytest.raises(UserError, match="not whole in the cache"):
        fetch_pinned(WHOLE, MODEL)


def test_a_cache_that_another_program_has_filled_serves_as_it_is_without_a_network(
    hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(hf_hub_download("ann/base", "config.json", revision=COMMIT))
    assert not is_fetched(WHOLE, ["*.json"]), "nobody has listed what the commit has"
    use(monkeypatch, NOWHERE, tmp_path / "cache", offline=True)
    assert fetch_pinned(WHOLE, ["*.json"]) == file.parent == snapshot_folder(WHOLE)
    use(monkeypatch, hub.address, tmp_path / "cache")
    assert (fetch_pinned(WHOLE, MODEL) / SHARDS[0]).read_bytes() == LONG
    assert [path for path, _ in hub.asked].count(f"/cdn/ann/base/{COMMIT}/config.json") == 1


def test_a_connection_that_breaks_is_taken_up_again(hub: TinyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.cuts[SHARDS[0]] = [3500, 100, 5000]
    folder = fetch_pinned(WHOLE, MODEL)
    assert hub.of_file(SHARDS[0]) == [None, "bytes=3000-", "bytes=3000-", "bytes=8000-"]  # whole chunks are kept
    assert (folder / SHARDS[0]).read_bytes() == LONG


def test_a_download_that_is_cut_for_good_leaves_whole_files_only(hub: TinyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.cuts[SHARDS[0]] = [5000] + [0] * 50
    with pytest.raises(UserError, match="ann/base@aaaaaaaaaa.* is not whole in the cache, and the rest was not"):
        fetch_pinned(WHOLE, MODEL)
    assert not is_fetched(WHOLE, MODEL)
    contents = {file.read_bytes() for file in (storage_folder("ann/base") / "blobs").iterdir()}
    assert contents < set(hub.files["ann/base"].values())
    hub.cuts.clear()
    asked = {name: len(hub.of_file(name)) for name in ("config.json", INDEX, SHARDS[1])}
    assert (fetch_pinned(WHOLE, MODEL) / SHARDS[0]).read_bytes() == LONG
    for name, times in asked.items():
        assert len(hub.of_file(name)) == max(times, 1), f"{name} had arrived"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("I/O error (os error 28)")])
def test_a_full_disk_is_not_taken_for_a_missing_network(
    error: Exception, hub: TinyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.file_download.http_get", write)
    with pytest.raises(UserError, match=r"no room for ann/base@.*set HF_HOME to a folder on a larger disk"):
        fetch_pinned(WHOLE, MODEL)


@pytest.mark.parametrize("name", [SHARDS[0], "config.json"])
def test_a_damaged_file_is_refused_removed_and_fetched_again(hub: TinyHub, name: str) -> None:
    hub.spoilt = {name: 1}
    with pytest.raises(UserError, match=f"^{re.escape(name)} of ann/base@.* arrived damaged"):
        fetch_pinned(WHOLE, MODEL)
    assert not is_fetched(WHOLE, MODEL)
    assert (fetch_pinned(WHOLE, MODEL) / name).read_bytes() == hub.files["ann/base"][name]
    assert is_fetched(WHOLE, MODEL)
    assert [len(hub.of_file(other)) for other in ("config.json", INDEX, *SHARDS) if other != name] == [1, 1, 1]


@pytest.mark.parametrize("wanted_next", [MODEL, ("flax.msgpack",)])
def test_what_a_killed_process_has_not_compared_is_compared_by_the_next(
    wanted_next: tuple[str, ...], hub: TinyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.spoilt = {SHARDS[0]: 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("robustmerge.hub.download._check_digests", raise_interrupt)
        fetch_pinned(WHOLE, MODEL)
    assert (snapshot_folder(WHOLE) / SHARDS[0]).read_bytes() == bytes(len(LONG))
    with pytest.raises(UserError, match=f"{SHARDS[0]} of ann/base@.* arrived damaged"):
        fetch_pinned(WHOLE, wanted_next)
    assert not (snapshot_folder(WHOLE) / SHARDS[0]).exists()


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_base_of_the_hub_has_its_weights_in_either_format(hub: TinyHub) -> None:
    assert sorted(file.name for file in fetch_model("ann/base").glob("model-*")) == list(SHARDS)
    assert [file.name for file in fetch_model("ann/model").glob("*.bin")] == ["pytorch_model.bin"]


def test_a_dataset_is_no_model_of_its_name_and_only_what_is_wanted_is_fetched(hub: TinyHub, tmp_path: Path) -> None:
    pins = tmp_path / "hub.json"
    dataset = find_place("ann/pictures", DATASET)
    folder = fetch(dataset, ["data/test-*"], pins)
    assert [file.name for file in (folder / "data").iterdir()] == ["test-0.parquet"]
    assert is_fetched(pin(dataset, pins), ["data/test-*"]) and not is_fetched(pin(dataset, pins), ["data/*"])
    assert json.loads(pins.read_text()) == {"datasets/ann/pictures@main": COMMIT}
    of_model, of_dataset = (pin(find_place("ann/pictures", kind), pins) for kind in ("model", DATASET))
    assert of_model != of_dataset and snapshot_folder(of_model) != snapshot_folder(of_dataset) == folder
    assert any(path.startswith("/api/datasets/ann/pictures/") for path, _ in hub.asked)


def test_a_folder_here_comes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ann" / "both").mkdir(parents=True)
    (tmp_path / "ann" / SAFE).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert find_place("ann/both") == find_place("./ann/both/") == tmp_path / "ann" / "both"
    assert [name_of(text) for text in ("ann/both", "ann/other@v1.0", "some/deep/path")] == ["both", "other", "path"]
    with pytest.raises(UserError, match="ann/adapter_model.safetensors is a file; give the folder"):
        find_place(f"ann/{SAFE}")
    assert find_place("ann/other@v1.0") == Repository("ann/other", "v1.0") == parse_repository("ann/other@v1.0")
    assert split_name("one:ann/other@v1.0") == ("one", "ann/other@v1.0")
    assert split_name("ann/other@v1.0") == ("", "ann/other@v1.0")
    for text in ("some/deep/path", "/ann/none", "./none", "nowhere"):
        with pytest.raises(UserError, match="there is no folder .*, and a repository of the Hugging Face Hub is"):
            find_place(text)


def test_experts_on_the_command_line_may_be_named_and_all_their_problems_are_told(tmp_path: Path) -> None:
    for name in ("one", "two", "bare"):
        (tmp_path / name).mkdir()
    for name in ("one", "two"):
        (tmp_path / name / CONFIG).write_text("{}")
    read = tuple(find_experts([f"{tmp_path}/one", f"second:{tmp_path}/two"]).items())
    assert read == (("one", tmp_path / "one"), ("second", tmp_path / "two"))
    with pytest.raises(ConfigError) as refused:
        find_experts([f"{tmp_path}/one", f"one:{tmp_path}/two", f"{tmp_path}/bare", "b:no/such/folder"])
    told = list(map(str, refused.value.problems))
    both = f"{tmp_path}/one and {tmp_path}/two"
    assert told[0] == f"two experts are called 'one', {both}; name them as name:folder (experts)"
    assert told[1] == f"expert 'bare': {tmp_path}/bare is no adapter folder, it has no adapter_config.json (experts)"
    assert told[2].startswith("expert 'b': there is no folder no/such/folder, and a repository")
    assert len(told) == 3
