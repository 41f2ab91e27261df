"""The names by which headings of Markdown can be linked to, as the site makes them."""

from __future__ import annotations

import re

from scripts.docs.links import FENCE

_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
_ANCHOR = re.compile(r"\{#([\w-]+)\}")


def anchors_of(markdown: str) -> set[str]:
    names = set()
    for heading in _HEADING.findall(FENCE.sub("", markdown)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        explicit = _ANCHOR.search(text)
        names.add(explicit[1] if explicit else slug(text))
    return names


def slug(heading: str) -> str:
    """Small letters and digits, dashes for spaces."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())
