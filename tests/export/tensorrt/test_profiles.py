"""Resolutions, batch and text tokens as profiles, and what is rejected."""

from __future__ import annotations

import pytest

from engines.schema import Latent, Limits, Network, Port, Range, ShapeRange
from export.errors import EngineError
from export.tensorrt.profiles import choose_plan_shapes, choose_shapes, dimension_ranges, make_profile, narrowed

LIMITS = Limits(Range(1, 1, 4), Range(256, 1024, 1536), Range(256, 1024, 1536), Range(1, 128, 512), 16)
LATENT = Latent(channels=16, patch=2, vae_factor=8, scaling_factor=[0.36], shift_factor=[0.12])


def test_the_default_is_all_that_the_model_takes() -> None:
    ranges = dimension_ranges(choose_shapes(LIMITS), LATENT)
    assert ranges == {
        "batch": Range(1, 1, 4),
        "levels": Range(1, 2, 32),
        "text_tokens": Range(1, 128, 512),
        "image_tokens": Range(256, 4096, 9216),
        "rows": Range(32, 128, 192),
        "columns": Range(32, 128, 192),
    }
    assert narrowed(LIMITS, choose_shapes(LIMITS)) == LIMITS


def test_the_default_of_plans_is_one_image_of_the_usual_size() -> None:
    shapes = choose_plan_shapes(LIMITS)
    assert shapes == choose_shapes(LIMITS, f"{LIMITS.width.opt}x{LIMITS.height.opt}", str(LIMITS.batch.opt))
    assert len(shapes.resolutions) == 1
    wide = choose_plan_shapes(LIMITS, batch="1-2", text_tokens="512")
    assert wide.batch == Range(1, 1, 2) and wide.resolutions == shapes.resolutions


def test_several_resolutions_span_ranges_and_the_first_is_usual() -> None:
    shapes = choose_shapes(LIMITS, "1024x1024, 768x1344,1344x768", "1-2", "512")
    ranges = dimension_ranges(shapes, LATENT)
    assert ranges["image_tokens"] == Range(48 * 84, 4096, 4096)
    assert ranges["rows"] == Range(96, 128, 168)
    assert ranges["columns"] == Range(96, 128, 168)
    assert ranges["batch"] == Range(1, 1, 2)
    assert ranges["text_tokens"] == Range(512, 512, 512)
    assert narrowed(LIMITS, shapes) == Limits(
        Range(1, 1, 2), Range(768, 1024, 1344), Range(768, 1024, 1344), Range(512, 512, 512), 16
    )


def test_width_makes_columns_and_height_makes_rows() -> None:
    ranges = dimension_ranges(choose_shapes(LIMITS, "512x1024"), LATENT)
    assert (ranges["columns"], ranges["rows"]) == (Range(64, 64, 64), Range(128, 128, 128))


def test_the_usual_value_stays_in_its_range() -> None:
    assert choose_shapes(LIMITS, text_tokens="256-512").text_tokens == Range(256, 256, 512)
    assert choose_shapes(LIMITS, text_tokens="1-64").text_tokens == Range(1, 64, 64)
    assert choose_shapes(LIMITS, batch="2-4").batch == Range(2, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolutions": "1024"}, "not WIDTHxHEIGHT"),
        ({"resolutions": "1024x1024,"}, "'' is not WIDTHxHEIGHT"),
        ({"resolutions": "1000x1024"}, "the width 1000 is not possible; .*multiples of 16"),
        ({"resolutions": "1024x2048"}, "the height 2048 is not possible; the model takes 256 to 1536"),
        ({"resolutions": "128x1024"}, "the width 128"),
        ({"batch": "0"}, "--batch 0 is not possible; the model takes 1 to 4"),
        ({"batch": "1-8"}, "--batch 1-8"),
        ({"batch": "4-1"}, "--batch 4-1"),
        ({"batch": "many"}, "give one number or a range"),
        ({"batch": "-1"}, "give one number or a range"),
        ({"text_tokens": "513"}, "--text-tokens 513"),
    ],
)
def test_what_the_model_does_not_take_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        choose_shapes(LIMITS, **arguments)


def test_profiles_follow_the_ports() -> None:
    ports = [Port("ids", "int64", ["batch", "text_tokens"]), Port("latents", "float32", ["batch", 16, "rows", 3])]
    ranges = dimension_ranges(choose_shapes(LIMITS, "1024x1024", "1-2", "1-512"), LATENT)
    network = Network("x.onnx", ports, [Port("images", "float32", ["batch", 3, "8*rows"])])
    assert make_profile("x", network, ranges) == {
        "ids": ShapeRange([1, 1], [1, 128], [2, 512]),
        "latents": ShapeRange([1, 16, 128, 3], [1, 16, 128, 3], [2, 16, 128, 3]),
    }
    assert make_profile("x", network, ranges, extra_text_tokens=34)["ids"] == ShapeRange([1, 35], [1, 162], [2, 546])


def test_an_unknown_dimension_of_an_input_is_refused() -> None:
    network = Network("x.onnx", [Port("z", "float32", ["batch", "4*rows"])], [])
    with pytest.raises(EngineError, match=r"x: the input z has a dimension '4\*rows'"):
        make_profile("x", network, dimension_ranges(choose_shapes(LIMITS), LATENT))
