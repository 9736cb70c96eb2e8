"""A bundle on the Hugging Face hub: its files with a model card, uploaded where the user named a repository."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..targets import manifest as manifests
from ..targets.contract import PushError
from .card import card
from .report_clips import silenced

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_PAGE = "verification.html"  # which lets recordings be heard
_REPORTS = ("verification.md", _PAGE, "verification.json")
CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """What goes to a repository: files by their path there, with sizes, and the card's text.

    `changed` has the content of those files that go otherwise than the bundle has them.
    """

    bundle: Path
    repository: str
    files: tuple[tuple[str, int], ...]
    card: str
    changed: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Bytes of all files, the card aside."""
        return sum(size for _, size in self.files)


def prepare(
    bundle: Path,
    repository: str,
    *,
    license_: str | None = None,
    base: str | None = None,
    audio: bool = True,
    allow_failed: bool = False,
) -> Upload:
    """What would be uploaded of a bundle: all that its manifest lists, checked, the manifest and the reports.

    Without `audio` the page of the verification goes without the recordings that it lets hear.

    Raises:
        PushError: the repository's name is none, or the bundle failed verification or was never verified.
        BundleError: it is no bundle, or not whole.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise PushError(f"'{repository}' is no repository of the hub (it can be, for example: org/name)")
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest, hashes=True)
    if not allow_failed:
        _check_verified(bundle, manifest)
    listed = {file.path for file in manifests.bundle_files(manifest)} | {manifests.NAME}
    listed |= {name for name in _REPORTS if (bundle / name).is_file()}
    changed = {} if audio or _PAGE not in listed else {_PAGE: _without_recordings(bundle / _PAGE)}
    files = tuple((path, len(changed.get(path, b"")) or (bundle / path).stat().st_size) for path in sorted(listed))
    return Upload(bundle, repository, files, card(manifest, repository, license_=license_, base=base), changed)


def push(upload: Upload, *, private: bool = False) -> str:
    """Upload in one commit, making the repository where there is none; the commit's address.

    The token is the one that `hf auth login` keeps, or that of the environment (HF_TOKEN).

    Raises:
        PushError: huggingface_hub is not installed, the hub refuses, or it cannot be reached.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError:
        raise PushError("uploading needs huggingface_hub. Install it with: pip install 'ossicle[build]'") from None
    added = [
        CommitOperationAdd(path, upload.changed.get(path) or str(upload.bundle / path)) for path, _ in upload.files
    ]
    added.append(CommitOperationAdd(CARD, upload.card.encode()))
    try:
        api = HfApi()
        api.create_repo(upload.repository, private=private, exist_ok=True)
        made: Any = api.create_commit(upload.repository, added, commit_message=f"Upload {upload.bundle.resolve().name}")
    except Exception as reason:  # each client library below has errors of its own
        raise PushError(
            f"'{upload.repository}' cannot be written on the hub: {str(reason).strip() or repr(reason)}. "
            "Where that takes a login: hf auth login"
        ) from reason
    return str(made.commit_url)


def _without_recordings(page: Path) -> bytes:
    return silenced(page.read_text(encoding="utf-8")).encode()


def _check_verified(bundle: Path, manifest: manifests.Manifest) -> None:
    failed = [target for target, entry in manifest.verification.items() if not entry["passed"]]
    if failed:
        raise PushError(
            f"bundle '{bundle}' failed verification for {', '.join(failed)}. See its verification.md; "
            "upload it all the same with --allow-failed"
        )
    if not manifest.verification:
        raise PushError(
            f"bundle '{bundle}' was never verified. Run: ossicle verify {bundle} --checkpoint CHECKPOINT; "
            "or upload it all the same with --allow-failed"
        )
