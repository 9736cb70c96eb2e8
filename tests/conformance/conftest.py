"""One build of a tiny model for every target, recipe and family, and the torch model that each artifact must equal."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ossicle.compiler.pipeline import build
from ossicle.runtimes.base import Engine, InexactRuntime
from ossicle.runtimes.choose import by_rank, consider
from ossicle.runtimes.mixed import open_plan
from ossicle.runtimes.options import Options
from ossicle.runtimes.registry import runtimes
from ossicle.runtimes.select import Wanted
from ossicle.targets import manifest as manifests
from ossicle.targets import registry
from ossicle.targets.contract import RecipeError
from ossicle.targets.recipes import RECIPES
from ossicle.targets.tensorrt_profiles import Engines
from ossicle.tests import checkpoints
from ossicle.tests.conformance.readers import READERS

FAMILIES = ("voxtral",)
FORMS = [*RECIPES, "fp32/standard"]

# A target whose engine takes audio embeddings from another's encoder is built with it.
BESIDE = {"gguf": ("onnx",)}
PLANTED = (("openvino", "int3"), ("gguf", "q2_k"))  # what test_faults.py knows how to change
HALF = ("coreml", "tensorrt")  # targets that compute in float16
# What nothing here can open need not be built.
OPTIONS: dict[str, Any] = {"tensorrt": {"engines": Engines("none", context=512, prompt=128)}}
# Rows of ggml's integers are whole blocks of 32, or of 256; the other targets have to do with short last groups.
CONFIGS = {"gguf": checkpoints.tiny_config(text={"hidden_size": 64, "intermediate_size": 96})}
BLOCKS = checkpoints.tiny_config(text={"hidden_size": 256, "intermediate_size": 288, "head_dim": 64})


@dataclass(frozen=True)
class Case:
    """A bundle, the engine that runs it, and torch with the numbers that the bundle stores."""

    target: str
    recipe: str
    folder: Path
    manifest: manifests.Manifest
    engine: Engine
    original: Any  # the model that was compiled
    stored: Any  # the same model with the weights read back from the artifacts

    @property
    def compute(self) -> str:
        """What the engine computes in, and what it stores beside matrices: some float16, but for a recipe of float32."""
        return "float16" if self.target in HALF and self.recipe != "fp32" else RECIPES[self.recipe].compute

    @property
    def tolerance(self) -> float:
        """Largest difference in logits. float16 computes with 11 bits; llama.cpp beside integers with int8, else as stored."""
        decoder = RECIPES[self.recipe].decoder
        if self.target == "gguf" and decoder.bits <= 8:
            return 2.0 if decoder.is_block else 1.0
        if self.recipe == "bf16":
            return 0.2
        if self.compute == "float16":
            return {"tensorrt": 0.1, "coreml": 5e-2}.get(self.target, 3e-2)  # rounding weights too, or every value
        return 1e-4


def cases() -> list[tuple[str, str, str, str]]:
    """Every family, target, runtime of that target, and form."""
    return [
        (family, target, runtime.name, form)
        for family in FAMILIES
        for target in registry.names()
        for runtime in runtimes()
        if runtime.target == target and not isinstance(runtime, InexactRuntime)
        for form in FORMS
        if _has(target, form)
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Faults are planted into the artifacts of a few forms, which are built anyway."""
    dropped = [one for one in items if "planted" in getattr(one, "fixturenames", ()) and _form(one) not in PLANTED]
    items[:] = [one for one in items if one not in dropped]
    config.hook.pytest_deselected(items=dropped)


def _form(item: pytest.Item) -> tuple[str, str] | None:
    """The target and form of a test's case; None where it has none."""
    callspec = getattr(item, "callspec", None)
    _, target, _, form = callspec.params.get("case", (None,) * 4) if callspec else (None,) * 4
    return (target, form) if target else None


def _recipe(form: str) -> Any:
    """The recipe of a form. Engines keep float activations, or their rounding would hide a fault in the weights."""
    name, _, attention = form.partition("/")
    return replace(RECIPES[name], integer_activations=False, attention=attention or "fused")


def _has(target: str, form: str) -> bool:
    """Whether a target can hold a form; only ONNX has a choice of attention."""
    if target != "onnx" and "/" in form:
        return False
    try:
        registry.target(target).check(_recipe(form))
    except RecipeError:
        return False
    return True


@pytest.fixture(scope="session", params=cases(), ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    _, target, runtime_name, form = request.param
    runtime = next(runtime for runtime in runtimes() if runtime.name == runtime_name)
    if reason := runtime.usable():
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("case")
    original = _model(target, form)
    folder = work / "bundle"
    build(
        checkpoints.save_hub(work / "checkpoint", original),
        folder,
        targets=(*BESIDE.get(target, ()), target),
        recipe=_recipe(form),
        verify=False,
        **OPTIONS.get(target, {}),
    )
    manifest = manifests.read(folder)
    choices = consider(manifest, runtime_name, "cpu", Wanted())
    engine = open_plan(folder, manifest, by_rank(choices)[0].plan, Options(threads=1), choices.runtime)
    yield Case(target, form.split("/")[0], folder, manifest, engine, original, _stored(folder, manifest, target, form))
    engine.close()


def _model(target: str, form: str) -> Any:
    """A tiny model whose rows suit a target's formats; the wide one's head is smaller, for logits of the same size."""
    if not _recipe(form).decoder.is_block:
        return checkpoints.model(CONFIGS.get(target))
    model = checkpoints.model(BLOCKS)
    model.lm_head.weight.data /= 4
    return model


def _stored(folder: Path, manifest: manifests.Manifest, target: str, form: str) -> Any:
    """The model with the weights that the engine computes with: its own target's, the audio encoder's where that is."""
    import torch

    weights: dict[str, np.ndarray] = {}
    for name in (*BESIDE.get(target, ()), target):
        artifacts = [artifact for artifact in manifest.artifacts if artifact.target == name]
        weights |= READERS[name]([folder / file.path for artifact in artifacts for file in artifact.files])
    model = _model(target, form)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert weights[name].shape == tuple(parameter.shape), name
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
    return model
