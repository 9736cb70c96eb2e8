"""What planting faults into a bundle takes: recordings of the shipped model, and verification of a changed copy."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

from ossicle.compiler import verify
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.figures import Check
from ossicle.compiler.reference import MAX_TOKENS
from ossicle.runtimes.probe import report
from ossicle.targets import manifest as manifests
from ossicle.targets.probe import Report, Request

DEMO = Path(__file__).parents[1] / "demo"
CLIPS = ("02-digits-espeak.wav", "06-command-espeak.wav", "11-pair-espeak.wav", "16-digits-flite.wav")


def recordings(folder: Path, clips: tuple[str, ...] = CLIPS, *, questions: bool = False) -> Path:
    """A list of shipped recordings in `folder`, beside copies of them; their questions are asked only if that is said."""
    lines = (DEMO / "speech" / "speech.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if entry["file"] in clips]
    if not questions:
        entries = [entry | {"questions": {}} for entry in entries]
    for name in clips:
        shutil.copyfile(DEMO / "speech" / name, folder / name)
    listed = folder / "data.jsonl"
    listed.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    return listed


def judged(work: Path, target: str, plant: Callable[[Path], None], *, longest: int = MAX_TOKENS) -> dict[str, Check]:
    """What verification makes of `work/whole` after a fault: figure by figure, of this target alone.

    The changed bundle is `work/bundle`; its manifest tells of its files as they are, for a fault is no damage. Texts end after
    `longest` tokens: a decoder with a fault finds no end of them, and figures of logits are none of theirs. A bundle of which
    less than whole texts is asked answers here, on one thread, and not in a process of its own.
    """

    whole = verify.ask

    def ask(bundle: Path, questions: Sequence[Request], *, engine: str) -> Report:
        if longest == MAX_TOKENS:
            return whole(bundle, questions, engine=engine)
        shorter = [replace(one, max_tokens=min(one.max_tokens, longest)) for one in questions]
        return report(bundle, shorter, engine=engine, threads=1)

    bundle = work / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(work / "whole", bundle)
    plant(bundle)
    found = manifests.read(bundle)
    artifacts = [
        replace(one, files=tuple(manifests.file_entry(bundle, bundle / file.path) for file in one.files))
        for one in found.artifacts
    ]
    manifests.write(bundle, replace(found, artifacts=tuple(artifacts)))
    checkpoint = open_checkpoint(DEMO / "model")
    with mock.patch.object(verify, "ask", ask):
        verification = verify.verify(bundle, checkpoint, speech=work / "data.jsonl", cache=work / "cache")
    (judgement,) = verification.targets
    assert judgement.target == target
    return {check.figure: check for check in judgement.checks}
