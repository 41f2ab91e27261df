"""Random momentum fields, as torch tensors for the reference and as memory of the device for the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from runtime.cuda.interface import Device

POSITIONS = 4
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_ALIGNED = 256


@dataclass(frozen=True)
class Size:
    """Sizes of a solver step: tokens of one image, images, modes, packed channels, type of the field."""

    tokens: int
    batch: int
    modes: int
    channels: int
    dtype: str

    @property
    def all_tokens(self) -> int:
        """Tokens of the batch."""
        return self.tokens * self.batch

    @property
    def parts(self) -> tuple[int, int, int, int, int]:
        """Bytes of means, logweights, loggammas, state and new state."""
        tokens, value = self.all_tokens, VALUE_BYTES[self.dtype]
        means, state = tokens * self.modes * self.channels * value, tokens * self.channels * 4
        logweights, loggammas = (tokens * modes * POSITIONS * value for modes in (self.modes, self.modes - 1))
        return means, logweights, loggammas, state, state

    @property
    def moved(self) -> int:
        """The fewest bytes that a step can move: every input read once, the new state written once."""
        return sum(self.parts)

    def __str__(self) -> str:
        return f"{self.tokens}x{self.batch} {self.dtype}"


@dataclass(frozen=True)
class Field:
    """Tensors on one device of torch: a field [1, tokens of the batch, ...] of the size's type, a float32 state."""

    size: Size
    means: Tensor
    logweights: Tensor
    loggammas: Tensor
    x: Tensor


def random_field(size: Size, seed: int, where: str) -> Field:
    """A field as networks give it: unit velocities, normalised gates, gammas about [0.2, 4]. where: torch's device."""
    import torch

    generator = torch.Generator(where).manual_seed(seed)
    dtype = getattr(torch, size.dtype)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, size.all_tokens, *shape, generator=generator, device=where)

    logits = draw(size.modes, POSITIONS)
    return Field(
        size,
        draw(size.modes, size.channels).to(dtype),
        torch.log_softmax(logits, dim=-2).to(dtype),
        (0.7 * draw(size.modes - 1, POSITIONS)).to(dtype),
        draw(size.channels),
    )


@dataclass(frozen=True)
class Placed:
    """Addresses of a field, a state and a new state on the device. block: the memory to give back, where it is one."""

    size: Size
    means: int
    logweights: int
    loggammas: int
    x: int
    out: int
    block: int = 0


def reserve(device: Device, size: Size, shift: int = 0) -> Placed:
    """Memory for one step, in one block. shift: bytes that everything is moved off its alignment by."""
    room = [-(-part // _ALIGNED) * _ALIGNED for part in size.parts]
    block = device.allocate(shift + sum(room) + _ALIGNED, "a field of the benchmark")
    means, logweights, loggammas, x, out = (block + shift + sum(room[:place]) for place in range(len(room)))
    return Placed(size, means, logweights, loggammas, x, out, block)


def upload(device: Device, field: Field, placed: Placed) -> None:
    """Put a field and its state into the device's memory; the new state is poisoned with NaN."""
    for name in ("means", "logweights", "loggammas", "x"):
        if getattr(field, name).numel():
            device.upload(getattr(placed, name), as_numpy(getattr(field, name)))
    poison(device, placed)


def poison(device: Device, placed: Placed) -> None:
    """Fill the new state with NaN, so that what is not written is seen."""
    size = placed.size
    device.upload(placed.out, np.full((size.all_tokens, size.channels), np.nan, np.float32))


def put(device: Device, placed: Placed, levels: tuple[float, float, float], *, raw: bool = False, out: int = 0) -> None:
    """One step on the stream, at these noise levels. out: another place for the new state."""
    from runtime.cuda.interface import Advance

    size = placed.size
    device.advance(
        Advance(
            means=placed.means,
            logweights=placed.logweights,
            loggammas=placed.loggammas,
            x=placed.x,
            out=out or placed.out,
            tokens=size.all_tokens,
            modes=size.modes,
            channels=size.channels,
            positions=POSITIONS,
            sigma_src=levels[0],
            sigma_a=levels[1],
            sigma_b=levels[2],
            dtype=size.dtype,
            raw_logits=raw,
        )
    )


def download(device: Device, placed: Placed, state: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The new state, or that at another address: float32 [tokens of the batch, channels]."""
    out = np.empty((placed.size.all_tokens, placed.size.channels), np.float32)
    device.download(state or placed.out, out)
    return out


def as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's bytes as an array; 16-bit types, which numpy lacks in part, as integers."""
    import torch

    tensor = tensor.detach().contiguous().cpu()
    return (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy()


def free(device: Device, placed: Iterable[Placed]) -> None:
    """Give the blocks back."""
    for each in placed:
        device.free(each.block)
