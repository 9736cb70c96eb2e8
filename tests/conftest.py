"""What every test starts from: engines are chosen by rank, and what is kept goes where the tests end."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

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
