"""One engine's way from a recording to tokens, timed in a process of its own: `contestants.py NAME ARTIFACTS CHECKPOINT`.

ours          a bundle through `ossicle.load`; `--engine` names one, "auto" lets it choose
llama.cpp     stock llama.cpp and its `mtmd` over text.gguf and mmproj.gguf of a folder, by its C API in this process
transformers  a checkpoint in torch, bfloat16, eager attention
export        transformers' export to ONNX or OpenVINO (benchmarks/exported.py), run by its engine without torch
genai         onnxruntime-genai over a model that its own builder made of the text part: it hears nothing, and its prompt has
              as many tokens of text

Each hears a recording of a window, reads the prompt of a transcription and adds a number of tokens, always the likeliest
one, whichever it is: random weights never stop. A first pass is thrown away. Printed is JSON: seconds of the others, and
the peak of this process.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ossicle.benchmarks.exported import Export, OnnxExport, OpenVinoExport
from ossicle.kernels.logmel import log_mel
from ossicle.runtimes.prompt import Prompts
from ossicle.runtimes.tokens import Tokenizer
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import Float32
from ossicle.targets.memory import peak_memory

RATE = 16000
SECONDS = 29.9  # of 30.0 llama.cpp's mtmd makes a window more, of silence
TOKENS = 100
WARM_TOKENS = 4


@dataclass(frozen=True)
class Pass:
    """Seconds of a pass's stages, and how many tokens stood for its audio and in its prompt."""

    encode: float
    prefill: float
    decode: float
    audio_tokens: int
    prompt_tokens: int
    new_tokens: int


class Contestant(Protocol):
    """An opened model."""

    name: str

    def run(self, samples: Float32, tokens: int) -> Pass:
        """Hear a recording, read the prompt and add so many tokens."""


