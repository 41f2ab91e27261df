from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

class Info(TypedDict):
    model: str
    architecture: str
    precision: str
    target: str
    digest: str
    bundle: str
    backend: str
    batch: tuple[int, int, int]
    width: tuple[int, int, int]
    height: tuple[int, int, int]
    multiple: int
    nfe: int
    max_nfe: int
    latent_channels: int
    latent_factor: int

class Step(TypedDict):
    index: int
    total: int
    first_image: int
    image_count: int
    sigma_from: float
    sigma_to: float

class Output(TypedDict):
    images: NDArray[np.uint8]
    latents: NDArray[np.float32]
    seconds: dict[str, float]
    warnings: list[str]

class Cancel:
    def __init__(self) -> None: ...
    def cancel(self) -> None: ...

class Model:
    def __init__(
        self,
        bundle: str,
        *,
        precision: str | None = None,
        target: str | None = None,
        host: str | None = None,
        library: str | None = None,
        threads: int = 0,
        device: int = 0,
        allow_links: bool = False,
    ) -> None: ...
    @property
    def info(self) -> Info: ...
    @property
    def memory(self) -> tuple[int, int]: ...
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        num_images: int = 1,
        nfe: int = 0,
        width: int = 0,
        height: int = 0,
        previews: int = 0,
        timeout: float = 0.0,
        cancel: Cancel | None = None,
        on_step: Callable[[Step], object] | None = None,
        on_preview: Callable[[int, int, float, NDArray[np.uint8]], object] | None = None,
    ) -> Output: ...

def library_version() -> str: ...
def noise(seed: int, count: int, first: int = 0) -> NDArray[np.float32]: ...
def verify_bundle(folder: str) -> None: ...
