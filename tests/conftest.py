"""What every test starts from: engines are chosen by rank, and what is kept goes where the tests end."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from ossicle.targets.locks import taken

# Before anything is imported, so that processes that tests start have it too.
os.environ["OSSICLE_MEASURE"] = "0"
os.environ["OSSICLE_CACHE"] = tempfile.mkdtemp(prefix="ossicle-tests-")
# Workers share the cores: with a thread of torch for each core, all of them wait for each other most of the time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# How long an example takes says how busy the machine is.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time; others with: pytest --hypothesis-profile explore
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_ALONE = ("no-sandbox", "headless", "disable-gpu", "disable-quic", "no-first-run")
_SILENT = ("disable-background-networking", "disable-component-update", "disable-sync")
_SPEAKING = ("use-fake-ui-for-media-stream", "use-fake-device-for-media-stream")


# What a worker is given last keeps the others waiting: these, of 20 s and more, are given first.
_LONGEST = (
    "conformance/test_conformance.py",
    "tests/test_demo.py",
    "tests/test_demo_llamacpp.py",
    "runtimes/test_llamacpp_mtmd.py",
    "compiler/test_pipeline.py",
    "targets/test_coreml.py",
    "runtimes/test_corpus_run.py",
    "runtimes/test_corpus_ray.py",
    "tests/test_demo_selection.py",
    "tests/test_exported.py",
    "targets/test_openvino.py",
    "compiler/test_coreml_faults.py",
    "targets/test_tensorrt.py",
    "runtimes/test_coreml.py",
    "tests/test_memory.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; pytest-xdist keeps the order where it is told to (--no-loadscope-reorder)."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(places)))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the shipped model in a recipe for targets, built once for all workers of a run; whoever changes it has a copy."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def bundle(recipe: str, *targets: str) -> Path:
        from ossicle.compiler.pipeline import build

        folder = root / "-".join(("demo", recipe, *targets))
        with folder.with_suffix(".lock").open("a") as lock:
            while not taken(lock):
                time.sleep(0.1)
            if not folder.is_dir():
                build(
                    Path(__file__).parents[1] / "demo" / "model", folder, targets=targets, recipe=recipe, verify=False
                )
        return folder

    return bundle


@pytest.fixture(scope="session")
def demo_int4(demo: Callable[..., Path]) -> Path:
    """The shipped model in int4 for ONNX."""
    return demo("int4", "onnx")


@pytest.fixture(scope="module")  # its event loop runs as long as it does, and other modules have loops of their own
def browser() -> Iterator[Any]:
    """Chromium, opened by playwright, asking nobody for a microphone and nothing of the network."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    arguments = [f"--{name}" for name in (*_ALONE, *_SILENT, *_SPEAKING)]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()
