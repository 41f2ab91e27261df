"""Where models come from: a folder that is there, or a repository on the Hugging Face hub, offline from its cache too.

A hub id is ``owner/name``; a folder in it is ``owner/name/folder``, and ``@revision`` may follow either.
Only what is needed is downloaded, and never a file that may hold code (``.bin``, ``.ckpt``).
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from arcflow.errors import SourceError
from foundation.files import sha256_file

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)
ADAPTER_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
"""All that an adapter is; what else lies in its folder, such as a model card, is for people."""
_VISION_FILES = ("preprocessor_config.json", "config.json", "*.safetensors")
_LORA_CONFIG = "adapter_config.json"
_CARD = "README.md"
_LISTED = 10


@dataclass(frozen=True)
class HubSource:
    """A place on the hub. repository: owner/name; inside: folder or file in it, "" for all; revision: None is main."""

    repository: str
    inside: str
    revision: str | None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{'/' if self.inside else ''}{self.inside}{revision}"


def parse_id(source: str) -> HubSource | None:
    """The place that a hub id names; None where ``source`` is no hub id."""
    place, at, revision = source.partition("@")
    if not _ID.fullmatch(place) or (at and not revision) or ".." in place:
        return None
    owner, name, *inside = place.split("/")
    return HubSource(f"{owner}/{name}", "/".join(inside), revision or None)


def place_of(source: str | Path) -> HubSource | None:
    """The place on the hub that ``source`` is looked for at; None where it is a folder here. Raises SourceError."""
    place = _local_or_hub(source, "base model")
    return place if isinstance(place, HubSource) else None


def resolve_base(source: str | Path, folders: Iterable[str]) -> Path:
    """The folder of a base pipeline: weights in ``folders``, configurations, tokenizers. Raises SourceError."""
    place = _local_or_hub(source, "base model")
    if isinstance(place, Path):
        return place
    patterns = ["model_index.json", "scheduler/*.json", *(f"tokenizer*/*.{kind}" for kind in ("json", "txt", "model"))]
    for folder in folders:
        patterns += [f"{folder}/*.json", f"{folder}/*.safetensors"]
    return _snapshot(place, patterns, "model_index.json")


def resolve_adapter(source: str | Path) -> Path:
    """The folder of an adapter in the released format. Raises SourceError."""
    place = _local_or_hub(source, "adapter")
    return place if isinstance(place, Path) else _snapshot(place, ADAPTER_FILES, "config.json")


def adapter_digest(folder: Path) -> str:
    """Hexadecimal sha256 of all that an adapter is. Raises SourceError where a file of it is missing."""
    try:
        files = "".join(sha256_file(folder / name) for name in ADAPTER_FILES)
    except OSError as error:
        raise SourceError(f"no adapter at {folder}: {error.strerror}; give a folder that has one") from error
    return hashlib.sha256(files.encode()).hexdigest()


def resolve_features(source: str | Path) -> Path:
    """The folder of a vision network in transformers' form, with what prepares images for it. Raises SourceError."""
    place = _local_or_hub(source, "vision network")
    return place if isinstance(place, Path) else _snapshot(place, _VISION_FILES, _VISION_FILES[0])


def resolve_lora(source: str | Path) -> Path:
    """The file of a LoRA, or a folder that holds one. Raises SourceError."""
    place = _local_or_hub(source, "LoRA")
    if isinstance(place, Path):
        return place
    if place.inside.endswith(".safetensors"):
        folder, _, name = place.inside.rpartition("/")
        inside = HubSource(place.repository, folder, place.revision)
        return _snapshot(inside, (name, _LORA_CONFIG), name) / name
    names = _lora_files(place)
    if len(names) != 1:
        listed = ", ".join(names[:_LISTED]) or "none"
        raise SourceError(f"{place} must name one .safetensors file, as {place.repository}/FILE; found: {listed}")
    return _snapshot(place, (names[0], _LORA_CONFIG), names[0]) / names[0]


def find_card(place: HubSource) -> Path | None:
    """The model card of a repository, downloaded where it is not cached; None where there is none to be had."""
    from huggingface_hub import hf_hub_download

    try:
        with _hub_errors(place):
            return Path(hf_hub_download(place.repository, _CARD, revision=place.revision))
    except SourceError:
        return None


def _local_or_hub(source: str | Path, what: str) -> Path | HubSource:
    path = Path(source).expanduser()
    if path.exists():
        return path
    place = parse_id(str(source)) if isinstance(source, str) else None
    if place is None:
        raise SourceError(f"there is no {what} at {source}; give a folder that is there, or a hub id as owner/name")
    return place


def _lora_files(place: HubSource) -> list[str]:
    """The safetensors files right in that folder, by name: on the hub, or offline in the cache."""
    from huggingface_hub import HfApi, errors, snapshot_download

    prefix = f"{place.inside}/" if place.inside else ""
    with _hub_errors(place):
        try:
            info = HfApi().model_info(place.repository, revision=place.revision)
            names = [file.rfilename for file in info.siblings or ()]
        except errors.HfHubHTTPError:
            raise
        except (errors.HTTPError, OSError):  # type: ignore[attr-defined]  # Offline, by choice or not.
            try:
                folder = snapshot_download(place.repository, revision=place.revision, local_files_only=True)
            except errors.IncompleteSnapshotError as error:
                folder = str(error.snapshot_path)  # A repository of several LoRAs, of which some are here.
            names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.safetensors")]
    inside = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted(name for name in inside if name.endswith(".safetensors") and "/" not in name)


def _snapshot(place: HubSource, patterns: Sequence[str], needed: str) -> Path:
    """The folder ``place`` of the repository's snapshot in the cache, with what the patterns name; downloads the rest.

    needed: a file without which the folder is not what it should be.
    """
    from huggingface_hub import snapshot_download

    prefix = f"{place.inside}/" if place.inside else ""
    with _hub_errors(place):
        root = snapshot_download(
            place.repository, revision=place.revision, allow_patterns=[prefix + pattern for pattern in patterns]
        )
    folder = Path(root) / place.inside
    if not (folder / needed).is_file():
        raise SourceError(
            f"{place} has no {needed}, or the cache at {root} holds a part of it only; "
            "check the id, and run the command once with a connection to the hub"
        )
    return folder


@contextmanager
def _hub_errors(place: HubSource) -> Iterator[None]:
    """Turn what the hub's library raises into one clear error each."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{place.repository} is gated: accept its licence on https://huggingface.co/{place.repository}, then run "
            "`hf auth login` (or set HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{place.repository} has no revision {place.revision}; leave it out, or check it") from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"there is no folder {place} here, and no repository {place.repository} on the hub that you may see; check "
            "the name, or run `hf auth login` if it is private"
        ) from error
    except errors.IncompleteSnapshotError as error:
        raise SourceError(
            f"the hub cannot be reached, and its cache at {error.snapshot_path} holds a part of {place} only; go "
            "online (unset HF_HUB_OFFLINE), or give a folder"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise SourceError(
            f"there is no folder {place} here, the hub cannot be reached, and its cache lacks {place}; go online "
            "(unset HF_HUB_OFFLINE), or give a folder"
        ) from error
    except (errors.HTTPError, errors.HFValidationError) as error:  # type: ignore[attr-defined]
        reason = " ".join(str(error).split())
        raise SourceError(f"the hub rejected {place}: {reason}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SourceError(f"no room to download {place}; free some, or set HF_HOME to another disk") from error
        raise SourceError(f"cannot get {place} from the hub: {error}; try again, or give a folder") from error
