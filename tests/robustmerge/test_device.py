"""Merging on a device: the numbers of the CPU, and no tensor made on the CPU beside one of the device.

No GPU need be there: `PretendedGpu` computes on the CPU, and refuses what a GPU refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from robustmerge.algebra import merge_models
from robustmerge.cli.program import main
from robustmerge.extract import extract
from robustmerge.formats.adapter import LoraPair
from robustmerge.live import merge_into
from robustmerge.low_rank import approximate_randomly, compare, decompose
from robustmerge.merging import merge_folders
from robustmerge.method import AnyMethod, read_method
from robustmerge.order_statistics import Selector
from robustmerge.stage.address import read_manifest
from robustmerge.stage.settings import UserError
from tests.law_cases import EVERYWHERE, METHODS, Experts, draw, dropping
from tests.merge_cases import QUIET, save_expert, write_expert
from tests.robustmerge.test_live import PLAIN, build_model

GPU = "cuda"


def is_on_gpu(x: Tensor) -> bool:
    return getattr(x, "is_on_pretended_gpu", False)


def names_gpu(x: object) -> bool:
    return isinstance(x, (str, torch.device)) and str(x).startswith(GPU)


def put_on_gpu(x: Any) -> Any:
    if isinstance(x, Tensor):
        x.is_on_pretended_gpu = True  # type: ignore[attr-defined]
    return x


class PretendedGpu(TorchFunctionMode):
    """A torch with a GPU. A tensor that is moved or made there, and all that comes of it, is marked.

    Raises RuntimeError for what fails on a GPU: an operation on both kinds of tensors, but for single numbers of the
    CPU; the memory of a marked tensor; draws of the CPU's generator on the GPU.
    """

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), function.__name__
        values = tree_leaves((args, kwargs))
        tensors = [x for x in values if isinstance(x, Tensor)]
        marked = [x for x in tensors if is_on_gpu(x)]
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device(GPU) if marked else function(*args)
        if marked and name in ("numpy", "data_ptr", "untyped_storage"):
            raise RuntimeError(f"{name} of a tensor on the GPU")
        if name == "cpu" or (name == "to" and "cpu" in map(str, values[1:])):
            return args[0].detach().view_as(args[0]) if marked else args[0]
        if any(map(names_gpu, values)):
            if any(isinstance(x, torch.Generator) for x in values):
                raise RuntimeError(f"{name} on the GPU by a generator of the CPU")
            args, kwargs = tree_map(lambda x: "cpu" if names_gpu(x) else x, (args, kwargs))
            made = function(*args, **kwargs)
            return put_on_gpu(made.view_as(made) if isinstance(made, Tensor) else made)  # what is moved stays there too
        if (
            marked
            and name not in ("copy_", "__set__")
            and (others := [x for x in tensors if not is_on_gpu(x) and x.dim()])
        ):
            raise RuntimeError(f"{name} of a tensor on the GPU and one {list(others[0].shape)} on the CPU")
        result = function(*args, **kwargs)
        return tree_map(put_on_gpu, result) if marked else result


def merged_by(experts: Experts, method: AnyMethod, device: str | None = None) -> dict[str, tuple[Tensor, ...]]:
    """The updates of all modules: A and B, or the dense one."""
    updates = merge_models(experts, dropping(method), device)
    return {name: (x.A, x.B) if isinstance(x, LoraPair) else (x,) for name, x in updates.items()}


PRUNING = ("ties-", "pcb-", "dare_ties-", "breadcrumbs-", "della-", "sce-")
PLACES = [name for name in EVERYWHERE if name in METHODS or name.startswith(PRUNING)]
SETTINGS = {
    "floor": read_method("robustmerge", scale={"floor": 0.5, "A": "B"}),
    "exact": read_method("ties", prune__count="exact"),
    "sign": read_method("task_arithmetic", prune__rule="sign"),
    "cut": read_method("ties", space="delta", out__rank=2),
    "vision": read_method("pcb", balance__variant="vision"),
    "linear": read_method("dc_merge", params__smoothing="linear"),
    "aswudi": read_method("swudi", params__variant="aswudi"),
    "graded": read_method("ties", strength=[0.5, 1.0]),
    "norm": read_method("ties", equalize__rule="norm", calibrate__rule="pico", spectrum__rule="power"),
    "cap": read_method("tsv_m", equalize__rule="cap", calibrate={"rule": "pico", "norm": "experts"}),
    "svc": read_method("task_arithmetic", space="delta", strength=1.0, spectrum__rule="svc"),
    "boost": read_method("ties", space="delta", spectrum__rule="boost"),
}


@pytest.mark.parametrize("name", [*PLACES, *SETTINGS])
def test_every_method_merges_on_a_device_and_draws_as_on_the_cpu(name: str) -> None:
    method, experts = {**EVERYWHERE, **SETTINGS}[name], draw(0)
    if not method.needs_equal_ranks:
        experts = draw(0, ranks=(2, 3, 4))
        del experts["b"]["layers.0.q"]
    here = merged_by(experts, method)
    with PretendedGpu():
        there = merged_by(experts, method, GPU)
        assert all(x.device.type == GPU for update in there.values() for x in update)
    for module, update in here.items():
        assert all(torch.equal(x, y) for x, y in zip(update, there[module], strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_numbers_of_the_cpu() -> None:
    experts = draw(0)
    for name, method in {**EVERYWHERE, **SETTINGS}.items():
        here, there = (merge_models(experts, dropping(method), device) for device in ("cpu", GPU))
        for module, update in here.items():
            x, y = (x.delta() if isinstance(x, LoraPair) else x for x in (update, there[module]))
            assert (x - y.cpu()).abs().max() <= 1e-5 * x.abs().max(), name


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.parametrize(("name", "kind"), [("dare", "use_dora"), ("svd", "lora_bias")])
def test_a_folder_has_the_bytes_and_the_identity_of_the_cpus(name: str, kind: str, tmp_path: Path) -> None:
    for number, expert in enumerate("ab"):
        save_expert(tmp_path / expert, number, modules_to_save=["projector"], **{kind: True})
    method, experts = read_method(name), [tmp_path / "a", tmp_path / "b"]
    here = merge_folders(experts, method, tmp_path / "here", **QUIET)
    with PretendedGpu():
        there = merge_folders(experts, method, tmp_path / "there", device=GPU, **QUIET)
    for file in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (here / file).read_bytes() == (there / file).read_bytes()
    manifests = [read_manifest(folder / "manifest.json") for folder in (here, there)]
    assert manifests[0]["identity"] == manifests[1]["identity"]
    assert [manifest["record"].get("device") for manifest in manifests] == [None, GPU]


def test_dense_updates_are_written_from_a_device(tmp_path: Path) -> None:
    experts = [write_expert(tmp_path / name, pairs, modules_to_save=None) for name, pairs in draw(0).items()]
    method = read_method("ties", space="delta")
    here = merge_folders(experts, method, tmp_path / "here", **QUIET)
    with PretendedGpu():
        there = merge_folders(experts, method, tmp_path / "there", device=GPU, **QUIET)
    assert (here / "delta.safetensors").read_bytes() == (there / "delta.safetensors").read_bytes()


@pytest.mark.parametrize("exact_up_to", [1024, 0])
def test_a_tuning_is_decomposed_on_a_device(exact_up_to: int, tmp_path: Path) -> None:
    draw_weights = torch.Generator().manual_seed(0)
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        weights = {f"layers.{n}.q.weight": torch.randn(6, 5, generator=draw_weights) for n in range(2)}
        save_file(weights, tmp_path / name / "model.safetensors")

    def run(out: str, **on: Any) -> dict[str, Any]:
        folders = (tmp_path / name for name in ("base", "tuned", out))
        return extract(*folders, rank=2, exact_up_to=exact_up_to, **on, **QUIET)

    here = run("here")
    with PretendedGpu():
        there = run("there", device=GPU)
    assert [record.get("device") for record in (here, there)] == [None, GPU]
    assert there["modules"] == here["modules"]
    written = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("here", "there")]
    assert written[0] == written[1]


def test_adapters_of_a_live_model_merge_where_they_are() -> None:
    model, records = build_model([PLAIN] * 3), []
    merge_into(model, ["ocr", "rec"], "knots_ties", "here", **QUIET)
    for parameter in model.parameters():
        put_on_gpu(parameter)
    with PretendedGpu():
        for name, device in {"there": None, "asked": "cpu"}.items():
            records.append(merge_into(model, ["ocr", "rec"], "knots_ties", name, device=device, **QUIET))
    assert [record.get("device") for record in records] == [GPU, None]
    found = dict(model.named_parameters())
    for key, parameter in found.items():
        for other in ("there", "asked") if ".here." in key else ():
            assert torch.equal(parameter, found[key.replace(".here.", f".{other}.")])


def test_statistics_are_measured_where_the_numbers_are() -> None:
    numbers = torch.randn(50, generator=torch.Generator().manual_seed(0))
    with PretendedGpu():
        there = numbers.to(GPU)
        selector = Selector(lambda n: [1, n // 2, n], batch=8)  # counted in pieces, in two passes
        while not selector.is_done:
            for piece in there.split(5):
                selector.add(piece)
            selector.end_pass()
        pair = LoraPair(there.view(5, 10), there.view(10, 5))
        approximation = approximate_randomly(pair.delta(), 2, torch.Generator().manual_seed(0))
        similarity = compare([decompose(pair), decompose(pair)])
        assert approximation.U.device.type == similarity.inner.device.type == GPU
    ordered = numbers.sort().values
    assert selector.values == [float(ordered[k]) for k in (0, 24, 49)]


def test_the_pretended_gpu_refuses_what_a_gpu_refuses() -> None:
    with PretendedGpu():
        x = torch.ones(3, device=GPU)
        assert float((x * torch.tensor(2.0)).sum()) == 6 and x.cpu().numpy().sum() == 3
        for act in (
            lambda: x + torch.ones(3),
            lambda: x.sum() * torch.ones(3),
            lambda: torch.cat([x[:2], torch.ones(3)]),
            lambda: x.numpy(),
            lambda: torch.rand(3, generator=torch.Generator(), device=GPU),
        ):
            with pytest.raises(RuntimeError, match="on the GPU"):
                act()


@pytest.mark.parametrize("device", ["cuda:77", "meta", "nowhere"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"there is no device '{device}' here: .*; the default is cpu"
    experts = [write_expert(tmp_path / name, pairs) for name, pairs in draw(0).items()]
    with pytest.raises(UserError, match=message):
        merge_folders(experts, "ties", tmp_path / "out", device=device, **QUIET)
    with pytest.raises(UserError, match=message):
        merge_models(draw(0), read_method("ties"), device)
    with pytest.raises(SystemExit) as ended:
        main(["merge", "ties", *map(str, experts), "-o", str(tmp_path / "out"), "--device", device])
    assert ended.value.code == 2 and f"there is no device '{device}' here: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
