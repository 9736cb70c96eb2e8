"""The original's readings against transformers and its processor, loaded and asked in their own way."""

from pathlib import Path

import numpy as np
import pytest
from ossicle.compiler import clips, reference, speech, torch_model
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.readings import reading_at
from ossicle.targets import memory
from ossicle.targets.contract import AudioError, VerificationError
from ossicle.tests import checkpoints

AUDIO = {
    "num_mel_bins": 128, "max_source_positions": 1500, "hidden_size": 32, "intermediate_size": 128,
    "num_hidden_layers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO))
    return checkpoints.save_hub(tmp_path_factory.mktemp("hub") / "tiny", made)


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch):
    monkeypatch.setattr(reference, "MAX_TOKENS", 6)


def record(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> Path:
    import soundfile

    samples = np.random.default_rng(0).standard_normal((int(seconds * rate), channels)) * 0.1
    soundfile.write(path, samples, rate)
    return path


def processor(folder):
    from transformers import VoxtralProcessor, WhisperFeatureExtractor
    from transformers.tokenization_mistral_common import MistralCommonBackend

    tokenizer = MistralCommonBackend(tokenizer_path=str(folder / "tekken.json"))
    return VoxtralProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)


@pytest.mark.parametrize(
    ("name", "language", "said"),
    [
        ("text.wav", None, r"text.wav' cannot be read: .*Recordings are to be WAV, FLAC, OGG or MP3"),
        ("none.wav", None, "none.wav' holds no samples"),
        ("a.wav", "zz", r"'zz' is no language \(it can be a code of ISO 639-1, such as en\)"),
        ("a.wav", "en", None),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(folder, tmp_path, name, language, said):
    record(tmp_path / "a.wav", 0.1)
    record(tmp_path / "none.wav", 0)
    (tmp_path / "text.wav").write_text("no recording")
    listed = speech.Speech("list", (speech.Clip(name, tmp_path / name, language=language),), "")
    if said is None:
        reference.check(open_checkpoint(folder), listed)
    else:
        with pytest.raises(AudioError, match=said):
            reference.check(open_checkpoint(folder), listed)


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.full(100, np.nan, np.float32), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="holds samples that are not numbers"):
        clips.wav(speech.Clip("a.wav", tmp_path / "a.wav"))


@pytest.mark.parametrize(("seconds", "language"), [(1.5, "en"), (30.0, None), (31.0, "en")])
def test_a_transcription_is_that_of_transformers(folder, tmp_path, seconds, language):
    torch = pytest.importorskip("torch")
    from transformers import VoxtralForConditionalGeneration

    path = record(tmp_path / "a.wav", seconds)
    clip = speech.Clip("a.wav", path, language=language, questions=(("which room?", "none"),))
    found = reference.Original(open_checkpoint(folder)).read(clip)

    model = VoxtralForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = processor(folder)
    inputs = theirs.apply_transcription_request(str(path), model_id="any", language=language)
    prompt = inputs["input_ids"]
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        forced = model(input_ids=made[:, :-1], input_features=inputs["input_features"])
        audio = model.get_audio_features(inputs["input_features"]).pooler_output.numpy()
    reply = found.replies[-2]
    tokens = made[0, prompt.shape[1] :].tolist()
    assert (reply.language, list(reply.tokens)) == (language, tokens)
    assert reply.text == theirs.batch_decode([tokens], skip_special_tokens=True)[0]
    np.testing.assert_array_equal(found.logmel, inputs["input_features"].numpy())
    np.testing.assert_allclose(found.audio.reshape(audio.shape), audio, atol=1e-5)
    np.testing.assert_allclose(reply.logits, forced.logits[0, prompt.shape[1] - 1 :].numpy(), atol=1e-4)

    content = [{"type": "audio", "path": str(path)}, {"type": "text", "text": "which room?"}]
    asked = theirs.apply_chat_template([{"role": "user", "content": content}])
    with torch.inference_mode():
        answer = model.generate(**asked, max_new_tokens=6, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert list(found.replies[-1].tokens) == answer.tolist()


def test_rotary_tables_are_computed_as_transformers_does(folder):
    torch = pytest.importorskip("torch")
    from transformers import VoxtralForConditionalGeneration

    ours = dict(torch_model.load_model(open_checkpoint(folder)).named_buffers())
    theirs = dict(VoxtralForConditionalGeneration.from_pretrained(folder).named_buffers())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2)])
def test_any_rate_and_channel_count_is_heard(folder, tmp_path, rate, channels):
    clip = speech.Clip("a.wav", record(tmp_path / "a.wav", 0.5, rate, channels))
    found = reference.Original(open_checkpoint(folder)).read(clip)
    assert found.logmel.shape == (1, 128, 3000)
    assert found.audio.shape == (1, 375, 48)
    assert [reply.logits.shape for reply in found.replies] == [(6, 512)]


