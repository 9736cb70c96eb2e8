"""The model card of a bundle: `README.md` as the Hugging Face hub shows it, from the bundle's own manifest."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..targets.manifest import Manifest
from .report import figure, table
from .report_html import size_of
from .report_tables import PROOFS, beside
from .stored import recipe_of

_FIGURES = ("wer", "kl", "top1", "same_text", "answers")


def card(manifest: Manifest, repository: str, *, license_: str | None = None, base: str | None = None) -> str:
    """The card. `license_` and `base` (a model on the hub) are those that are given: nothing is guessed."""
    lines = [*_front(manifest, license_, base), "", f"# {repository.partition('/')[2]}", "", _about(manifest, base)]
    lines += ["", "## Measured", "", *_measured(manifest), "", "## Use", "", *_use(manifest, repository)]
    return "\n".join(lines) + "\n"


def _front(manifest: Manifest, license_: str | None, base: str | None) -> Iterator[str]:
    """The fields that the hub reads, in YAML; every text as JSON, which YAML takes too."""
    yield "---"
    yield "library_name: ossicle"
    yield "pipeline_tag: audio-text-to-text"
    yield "tags: " + json.dumps([manifest.family, manifest.recipe["name"], *_targets(manifest)])
    if license_:
        yield f"license: {json.dumps(license_)}"
    if base:
        yield f"base_model: {json.dumps(base)}"
        yield "base_model_relation: quantized"
    yield "---"


def _about(manifest: Manifest, base: str | None) -> str:
    of = f"[{base}](https://huggingface.co/{base})" if base else f"`{manifest.source.name}`"
    adapters = ", ".join(f"`{one.name}` with weight {one.weight:g}" for one in manifest.adapters)
    merged = f" LoRA adapters merged: {adapters}." if adapters else ""
    kept = ", ".join(f"`{one.name}` ({one.target})" for one in manifest.runtime_adapters)
    merged += f" LoRA adapters kept, for requests that ask for them: {kept}." if kept else ""
    recipe = recipe_of(manifest.recipe)
    parts = ("encoder", "embedding", "decoder", "lm_head")
    formats = ", ".join(f"{part} {getattr(recipe, part).name}" for part in parts)
    return (
        f"{of}, compiled by ossicle {manifest.tools['ossicle']} for {', '.join(_targets(manifest))} in recipe "
        f"`{manifest.recipe['name']}` ({formats}).{merged}"
    )


def _measured(manifest: Manifest) -> list[str]:
    found = manifest.verification
    if not found:
        return ["Not verified: no artifact was compared with the original."]
    first = next(iter(found.values()))
    head = ("artifact", "MB", "word error rate", "KL, nats", "same top token", "same text", "answers right", "verdict")
    wer, answers = (_number(first["figures"][name]) for name in ("wer_original", "answers_original"))
    original = ("original, torch float32", "", figure("wer", wer), "", "", "", figure("answers", answers), "")
    rows = [original, *(_row(manifest, target, entry) for target, entry in found.items())]
    speech = first["speech"]
    told = f"Against the original, on {speech['clips']} recordings: {speech['name']}, sha256 {speech['sha256'][:12]}."
    told += beside(found)
    proofs = [f"- {target}: {PROOFS[entry['proof']]} ({entry['engine']})" for target, entry in found.items()]
    return [told, "", *table(head, rows), "", "How each was proved:", "", *proofs, *_added(found)]


def _added(found: Mapping[str, Any]) -> list[str]:
    """The adapters that are added as it runs, each against the original that it is merged into."""
    rows = [
        (
            name,
            target,
            *(figure(one, _number(entry["figures"][one])) for one in ("kl", "top1")),
            _verdict(entry["failed"]),
        )
        for target, held in found.items()
        for name, entry in held.get("adapters", {}).items()
    ]
    head = ("adapter, added as it runs", "artifact", "KL, nats", "same top token", "verdict")
    return ["", *table(head, rows)] if rows else []


def _row(manifest: Manifest, target: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    size = size_of(manifest.artifacts, target) / 1e6
    told = [figure(name, _number(entry["figures"][name])) for name in _FIGURES]
    return target, f"{size:.1f}", *told, _verdict(entry["failed"])


def _verdict(failed: Sequence[str]) -> str:
    return f"FAILED: {', '.join(failed)}" if failed else "passed"


def _number(value: float | str | None) -> float | None:
    return float(value) if isinstance(value, str) else value


def _use(manifest: Manifest, repository: str) -> list[str]:
    extras = ",".join(_targets(manifest))
    name = repository.partition("/")[2]
    lines = ["```sh", f"pip install 'ossicle[{extras}]'", f"hf download {repository} --local-dir {name}"]
    lines += [f"ossicle run {name} recording.wav", "```", "", "```python", "import ossicle", ""]
    lines += [f'with ossicle.load("{name}") as session:', '    print(session.transcribe("recording.wav").text)', "```"]
    return [*lines, "", "Each engine by its name:", "", *_engines(manifest, name)]


def _engines(manifest: Manifest, name: str) -> list[str]:
    engines = {one.target: one.requirements["engine"] for one in manifest.artifacts if one.stage == "decoder"}
    return [f"- {target}: `ossicle run {name} recording.wav --engine {engine}`" for target, engine in engines.items()]


def _targets(manifest: Manifest) -> Sequence[str]:
    return list(dict.fromkeys(one.target for one in manifest.artifacts if one.stage == "decoder"))
