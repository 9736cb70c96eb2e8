"""llama.cpp's child process in bad times: interrupted, short of memory, several at once; nothing is left behind."""

import collections
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ossicle.runtimes import llamacpp, llamacpp_api, llamacpp_audio, llamacpp_process
from ossicle.runtimes.llamacpp_worker import ROOM
from ossicle.runtimes.options import Options
from ossicle.targets import manifest
from ossicle.targets.contract import EngineError, Float32
from ossicle.tests import checkpoints
from ossicle.tests.runtimes.tiny_gguf import CONFIG, logits, prompt, write_bundle


@pytest.fixture(scope="module")
def model() -> Any:
    return checkpoints.model(CONFIG)


@pytest.fixture(scope="module")
def bundle(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("process"), model)


def opened(bundle: Path, **options: Any) -> Any:
    return llamacpp.RUNTIME.open(bundle, manifest.read(bundle), Options(**{"threads": 1} | options))


def gone(pid: int, seconds: float = 60.0) -> bool:
    """Whether a process ends within that time; one that nobody has waited for yet has ended, too."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-4),
        ({"kv_cache": "float32", "threads": 2}, 1e-4),
        ({"kv_cache": "float16"}, 0.05),
        ({"flash_attention": True}, 0.05),
        ({"kv_cache": "float16", "flash_attention": True}, 0.05),
        ({"kv_cache": "int8"}, 1.0),
        ({"kv_cache": "int4"}, 8.0),
    ],
    ids=str,
)
def test_what_the_cache_is_kept_in(bundle: Path, model: Any, options: dict[str, Any], tolerance: float) -> None:
    """The less exact a cache is, the further from torch; a cache that were not used as asked would be exact."""
    engine = opened(bundle, **options)
    distance = np.abs(engine.score(prompt(200)) - logits(model, prompt(200))).max()
    engine.close()
    assert tolerance / 100 < distance <= tolerance or distance <= tolerance == 1e-4


def test_integers_for_values_need_flash_attention(bundle: Path) -> None:
    with pytest.raises(
        EngineError, match=r"kv_cache 'int8' with flash attention alone \(without it: float32, float16\)"
    ):
        opened(bundle, kv_cache="int8", flash_attention=False)
    with pytest.raises(EngineError, match=r"no kv_cache 'int2' \(it has: float32, float16, int8, int4\)"):
        opened(bundle, kv_cache="int2")


def test_nothing_is_left_behind(bundle: Path) -> None:
    """Closed, killed and started anew, dropped, refused: files and processes are as many as before."""
    opened(bundle).close()
    files, children = psutil.Process().num_fds(), psutil.Process().children()
    for _ in range(3):
        engine = opened(bundle)
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="SIGKILL"):
            engine.prefill([prompt(4)])
        engine.prefill([prompt(4)])
        engine.close()
        dropped = opened(bundle)
        del dropped
        gc.collect()
        with pytest.raises(EngineError, match="cannot be loaded"):
            llamacpp_process.Process({"path": str(bundle / "manifest.json"), "threads": 1})
    assert psutil.Process().num_fds() == files
    assert psutil.Process().children() == children


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C as a program has it, here and in what is started from here: a shell's background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_call_leaves_the_next_one_whole(bundle: Path, model: Any) -> None:
    engine = opened(bundle)
    _, held = engine.prefill([prompt(5)])
    pid = engine._process.pid
    threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        collections.deque((engine.score(prompt(900)) for _ in range(10_000)), 0)
    with pytest.raises(EngineError, match="they are lost"):
        engine.step(held, np.array([1]))
    ours, _ = engine.prefill([prompt(7)])
    engine.close()
    np.testing.assert_allclose(ours[0], logits(model, prompt(7))[-1], atol=1e-4, rtol=0)
    assert gone(pid)


PARENT = """
import sys
import psutil
from ossicle.runtimes.opening import load
session = load(sys.argv[1], engine="llamacpp", threads=1)
(child,) = psutil.Process().children()
print(child.pid, flush=True)
while True:
    session.chat([{"role": "user", "content": "hello"}], max_tokens=400)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_the_child_does_not_outlive_its_parent(bundle: Path, how: signal.Signals) -> None:
    """Ctrl-C reaches the whole group, as from a terminal; a kill the parent alone."""
    arguments = [sys.executable, "-P", "-c", PARENT, str(bundle)]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert parent.stdout
    try:
        pid = int(parent.stdout.readline())
        (os.killpg if how is signal.SIGINT else os.kill)(parent.pid, how)
        assert parent.wait(60) == -how
    finally:
        parent.kill()
        parent.communicate()
    assert gone(pid)


def test_a_child_short_of_memory_is_an_error_and_the_next_call_works(bundle: Path, model: Any) -> None:
    engine = opened(bundle)
    held = psutil.Process(engine._process.pid).memory_info().vms
    resource.prlimit(engine._process.pid, resource.RLIMIT_AS, (held, held))
    with pytest.raises(EngineError, match=r"not enough memory|alloc|cannot be made"):
        engine.prefill([prompt(40 * ROOM)])
    engine._process._end(patience=0.0)  # it may have survived, with as little memory
    ours, _ = engine.prefill([prompt(7)])
    engine.close()
    np.testing.assert_allclose(ours[0], logits(model, prompt(7))[-1], atol=1e-4, rtol=0)


def test_a_process_that_cannot_be_started_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    files = psutil.Process().num_fds()
    with pytest.raises(EngineError, match=r"cannot be started: .*/nowhere/python"):
        opened(bundle)
    assert psutil.Process().num_fds() == files


def test_two_at_once_do_not_disturb_each_other(bundle: Path, model: Any) -> None:
    engines = [opened(bundle), opened(bundle)]
    assert engines[0]._process.pid != engines[1]._process.pid

    def generate(number: int) -> Float32:
        values = prompt(20 + number)
        _, state = engines[number].prefill([values])
        for _ in range(20):
            ours, state = engines[number].step(state, np.array([number + 3]))
        found: Float32 = ours[0]
        return found

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(generate, range(2)))
    for number, engine in enumerate(engines):
        values = np.concatenate([prompt(20 + number), engine.embed(np.full(20, number + 3))])
        np.testing.assert_allclose(results[number], logits(model, values)[-1], atol=1e-4, rtol=0)
        engine.close()


@pytest.mark.parametrize(
    ("params", "defaults"),
    [
        (llamacpp_api.ModelParams, llamacpp_api.MODEL_DEFAULTS),
        (llamacpp_api.ContextParams, llamacpp_api.CONTEXT_DEFAULTS),
        (llamacpp_audio.MtmdParams, llamacpp_audio.PARAMS_DEFAULTS),
    ],
)
def test_every_structure_is_checked_before_it_is_used(params: Any, defaults: dict[str, Any]) -> None:
    """A structure that is laid out eight bytes otherwise reads some default wrong, whichever field is the first to go."""
    right = params(**{name: value for name, value in defaults.items() if value is not None})
    llamacpp_api.check_defaults("params", right, defaults)
    for shift in (4, 8):
        moved = params.from_buffer_copy(bytes(shift) + bytes(right)[:-shift])
        with pytest.raises(EngineError, match="lays out params otherwise"):
            llamacpp_api.check_defaults("params", moved, defaults)
