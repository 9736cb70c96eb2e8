"""What every test starts from: engines are chosen by rank, and what is kept goes where the tests end."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
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


@pytest.fixture(scope="session")
def demo_int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model in int4 for ONNX, built once for all workers of a run; whoever changes it has a copy."""
    from ossicle.compiler.pipeline import build

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "demo-int4"
    with (root / "demo-int4.lock").open("a") as lock:
        while not taken(lock):
            time.sleep(0.1)
        if not folder.is_dir():
            build(Path(__file__).parents[1] / "demo" / "model", folder, recipe="int4", verify=False)
    return folder


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
