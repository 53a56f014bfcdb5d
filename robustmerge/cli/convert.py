"""Bring an adapter of LLaVA's own trainer into PEFT's format, or back; no number changes.

  robustmerge convert path/to/LLaVA_7B_lora_r16_VQAv2 -o path/to/vqav2
  robustmerge convert user/LLaVA_7B_lora_r16_VQAv2 -o path/to/vqav2 --base llava-hf/llava-1.5-7b-hf
  robustmerge convert path/to/merged -o path/to/llava-lora-merged --to original

LLaVA's own code keeps the projector beside the LoRA, in non_lora_trainables.bin; in PEFT's format it is in the adapter,
as modules_to_save. A PEFT adapter with names from before transformers 4.52 gets those of today. Pickles are not
executed. A message that names key=value means --key value.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from robustmerge.formats.llava.convert import DIRECTIONS, Conversion, convert_folder
from robustmerge.formats.llava.names import ADAPTER_FILES
from robustmerge.hub.places import fetch, find_place
from robustmerge.stage.files import expand


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder, or user/repo[@revision]")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="the new folder")
    parser.add_argument("--to", choices=DIRECTIONS, default="peft", help="original: LLaVA's own format (%(default)s)")
    parser.add_argument("--base", help="of --to peft: the checkpoint that it is for; by default LLaVA-1.5 of its size")
    parser.add_argument("--like", metavar="FOLDER", help="of --to original: one in LLaVA's format, whose config fits")
    parser.add_argument("--vision-tower", metavar="NAME", help="of --to original: what mm_vision_tower becomes")
    parser.add_argument(
        "--allow-no-projector", action="store_true", help="accept an adapter that keeps the projector of its base"
    )


def run(options: Namespace) -> None:
    settings = Conversion(options.to, options.base, options.like, options.vision_tower, options.allow_no_projector)
    source = fetch(find_place(options.adapter), ADAPTER_FILES)
    print(f"{options.out}: {convert_folder(source, expand(options.out).absolute(), settings)}")
    if options.to == "peft":
        print(f"merge it: robustmerge merge METHOD {options.out} EXPERT -o FOLDER")