def test_readings_are_kept_and_taken_again(folder, tmp_path, monkeypatch):
    (tmp_path / "data.jsonl").write_text('{"file": "a.wav", "questions": {"which room?": "none"}}', encoding="utf-8")
    record(tmp_path / "a.wav", 0.5)
    spoken, opened = speech.load(tmp_path / "data.jsonl"), open_checkpoint(folder)
    ((clip, path),) = reference.keep(opened, spoken, tmp_path / "cache")
    before = reading_at(path, clip)

    monkeypatch.setattr(reference.Original, "read", lambda *_: pytest.fail("it was kept already"))
    ((clip, again),) = reference.keep(opened, spoken, tmp_path / "cache")
    after = reading_at(again, clip)
    np.testing.assert_array_equal(after.audio, before.audio)
    assert [(r.question, r.text, r.tokens) for r in after.replies] == [
        (r.question, r.text, r.tokens) for r in before.replies
    ]
    np.testing.assert_array_equal(after.replies[0].logits, before.replies[0].logits)
    assert after.replies[1].logits is None


def test_a_damaged_reading_is_made_again(folder, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"file": "a.wav"}', encoding="utf-8")
    record(tmp_path / "a.wav", 0.5)
    spoken, opened = speech.load(tmp_path / "data.jsonl"), open_checkpoint(folder)
    ((clip, path),) = reference.keep(opened, spoken, tmp_path / "cache")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VerificationError, match="Verify again"):
        reading_at(path, clip)
    assert len(list(reference.keep(opened, spoken, tmp_path / "cache"))) == 1
    assert reading_at(path, clip).clip == clip


def test_an_original_that_does_not_fit_is_refused_before_it_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    monkeypatch.setattr(reference, "load_model", lambda _: pytest.fail("it does not fit"))
    clip = speech.Clip("a.wav", record(tmp_path / "a.wav", 0.1))
    with pytest.raises(VerificationError, match=r"GiB free.*--no-verify"):
        reference.Original(open_checkpoint(folder)).read(clip)


def test_the_memory_estimate_is_of_float32_and_a_little_more(folder):
    opened = open_checkpoint(folder)
    weights = 4 * sum(parameter.numel() for parameter in torch_model.load_model(opened).parameters())
    assert weights < torch_model.memory_needed(opened) < 1.5 * weights
    assert memory.available() is None or memory.available() > 2**20


@pytest.mark.parametrize("content", [b"this is text", None])
def test_a_recording_that_cannot_be_heard_is_refused(folder, tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content) if content else record(path, 0.0)
    with pytest.raises(AudioError, match=r"a\.wav"):
        reference.Original(open_checkpoint(folder)).read(speech.Clip("a.wav", path))


def test_a_rounded_model_says_what_it_would_generate(tmp_path):
    """Where it chooses as the original did, nothing is generated."""
    clip = speech.Clip("a.wav", record(tmp_path / "a.wav", 0.5), language="en")
    made = {seed: checkpoints.model(checkpoints.tiny_config(audio=AUDIO), seed=seed) for seed in (3, 4)}
    folders = [checkpoints.save_hub(tmp_path / str(seed), one) for seed, one in made.items()]
    original, other = (reference.Original(open_checkpoint(one)) for one in folders)
    reading = original.read(clip)
    logits = original.score(reading, original.encode(reading))
    np.testing.assert_allclose(logits, np.concatenate([reply.logits for reply in reading.replies]), atol=1e-4)
    said, expected = ([reply.text for reply in one.replies] for one in (reading, other.read(clip)))
    assert expected != said
    audio = other.encode(reading)
    assert other.transcripts(reading, audio, other.score(reading, audio)) == expected
    original._reply = lambda *_: pytest.fail("it is known already")
    assert original.transcripts(reading, reading.audio, logits) == said


def test_a_model_that_says_the_audio_token_is_scored_as_it_said_it(tmp_path):
    torch = pytest.importorskip("torch")
    config = checkpoints.tiny_config(audio=AUDIO)
    made, spoken = checkpoints.model(config), config["audio_token_id"]
    with torch.no_grad():  # whatever is heard, it says the audio token or the one behind it
        row = made.lm_head.weight[spoken].clone()
        made.lm_head.weight.zero_()
        made.lm_head.weight[spoken], made.lm_head.weight[spoken + 1] = row, -row
    original = reference.Original(open_checkpoint(checkpoints.save_hub(tmp_path / "tiny", made)))
    reading = original.read(speech.Clip("a.wav", record(tmp_path / "a.wav", 1.0), language="en"))
    assert any(spoken in reply.tokens[:-1] for reply in reading.replies)
    logits = np.concatenate([reply.logits for reply in reading.replies])
    np.testing.assert_allclose(original.score(reading), logits, atol=1e-4)
