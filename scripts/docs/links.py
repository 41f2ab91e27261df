"""Links of Markdown files: which there are, what they reach, and how they read on the site."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
SOURCES = "source"
"""Folder of the site that holds the files of the repository which a page links to."""

INCLUDED = {
    "README.md": "index.md",
    "DESIGN.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "gpu/README.md": "measuring.md",
    "benchmarks/rivals.md": "rivals.md",
}
"""Files outside docs/ that are pages of the site, with their names there."""

FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.DOTALL | re.MULTILINE)
"""A block of code."""

_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")


@dataclass(frozen=True)
class Link:
    """A link as it is written: ``path`` ("" within the page), and ``anchor`` without its hash."""

    path: str
    anchor: str

    @classmethod
    def read(cls, target: str) -> Link:
        """The link to ``target``, as Markdown has it."""
        path, _, anchor = target.partition("#")
        return cls(path, anchor)

    @property
    def is_local(self) -> bool:
        """Whether it leads to a file, not to another site."""
        return not re.match(r"[a-z]+:", self.path)


def links_of(markdown: str) -> list[Link]:
    """The links of a page, those in code apart."""
    return [Link.read(match) for match in _LINK.findall(_CODE.sub("", FENCE.sub("", markdown)))]


def pages() -> dict[str, str]:
    """Every page that is a file: its path in the repository, and its path on the site."""
    own = (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / DOCS).rglob("*.md")))
    return {**{path: site_path(path) for path in own}, **INCLUDED}


def target_of(page: str, link: Link) -> str:
    """The path in the repository that a link of ``page`` (a path there too) leads to."""
    return os.path.normpath(PurePosixPath(page).parent / link.path) if link.path else page


def site_path(target: str) -> str:
    """Where a file of the repository lies on the site."""
    if target in INCLUDED:
        return INCLUDED[target]
    return target.removeprefix(f"{DOCS}/") if target.startswith(f"{DOCS}/") else f"{SOURCES}/{target}"


def rewritten(markdown: str, page: str) -> str:
    """The text of ``page`` with its links as they must read on the site."""
    here = PurePosixPath(site_path(page)).parent

    def replace(match: re.Match[str]) -> str:
        link = Link.read(match[1])
        if not link.is_local or not link.path:
            return match[1]
        path = os.path.relpath(site_path(target_of(page, link)), here)
        return f"{path}#{link.anchor}" if link.anchor else path

    pieces, end = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [_LINK.sub(replace, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(replace, markdown[end:])])
