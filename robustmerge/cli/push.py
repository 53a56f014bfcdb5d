"""Upload an adapter with its card to the Hugging Face Hub: shows what would be uploaded, and asks first.

  robustmerge push path/to/merged user/name
  robustmerge push path/to/merged user/name --base llava-hf/llava-1.5-7b-hf
  robustmerge push path/to/merged user/name --update --yes

The card is the folder's README.md, completed from manifest.json: method, settings, experts, base, commit. Names and
folders of this machine stay here. It needs a token that may write: hf auth login, or HF_TOKEN.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace

from robustmerge.stage.files import expand


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a merged folder, or any adapter")
    parser.add_argument("repo", metavar="USER/NAME", help="the repository; it is made if it is not there")
    parser.add_argument("--base", metavar="USER/NAME", help="what the Hub calls the base, where FOLDER names a folder")
    kind = "whether a new repository is private; an existing one stays as it is"
    parser.add_argument("--private", action=BooleanOptionalAction, default=True, help=kind)
    parser.add_argument("--update", action="store_true", help="also push to a repository that has files")
    parser.add_argument("--large", action="store_true", help="also more than 2 GB (dense updates, full models)")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(options: Namespace) -> None:
    from robustmerge.push.upload import Upload, upload_folder

    settings = Upload(options.repo, options.base, options.private, options.update, options.large, options.yes)
    uploaded = upload_folder(expand(options.folder).resolve(), settings, _spell)
    if uploaded is not None:
        print(f"merge it elsewhere: robustmerge merge METHOD {uploaded} EXPERT -o FOLDER")


def _spell(key: str, value: str) -> str:
    return f"--{key}" if value == "true" else f"--{key} {value}"
