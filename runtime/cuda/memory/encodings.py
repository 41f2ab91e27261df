"""Cached encodings of prompts, least recently used first out: on the device, or in main memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.cuda.interface import Device
from runtime.cuda.memory.arena import aligned
from runtime.errors import BackendError


@dataclass(frozen=True)
class PartSize:
    """One part of an encoding (what one text encoder says): tokens at most, and the bytes of a token."""

    tokens: int
    token_bytes: int

    @property
    def size(self) -> int:
        return self.tokens * self.token_bytes


@dataclass
class _Entry:
    """A prompt's place in the cache, and the tokens of the parts that were put in."""

    slot: int
    tokens: dict[str, int]


class CachedEncodings(ABC):
    """Encodings by prompt. parts: by name; a prompt's is whole when each of its parts was put in."""

    device_bytes = 0
    """Bytes of the device's memory that are held for them."""

    def __init__(self, device: Device, parts: Mapping[str, PartSize], most: int) -> None:
        """most: encodings that are cached. Raises BackendError for none."""
        if most < 1:
            raise BackendError(f"{most} encodings of prompts cannot be cached; one at least is needed")
        self._most = most
        self._device = device
        self._parts = parts
        self._free = list(reversed(range(most)))
        self._known: OrderedDict[str, _Entry] = OrderedDict()

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Those of ``prompts``, each once, that are not here whole; the others become the most recently used."""
        absent = []
        for prompt in dict.fromkeys(prompts):
            if prompt in self._known and self._known[prompt].tokens.keys() == self._parts.keys():
                self._known.move_to_end(prompt)
            else:
                absent.append(prompt)
        return absent

    def put(self, prompt: str, part: str, address: int, tokens: int) -> None:
        """Take over ``tokens`` of a part from the device at ``address``; the least recently used may have to go.

        Raises BackendError for more tokens than the part may have.
        """
        kind = self._parts[part]
        if not 0 <= tokens <= kind.tokens:
            raise BackendError(f"{tokens} tokens for {part!r}; at most {kind.tokens} are cached")
        if prompt not in self._known:
            slot = self._free.pop() if self._free else self._known.popitem(last=False)[1].slot
            self._known[prompt] = _Entry(slot, {})
        self._known.move_to_end(prompt)
        entry = self._known[prompt]
        if tokens:
            self._write(entry.slot, part, address, tokens * kind.token_bytes)
        entry.tokens[part] = tokens  # Not before: what is interrupted is not whole.

    def tokens(self, prompt: str, part: str) -> int:
        """How many tokens of the part there are. Raises KeyError where it is not here."""
        return self._known[prompt].tokens[part]

    def fetch(self, prompt: str, part: str, address: int) -> None:
        """Put a part on the device at ``address``."""
        if tokens := self.tokens(prompt, part):
            self._read(self._known[prompt].slot, part, address, tokens * self._parts[part].token_bytes)

    def close(self) -> None:
        """Forget all and give the memory back."""
        self._known.clear()

    @abstractmethod
    def _write(self, slot: int, part: str, address: int, size: int) -> None: ...

    @abstractmethod
    def _read(self, slot: int, part: str, address: int, size: int) -> None: ...


class DeviceEncodings(CachedEncodings):
    """Cached on the device: nothing waits, a copy takes microseconds."""

    def __init__(self, device: Device, parts: Mapping[str, PartSize], most: int) -> None:
        """Allocates memory for ``most`` encodings of the greatest size. Raises DeviceMemoryError."""
        super().__init__(device, parts, most)
        self._offsets: dict[str, int] = {}
        size = 0
        for name, part in parts.items():
            self._offsets[name] = size
            size += aligned(part.size)
        self._slot_bytes = max(size, 256)
        self.device_bytes = self._slot_bytes * most
        self._address = device.allocate(self.device_bytes, "encodings of prompts")

    def close(self) -> None:
        super().close()
        if self.device_bytes:
            self._device.free(self._address)
            self.device_bytes = 0

    def _write(self, slot: int, part: str, address: int, size: int) -> None:
        self._device.copy(self._place(slot, part), address, size)

    def _read(self, slot: int, part: str, address: int, size: int) -> None:
        self._device.copy(address, self._place(slot, part), size)

    def _place(self, slot: int, part: str) -> int:
        return self._address + slot * self._slot_bytes + self._offsets[part]


class HostEncodings(CachedEncodings):
    """Cached in main memory, for devices with little of their own: taking one over waits for the device."""

    def __init__(self, device: Device, parts: Mapping[str, PartSize], most: int) -> None:
        """Takes no memory yet."""
        super().__init__(device, parts, most)
        self._values: dict[tuple[int, str], NDArray[np.uint8]] = {}

    def grow(self, most: int) -> None:
        """Cache at least so many from now on: all prompts of a request, for their encoder is there once only."""
        self._free += range(self._most, most)
        self._most = max(self._most, most)

    def _write(self, slot: int, part: str, address: int, size: int) -> None:
        self._values[slot, part] = np.empty(size, dtype=np.uint8)
        self._device.download(address, self._values[slot, part])

    def _read(self, slot: int, part: str, address: int, size: int) -> None:
        self._device.upload(address, self._values[slot, part])
