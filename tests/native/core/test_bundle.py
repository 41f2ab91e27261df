"""The native core takes and rejects the bundles that Python takes and rejects, in the same words.

What is wrong with bytes that are no JSON is left to each language's parser; the sentence around it is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engines.bundle import open_bundle
from engines.errors import BundleError
from engines.locate import BUILT_IN, ENVIRONMENT
from engines.manifest import parse_manifest
from engines.schema import MANIFEST_NAME, Manifest
from engines.trust import ENVIRONMENT as KEYS
from engines.trust import require_ours
from runtime.opening import find_bundle
from tests.engines.bundle_cases import CASES, Case, build_sources, prepare
from tests.engines.damages import Document, caching, sign
from tests.engines.link_cases import LINK_CASES

_REJECTED = 2
"""ARCFLOW_BUNDLE_REJECTED of arcflow.h."""

_TINY = BUILT_IN / "tiny-fp16-cpu"


class Probe:
    """The program ``probe_bundle``, asked line by line."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert answer.get("ok") or answer["code"] == _REJECTED
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(10) == 0


@pytest.fixture(scope="module")
def probe(native_build: Path) -> Iterator[Probe]:
    opened = Probe(native_build / "probe_bundle")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Path]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield build_sources(tmp_path_factory.mktemp("sources"), monkeypatch)


def _refusal(data: bytes) -> str | None:
    try:
        parse_manifest(data)
    except BundleError as error:
        return str(error)
    return None


def _same(ours: str | None, theirs: str | None, data: bytes) -> bool:
    """Equal; where ``data`` is no JSON, or holds an integer beyond 64 bits, it is enough that both reject it."""
    if ours == theirs:
        return True
    try:
        msgspec.json.decode(data)
        strange = re.search(rb"\d{20}", data) is not None
    except (ValueError, RecursionError):
        strange = True
    return strange and theirs is not None and "manifest.json " in (ours or "")


@pytest.mark.parametrize("case", [*CASES, *LINK_CASES], ids=lambda case: case.name)
def test_the_same_bundles_are_refused_in_the_same_words(
    case: Case, sources: Mapping[str, Path], probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = prepare(case, sources, tmp_path)
    monkeypatch.setenv(KEYS, str(tmp_path / "keys"))
    try:
        require_ours(open_bundle(root, allow_links=case.allow_links).manifest)
        message = None
    except BundleError as error:
        message = str(error)
    environment = {KEYS: str(tmp_path / "keys")}
    answer = probe.ask("verify", path=str(root), allow_links=case.allow_links, env=environment)
    manifest = root / MANIFEST_NAME
    data = manifest.read_bytes() if manifest.is_file() and not manifest.is_symlink() else b"{}"
    assert _same(answer.get("message"), message, data)
    assert (message is None) == (case.error is None)


def test_contents_are_read_when_they_are_used(sources: Mapping[str, Path], probe: Probe, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sources["onnx"], tmp_path / "tiny-fp16-cpu"))
    whole = (root / "clip.onnx").read_bytes()
    for op in ("read", "map"):
        answer = probe.ask(op, path=str(root), file="clip.onnx")
        assert (answer["sha256"], answer["size"]) == (hashlib.sha256(whole).hexdigest(), len(whole))
    for data in (whole[:-1], whole[:-1] + b"\0", whole + b"\0"):
        (root / "clip.onnx").write_bytes(data)
        assert probe.ask("open", path=str(root))["ok"]
        opened = open_bundle(root, contents="when used")
        for op, read in (("read", opened.read), ("map", opened.map)):
            with pytest.raises(BundleError) as caught:
                read("clip.onnx")
            assert probe.ask(op, path=str(root), file="clip.onnx")["message"] == str(caught.value)
    with pytest.raises(BundleError) as caught:
        opened.read("it's")
    assert probe.ask("read", path=str(root), file="it's")["message"] == str(caught.value)


