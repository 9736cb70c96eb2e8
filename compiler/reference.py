"""The original: the checkpoint in torch float32, asked the same as its artifacts will be.

Nothing here is shared with the runtimes: prompts come from mistral-common, log-mel from transformers' feature
extractor, the model is transformers' own.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.contract import CheckpointError, Float32, Progress
from . import clips
from .checkpoint import Checkpoint
from .readings import Reading, Reply, Utterance, load, save
from .speech import Clip, Speech
from .torch_model import check_memory, load_model

VERSION = 2
MAX_TOKENS = 256
_FRAMES = 3000  # of a log-mel window that transformers' feature extractor and mistral-common make: 30 s


def keep(
    checkpoint: Checkpoint, speech: Speech, folder: Path, progress: Progress | None = None
) -> Iterator[tuple[Clip, Path]]:
    """Every clip with the file under `folder` that holds its reading, made where there is none yet.

    Raises:
        VerificationError: the original does not fit in this machine's memory.
        AudioError: a recording cannot be read.
    """
    check(checkpoint, speech)
    original = Original(checkpoint)
    folder = folder / f"reference-{_key(checkpoint, speech)[:20]}"
    folder.mkdir(parents=True, exist_ok=True)
    if progress:
        progress.start("original", len(speech.clips), "clips")
    for number, clip in enumerate(speech.clips):
        path = folder / f"{number:05d}.npz"
        if load(path, clip) is None:
            save(path, original.read(clip))
        yield clip, path
        if progress:
            progress.advance(1)


def check(checkpoint: Checkpoint, speech: Speech) -> None:
    """Refuse, without loading anything, what the original could not be asked.

    Raises:
        CheckpointError: the checkpoint has no tekken.json, or windows of another length than the original's processors.
        AudioError: a recording cannot be read, or a language is none.
    """
    _check_processors(checkpoint)
    for clip in speech.clips:
        clips.check(clip)


class Original:
    """The checkpoint's model and processors, loaded when first asked."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        _check_processors(checkpoint)
        self._checkpoint = checkpoint

    @property
    def checkpoint(self) -> Checkpoint:
        """What the model is loaded from."""
        return self._checkpoint

    def read(self, clip: Clip) -> Reading:
        """What the original makes of one clip."""
        recording = clips.wav(clip)
        prompt, samples = self._transcription(recording, None)
        logmel = self._logmel(samples)
        audio = self._encode(logmel)
        replies = [self._reply(prompt, audio)]
        if clip.language:
            prompt, _ = self._transcription(recording, clip.language)
            replies.append(self._reply(prompt, audio, language=clip.language))
        for question, _ in clip.questions:
            replies.append(self._reply(self._conversation(recording, question), audio, question=question))
        return Reading(clip, logmel, audio.numpy(), tuple(replies))

    def utterance(self, clip: Clip) -> Utterance:
        """A clip with what was said in it, as the model is asked to transcribe it; without a text, the prompt alone."""
        prompt, samples = self._transcription(clips.wav(clip), clip.language)
        logmel = self._logmel(samples)
        if clip.text is None:
            return Utterance(logmel, tuple(prompt), 1)
        said = self._tokenizer.tokenizer.instruct_tokenizer.tokenizer.encode(clip.text, bos=False, eos=True)
        return Utterance(logmel, (*prompt, *said[:-1]), len(said))

    def encode(self, reading: Reading) -> Float32:
        """Audio embeddings [windows, tokens per window, hidden] of a clip that another model has read."""
        audio: Float32 = self._encode(reading.logmel).numpy()
        return audio

    def score(self, reading: Reading, audio: Float32 | None = None) -> Float32:
        """The logits [positions, vocabulary] of another model's replies to a clip, with these embeddings or its own."""
        import torch

        recording = clips.wav(reading.clip)
        heard = torch.from_numpy(self.encode(reading) if audio is None else audio)
        scored = [reply for reply in reading.replies if reply.question is None]
        return np.concatenate(
            [self._forced(self._transcription(recording, reply.language)[0], heard, reply.tokens) for reply in scored]
        )

    def transcripts(self, reading: Reading, audio: Float32, logits: Float32) -> list[str]:
        """The greedy transcripts beside another model's; `logits` are those of `score`.

        Where they choose the other model's tokens from first to last, its text is the answer; else tokens are generated.
        """
        import torch

        texts, start = [], 0
        for reply in (one for one in reading.replies if one.question is None):
            stop = start + len(reply.tokens)
            same = logits[start:stop].argmax(axis=1).tolist() == list(reply.tokens)
            prompt = [] if same else self._transcription(clips.wav(reading.clip), reply.language)[0]
            texts.append(reply.text if same else self._reply(prompt, torch.from_numpy(audio)).text)
            start = stop
        return texts

    @cached_property
    def model(self) -> Any:
        """The model, float32, on the CPU.

        Raises:
            VerificationError: it does not fit in memory.
        """
        check_memory(self._checkpoint)
        return load_model(self._checkpoint)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers.tokenization_mistral_common import MistralCommonBackend

        return MistralCommonBackend(tokenizer_path=str(self._checkpoint.tokenizer))

    @cached_property
    def _extractor(self) -> Any:
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=self._checkpoint.config["audio_config"]["num_mel_bins"])

    def _transcription(self, recording: bytes, language: str | None) -> tuple[list[int], Float32]:
        """The tokens of the request, and the samples that their audio stands for."""
        from mistral_common.protocol.transcription.request import TranscriptionRequest

        request = TranscriptionRequest(audio=recording, language=language)
        encoded = self._tokenizer.tokenizer.encode_transcription(request)
        return encoded.tokens, encoded.audios[0].audio_array

    def _conversation(self, recording: bytes, question: str) -> list[int]:
        from mistral_common.protocol.instruct.chunk import AudioChunk, TextChunk
        from mistral_common.protocol.instruct.messages import UserMessage
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        message = UserMessage(content=[AudioChunk(input_audio=recording), TextChunk(text=question)])
        tokens: list[int] = self._tokenizer.tokenizer.encode_chat_completion(
            ChatCompletionRequest(messages=[message])
        ).tokens
        return tokens

    def _logmel(self, samples: Float32) -> Float32:
        rate = self._extractor.sampling_rate
        features = self._extractor(
            samples, sampling_rate=rate, truncation=False, pad_to_multiple_of=self._extractor.n_samples
        )
        mel = np.asarray(features["input_features"][0], np.float32)
        return np.ascontiguousarray(mel.reshape(mel.shape[0], -1, self._extractor.nb_max_frames).swapaxes(0, 1))

    def _encode(self, logmel: Float32) -> Any:
        import torch

        with torch.inference_mode():
            windows = [self.model.get_audio_features(torch.from_numpy(window[None])) for window in logmel]
        return torch.stack([window.pooler_output for window in windows])

    def _reply(self, prompt: list[int], audio: Any, language: str | None = None, question: str | None = None) -> Reply:
        """The greedy continuation of a prompt. A step's logits are those of teacher forcing with the steps before it."""
        import torch

        inputs = self._embed(prompt, audio)
        with torch.inference_mode():
            made = self.model.generate(
                inputs_embeds=inputs,
                attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                output_logits=question is None,
                return_dict_in_generate=True,
            )
        tokens = made.sequences[0].tolist()
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        logits = torch.cat(made.logits).numpy() if question is None else None
        return Reply(language, question, text, tuple(tokens), logits)

    def _forced(self, prompt: list[int], audio: Any, tokens: tuple[int, ...]) -> Float32:
        import torch

        inputs = self._embed(prompt, audio, tokens[:-1])
        with torch.inference_mode():
            logits: Float32 = self.model(inputs_embeds=inputs, logits_to_keep=len(tokens)).logits[0].numpy()
        return logits

    def _embed(self, prompt: list[int], audio: Any, said: tuple[int, ...] = ()) -> Any:
        """Embeddings of a prompt with its audio, and of what was said behind it: an audio token there is a token as any."""
        import torch

        ids = torch.tensor([[*prompt, *said]])
        with torch.inference_mode():
            inputs = self.model.get_input_embeddings()(ids)
            holes = ids == self._checkpoint.config["audio_token_id"]
            holes[:, len(prompt) :] = False
            return inputs.masked_scatter(holes.unsqueeze(-1).expand_as(inputs), audio)


def _check_processors(checkpoint: Checkpoint) -> None:
    path = checkpoint.tokenizer
    if path.name != "tekken.json":
        raise CheckpointError(
            f"'{path}' is no tekken.json, from which alone mistral-common makes the original's prompts. "
            "Copy tekken.json from the model this one was trained from, or build with --no-verify"
        )
    frames = 2 * checkpoint.config["audio_config"]["max_source_positions"]
    if frames != _FRAMES:
        raise CheckpointError(
            f"'{checkpoint.name}' hears windows of {frames} frames, and transformers' feature extractor gives {_FRAMES}, so "
            "that the original cannot be run. Build with --no-verify"
        )


def _key(checkpoint: Checkpoint, speech: Speech) -> str:
    from importlib.metadata import version

    tools = {name: version(name) for name in ("torch", "transformers", "mistral-common", "soxr")}
    adapters = [asdict(adapter) for adapter in checkpoint.adapters]
    parts = [VERSION, MAX_TOKENS, asdict(checkpoint.source), adapters, speech.sha256, tools]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
