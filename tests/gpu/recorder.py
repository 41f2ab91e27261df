"""Takes records instead of printing them."""

from __future__ import annotations

from typing import Any


class Recorder:
    """Records in the order they came: {"what", "show", "held", ...}."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def __call__(self, what: str, show: str, held: bool | None = None, **figures: Any) -> None:
        self.records.append({"what": what, "show": show, "held": held, **figures})

    @property
    def failed(self) -> list[str]:
        """What was checked and did not hold."""
        return [record["what"] for record in self.records if record.get("check") and record["held"] is not True]
