"""Faults planted into a GGUF decoder of the shipped model: verification has to see each of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from ossicle.compiler import pipeline, verify
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.runtimes.llamacpp import RUNTIME
from ossicle.targets import manifest as manifests

DEMO = Path(__file__).parents[2] / "demo"
CLIPS = ("02-digits-espeak.wav", "06-command-espeak.wav", "11-pair-espeak.wav", "16-digits-flite.wav")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DEMO / "model" / "model.safetensors").is_file(), reason="the demo model is not there"),
    pytest.mark.skipif(RUNTIME.usable() is not None, reason=RUNTIME.usable() or ""),
]


def blocks(tensors, name):
    """The blocks of a tensor of the second layer, bytes [blocks, size], in the file itself."""
    tensor = tensors[f"blk.1.{name}.weight"]
    size = gguf.GGML_QUANT_SIZES[tensor.tensor_type][1]
    return tensor.data.reshape(-1, size)


def swap(tensors):
    first, second = blocks(tensors, "ffn_gate"), blocks(tensors, "ffn_up")
    first[:], second[:] = second.copy(), first.copy()


def scale(tensors):
    units = blocks(tensors, "ffn_gate")[:, :2]
    units[:] = (units.copy().view(np.float16) * np.float16(1.25)).view(np.uint8)


def drop_minima(tensors):
    blocks(tensors, "attn_output")[:, 2:4] = 0


def swap_nibbles(tensors):
    levels = blocks(tensors, "attn_output")[:, 16:]
    levels[:] = levels << 4 | levels >> 4


def leave_rows_unpermuted(tensors):
    data = tensors["blk.1.attn_q.weight"].data
    data[:] = data.reshape(4, 32, 2, -1).swapaxes(1, 2).reshape(data.shape)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    lines = (DEMO / "speech" / "speech.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry | {"questions": {}} for entry in map(json.loads, lines) if entry["file"] in CLIPS]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    for name in CLIPS:
        shutil.copyfile(DEMO / "speech" / name, folder / name)
    pipeline.build(DEMO / "model", folder / "whole", targets=("gguf",), recipe="q4_k_m", verify=False)
    return folder


def judged(work, plant):
    bundle = work / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(work / "whole", bundle)
    reader = gguf.GGUFReader(bundle / "gguf" / "voxtral-Q4_K_M.gguf", "r+")
    plant({tensor.name: tensor for tensor in reader.tensors})
    reader.data.flush()
    found = manifests.read(bundle)
    artifacts = [
        replace(one, files=tuple(manifests.file_entry(bundle, bundle / file.path) for file in one.files))
        for one in found.artifacts
    ]
    manifests.write(bundle, replace(found, artifacts=tuple(artifacts)))
    checkpoint = open_checkpoint(DEMO / "model")
    verification = verify.verify(bundle, checkpoint, speech=work / "data.jsonl", cache=work / "cache")
    assert [target.target for target in verification.targets] == ["gguf"]
    return {check.figure: check for check in verification.targets[0].checks}


def test_a_decoder_without_faults_computes_what_it_stores(work):
    assert all(check.passed for check in judged(work, lambda _: None).values())


@pytest.mark.parametrize("plant", [swap, scale, drop_minima, swap_nibbles, leave_rows_unpermuted])
def test_a_fault_in_the_decoder_is_seen(work, plant):
    assert not judged(work, plant)["kl_stored"].passed
