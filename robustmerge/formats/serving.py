"""LoRA adapters for servers: what vLLM and SGLang accept, and the commands that serve them.

vLLM reads A and B, and of the config `r`, `lora_alpha` (scaling alpha/r, the same for all modules), `target_modules`,
`bias`, `use_rslora`, `use_dora` and `modules_to_save`; it refuses DoRA and modules_to_save, and knows no `lora_bias`
(https://docs.vllm.ai/en/latest/api/vllm/lora/peft_helper/). `--max-lora-rank` is one of SERVED_RANKS
(`MaxLoRARanks`, https://docs.vllm.ai/en/v0.14.0/api/vllm/config/lora/), 16 where it is not given. To find an adapter by
its name alone it compares `peft_type` and `base_model_name_or_path` (`plugins/lora_resolvers/filesystem_resolver.py`).
SGLang reads `r`, `lora_alpha` and a list of `target_modules`, and takes any rank, but one for all modules
(https://docs.sglang.io/docs/advanced_features/lora.md, `srt/lora/mem_pool.py`). What both take is written for both.
LoRA of an embedding both take in some models only (those with `embedding_modules` in vLLM,
https://github.com/vllm-project/vllm/pull/33234), and of a convolution in none.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustmerge.formats.adapter_config import TARGETS, attaches

SERVERS = ("vllm", "sglang")
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
BASE = "base"  # the folder inside an adapter's with the base model that it is for
HERE = "path/of/this/folder"  # an adapter's folder in what is written inside of it


def served_rank(rank: int) -> int:
    """The smallest rank that servers take and that holds an update of this rank, which is 512 at most.

    >>> served_rank(12), served_rank(16), served_rank(257)
    (16, 16, 320)
    """
    return next(served for served in SERVED_RANKS if served >= rank)


def config_for_server(rank: int, modules: Sequence[str], like: Mapping[str, Any], has_base: bool) -> dict[str, Any]:
    """Build the config of an adapter of one rank and scaling 1, with the keys that vLLM reads and no others.

    like: of an expert, whose list of targets is kept where it is enough. has_base: whether the adapter is for a base
    that lies beside it, so that the one that the expert names is not its own.
    """
    targets, *others = (like.get(key) for key in TARGETS)
    is_enough = not any(others) and attaches({"target_modules": targets}, modules)
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank,
        "target_modules": sorted(targets if isinstance(targets, list) and is_enough else modules),
        "base_model_name_or_path": None if has_base else like.get("base_model_name_or_path"),
        "bias": "none", "modules_to_save": None, "use_rslora": False, "use_dora": False,
    }  # fmt: skip


def serve_command(server: str, base: str, rank: int, folder: str, name: str) -> str:
    """The command that serves an adapter. base: a folder or `user/repo[@revision]`.

    >>> print(serve_command("vllm", "user/base@v1", 16, "path/to/merged", "merged"))
    vllm serve user/base --revision v1 --enable-lora --max-lora-rank 16 --lora-modules merged=path/to/merged
    """
    is_on_hub = base.count("/") == 1 and not Path(base).exists()
    place, _, revision = base.partition("@") if is_on_hub else (base, "", "")
    model = [place, *(["--revision", revision] if revision else [])]
    if server == "vllm":
        words = ["vllm", "serve", *model, "--enable-lora", "--max-lora-rank", str(rank)]
        return shlex.join([*words, "--lora-modules", f"{name}={folder}"])
    words = ["python", "-m", "sglang.launch_server", "--model-path", *model, "--enable-lora"]
    return shlex.join([*words, "--lora-paths", f"{name}={folder}", "--max-lora-rank", str(rank)])
