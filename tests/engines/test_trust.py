"""A plan is code: it is ours if this machine's key sealed it, and in no other case."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import msgspec
import pytest

from engines.bundle import open_bundle
from engines.errors import TrustError
from engines.schema import FileEntry, Manifest
from engines.trust import ENVIRONMENT, key_folder, plan_digests, require_ours, seal, sealed, why_not_ours
from tests.runtime import small_bundle, small_plans

_PLANS = {"backbone": "a" * 64, "vae_decoder": "b" * 64}


def _manifest(digest: str = "a" * 64) -> Manifest:
    manifest = small_plans.manifest()
    parts = [*manifest.networks.values(), *manifest.tokenizers.values()]
    files = [FileEntry(part.file, digest, 1) for part in sorted(parts, key=lambda part: part.file)]
    return msgspec.structs.replace(manifest, files=files)


def _with_seal(manifest: Manifest, text: str) -> Manifest:
    assert manifest.engine is not None
    return msgspec.structs.replace(manifest, engine=msgspec.structs.replace(manifest.engine, seal=text))


def test_the_key_is_made_on_first_use_for_the_user_alone(keys: Path) -> None:
    seal(_PLANS)
    (key,) = keys.iterdir()
    assert key.stat().st_mode & 0o777 == 0o600
    assert keys.stat().st_mode & 0o777 == 0o700
    assert key.stat().st_size == 32
    assert key.stat().st_nlink == 1


def test_a_seal_is_of_these_plans_and_of_this_key(keys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = seal(_PLANS)
    assert seal(dict(reversed(_PLANS.items()))) == first
    assert seal({"backbone": _PLANS["vae_decoder"], "vae_decoder": _PLANS["backbone"]}) != first
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "other"))
    assert seal(_PLANS).split(":")[0] != first.split(":")[0]
    assert seal(_PLANS).split(":")[1] != first.split(":")[1]


def test_ours_is_what_was_sealed_here(keys: Path) -> None:
    assert why_not_ours(sealed(_manifest())) is None
    require_ours(sealed(_manifest()))


def test_a_bundle_without_plans_holds_no_code(keys: Path) -> None:
    assert why_not_ours(small_bundle.manifest()) is None
    assert sealed(small_bundle.manifest()) == small_bundle.manifest()
    assert not keys.exists()


def test_what_nobody_sealed_is_not_ours_and_asking_makes_no_key(keys: Path) -> None:
    assert why_not_ours(_manifest())
    with pytest.raises(TrustError, match=r"tiny-fp16-sm89: its plans have no seal.*export\.build --model tiny"):
        require_ours(_manifest())
    assert not keys.exists()


def test_what_another_machine_sealed_is_not_ours(keys: Path) -> None:
    theirs = sealed(_manifest())
    shutil.rmtree(keys)
    with pytest.raises(TrustError, match="built on another machine"):
        require_ours(theirs)
    sealed(_manifest())
    with pytest.raises(TrustError, match="built on another machine"):
        require_ours(theirs)


def test_other_plans_under_our_seal_are_not_ours(keys: Path) -> None:
    ours = sealed(_manifest())
    assert ours.engine is not None
    with pytest.raises(TrustError, match="the seal of its plans is broken"):
        require_ours(_with_seal(_manifest("c" * 64), ours.engine.seal))


def test_a_bundle_whose_plan_was_replaced_by_one_who_writes_a_fitting_manifest(keys: Path, tmp_path: Path) -> None:
    folder = small_plans.build(tmp_path / "tiny-fp16-sm89", finish=sealed).root
    assert why_not_ours(open_bundle(folder).manifest) is None
    made = open_bundle(folder).manifest
    evil = small_plans.build(tmp_path / "evil").manifest
    assert made.engine is not None
    assert plan_digests(evil) == plan_digests(made)
    entries = [
        msgspec.structs.replace(entry, sha256="d" * 64) if entry.path == "backbone.plan" else entry
        for entry in made.files
    ]
    assert why_not_ours(msgspec.structs.replace(made, files=entries))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(keys: Path, mode: int) -> None:
    seal(_PLANS)
    (keys / "plans.key").chmod(mode)
    with pytest.raises(TrustError, match="chmod 600"):
        seal(_PLANS)
    with pytest.raises(TrustError, match="chmod 600"):
        why_not_ours(_manifest())


def test_a_damaged_or_linked_key_is_refused(keys: Path, tmp_path: Path) -> None:
    seal(_PLANS)
    key = keys / "plans.key"
    key.write_bytes(b"short")
    with pytest.raises(TrustError, match="is damaged"):
        seal(_PLANS)
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrustError, match="cannot read the key"):
        seal(_PLANS)


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "file" / "keys"))
    with pytest.raises(TrustError, match=r"cannot (read|write).*"):
        seal(_PLANS)


def test_processes_that_start_together_agree_on_one_key(keys: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        seals = pool.map(seal, [_PLANS] * 8)
    assert len(set(seals)) == 1
    assert [path.name for path in keys.iterdir()] == ["plans.key"]


def test_where_the_key_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert key_folder() == tmp_path / "arcflow"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("APPDATA", raising=False)
    assert key_folder() == Path.home() / ".config" / "arcflow"
