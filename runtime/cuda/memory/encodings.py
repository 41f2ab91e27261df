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
        """Bytes at most."""
        return self.tokens * self.token_bytes


class CachedEncodings(ABC):
    """Encodings by prompt. parts: by name; a prompt's is whole when each of its parts was put in."""

    def __init__(self, device: Device, parts: Mapping[str, PartSize], most: int) -> None:
        """most: encodings that are cached. Raises BackendError for none."""
        if most < 1:
            raise BackendError(f"{most} encodings of prompts cannot be cached; one at least is needed")
        self.most = most
        self._device = device
        self._parts = parts
        self._tokens: OrderedDict[str, dict[str, int]] = OrderedDict()

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Those of ``prompts``, each once, that are not here whole; the others become the most recently used."""
        absent = []
        for prompt in dict.fromkeys(prompts):
            if self._tokens.get(prompt, {}).keys() == self._parts.keys():
                self._tokens.move_to_end(prompt)
            else:
                absent.append(prompt)
        return absent

    def put(self, prompt: str, part: str, address: int, tokens: int) -> None:
        """Take over ``tokens`` of a part from the device at ``address``; the least recently used may have to go.

        Raises BackendError for more tokens than the part may have.
        """
        if not 0 <= tokens <= self._parts[part].tokens:
            raise BackendError(f"{tokens} tokens for {part!r}; at most {self._parts[part].tokens} are cached")
        if prompt not in self._tokens:
            while len(self._tokens) >= self.most:
                old, _ = self._tokens.popitem(last=False)
                self._remove(old)
            self._tokens[prompt] = {}
        self._tokens.move_to_end(prompt)
        self._write(prompt, part, address, tokens * self._parts[part].token_bytes)
        self._tokens[prompt][part] = tokens  # Not before: what is interrupted is not whole.

    def tokens(self, prompt: str, part: str) -> int:
        """How many tokens of the part there are. Raises KeyError where it is not here."""
        return self._tokens[prompt][part]

    def fetch(self, prompt: str, part: str, address: int) -> None:
        """Put a part on the device at ``address``."""
        self._read(prompt, part, address, self.tokens(prompt, part) * self._parts[part].token_bytes)

    def close(self) -> None:
        """Forget all and give the memory back."""
        for prompt in self._tokens:
            self._remove(prompt)
        self._tokens.clear()

    @property
    def device_bytes(self) -> int:
        """Bytes of the device's memory that are held for them."""
        return 0

    @abstractmethod
    def _write(self, prompt: str, part: str, address: int, size: int) -> None: ...

    @abstractmethod
    def _read(self, prompt: str, part: str, address: int, size: int) -> None: ...

    @abstractmethod
    def _remove(self, prompt: str) -> None: ...


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
        self._address = device.allocate(self._slot_bytes * most, "encodings of prompts")
        self._free = list(reversed(range(most)))
        self._slots: dict[str, int] = {}

    @property
    def device_bytes(self) -> int:
        return self._slot_bytes * self.most if self._address else 0

    def close(self) -> None:
        super().close()
        if self._address:
            self._device.free(self._address)
            self._address = 0

    def _write(self, prompt: str, part: str, address: int, size: int) -> None:
        if prompt not in self._slots:
            self._slots[prompt] = self._free.pop()
        if size:
            self._device.copy(self._place(prompt, part), address, size)

    def _read(self, prompt: str, part: str, address: int, size: int) -> None:
        if size:
            self._device.copy(address, self._place(prompt, part), size)

    def _remove(self, prompt: str) -> None:
        self._free.append(self._slots.pop(prompt))

    def _place(self, prompt: str, part: str) -> int:
        return self._address + self._slots[prompt] * self._slot_bytes + self._offsets[part]


class HostEncodings(CachedEncodings):
    """Cached in main memory, for devices with little of their own: taking one over waits for the device."""

    def __init__(self, device: Device, parts: Mapping[str, PartSize], most: int) -> None:
        """Takes no memory yet."""
        super().__init__(device, parts, most)
        self._values: dict[str, dict[str, NDArray[np.uint8]]] = {}

    def grow(self, most: int) -> None:
        """Cache at least so many from now on: all prompts of a request, for their encoder is there once only."""
        self.most = max(self.most, most)

    def _write(self, prompt: str, part: str, address: int, size: int) -> None:
        values = np.empty(size, dtype=np.uint8)
        if size:
            self._device.download(address, values)
        self._values.setdefault(prompt, {})[part] = values

    def _read(self, prompt: str, part: str, address: int, size: int) -> None:
        if size:
            self._device.upload(address, self._values[prompt][part])

    def _remove(self, prompt: str) -> None:
        self._values.pop(prompt, None)