def main() -> None:
    options = _options()
    started = time.perf_counter()
    contestant = CONTESTANTS[options.name](options)
    opened = time.perf_counter() - started
    contestant.run(recording(0), WARM_TOKENS)
    warmed = time.perf_counter() - started
    passes = [contestant.run(recording(number + 1), options.tokens) for number in range(options.passes)]
    told = {"engine": contestant.name, "open": opened, "warm": warmed, "peak": _peak()}
    print(json.dumps(told | {"passes": [asdict(one) for one in passes]}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(CONTESTANTS))
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--bundle", type=Path, help="whose prompt and tokenizer are taken, where ARTIFACTS is none")
    parser.add_argument("--checkpoint", type=Path, help="whose embedding is read, where ARTIFACTS has none")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    return parser.parse_args()


def recording(number: int) -> Float32:
    """Noise of a window's length; another for each number, so that nothing can be remembered."""
    noise = np.random.default_rng(number).standard_normal(int(SECONDS * RATE))
    return (0.1 * noise).astype(np.float32)


@contextmanager
def _timed(record: list[float]) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    record.append(time.perf_counter() - begun)


class Ours:
    """A bundle as its users open it."""

    def __init__(self, options: argparse.Namespace) -> None:
        from ossicle.runtimes.opening import load

        self._session = load(options.artifacts, engine=options.engine, allow_failed=True)
        self.name = self._session.engine

    def run(self, samples: Float32, tokens: int) -> Pass:
        reply = self._session.transcribe(samples, language="en", rate=RATE, max_tokens=tokens)
        if len(reply.tokens) != tokens:
            raise RuntimeError(
                f"the answer ended after {len(reply.tokens)} of {tokens} tokens: take another checkpoint"
            )
        took = reply.timings
        return Pass(took.encode, took.prefill, took.decode, reply.audio_tokens, reply.prompt_tokens, tokens)


class LlamaCpp:
    """llama.cpp with its defaults: keys and values in float16, flash attention, 512 tokens computed together."""

    name = "llama.cpp"
    flash_attention = True

    def __init__(self, options: argparse.Namespace) -> None:
        from ossicle.runtimes.llamacpp_api import Api
        from ossicle.runtimes.llamacpp_audio import Ear
        from ossicle.runtimes.llamacpp_context import Context, Opening
        from ossicle.runtimes.processor import physical_cores

        text, audio = options.artifacts / "text.gguf", options.artifacts / "mmproj.gguf"
        opening = Opening(str(text), physical_cores(), cache="float16", flash_attention=self.flash_attention)
        api = Api()
        self._context = Context(api, opening, room=1024)
        self._ear = Ear(api, self._context, str(audio), physical_cores())
        self._before, self._after = _around(options.bundle, self._ear.tokens)

    def run(self, samples: Float32, tokens: int) -> Pass:
        took: list[float] = []
        with _timed(took):
            audio = self._ear.hear(samples)[0]
        with _timed(took):  # text, audio and text one after the other, as mtmd's own helper has them
            logits = self._read([self._before, audio, self._after])
        prompt = len(self._before) + len(audio) + len(self._after)
        with _timed(took):
            for step in range(tokens):
                logits = self._context.decode([[0, prompt + step, 1, 1]], logits.argmax(1).astype(np.int32))
        self._context.remove([0])
        encode, prefill, decode = took
        return Pass(encode, prefill, decode, len(audio), prompt, tokens)

    def _read(self, parts: Sequence[NDArray[Any]]) -> Float32:
        start = 0
        for part in parts:
            last = part is parts[-1]
            logits = self._context.decode([[0, start, len(part), int(last)]], part)
            start += len(part)
        return logits


class LlamaCppWithoutFlash(LlamaCpp):
    """The same without flash attention."""

    name = "llama.cpp -fa off"
    flash_attention = False


class Transformers:
    """The checkpoint in torch: bfloat16, eager attention."""

    name = "transformers"

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from transformers import VoxtralForConditionalGeneration, WhisperFeatureExtractor

        self._model = VoxtralForConditionalGeneration.from_pretrained(
            options.artifacts, dtype=torch.bfloat16, attn_implementation="eager"
        ).eval()
        self._features = WhisperFeatureExtractor(feature_size=128)
        self._before, self._after = _around(options.bundle, manifests.read(options.bundle).audio.tokens_per_window)

    def run(self, samples: Float32, tokens: int) -> Pass:
        import torch

        took: list[float] = []
        with torch.inference_mode():
            with _timed(took):
                mel = self._features(samples, sampling_rate=RATE, return_tensors="pt").input_features
                audio = self._model.get_audio_features(mel.to(torch.bfloat16)).pooler_output
            with _timed(took):
                texts = [self._embedded(ids) for ids in (self._before, self._after)]
                prompt = torch.cat([texts[0], audio, texts[1]])[None]
                out = self._model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
            with _timed(took):
                for _ in range(tokens):
                    ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                    out = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
        encode, prefill, decode = took
        return Pass(encode, prefill, decode, len(audio), prompt.shape[1], tokens)

    def _embedded(self, ids: NDArray[np.int32]) -> Any:
        import torch

        return self._model.get_input_embeddings()(torch.from_numpy(ids.astype(np.int64)))


class Exported:
    """What transformers exports, by its engine's own interface."""

    name = "onnxruntime"
    opener: Callable[[Path], Export] = OnnxExport

    def __init__(self, options: argparse.Namespace) -> None:
        from ossicle.compiler.checkpoint import open_checkpoint

        self._export = type(self).opener(options.artifacts)
        self._embedding = open_checkpoint(options.checkpoint).tensors["model.language_model.embed_tokens.weight"]
        self._around = _around(options.bundle, manifests.read(options.bundle).audio.tokens_per_window)

    def run(self, samples: Float32, tokens: int) -> Pass:
        took: list[float] = []
        with _timed(took):
            audio = self._export.hear(log_mel(samples))
        with _timed(took):
            before, after = ([self._embedding.rows(one, one + 1) for one in ids.tolist()] for ids in self._around)
            prompt = np.concatenate([*before, audio, *after])
            logits = self._export.read(prompt)
        with _timed(took):
            for _ in range(tokens):
                logits = self._export.step(int(logits.argmax()))
        encode, prefill, decode = took
        return Pass(encode, prefill, decode, len(audio), len(prompt), tokens)


class ExportedOpenVino(Exported):
    """The same on OpenVINO."""

    name = "openvino"
    opener = OpenVinoExport


class GenAi:
    """onnxruntime-genai: the text part alone."""

    name = "onnxruntime-genai"

    def __init__(self, options: argparse.Namespace) -> None:
        import onnxruntime_genai as genai

        self._genai, self._model = genai, genai.Model(str(options.artifacts))
        parts = _around(options.bundle, manifests.read(options.bundle).audio.tokens_per_window)
        self._text = sum(map(len, parts)) + manifests.read(options.bundle).audio.tokens_per_window

    def run(self, samples: Float32, tokens: int) -> Pass:
        took: list[float] = []
        ids = 100 + np.random.default_rng(len(samples)).integers(0, 100_000, self._text)
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=len(ids) + tokens + 1, min_length=len(ids) + tokens + 1)
        generator = self._genai.Generator(self._model, params)
        with _timed(took):
            generator.append_tokens(ids.astype(np.int32))
        with _timed(took):
            for _ in range(tokens):
                generator.generate_next_token()
        prefill, decode = took
        return Pass(0.0, prefill, decode, 0, len(ids), tokens)


def _around(bundle: Path, audio_tokens: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Ids before and behind the audio of a transcription's prompt."""
    text = manifests.read(bundle).text
    prompts = Prompts(Tokenizer(bundle / "tokenizer.json"), text, audio_tokens, text.context)
    ids = np.array(prompts.transcription(1, "en"), np.int32)
    places = np.flatnonzero(ids == text.audio_token)
    return ids[: places[0]], ids[places[-1] + 1 :]


def _peak() -> int:
    """Bytes that this process and its children have held at most, each by itself."""
    import psutil

    return peak_memory() + sum(map(peak_memory, (child.pid for child in psutil.Process().children(recursive=True))))


CONTESTANTS: Mapping[str, Callable[[argparse.Namespace], Contestant]] = {
    "ours": Ours,
    "llama.cpp": LlamaCpp,
    "llama.cpp -fa off": LlamaCppWithoutFlash,
    "transformers": Transformers,
    "export onnx": Exported,
    "export openvino": ExportedOpenVino,
    "genai": GenAi,
}


if __name__ == "__main__":
    main()