def test_links_are_followed_when_contents_are_read(sources: Mapping[str, Path], probe: Probe, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sources["onnx"], tmp_path / "tiny-fp16-cpu"))
    digest = hashlib.sha256((root / "clip.onnx").read_bytes()).hexdigest()
    caching(root)
    asked = {"path": str(root), "file": "clip.onnx", "allow_links": True}
    assert [probe.ask(op, **asked)["sha256"] for op in ("read", "map")] == [digest, digest]
    found = probe.ask("find", source=f"{root}/", built_in="", allow_links=True)
    assert found["root"] == str(find_bundle(f"{root}/", None, None, allow_links=True).root)


def _kept(manifest: Manifest) -> Document:
    """What the native core keeps of a manifest."""
    document = msgspec.to_builtins(manifest)
    return {k: v for k, v in document.items() if k not in ("kind", "schema_version", "parity", "quantisation", "gate")}


@pytest.mark.parametrize("kind", ["onnx", "plans", "embedded"])
def test_a_manifest_is_read_field_by_field(kind: str, sources: Mapping[str, Path], probe: Probe) -> None:
    data = ({**sources, "embedded": _TINY}[kind] / MANIFEST_NAME).read_bytes()
    assert probe.ask("parse", hex=data.hex())["manifest"] == _kept(parse_manifest(data))


@pytest.mark.parametrize(
    "path",
    ["{}", "{}/", "{}//.", "{}/./tokenizers/..", "nowhere", "./nowhere//at/all/", "", ".", "..", "x" * 5000, "/"],
)
def test_a_folder_is_named_as_python_names_it(path: str, probe: Probe) -> None:
    path = path.format(os.path.relpath(_TINY))
    answer = probe.ask("open", path=path)
    try:
        assert answer.get("root") == str(open_bundle(Path(path), contents="when used").root)
    except BundleError as error:
        assert answer.get("message") == str(error)


