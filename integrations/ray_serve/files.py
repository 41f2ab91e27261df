"""Images as files of the formats that ``arcflow-serve`` gives (``runtime/native/server/images/encode.cpp``)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from runtime.image import encode_png

if TYPE_CHECKING:
    from runtime.result import Pixels

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)

_MAX_COMMENT = 65_533
"""Bytes of a JPEG's comment."""


@dataclass(frozen=True)
class Form:
    """What file an image becomes. quality: of a JPEG or WebP, 0 .. 100."""

    format: Format = "png"
    quality: int = 100


def encode(pixels: Pixels, settings: Mapping[str, Any], form: Form) -> bytes:
    """The file of uint8 [H, W, 3]. The settings of a JPEG are in its comment; a WebP has none."""
    if form.format == "png":
        return encode_png(pixels, {**settings, "scale": 1})
    from PIL import Image

    image, file = Image.fromarray(pixels), io.BytesIO()
    if form.format == "jpeg":
        comment = json.dumps(settings, allow_nan=False).encode()[:_MAX_COMMENT]
        image.save(file, "JPEG", quality=form.quality, comment=comment)
    else:
        image.save(file, "WEBP", quality=form.quality)
    return file.getvalue()
