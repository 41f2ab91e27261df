"""Good and damaged bundles, each with the error that opening it must give: one table for every reader of bundles.

Python's own tests run it (``test_bundle.py``), and those that hold the native core to Python's words, to the last
letter (``tests/native/core/test_bundle.py``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from engines.schema import MANIFEST_NAME, NETWORKS, PlanMemory
from engines.trust import ENVIRONMENT, sealed
from tests.engines.damages import (
    Damage,
    a_socket,
    cutting,
    edit,
    flipping,
    key_as_fifo,
    key_mode,
    key_of,
    keys_as_file,
    keys_of,
    link_key,
    list_twice,
    making,
    moving_outside,
    placing,
    raw,
    relisting,
    removing,
    replacing,
    reversing,
    setting,
    swap_plans,
    together,
    unlist_clip,
)
from tests.runtime import small_bundle, small_plans

FILES = (
    "backbone.onnx",
    "clip.onnx",
    "conditioner.onnx",
    "manifest.json",
    "t5.onnx",
    "tokenizers/clip.json",
    "tokenizers/t5.json",
    "vae_decoder.onnx",
)
"""Of the small bundle."""


@dataclass(frozen=True)
class Case:
    """What is done to a copy of a small bundle, of ONNX files or of sealed plans, and part of what is then said.

    error: None where the bundle stays good.
    """

    name: str
    damage: Damage
    error: str | None
    bundle: Literal["onnx", "plans"] = "onnx"
    allow_links: bool = False


_DAMAGED = "manifest.json is damaged or is not a bundle's manifest: "
_SCHEMA = "manifest.json does not follow the schema: "
_QUANTISED = {"calibration": "a" * 64, "method": "max", "synthetic": True, "layers": ["x"]}
_LATER = b'"schema_version": 5, "field_of_the_future": []'
_FLIPPED_MANIFEST = {"first": "JSON is malformed", "middle": "manifest.json", "last": "trailing characters"}


def _flip_cases() -> list[Case]:
    return [
        Case(f"flipped {path} {where}", flipping(path, where),
             _FLIPPED_MANIFEST[where] if path == MANIFEST_NAME else f"'{path}' was altered: its sha256 is ")
        for path in FILES
        for where in ("first", "middle", "last")
    ]  # fmt: skip


_GOOD = [
    Case("good", lambda root: None, None),
    Case("good, signed again", setting("model", "tiny"), None),
    Case("good plans", lambda root: None, None, "plans"),
    Case("good, written in another order", reversing("networks", "limits", "tokenizers"), None),
    Case("good, with quantisation", together(setting("precision", "fp8"), setting("quantisation", _QUANTISED)), None),
    Case("a field twice", replacing(b'"patch": 2', b'"patch": 3, "patch": 2'), "altered"),
]

_LISTING = [
    Case("missing", removing("t5.onnx"), "the file 't5.onnx' is missing (1 in all); run: python -m export.build"),
    Case("missing folder", lambda root: shutil.rmtree(root / "tokenizers"), "'tokenizers/clip.json' is missing (2 in"),
    Case("missing manifest", removing(MANIFEST_NAME), "the file 'manifest.json' is missing; "),
    Case("extra", making("note.txt", b"hello"), "the file 'note.txt' is not in the manifest: remove it, or run: "),
    Case("extra hidden", making("tokenizers/.hidden", b""), "'tokenizers/.hidden' is not in the manifest"),
    Case(
        "extra quoted", making('it\'s "a"\n\u00e9\u200b\\', b""), "the file 'it\\'s \"a\"\\n\u00e9\\u200b\\\\' is not"
    ),
    Case("extra folder", making("empty", None), "the folder 'empty' is not in the manifest"),
    Case("extra inner folder", making("tokenizers/clip", None), "the folder 'tokenizers/clip' is not in the manifest"),
    Case(
        "symlink", moving_outside("clip.onnx"), "is a symbolic link; a bundle holds plain files only: copy the bundle"
    ),
    Case("symlink nowhere", placing("t5.onnx", lambda p: p.symlink_to("no")), "'t5.onnx' is a symbolic link"),
    Case("symlinked folder", moving_outside("tokenizers"), "'tokenizers' is a symbolic link"),
    Case("symlinked manifest", moving_outside(MANIFEST_NAME), "'manifest.json' is a symbolic link"),
    Case("hard link", lambda r: os.link(r / "clip.onnx", r.parent / "second"), "is a hard link (it has 2 names); a"),
    Case("hard linked manifest", lambda r: os.link(r / MANIFEST_NAME, r.parent / "second"), "'manifest.json' is a"),
    Case("fifo", placing("clip.onnx", os.mkfifo), "'clip.onnx' is not a plain file"),
    Case("fifo manifest", placing(MANIFEST_NAME, os.mkfifo), "'manifest.json' is not a plain file"),
    Case("socket", placing("clip.onnx", a_socket), "'clip.onnx' is not a plain file"),
    Case("socket manifest", placing(MANIFEST_NAME, a_socket), "cannot read 'manifest.json': No such device or address"),
    Case("folder for file", placing("clip.onnx", os.mkdir), "the folder 'clip.onnx' is not in the manifest"),
    Case("folder for manifest", placing(MANIFEST_NAME, os.mkdir), "'manifest.json' is not a plain file"),
    Case("folder for bundle", lambda root: shutil.rmtree(root), "there is no bundle at "),
    Case(
        "file for bundle", lambda root: (shutil.rmtree(root), root.write_bytes(b"")), "the folder does not exist; run"
    ),
]

_CONTENT = [
    Case("truncated", cutting("backbone.onnx", 10), "'backbone.onnx' has 10 bytes, its manifest says "),
    Case("empty", cutting("clip.onnx", 0), "'clip.onnx' has 0 bytes"),
    Case("extended", cutting("vae_decoder.onnx", 1 << 20), "'vae_decoder.onnx' has 1048576 bytes"),
    Case("wrong size", setting("files.0.size", 1 << 62), f" bytes, its manifest says {1 << 62}; run"),
    Case("wrong sha256", setting("files.0.sha256", "a" * 64), "its manifest says aaaaaaaaaaaaaaaa..."),
]

_BYTES = [
    Case("empty manifest", raw(b""), _DAMAGED + "Input data was truncated"),
    Case("truncated manifest", raw(lambda data: data[: len(data) // 2]), _DAMAGED + "Input data was truncated"),
    Case("binary manifest", raw(b"\xff\xfe\x00\x01" * 10), _DAMAGED + "JSON is malformed: invalid character (byte 0)"),
    Case("byte order mark", raw(lambda data: b"\xef\xbb\xbf" + data), "invalid character (byte 0)"),
    Case("a list", raw(b"[]"), _DAMAGED + "Expected `object`, got `array`"),
    Case("a deep list", raw(b"[" * 200_000), _DAMAGED + "Expected `object`, got `array`"),
    Case("deep nesting", raw(b'{"a":' * 200_000), _DAMAGED + "it is nested too deeply"),
    Case("deep lists", raw(b'{"kind":"x","a":' + b"[" * 200_000), _DAMAGED + "it is nested too deeply"),
    Case("huge manifest", cutting(MANIFEST_NAME, 1 << 30), "'manifest.json' has 1073741824 bytes, more than any"),
    Case("zeros", cutting(MANIFEST_NAME, 1 << 20), _DAMAGED + "JSON is malformed: trailing characters"),
    Case("NaN", replacing(b'"shift": 1.7', b'"shift": NaN'), "JSON is malformed: invalid character"),
    Case("infinity", replacing(b'"shift": 1.7', b'"shift": 1e999'), "Number out of range - at `$.schedule.shift`"),
    Case("long number", replacing(b'"nfe": 2', b'"nfe": ' + b"9" * 5000), "Integer value out of range - at `$.s"),
    Case("leading zero", replacing(b'"nfe": 2', b'"nfe": 02'), "JSON is malformed: invalid number"),
    Case("not UTF-8", replacing(b'"onnx": "', b'"onnx": "\xf0\x9f\x92'), "can't decode bytes in position 0-2: invalid"),
    Case("half a pair", replacing(b'"onnx": "', b'"onnx": "\\ud83d'), "unexpected end of hex escape (byte "),
    Case("other spaces", raw(lambda data: data.replace(b"\n", b"\r\n")), "was altered: its digest is "),
    Case("later version", replacing(b'"schema_version": 4', _LATER), "schema version 5, this ArcFlow reads version 4"),
    Case("huge version", replacing(b'"schema_version": 4', b'"schema_version": ' + b"9" * 40), "version 9999999999999"),
    Case("other kind", replacing(b'"arcflow-bundle"', b'"it\'s \\u0007"'), "is of kind \"it's \\x07\"; a bundle's is"),
    Case("digest missing", replacing(b'"digest": ', b'"tools": {}, "x": '), "contains unknown field `x`"),
    Case("digest empty", raw(lambda data: data.replace(data[data.index(b'"digest": "') + 11 :][:64], b"", 1)),
         "it must hold one digest of itself, found 0"),
    Case("digest twice", replacing(b'"onnx": "', b'"digest": "' + b"a" * 64 + b'", "onnx": "'), "itself, found 2"),
    Case("trailing", raw(lambda data: data + b"x"), "JSON is malformed: trailing characters (byte "),
]  # fmt: skip

_FIELDS = [
    Case(f"field {place} {number}", setting(place, value), error)
    for number, (place, value, error) in enumerate(
        (
            ("extra", 1, _SCHEMA + "Object contains unknown field `extra`"),
            ("limits.batch.extra\u00e9", 1, "Object contains unknown field `extra\u00e9` - at `$.limits.batch`"),
            ("momentum-", None, _SCHEMA + "Object missing required field `momentum`"),
            ("files.2.sha256-", None, "Object missing required field `sha256` - at `$.files[2]`"),
            ("files.0.size", "1", _SCHEMA + "Expected `int`, got `str` - at `$.files[0].size`"),
            ("files.0.size", -1, "Expected `int` >= 0 - at `$.files[0].size`"),
            ("files.0.size", 1 << 63, "Expected `int` <= 9223372036854775807 - at `$.files[0].size`"),
            ("files.0.size", 1 << 80, "Expected `int` <= 9223372036854775807 - at `$.files[0].size`"),
            ("files.0.size", 1.0, "Expected `int`, got `float` - at `$.files[0].size`"),
            ("files.0.sha256", "A" * 64, "Expected `str` matching regex '^[0-9a-f]{64}\\\\Z' - at `$.files[0].sha256`"),
            ("files.0", None, "Expected `object`, got `null` - at `$.files[0]`"),
            ("files", {}, "Expected `array`, got `object` - at `$.files`"),
            ("model", "../tiny", "matching regex '^[a-z0-9][a-z0-9._-]*\\\\Z' - at `$.model`"),
            ("model", "tiny\n", "matching regex '^[a-z0-9][a-z0-9._-]*\\\\Z' - at `$.model`"),
            ("architecture", "it's", 'Invalid enum value "it\'s" - at `$.architecture`'),
            ("networks.clip.inputs.0.dtype", "int8", "'int8' - at `$.networks[...].inputs[0].dtype`"),
            ("networks.clip.inputs.0.shape.1", 0, "Expected `int` >= 1 - at `$.networks[...].inputs[0].shape[1]`"),
            ("networks.clip.inputs.0.shape.1", None, "Expected `int | str`, got `null`"),
            ("limits.batch.max", 1 << 21, "Expected `int` <= 2097151 - at `$.limits.batch.max`"),
            ("latent.scaling_factor.0", 0, "Expected `float` > 0.0 - at `$.latent.scaling_factor[0]`"),
            (
                "schedule.conditioning_dtype",
                "float16",
                "Invalid enum value 'float16' - at `$.schedule.conditioning_dtype`",
            ),
            ("schedule.guidance", True, "Expected `float`, got `bool` - at `$.schedule.guidance`"),
            ("engine", 1, "Expected `object | null`, got `int` - at `$.engine`"),
            ("parity.0.twin", 0, "Expected `bool`, got `int` - at `$.parity[0].twin`"),
            ("parents.base", [], "Expected `str`, got `array` - at `$.parents[...]`"),
        )
    )
]

_RULES = [
    Case("unlisted network", unlist_clip, "'clip' needs 'clip.onnx', which is not among its files; "),
    Case("two faults, in order", together(unlist_clip, reversing("networks", "tokenizers"),
         setting("tokenizers.t5.drop", 12)), "'clip' needs 'clip.onnx'"),
    Case("parent path", relisting("clip.onnx", "../clip.onnx"), "'../clip.onnx' leaves the bundle; it must lie in"),
    Case("inner parent path", relisting("clip.onnx", "tokenizers/../clip.onnx"), "leaves the bundle"),
    Case("absolute path", relisting("clip.onnx", "/etc/passwd"), "'/etc/passwd' is absolute"),
    Case("drive path", relisting("clip.onnx", "C:/clip.onnx"), "is absolute"),
    Case("backslash path", relisting("clip.onnx", "a\\clip.onnx"), "'a\\\\clip.onnx' has a backslash"),
    Case("dotted path", relisting("clip.onnx", "./clip.onnx"), "is not in its shortest form"),
    Case("control path", relisting("clip.onnx", "clip\n.onnx"), "'clip\\n.onnx' is empty or has control characters"),
    Case("NUL path", relisting("clip.onnx", "clip.onnx\0x"), "'clip.onnx\\x00x' is empty or has control characters"),
    Case("path beyond ASCII", relisting("clip.onnx", "cl\u00efp.onnx"), "'cl\u00efp.onnx' has characters beyond ASCII"),
    Case("no path", relisting("clip.onnx", ""), "'' is empty or has control characters"),
    Case("listed twice", lambda root: edit(root, list_twice), "files are not sorted by path, or one is listed twice"),
    Case("unsorted", lambda root: edit(root, lambda d: d["files"].reverse()), "files are not sorted by path"),
    Case("lists itself", relisting("clip.onnx", MANIFEST_NAME), "manifest.json lists itself among its files"),
    Case("networks", setting("networks", {}), "networks are none; flux has backbone, clip, conditioner, t5, "),
    Case("architecture", setting("architecture", "qwen"), "t5, vae_decoder; qwen has backbone, text, vae_decoder"),
    Case("tokenizers", setting("tokenizers.clip-", None), "tokenizers are t5; flux has clip, t5"),
    Case("template", setting("tokenizers.t5.template", "{} {}"), "of tokenizer 't5' must hold \"{}\" once"),
    Case("drop", setting("tokenizers.t5.drop", 12), "tokenizer 't5' drops 12 of 12 tokens: nothing is left"),
    Case("range", setting("limits.batch.opt", 5), "limits.batch is 1/5/4; min <= opt <= max must hold"),
    Case("multiple", setting("limits.multiple", 12), "limits.multiple is 12; 8 px must divide it"),
    Case("sides", setting("limits.width.opt", 30), "limits.width has a value that 8 does not divide"),
    Case("factors", setting("latent.shift_factor", []), "latent.shift_factor has 0 numbers; it needs 1, or one for"),
    Case("field's shape", setting("momentum.packed_channels", 12), "momentum has 12 packed channels and 4 patch pos"),
    Case("evaluations", setting("schedule.nfe", 65), "schedule.nfe is 65, above max_nfe 64"),
    Case("formats", setting("target", "sm89"), "each network of target 'sm89' is a plan; not so backbone, clip, cond"),
    Case("precision", setting("precision", "fp8"), "precision is 'fp8'; quantisation must be described where it is"),
    Case("data", setting("networks.t5.data", ["tokenizers/t5.json"]), "of 't5' do not lie beside 't5.onnx'"),
    Case("data twice", setting("networks.t5.data", ["clip.onnx"] * 2), "of 't5' are not sorted, or one is listed"),
    Case("great products", together(setting("latent.patch", 1 << 20), setting("latent.vae_factor", 1 << 20)),
         "limits.multiple is 8; 1099511627776 px must divide it"),
]  # fmt: skip

_MEMORY = {"weights": 1 << 40, "activations": 0}
_PLANS = [
    Case(name, damage, error, "plans")
    for name, damage, error in (
        ("flipped plan", flipping("backbone.plan", "middle"), "'backbone.plan' was altered"),
        ("no seal", setting("engine.seal", ""), "its plans have no seal: no machine vouches for them; run: python"),
        ("broken seal", setting("engine.seal", "0" * 16 + ":" + "0" * 64), "its plans were built on another machine"),
        ("plans exchanged", swap_plans, "tiny-fp16-sm89: the seal of its plans is broken: they are not those that"),
        ("another key", key_of(bytes(32)), "its plans were built on another machine (plans are code: they run only"),
        ("no key", lambda root: shutil.rmtree(keys_of(root)), "its plans were built on another machine"),
        ("key open to others", key_mode(0o640), "plans.key is open to others or not yours; run: chmod 600 "),
        ("short key", key_of(b"short"), "plans.key is damaged: remove it, and build your plans again"),
        ("long key", key_of(bytes(33)), "plans.key is damaged: remove it, and build your plans again"),
        ("linked key", link_key, "plans.key: Too many levels of symbolic links; it must be a file of your own"),
        ("fifo key", key_as_fifo, "plans.key is open to others or not yours"),
        ("keys are a file", keys_as_file, "plans.key: Not a directory; it must be a file of your own"),
        ("seal of another form", setting("engine.seal", "x"), "Expected `str` matching regex '^([0-9a-f]{16}:[0-9a-f]"),
        ("no engine", setting("engine", None), "target is 'sm89'; an engine must be described for plans, and for"),
        ("other capability", setting("engine.compute_capabilities", ["sm90"]), "which is sm89; its engine is for sm90"),
        (
            "no profiles",
            setting("engine.profiles", {}),
            "engine.profiles are none; flux has backbone, clip, conditioner",
        ),
        ("memory of some", setting("engine.memory", {"t5": _MEMORY}), "engine.memory are t5; flux has backbone, clip"),
        ("memory below 0", setting("engine.memory", {"t5": {**_MEMORY, "weights": -1}}), "Expected `int` >= 0 - at `$"),
        ("memory of all", setting("engine.memory", dict.fromkeys(NETWORKS["flux"], _MEMORY)), None),
        ("profile of another", setting("engine.profiles.clip", {}), "of 'clip' are for ; it takes input_ids"),
        (
            "profile too small",
            setting("engine.profiles.clip.input_ids.max", [1, 32]),
            "does not fit ['batch', 32], or",
        ),
        (
            "plan with data",
            setting("networks.clip.data", ["t5.plan"]),
            "the plan of 'clip' has data files; a",
        ),
    )
]

CASES: tuple[Case, ...] = (
    *_GOOD, *_flip_cases(), *_LISTING, *_CONTENT, *_BYTES, *_FIELDS, *_RULES, *_PLANS,
)  # fmt: skip


def build_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The whole bundles that cases copy, one a kind, and beside them the key that sealed the plans."""
    monkeypatch.setenv(ENVIRONMENT, str(folder / "keys"))
    onnx = small_bundle.build(folder / "tiny-fp32-cpu")
    memory = {name: PlanMemory(1 << 62, place) for place, name in enumerate(NETWORKS["flux"])}
    plans = small_plans.build(folder / "tiny-fp16-sm89", finish=sealed, memory=memory)
    return {"onnx": onnx.root, "plans": plans.root}


def prepare(case: Case, sources: Mapping[str, Path], folder: Path) -> Path:
    """The case's bundle under ``folder``, damaged; the machine's key is in ``folder / "keys"``."""
    source = sources[case.bundle]
    root = Path(shutil.copytree(source, folder / source.name))
    shutil.copytree(source.parent / "keys", folder / "keys")
    case.damage(root)
    return root
