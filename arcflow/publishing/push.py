"""Uploading an adapter's folder to the Hugging Face hub."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arcflow.errors import PublishError
from arcflow.sources.hub import parse_id

_LOG_IN = "run `hf auth login`, or set HF_TOKEN"


def check_id(repository: str) -> str:
    """A repository's name as it is. Raises PublishError where it is not ``USER/NAME`` as the hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    place = parse_id(repository)
    try:
        if place is None or place.inside or place.revision:
            raise HFValidationError("it must be USER/NAME, of letters, digits, '-', '_' and '.'")
        validate_repo_id(repository)
    except HFValidationError as error:
        reason = str(error).rstrip(".")
        raise PublishError(f"--push-to-hub {repository} is no name of a repository: {reason}") from error
    return repository


def prepare_push(repository: str) -> None:
    """Make the repository, private, unless it is there, and see that it may be written to.

    Before a long training: what the hub does not allow is found here. Raises PublishError.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise PublishError(f"--push-to-hub {repository} needs a token of the hub that may write: {_LOG_IN}")
    with _hub_errors(f"--push-to-hub {repository}", "or leave --push-to-hub out and upload the adapter later"):
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        api.auth_check(repository, write=True)


def push(folder: Path, repository: str) -> str:
    """Upload an adapter's folder to a repository that is there; the commit's address.

    Raises PublishError, which says how to upload it again; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    again = (
        f"then upload it again by the same command, or with `{shlex.join(['hf', 'upload', repository, str(folder)])}`"
    )
    with _hub_errors(f"the adapter is saved in {folder}, and was not uploaded to {repository}", again):
        commit = HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload ArcFlow adapter")
    return str(commit.commit_url)


@contextmanager
def _hub_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn what the hub's library raises into one clear error."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise PublishError(f"{what}: the hub does not accept the token; {_LOG_IN}, {remedy}") from error
        if status in (403, 404):
            raise PublishError(f"{what}: the token may not write there; take one that may, {remedy}") from error
        raise PublishError(f"{what}: {_line(error)}; wait or mend that, {remedy}") from error
    except errors.OfflineModeIsEnabled as error:
        raise PublishError(f"{what}: the hub is not asked (HF_HUB_OFFLINE is set); unset it, {remedy}") from error
    # OSError: no connection, or a file that cannot be read; RuntimeError: of the library that uploads large files.
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # type: ignore[attr-defined]
        raise PublishError(f"{what}: {_line(error)}; wait or mend that, {remedy}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
