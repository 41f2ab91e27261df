"""Encodings of prompts and what follows from them, least recently used first out: on the device, or in main memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.memory.arena import aligned
from engines.memory.parts import PartSize
from runtime.cuda.interface import Device
from runtime.errors import BackendError

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class _Entry:
    """A value's place among those of its part, and its tokens."""

    slot: int
    tokens: int


class CachedEncodings(ABC):
    """Values by part and key: a prompt, and where the value depends on more, that as well."""

    device_bytes = 0
    """Bytes of the device's memory that are held for them."""

    def __init__(self, device: Device, parts: Mapping[str, PartSize]) -> None:
        """parts: by name. Raises BackendError where none of one may be cached."""
        if any(part.most < 1 for part in parts.values()):
            raise BackendError("0 encodings of prompts cannot be cached; one at least is needed")
        self._device = device
        self._parts = dict(parts)
        self._free = {name: list(reversed(range(part.most))) for name, part in parts.items()}
        self._known: dict[str, OrderedDict[Hashable, _Entry]] = {name: OrderedDict() for name in parts}

    def missing(self, part: str, keys: Iterable[K]) -> list[K]:
        """Those of ``keys``, each once, that are not here; the others become the most recently used."""
        known, absent = self._known[part], []
        for key in dict.fromkeys(keys):
            if key in known:
                known.move_to_end(key)
            else:
                absent.append(key)
        return absent

    def put(self, part: str, key: Hashable, address: int, tokens: int) -> None:
        """Take over ``tokens`` of a part from the device at ``address``; the least recently used may have to go.

        Raises BackendError for more tokens than the part may have.
        """
        kind, known, free = self._parts[part], self._known[part], self._free[part]
        if not 0 <= tokens <= kind.tokens:
            raise BackendError(f"{tokens} tokens for {part!r}; at most {kind.tokens} are cached")
        if key in known:
            free.append(known.pop(key).slot)
        elif not free:
            free.append(known.popitem(last=False)[1].slot)
        if tokens:
            self._write(free[-1], part, address, tokens * kind.token_bytes)
        known[key] = _Entry(free.pop(), tokens)  # Not before: what is interrupted is not here.

    def tokens(self, part: str, key: Hashable) -> int:
        """How many tokens of the part there are. Raises KeyError where it is not here."""
        return self._known[part][key].tokens

    def fetch(self, part: str, key: Hashable, address: int) -> None:
        """Put a value on the device at ``address``."""
        entry = self._known[part][key]
        if entry.tokens:
            self._read(entry.slot, part, address, entry.tokens * self._parts[part].token_bytes)

    def close(self) -> None:
        """Forget all and give the memory back."""
        for known in self._known.values():
            known.clear()

    @abstractmethod
    def _write(self, slot: int, part: str, address: int, size: int) -> None: ...

    @abstractmethod
    def _read(self, slot: int, part: str, address: int, size: int) -> None: ...


class DeviceEncodings(CachedEncodings):
    """Cached on the device: nothing waits, a copy takes microseconds."""

    def __init__(self, device: Device, parts: Mapping[str, PartSize]) -> None:
        """Allocates memory for all values at their greatest size. Raises DeviceMemoryError."""
        super().__init__(device, parts)
        self._offsets: dict[str, int] = {}
        for name, part in parts.items():
            self._offsets[name] = self.device_bytes
            self.device_bytes += part.held
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
        return self._address + self._offsets[part] + slot * aligned(self._parts[part].size)


class HostEncodings(CachedEncodings):
    """Cached in main memory, for devices with little of their own: taking one over waits for the device."""

    def __init__(self, device: Device, parts: Mapping[str, PartSize]) -> None:
        """Takes no memory yet."""
        super().__init__(device, parts)
        self._values: dict[tuple[int, str], NDArray[np.uint8]] = {}

    def grow(self, prompts: int, each: Mapping[str, int]) -> None:
        """Cache what belongs to so many prompts from now on: all of a request, for what makes it is there once only.

        each: values of a prompt by part, where they are not one.
        """
        for name, part in self._parts.items():
            most = max(part.most, prompts * each.get(name, 1))
            self._free[name] += range(part.most, most)
            self._parts[name] = replace(part, most=most)

    def _write(self, slot: int, part: str, address: int, size: int) -> None:
        self._values[slot, part] = np.empty(size, dtype=np.uint8)
        self._device.download(address, self._values[slot, part])

    def _read(self, slot: int, part: str, address: int, size: int) -> None:
        self._device.upload(address, self._values[slot, part])
