"""llama.cpp's own server, which package xllamacpp brings, on a bundle's file: it finds there all that it needs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ossicle.runtimes import llamacpp
from ossicle.runtimes.options import Options
from ossicle.targets import manifest
from ossicle.tests import checkpoints
from ossicle.tests.runtimes.tiny_gguf import CONFIG, write_bundle
from tokenizers import Tokenizer

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "which room?"}]
# Without <s>, which the server takes off and adds again to the tokens.
PROMPT = "[SYSTEM_PROMPT]be brief[/SYSTEM_PROMPT][INST]which room?[/INST]"
COUNT = 12  # tokens that are answered
# In a process of its own, which ends the server. Keys and values are in float32 without flash attention, as ours are.
SERVER = """
import json, os, sys, urllib.request
import xllamacpp
told = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = told["model"]
params.n_ctx, params.n_parallel, params.n_gpu_layers, params.port, params.warmup = 256, 1, 0, 0, False
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
answers = []
for route, body in told["asked"]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + route, json.dumps(body).encode(), headers)
    answers.append(json.load(urllib.request.urlopen(request)))
print("answers:" + json.dumps(answers), flush=True)
os._exit(0)  # to end it in order takes it long
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("served"), checkpoints.model(CONFIG))


def served(bundle: Path, asked: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """What the server answers to JSON sent to its routes."""
    told = json.dumps({"model": str(next((bundle / "gguf").glob("voxtral-*.gguf"))), "asked": asked})
    done = subprocess.run(
        [sys.executable, "-P", "-c", SERVER, told], capture_output=True, text=True, check=False, timeout=300
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("answers:")]
    assert answers, done.stderr[-2000:]
    found: list[Any] = json.loads(answers[0].removeprefix("answers:"))
    return found


def greedy(bundle: Path, ids: list[int]) -> list[int]:
    """The most likely tokens after a prompt, by the engine that sessions run."""
    engine = llamacpp.RUNTIME.open(bundle, manifest.read(bundle), Options(threads=1))
    logits, state = engine.prefill([engine.embed(np.array(ids))])
    said: list[int] = []
    for _ in range(COUNT):
        said.append(int(logits[0].argmax()))
        logits, state = engine.step(state, np.array(said[-1:]))
    engine.close()
    return said


def test_a_server_has_the_template_the_vocabulary_and_the_answers(bundle: Path) -> None:
    ids = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(f"<s>{PROMPT}", add_special_tokens=False).ids
    template, tokens, answer = served(
        bundle,
        [
            ("/apply-template", {"messages": MESSAGES}),
            ("/tokenize", {"content": PROMPT, "add_special": True, "parse_special": True}),
            (
                "/completion",
                {"prompt": ids, "n_predict": COUNT, "temperature": 0, "return_tokens": True},
            ),
        ],
    )
    assert template["prompt"] == PROMPT
    assert tokens["tokens"] == ids
    assert answer["tokens"] == greedy(bundle, ids)


def test_what_ollama_reads_of_a_file_is_there(bundle: Path) -> None:
    """The keys that fs/ggml/ggml.go of https://github.com/ollama/ollama looks up of an architecture that is llama's."""
    import gguf

    held = gguf.GGUFReader(next((bundle / "gguf").glob("voxtral-*.gguf"))).fields
    whole = {"block_count", "embedding_length", "context_length", "attention.head_count", "attention.head_count_kv"}
    whole |= {"attention.key_length", "attention.value_length", "feed_forward_length"}
    for name in whole:
        assert held[f"llama.{name}"].types == [gguf.GGUFValueType.UINT32], name
    assert held["general.architecture"].contents() == "llama"
    assert held["general.type"].contents() == "model"
    assert {"general.file_type", "tokenizer.ggml.tokens", "tokenizer.chat_template"} <= set(held)