@pytest.fixture(scope="module")
def roots(sources: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of bundles of which most are empty, a missing one, and a bundle under a wrong name."""
    folder = tmp_path_factory.mktemp("roots")
    for name in ("a/tiny-fp8-cpu", "b/tiny-fp8-rtx", "b/tiny-fp8-sm89", "b/flux-dev-bf16-sm120", "a/notes"):
        (folder / name).mkdir(parents=True)
    (folder / "a" / "other-fp32-cpu").write_text("not a folder")
    shutil.copytree(sources["onnx"], folder / "a" / "wrong-fp32-cpu")
    (folder / "b" / "tiny-fp32-cpu").symlink_to(sources["onnx"])
    return [folder / "a", folder / "missing", folder / "b"]


@pytest.mark.parametrize(
    "wanted",
    [
        ("tiny", None, None), ("tiny", "fp16", None), ("tiny", "fp8", None), ("tiny", None, "sm89"),
        ("tiny", "fp8", "sm120"), ("tiny", None, "rtx"), ("tiny", "fp4", "cpu"), ("tiny", "fp16", "cpu"),
        ("tiny", "fp32", "cpu"),
        ("wrong", None, None), ("flux-dev", None, None), ("it's", None, None), ("", None, None), ("tiny-fp16-cpu",) * 3,
        (f"{_TINY}", None, None), (f"{_TINY}/", "fp16", "cpu"), (f"{_TINY}", "fp8", None), (f"{_TINY}", None, "rtx"),
        (".", None, None), ("flux", None, None), ("flux", "bf16", None), ("flux", None, "sm80"), ("flux", None, "sm90"),
        ("flux", None, "cpu"), ("tiny", None, "sm100"),
    ],
)  # fmt: skip
def test_a_bundle_is_found_as_python_finds_it(
    wanted: tuple[str, str | None, str | None], roots: list[Path], probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = f":{roots[0]}/:{roots[1]}::{os.path.relpath(roots[2])}"
    monkeypatch.setenv(ENVIRONMENT, searched)
    source, precision, target = wanted
    answer = probe.ask(
        "find",
        source=source,
        precision=precision or "",
        target=target or "",
        built_in=str(BUILT_IN),
        env={ENVIRONMENT: searched},
    )
    try:
        assert answer.get("root") == str(find_bundle(source, precision, target).root)
    except BundleError as error:
        assert answer.get("message") == str(error)


_GOOD = (_TINY / MANIFEST_NAME).read_bytes()
_PIECES = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from([bytes([c]) for c in b'",:{}[]\\-+.eEntfu0 \n\x00\x7f\x80\xff']),
    st.sampled_from([b"null", b"true", b"-0", b"1e999", b"9999", b'"\\ud83d"', b'"\xed\xa0\x80"', b"[]", b'{"a":1}']),
)
_EDITS = st.lists(st.tuples(st.integers(0, len(_GOOD) - 1), st.integers(0, 9), _PIECES), min_size=1, max_size=3)


@settings(max_examples=400, deadline=None)
@given(edits=_EDITS)
@example(edits=[(0, 0, b"")])
def test_bytes_changed_anywhere(edits: list[tuple[int, int, bytes]], probe: Probe) -> None:
    """Both accept or both reject, with one message."""
    data = _GOOD
    for position, removed, piece in edits:
        data = data[:position] + piece + data[position + removed :]
    assert _same(probe.ask("parse", hex=data.hex()).get("message"), _refusal(data), data)


def _leaves(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*place, key)
        yield from _leaves(child, (*place, key))


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6), st.sampled_from(["cpu", "rtx", "sm89", "plan", "fp8", "qwen", "clip.onnx", "a/../b", "{}"]),
    st.just([]), st.just({}), st.lists(st.integers(1, 40), max_size=3),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_values_changed_anywhere_and_signed_again(
    data: st.DataObject, sources: Mapping[str, Path], probe: Probe
) -> None:
    root = sources[data.draw(st.sampled_from(["onnx", "plans"]))]
    document = json.loads((root / MANIFEST_NAME).read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(list(_leaves(document))))
        inner = document
        for key in path:
            inner = inner[key]
        inner[last] = data.draw(_VALUES)
    changed = sign(document)
    assert probe.ask("parse", hex=changed.hex()).get("message") == _refusal(changed)


_HEX = "0123456789abcdef"
_TEXTS = [
    "", "a", "A", "0a.b_c-d", "-a", ".a", "a b", "a\n", "\0", "\u00e9", "a_9", "cpu", "sm9", "sm90", "sm120", "sm1200",
    "sm90\n", "sm", "Sm90", _HEX * 4, _HEX * 4 + "0", _HEX * 3, _HEX * 4 + "\n", _HEX.upper() * 4, "g" * 64,
    f"{_HEX}:{_HEX * 4}", f"{_HEX};{_HEX * 4}", f"{_HEX}0:{_HEX * 4}", f"{_HEX}:{_HEX * 4}0", f":{_HEX * 4}",
]  # fmt: skip
"""Texts that the patterns of the schema take, and texts that they just do not."""


@pytest.mark.parametrize(
    "place",
    [
        ("model",), ("precision",), ("target",), ("files", 0, "sha256"), ("engine", "compute_capabilities", 0),
        ("engine", "onnx", "backbone"), ("engine", "seal"),
    ],
    ids=lambda place: str(place[-1]),
)  # fmt: skip
def test_a_pattern_takes_the_same_texts(
    place: tuple[str | int, ...], sources: Mapping[str, Path], probe: Probe
) -> None:
    for text in _TEXTS:
        document: Any = json.loads((sources["plans"] / MANIFEST_NAME).read_bytes())
        inner = document
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = text
        changed = sign(document)
        assert probe.ask("parse", hex=changed.hex()).get("message") == _refusal(changed), text


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(max_codepoint=0x24F, exclude_categories=["Cs"])))
def test_text_is_quoted_as_python_quotes_it(text: str, probe: Probe) -> None:
    """Of characters that every version of Unicode knows: what can be printed is a matter of its tables."""
    assert probe.ask("repr", hex=text.encode().hex())["text"] == repr(text)


def test_the_core_names_the_rejection_as_the_header_does() -> None:
    header = Path(__file__).parents[3] / "runtime/native/include/arcflow/arcflow.h"
    found = re.search(r"ARCFLOW_BUNDLE_REJECTED = (\d+)", header.read_text())
    assert found is not None
    assert int(found[1]) == _REJECTED
