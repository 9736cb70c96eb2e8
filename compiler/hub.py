"""Folders named by the user: a local one, or a repository of the Hugging Face hub, downloaded into its cache."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..targets.contract import CheckpointError

_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def fetch(location: str | Path, choose: Callable[[Sequence[str]], list[str]]) -> tuple[Path, str]:
    """A folder on this machine, and what to call it.

    `location` is an existing folder, or else a hub id `org/name[@revision]`, of which the files are downloaded that
    `choose` picks from the names of all.

    Raises:
        CheckpointError: it is neither, or it cannot be downloaded.
    """
    folder = Path(location).expanduser()
    if folder.is_dir():
        return folder, folder.resolve().name
    if folder.exists():
        raise CheckpointError(f"'{location}' is a file. Name the folder that holds it: '{folder.parent}'")
    match = _HUB_ID.fullmatch(str(location)) if isinstance(location, str) else None
    if match is None:
        raise CheckpointError(
            f"'{location}' does not exist (possible: a folder, or a hub id such as org/name@revision)"
        )
    return _download(match["repository"], match["revision"], choose), match["repository"]


def _download(repository: str, revision: str | None, choose: Callable[[Sequence[str]], list[str]]) -> Path:
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as reason:
        raise CheckpointError(
            f"'{repository}' is no folder here, and downloading takes huggingface_hub: pip install 'ossicle[build]'"
        ) from reason
    try:
        names = HfApi().list_repo_files(repository, revision=revision)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=choose(names)))
    except (HfHubHTTPError, HFValidationError) as reason:
        raise _refusal(repository, revision, reason) from reason
    except (
        Exception
    ) as reason:  # no network, offline mode: each client library has its own; the cache may still have it
        try:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            raise _refusal(repository, revision, reason) from reason


def _refusal(repository: str, revision: str | None, reason: Exception) -> CheckpointError:
    wanted = repository if revision is None else f"{repository}@{revision}"
    return CheckpointError(
        f"'{wanted}' is no folder here and cannot be downloaded from the hub: {str(reason).strip() or reason!r}. "
        "Private or gated: hf auth login"
    )
