"""What `ossicle doctor` tells: one document for machines, and the same as tables for people. docs/doctor.md explains it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.filesize import decimal

from ..targets.manifest import Manifest
from .show import console, plain, table

VERSION = 1  # of the document


def document(facts: Any, manifest: Manifest | None = None) -> dict[str, Any]:
    """The facts as JSON holds them, with a bundle also what speaks for and against every engine for each of its stages."""
    from ..runtimes.device import fingerprint

    found: dict[str, Any] = {"version": VERSION, **plain(facts), "fingerprint": fingerprint(facts)}
    found["runtimes"] = [_runtime(one) for one in facts.runtimes]
    if manifest is not None:
        found["bundle"] = _bundle(facts, manifest)
    return found


def show(found: Mapping[str, Any]) -> None:
    """A document as tables: the machine, its engines and providers, and what they can do with the bundle."""
    out = console()
    out.print(table(("machine", ""), _machine_rows(found)))
    engines = [(one["name"], one["target"], one["version"] or "-", _state(one)) for one in found["runtimes"]]
    out.print(table(("engine", "runs", "version", "state"), engines))
    out.print(table(("engine", "provider", "state"), _provider_rows(found["runtimes"])))
    if bundle := found.get("bundle"):
        out.print(table((f"stage of {bundle['name']}", "engine", "state"), _stage_rows(bundle["stages"])))


def _runtime(one: Any) -> dict[str, Any]:
    # an engine that something stands in for is not refused, and still misses what it is made for
    held = {name: getattr(one, name) for name in ("name", "target", "version", "inexact", "proof", "absent")}
    providers = {name: _refusal(reason) for name, reason in one.providers.items()}
    return held | _refusal(one.reason) | _missing(one.reason or one.absent) | {"providers": providers}


def _refusal(reason: str | None) -> dict[str, Any]:
    return {"usable": reason is None, "reason": reason and str(reason), **_missing(reason)}


def _missing(reason: str | None) -> dict[str, Any]:
    """What a refusal lacks, and the command that brings it; "engine" and none where nothing but its text is known."""
    return {
        "missing": reason and getattr(reason, "missing", "engine"),
        "command": getattr(reason, "command", "") or None,
    }


def _bundle(facts: Any, manifest: Manifest) -> dict[str, Any]:
    from ..runtimes.select import Wanted, candidates

    stages = [
        {
            "stage": one.stage,
            "engine": one.placement.runtime,
            "provider": one.placement.provider,
            "usable": one.reason is None,
            "reason": one.reason and str(one.reason),
            "rank": one.rank,
            "memory": one.need.total,
        }
        for one in candidates(facts, manifest, Wanted())
    ]
    return {"name": manifest.name, "stages": stages}


def _machine_rows(found: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    one = found["processor"]
    yield "system", found["system"]
    yield "python", found["python"]
    yield "processor", f"{one['name']}, {one['architecture']}"
    yield "cores", _cores(one)
    yield "instructions", ", ".join(one["instruction_sets"]) or "none of note"
    if one["caches"]:
        yield "caches", ", ".join(f"{name} {decimal(size)}" for name, size in one["caches"].items())
    for name, size in (("memory", found["memory"]), ("free memory", found["memory_available"])):
        yield name, "unknown" if size is None else decimal(size)
    if found["bandwidth"]:
        yield "memory is read at", f"{found['bandwidth'] / 1e9:.1f} GB/s"
    for each in found["accelerators"]:
        yield each["kind"].upper(), _accelerator(each)
    if not found["accelerators"]:
        yield "GPU, NPU", "none found"
    yield "fingerprint", found["fingerprint"]


def _cores(processor: Mapping[str, Any]) -> str:
    held = f"{processor['cores']} usable, on {processor['physical_cores']} physical"
    return held if processor["quota"] is None else f"{held} (limited to the time of {processor['quota']:g})"


def _accelerator(one: Mapping[str, Any]) -> str:
    capability = f"compute capability {one['capability']}" if one["capability"] else ""
    memory = f"{decimal(one['memory'])} of its own" if one["memory"] else ""
    return ", ".join(filter(None, (one["name"], capability, memory, f"driver {one['driver'] or 'missing'}")))


def _provider_rows(runtimes: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        (one["name"], name, held["reason"] or _working(one))
        for one in runtimes
        for name, held in one["providers"].items()
    ]


def _stage_rows(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What can run each stage, best first; then what cannot, a row for each reason."""
    able = [(one["stage"], _place(one), f"can run it: {one['rank']}") for one in stages if one["usable"]]
    unable = [one for one in stages if not one["usable"]]
    for reason in dict.fromkeys(one["reason"] for one in unable):
        named = [one for one in unable if one["reason"] == reason]
        columns = (dict.fromkeys(one["stage"] for one in named), dict.fromkeys(map(_place, named)))
        able.append((*(", ".join(column) for column in columns), reason))
    return able


def _state(one: Mapping[str, Any]) -> str:
    if one["proof"] != "executed" and not one["reason"]:
        return f"{_working(one)}, proves bundles and runs them by name: {one['absent']}"
    return one["reason"] or (f"works here, inexact: {one['inexact']}" if one["inexact"] else _working(one))


def _working(one: Mapping[str, Any]) -> str:
    return "works here" if one["proof"] == "executed" else f"{one['proof']} only"


def _place(one: Mapping[str, Any]) -> str:
    return f"{one['engine']}:{one['provider']}"
