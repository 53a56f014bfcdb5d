"""Write what a full fine-tuning changed as a LoRA adapter, which merges like any other.

  robustmerge extract path/to/base path/to/tuned -r 16 -o path/to/adapter
  robustmerge extract user/base path/to/tuned -r 64 -o adapter --modules q_proj v_proj --dtype bfloat16

BASE and TUNED are checkpoints: folders, or repositories on the Hub. Every linear layer gets its best LoRA of this rank;
how much of the change it keeps is printed; manifest.json has that for each layer, and lists what is no LoRA.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from robustmerge.method_parts import TORCH_DTYPES
from robustmerge.stage.process import count_cores


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the checkpoint before the tuning")
    parser.add_argument("tuned", metavar="TUNED", help="the checkpoint after it")
    parser.add_argument("-r", "--rank", type=int, required=True, help="of the adapter")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="the new folder")
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="only these layers, as q_proj; by default all")
    parser.add_argument("--dtype", choices=TORCH_DTYPES, default="float32")
    parser.add_argument("--jobs", type=int, default=count_cores(), help="layers side by side (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where they are decomposed: cpu, cuda, cuda:1 (%(default)s)")


def run(options: Namespace) -> None:
    from robustmerge.extract import extract

    extract(
        options.base,
        options.tuned,
        options.out,
        options.rank,
        options.modules,
        options.dtype,
        workers=options.jobs,
        device=options.device,
    )
    print(f"written to {options.out}")
