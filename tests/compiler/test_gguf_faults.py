"""Faults planted into a GGUF decoder of the shipped model: verification has to see each of them."""

import gguf
import numpy as np
import pytest
from ossicle.compiler import pipeline
from ossicle.runtimes.llamacpp import RUNTIME
from ossicle.tests.faults import DEMO, judged, recordings

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
    recordings(folder, ("02-digits-espeak.wav", "16-digits-flite.wav"))
    pipeline.build(DEMO / "model", folder / "whole", targets=("gguf",), recipe="q4_k_m", verify=False)
    return folder


def planted(work, plant, **options):
    def change(bundle):
        reader = gguf.GGUFReader(bundle / "gguf" / "voxtral-Q4_K_M.gguf", "r+")
        plant({tensor.name: tensor for tensor in reader.tensors})
        reader.data.flush()

    return judged(work, "gguf", change, **options)


def test_a_decoder_without_faults_computes_what_it_stores(work):
    assert all(check.passed for check in planted(work, lambda _: None).values())


@pytest.mark.parametrize("plant", [swap, scale, drop_minima, swap_nibbles, leave_rows_unpermuted])
def test_a_fault_in_the_decoder_is_seen(work, plant):
    assert not planted(work, plant, longest=1)["kl_stored"].passed
