"""What an emoji shows, in the words that people type: "a woman firefighter with dark skin", "a red heart"."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

Gender = Literal["man", "woman", "person"]

SUBJECTS = Path(__file__).with_name("subjects.txt")
"""Code points, a star where there are skin tones, the label and other words; made by scripts/emoji_subjects.py."""
MODIFIERS = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
"""Code points of the skin tones, which follow the first one of a person."""
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
"""Skin tones, index 0 to 4; emoji without one are yellow."""
TEMPLATES = ("{a}", "an emoji of {a}", "a picture of {a}", "{x}")
"""Caption forms: {x} is what is shown, {a} the same with its article."""
EVALUATION_TEMPLATE = "picture of {a}"
"""The form of evaluation prompts; no training caption has it."""
HELD_OUT_SHARE = 0.12
"""Share of the combinations of activity, gender and skin tone that no training image shows."""

_PEOPLE = re.compile(r"^(man|woman|person)\b:?\s*(.*)$")
_SEX = {"man": "male", "woman": "female", "person": ""}
_WORKERS = frozenset((
    "health worker", "student", "teacher", "judge", "farmer", "cook", "mechanic", "factory worker", "office worker",
    "scientist", "technologist", "singer", "artist", "pilot", "astronaut", "firefighter", "police officer", "detective",
    "guard", "construction worker", "superhero", "supervillain", "mage", "fairy", "vampire", "elf",
))  # fmt: skip
_HAIR = {f"{kind} hair": f"with {kind} hair" for kind in ("red", "curly", "white", "blond")} | {
    "bald": "with a bald head", "beard": "with a beard", "with crown": "with a crown",
}  # fmt: skip
_NO_ARTICLE = frozenset(
    ("bread", "broccoli", "garlic", "bacon", "popcorn", "butter", "salt", "sushi", "spaghetti", "santa", "two")
)


@dataclass(frozen=True)
class Subject:
    """What an image shows.

    concept: what is shown, whatever the gender and tone ("firefighter", "red heart"). phrases: ways to say it, none
    with an article. gender: None for what is no person or has no choice. tone: 0 to 4, None for yellow.
    """

    concept: str
    phrases: tuple[str, ...]
    gender: Gender | None = None
    tone: int | None = None

    @property
    def held_out(self) -> bool:
        """Whether the combination is kept from training, so that a prompt for it tests composition."""
        if self.gender not in ("man", "woman") or self.tone is None:
            return False
        digest = blake2b(f"{self.concept}/{self.gender}/{self.tone}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def subjects() -> dict[str, Subject]:
    """What every image shows, by its code points without the one that asks for a drawing ("1f469-1f3fb-200d-1f692")."""
    found = {}
    for line in SUBJECTS.read_text(encoding="utf-8").splitlines():
        head, _, names = line.partition(": ")
        code, _, star = head.partition(" ")
        label, *synonyms = names.split(", ")
        found[code] = describe(label, synonyms)
        first, dash, rest = code.partition("-")
        for tone, modifier in enumerate(MODIFIERS if star else ()):
            found[f"{first}-{modifier}{dash}{rest}"] = describe(label, synonyms, tone)
    return dict(sorted(found.items()))


def describe(label: str, synonyms: Iterable[str] = (), tone: int | None = None) -> Subject:
    """The subject of a label of emojibase, with other words for it, in a tone (0 to 4) or yellow."""
    found = _PEOPLE.match(label)
    who, what = (found.group(1), found.group(2)) if found else ("person", label)
    gender: Gender = "man" if who == "man" else "woman" if who == "woman" else "person"
    if what in _WORKERS:
        first = (what,) if gender == "person" else (f"{gender} {what}", f"{_SEX[gender]} {what}")
        return Subject(what, _with_tone(first, tone), gender, tone)
    if found is not None:
        what = _HAIR.get(what, what.replace("in tuxedo", "in a tuxedo").replace("with veil", "with a veil"))
        return Subject(what or "person", _with_tone((f"{gender} {what}".strip(),), tone), gender, tone)
    return Subject(label, _with_tone((label, *synonyms), tone), None, tone)


def captions_of(subject: Subject) -> tuple[str, ...]:
    """Every caption that an image of that subject can have in training, in a fixed order."""
    return tuple(dict.fromkeys(caption(phrase, template) for phrase in subject.phrases for template in TEMPLATES))


def training_captions() -> list[str]:
    """Every caption that some image has in training, sorted."""
    return sorted({text for subject in subjects().values() if not subject.held_out for text in captions_of(subject)})


def evaluation_prompts(count: int) -> list[tuple[str, Subject]]:
    """``count`` prompts, every second one of a combination that is held out, spread evenly over all there are.

    Held out twice: no training caption has this form ("picture of a red heart").
    """
    known = list(subjects().values())
    halves = [[one for one in known if one.held_out is held] for held in (True, False)]
    chosen = []
    for number in range(count):
        half = halves[number % 2]
        subject = half[number // 2 * len(half) // -(-count // 2) % len(half)]
        chosen.append((caption(subject.phrases[0]), subject))
    return chosen


def caption(phrase: str, template: str = EVALUATION_TEMPLATE) -> str:
    """A phrase in a caption's form, with an article where one belongs."""
    first, last = phrase.split()[0], phrase.split()[-1]
    plural = (last.endswith("s") and not last.endswith(("ss", "us", "is"))) or first in _NO_ARTICLE
    article = "" if plural else "an " if phrase[0] in "aeio" else "a "
    return template.format(a=article + phrase, x=phrase)


def spoken(label: str) -> str:
    """A label in lower case and plain letters: "piñata" is typed "pinata"."""
    letters = unicodedata.normalize("NFKD", label.replace("\u2019", "'")).encode("ascii", "ignore").decode()
    return " ".join(letters.lower().split())


def _with_tone(phrases: tuple[str, ...], skin: int | None) -> tuple[str, ...]:
    if skin is None:
        return phrases
    first, tone = phrases[0], TONES[skin]
    return (f"{first} {'and' if ' with ' in first else 'with'} {tone} skin", f"{tone}-skinned {first}")
