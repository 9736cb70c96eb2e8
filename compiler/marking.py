"""A verification in the manifest of the bundle that it is of: what `ossicle.load` and a model card go by."""

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..targets import manifest as manifests
from ..targets.manifest import Manifest
from .figures import AdapterVerification, Figures, TargetVerification, Verification
from .report import SHARES


def mark(bundle: Path, verification: Verification) -> Manifest:
    """The bundle's manifest with its `verification` section brought up to date, written in place."""
    manifest = manifests.read(bundle)
    manifest = replace(manifest, verification=section(verification, manifest.verification))
    with tempfile.TemporaryDirectory(dir=bundle, prefix=".verification-") as folder:
        manifests.write(Path(folder), manifest)
        os.replace(Path(folder) / manifests.NAME, bundle / manifests.NAME)
    return manifest


def section(verification: Verification, before: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The manifest's `verification` section: by target, shares to a hundredth of a per cent and other figures to two digits.

    It says nothing of times or machines.

    What was said `before` of adapters holds for those that were not compared now.
    """
    entries = {}
    for target in verification.targets:
        added = dict(before.get(target.target, {}).get("adapters", {}))
        added |= {one.adapter: _adapter_entry(one) for one in verification.adapters if one.target == target.target}
        entries[target.target] = _entry(verification, target, added)
    return entries


def _entry(verification: Verification, target: TargetVerification, added: Mapping[str, Any]) -> dict[str, Any]:
    failed = [check.figure for check in target.checks if not check.passed]
    failed += [f"{figure} with adapter '{name}'" for name, entry in added.items() for figure in entry["failed"]]
    return {
        **({"adapters": dict(added)} if added else {}),
        "passed": not failed,
        "failed": failed,
        "proof": target.proof,
        "engine": target.engine,
        "speech": {"name": verification.speech, "sha256": verification.speech_sha256, "clips": len(target.clips)},
        "figures": {entry.name: _rounded(entry.name, getattr(target.figures, entry.name)) for entry in fields(Figures)},
        "thresholds": asdict(verification.thresholds),
    }


def _adapter_entry(found: AdapterVerification) -> dict[str, Any]:
    figures = {name: _rounded(name, getattr(found, name)) for name in ("logits", "kl", "kl_clip", "top1")}
    return {"failed": [check.figure for check in found.checks if not check.passed], "figures": figures}


def _rounded(name: str, value: float | None) -> float | str | None:
    """Four decimals of a share, two digits of all else; a word for what JSON has no number for."""
    if value is None or math.isfinite(value):
        return None if value is None else round(value, 4) if name in SHARES else float(f"{value:.1e}")
    return str(value)
