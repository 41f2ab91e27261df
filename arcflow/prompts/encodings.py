"""What text encoders say of prompts by number: encoded when asked for, the last ones kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from arcflow.errors import PromptsError
from arcflow.prompts.lists import Prompts
from arcflow.sources.text import Encoding, TextEncoders

KEPT = 2 << 30
"""Bytes of encodings that are kept in the CPU's memory."""


class Encodings(Protocol):
    """Encodings of a list of prompts."""

    def __len__(self) -> int: ...

    def get(self, numbers: Sequence[int], coming: Callable[[], Iterable[int]]) -> list[Encoding]:
        """Those of the prompts with these numbers; ``coming`` tells which will be asked for next."""

    def empty(self) -> Encoding:
        """That of the architecture's empty prompt."""


def empty_prompt(text: TextEncoders) -> str:
    """The prompt that guidance is measured from. Raises PromptsError where the architecture has none."""
    found: str | None = text.base.architecture.EMPTY
    if found is None:
        raise PromptsError(f"{text.base.architecture.NAME} has no empty prompt: its guidance is an input")
    return found


@dataclass
class LiveEncodings:
    """Encodings from text encoders.

    backbone: what has the device between two turns; kept: bytes to keep at most. An encoding depends on its prompt
    alone, so that neither what is kept nor the turns change a result.
    """

    prompts: Prompts
    text: TextEncoders
    backbone: nn.Module
    kept: int = KEPT
    _found: OrderedDict[str, Encoding] = field(default_factory=OrderedDict, init=False, repr=False)
    _bytes: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.prompts)

    def get(self, numbers: Sequence[int], coming: Callable[[], Iterable[int]] = tuple) -> list[Encoding]:
        """Those of the prompts with these numbers. Where devices take turns, those that are coming as well."""
        return self._get([self.prompts[number] for number in numbers], coming)

    def empty(self) -> Encoding:
        """That of the empty prompt."""
        return self._get([empty_prompt(self.text)], tuple)[0]

    def _get(self, wanted: Sequence[str], coming: Callable[[], Iterable[int]]) -> list[Encoding]:
        missing = [prompt for prompt in dict.fromkeys(wanted) if prompt not in self._found]
        found = {prompt: self._found[prompt] for prompt in wanted if prompt in self._found}
        if missing:
            with self.text.turn(self.backbone):
                found |= dict(self._encode(missing))
                if self.text.placement == "turns":
                    self._look_ahead(coming())
        for prompt in found:
            if prompt in self._found:
                self._found.move_to_end(prompt)
        return [found[prompt] for prompt in wanted]

    def _look_ahead(self, coming: Iterable[int]) -> None:
        """Encode what comes next, until as much is new as half of what is kept."""
        room = self.kept // 2
        for prompt in dict.fromkeys(self.prompts[number] for number in coming):
            if room <= 0:
                return
            if prompt not in self._found:
                room -= sum(size_of(encoding) for _, encoding in self._encode([prompt]))

    def _encode(self, prompts: Sequence[str]) -> Iterator[tuple[str, Encoding]]:
        for prompt, encoding in zip(prompts, self.text.encode(prompts), strict=True):
            self._keep(prompt, encoding)
            yield prompt, encoding

    def _keep(self, prompt: str, encoding: Encoding) -> None:
        self._found[prompt] = encoding
        self._bytes += size_of(encoding)
        while self._bytes > self.kept:
            self._bytes -= size_of(self._found.popitem(last=False)[1])


def size_of(encoding: Encoding) -> int:
    """Bytes of an encoding."""
    return sum(tensor.nbytes for tensor in encoding.values())
