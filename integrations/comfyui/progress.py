"""What ComfyUI shows while a bundle generates: its bar and preview; and its interrupt, which ends the generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.result import Pixels, Preview, Step


class Progress:
    """A bar of one count an evaluation and one a preview. Its methods are the pipeline's callbacks.

    total: counts in all. batch: images that the bundle makes at a time, of which the first is shown.
    The methods raise ComfyUI's InterruptProcessingException once the user has asked for it.
    """

    def __init__(self, total: int, batch: int) -> None:
        from comfy.utils import ProgressBar

        self._bar = ProgressBar(total)
        self._total = total
        self._batch = batch
        self._done = 0

    def step(self, _: Step) -> None:
        """One evaluation is done."""
        self._advance()

    def frame(self, index: int, preview: Preview) -> None:
        """The image at position ``index`` has its next preview."""
        if index % self._batch == 0:
            self._advance(preview.image)

    def _advance(self, pixels: Pixels | None = None) -> None:
        from comfy.cli_args import args
        from comfy.model_management import throw_exception_if_processing_interrupted
        from PIL import Image

        throw_exception_if_processing_interrupted()
        self._done += 1
        shown = None if pixels is None else ("JPEG", Image.fromarray(pixels), args.preview_size)
        self._bar.update_absolute(self._done, self._total, shown)
