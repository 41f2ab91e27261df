"""Say what each emoji shows: ``python -m scripts.emoji_subjects FOLDER`` writes ``arcflow/tiny/subjects.txt``.

FOLDER holds two unpacked npm packages, ``fluent-emoji`` (@lobehub/fluent-emoji-3d, the pictures) and ``emojibase``
(emojibase-data, their names). Left out are whole kinds that are many and alike or that a small model cannot tell apart
(flags, signs, clocks, office things), pairs of people, and a gesture that nobody wants to generate by accident.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arcflow.tiny.captions import MODIFIERS, SUBJECTS, spoken
from foundation.cli import ArgumentParser, run
from foundation.files import atomic_file

LEFT_OUT = frozenset((
    "emotion", "family", "person-symbol", "skin-tone", "hair-style", "place-map", "place-religious", "time", "sound",
    "music", "book-paper", "money", "mail", "writing", "office", "lock", "tool", "household", "other-object",
    "transport-sign", "warning", "arrow", "religion", "zodiac", "av-symbol", "gender", "math", "punctuation",
    "currency", "other-symbol", "keycap", "alphanum", "geometric", "flag", "country-flag", "subdivision-flag",
))  # fmt: skip
"""Kinds of emojibase that are not drawn."""
UNWANTED = ("middle finger",)
MOST_SYNONYMS = 3
"""Words that only one picture has among its tags are other names for it; so many are taken."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table; returns 0."""
    parser = ArgumentParser(prog="python -m scripts.emoji_subjects", description="Write arcflow/tiny/subjects.txt.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args(argv).folder
    pictures = {code(path.stem) for path in (folder / "fluent-emoji").rglob("*.webp")}
    tables = folder / "emojibase" / "en"
    entries, messages = (json.loads((tables / f"{name}.json").read_text("utf-8")) for name in ("data", "messages"))
    with atomic_file(SUBJECTS) as temporary:
        temporary.write_text("".join(lines(entries, messages, pictures)), encoding="utf-8")
    return 0


def lines(entries: Sequence[dict[str, Any]], messages: dict[str, Any], pictures: set[str]) -> list[str]:
    """A line for each entry that is drawn: code points, a star where it has skin tones, label, other words for it."""
    kinds = {kind["order"] for kind in messages["subgroups"] if kind["key"] not in LEFT_OUT}
    used = [entry for entry in entries if entry.get("subgroup") in kinds and entry["label"] not in UNWANTED]
    names = Counter(spoken(word) for entry in used for word in (entry["label"], *entry.get("tags", ())))
    found = []
    for entry in used:
        first, dash, rest = code(entry["hexcode"]).partition("-")
        if first + dash + rest in pictures:
            own = [spoken(tag) for tag in entry.get("tags", ()) if names[spoken(tag)] == 1 and tag.isalpha()]
            star = " *" if f"{first}-{MODIFIERS[0]}{dash}{rest}" in pictures else ""
            found.append(f"{first}{dash}{rest}{star}: {', '.join([spoken(entry['label']), *own[:MOST_SYNONYMS]])}\n")
    return sorted(found)


def code(name: str) -> str:
    """A file's or an entry's code points, without the one that asks for a picture: sources differ in it."""
    return name.lower().replace("-fe0f", "")


if __name__ == "__main__":
    sys.exit(run(main))
