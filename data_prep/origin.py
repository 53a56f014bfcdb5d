"""Where a dataset can be had: what to download from where, how large it is, under which licence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """One thing to download. files: what it holds, as it has to lie in the raw folder; size: of the download.

    hub: the repository of the Hub (a dataset) that has these files under these names, "" where none has; patterns: of
    the names of those to fetch, all without; place: the folder for them below the raw folder. Nothing is fetched but at
    the user's command.
    """

    files: str
    address: str
    size: str
    hub: str = ""
    patterns: tuple[str, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Origin:
    """A dataset as its owners publish it. unseen: what was taken from documentation, and not seen on real files."""

    title: str
    licence: str
    downloads: tuple[Download, ...]
    unseen: str
