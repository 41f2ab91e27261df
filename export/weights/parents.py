"""What a student is merged from, by digest: its identity."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

import msgspec

_FORMAT = 1
"""Changes when the same sources begin to give other weights."""

UNREAD = ""
"""Stands for the digest of a source that was not read yet."""

LoraParent = tuple[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]]
"""Digest and scale of a style LoRA."""


class Parents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Digests of the base's ``transformer`` folder, of the adapter's folder, and of the style LoRAs in order."""

    base: str
    adapter: str
    loras: tuple[LoraParent, ...] = ()

    @property
    def digest(self) -> str:
        """The student's digest."""
        facts = {"format": _FORMAT, "base": self.base, "adapter": self.adapter, "loras": self.loras}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def plain(self) -> Parents:
        """Those of the same student without style LoRAs."""
        return Parents(self.base, self.adapter)
