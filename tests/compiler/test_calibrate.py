"""Calibration block by block against hooks on the whole model; the file, its GGUF form, and what is refused."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ossicle.cli.main import app
from ossicle.compiler import calibration, imatrix, reference, speech
from ossicle.compiler.backward import _signs
from ossicle.compiler.calibrate import calibrate, statistics, utterances
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.families import family
from ossicle.compiler.positions import DRAWS, Positions
from ossicle.compiler.readings import Utterance
from ossicle.targets import memory
from ossicle.targets.contract import AudioError, BuildError, CheckpointError
from ossicle.tests import checkpoints
from typer.testing import CliRunner

AUDIO = {
    "num_mel_bins": 128, "max_source_positions": 1500, "hidden_size": 32, "intermediate_size": 128,
    "num_hidden_layers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO))
    return open_checkpoint(checkpoints.save_hub(tmp_path_factory.mktemp("calibrate") / "tiny", made))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import soundfile

    folder = tmp_path_factory.mktemp("speech")
    entries: list[dict[str, str]] = [{"text": "one two", "language": "en"}, {"text": "three"}, {}]
    for number, seconds in enumerate((1.0, 31.0, 2.0)):
        samples = np.random.default_rng(number).standard_normal(int(seconds * 16000)) * 0.1
        soundfile.write(folder / f"{number}.wav", samples, 16000)
    lines = [json.dumps({"file": f"{number}.wav", **entry}) for number, entry in enumerate(entries)]
    (folder / "speech.jsonl").write_text("\n".join(lines))
    return folder / "speech.jsonl"


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, spoken: Path) -> calibration.Calibration:
    return calibrate(checkpoint, spoken, gradients=True)


@dataclass
class Seen:
    """Of one linear layer of the whole model, for every call: its inputs in float64, and the squared size of the gradient
    behind each of them, the mean over draws of signs."""

    inputs: list[Any] = field(default_factory=list)
    squares: list[Any] = field(default_factory=list)


@pytest.fixture(scope="module")
def seen(checkpoint: Checkpoint, spoken: Path) -> dict[str, Seen]:
    import torch

    original, random = reference.Original(checkpoint), torch.Generator().manual_seed(0)
    found: dict[str, Seen] = {}
    outputs: list[tuple[Seen, Any]] = []

    def hook(one: Seen) -> Any:
        def keep(_: Any, inputs: Any, output: Any) -> None:
            one.inputs.append(inputs[0].detach().double().flatten(0, -2).numpy())
            outputs.append((one, output))

        return keep

    for name, module in original.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(hook(found.setdefault(name + ".weight", Seen())))
    for clip in speech.load(spoken).clips:
        outputs.clear()
        heard = original.utterance(clip)
        logits = whole(original.model, heard)
        signs = [_signs(torch.softmax(logits.detach(), -1), random) for _ in range(DRAWS)]
        draws = [torch.autograd.grad(logits, [one for _, one in outputs], each, retain_graph=True) for each in signs]
        for (one, _), gradients in zip(outputs, zip(*draws, strict=True), strict=True):
            sizes = [each.double().flatten(0, -2).square().sum(1).numpy() for each in gradients]
            one.squares.append(np.mean(sizes, axis=0))
    return found


def whole(model: Any, heard: Utterance) -> Any:
    """The logits of what is scored, with all that gradients need."""
    import torch

    windows = torch.from_numpy(heard.logmel).requires_grad_()
    audio = torch.cat([model.get_audio_features(window[None]).pooler_output for window in windows])
    ids = torch.tensor([heard.tokens])
    inputs = model.get_input_embeddings()(ids)
    inputs = inputs.masked_scatter((ids == 24).unsqueeze(-1).expand_as(inputs), audio)
    return model(inputs_embeds=inputs, logits_to_keep=heard.scored).logits[0]


def counted(utterances: list[Utterance], part: str | None, rows: int) -> Any:
    """How much each input counts: those without sound a sixteenth. `rows` are those of a window."""
    frames = [np.where(one.sound, 1, 1 / 16) for one in utterances]
    if part in ("encoder", "projector"):
        return np.concatenate([window.reshape(rows, -1).mean(axis=1) for one in frames for window in one])
    if part == "lm_head":
        return np.ones(sum(one.scored for one in utterances))
    tokens = []
    for one, heard in zip(utterances, frames, strict=True):
        of_audio = iter(heard.reshape(-1, 8).mean(axis=1))
        tokens += [next(of_audio) if token == 24 else 1 for token in one.tokens]
    return np.array(tokens)


def test_sound_ends_where_the_recording_does(checkpoint: Checkpoint, spoken: Path) -> None:
    for clip, seconds in zip(speech.load(spoken).clips, (1.0, 31.0, 2.0), strict=True):
        sound = reference.Original(checkpoint).utterance(clip).sound.reshape(-1)
        assert sound[: int(100 * seconds)].all()
        assert not sound[int(100 * seconds) + 3 :].any()


@pytest.fixture(scope="module")
def heard(checkpoint: Checkpoint, spoken: Path) -> list[Utterance]:
    return list(utterances(checkpoint, speech.load(spoken)))


def test_every_column_is_measured_as_by_hooks_on_the_whole_model(
    checkpoint: Checkpoint, heard: list[Utterance], seen: dict[str, Seen], found: calibration.Calibration
) -> None:
    model = family("voxtral")
    assert set(found.measured) == set(seen) == {name for name in checkpoint.tensors if model.linear(name)}
    for name, hooked in seen.items():
        inputs, one = np.concatenate(hooked.inputs), found.measured[name]
        assert one.count == len(inputs)
        squares = np.concatenate(hooked.squares)
        weights = squares / squares.mean() + counted(heard, model.part(name), len(hooked.inputs[0]))
        expected = np.average(inputs**2, axis=0, weights=weights)
        np.testing.assert_allclose(one.mean_square, expected, rtol=1e-3)
        np.testing.assert_allclose(one.lowest, inputs.min(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.highest, inputs.max(axis=0), rtol=1e-4, atol=1e-5)


def test_every_block_gives_its_memory_back(
    checkpoint: Checkpoint, spoken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[None] = []
    monkeypatch.setattr(memory, "give_back", lambda: given.append(None))
    calibrate(checkpoint, spoken)
    layers = sum(checkpoint.config[part]["num_hidden_layers"] for part in ("audio_config", "text_config"))
    assert len(given) >= layers


def test_without_gradients_positions_count_by_their_sound(
    checkpoint: Checkpoint, spoken: Path, heard: list[Utterance], seen: dict[str, Seen], found: calibration.Calibration
) -> None:
    plain = statistics(checkpoint, heard, speech.load(spoken))
    assert (plain.weighed, found.weighed) == ("sound", "gradients")
    for name, hooked in seen.items():
        weights = counted(heard, family("voxtral").part(name), len(hooked.inputs[0]))
        expected = np.average(np.concatenate(hooked.inputs) ** 2, axis=0, weights=weights)
        np.testing.assert_allclose(plain.measured[name].mean_square, expected, rtol=1e-4)


def test_a_position_counts_its_share_of_the_gradients_beside_what_it_counts_by_itself(tmp_path: Path) -> None:
    import torch

    kept = Positions(tmp_path)
    kept.add("one", np.array([3, 0], np.float32))
    kept.add("one", np.array([1, 4], np.float32))
    kept.add("nothing arrives", np.zeros(1, np.float32))
    assert kept.weigh("one", torch.tensor([1.0, 0.5, 0.25])).tolist() == [2.5, 0.5, 0.75]
    assert kept.weigh("one", torch.tensor([1.0])).tolist() == [3.0]
    assert kept.weigh("nothing arrives", torch.tensor([0.5])).tolist() == [0.5]


def test_the_file_comes_back_and_is_the_same_bytes_each_time(
    checkpoint: Checkpoint, found: calibration.Calibration, tmp_path: Path
) -> None:
    calibration.write(tmp_path / "a", found)
    calibration.write(tmp_path / "b", found)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back = calibration.read(tmp_path / "a", found.checkpoint, checkpoint.tensors)
    assert (back.speech, back.speech_sha256, back.weighed) == (found.speech, found.speech_sha256, "gradients")
    for name, one in found.measured.items():
        assert np.array_equal(back.measured[name].mean_square, one.mean_square)
        assert back.measured[name].count == one.count
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]


def test_a_file_that_does_not_say_how_positions_counted_has_them_by_sound(
    checkpoint: Checkpoint, found: calibration.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = calibration._metadata(found)
    del document["weighed"]
    monkeypatch.setattr(calibration, "_metadata", lambda _: document)
    calibration.write(tmp_path / "older", found)
    assert calibration.read(tmp_path / "older", found.checkpoint, checkpoint.tensors).weighed == "sound"


def test_both_forms_weigh_the_decoder_alike(
    checkpoint: Checkpoint, found: calibration.Calibration, tmp_path: Path
) -> None:
    calibration.write(tmp_path / "a.safetensors", found)
    imatrix.write(tmp_path / "a.gguf", found, family("voxtral"))
    ours = open_checkpoint(checkpoint.location, imatrix=tmp_path / "a.safetensors").importances
    theirs = open_checkpoint(checkpoint.location, imatrix=tmp_path / "a.gguf").importances
    assert set(theirs) == {name for name in ours if "audio" not in name and "multi_modal" not in name}
    for name, means in theirs.items():
        np.testing.assert_allclose(means, ours[name], rtol=1e-6)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    one = found.measured["model.language_model.layers.0.self_attn.q_proj.weight"]
    assert read["blk.0.attn_q.weight.counts"].data.item() == one.count
    np.testing.assert_allclose(read["blk.0.attn_q.weight.in_sum2"].data[0], one.mean_square * one.count, rtol=1e-6)


def test_what_is_no_calibration_of_this_checkpoint_is_refused(
    checkpoint: Checkpoint, found: calibration.Calibration, tmp_path: Path
) -> None:
    calibration.write(tmp_path / "other", replace(found, checkpoint="0" * 64))
    with pytest.raises(BuildError, match=r"other' was made from another checkpoint.*ossicle calibrate CHECKPOINT"):
        open_checkpoint(checkpoint.location, imatrix=tmp_path / "other")
    with pytest.raises(BuildError, match=r"none' cannot be used as a calibration: there is no such file"):
        calibration.read(tmp_path / "none", found.checkpoint, checkpoint.tensors)
    whole = (tmp_path / "other").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-100])
    with pytest.raises(BuildError, match=r"cut' (was made|cannot be used)"):
        calibration.read(tmp_path / "cut", "0" * 64, checkpoint.tensors)


@pytest.mark.parametrize(
    ("lines", "said"), [("", "it has no lines"), ('{"file": "gone.wav", "text": "a"}', "'gone.wav' is missing")]
)
def test_a_speech_list_that_cannot_be_used_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, lines: str, said: str
) -> None:
    (tmp_path / "speech.jsonl").write_text(lines)
    with pytest.raises(AudioError, match=said):
        calibrate(checkpoint, tmp_path / "speech.jsonl")


def test_what_a_broken_model_gives_is_no_calibration(spoken: Path, tmp_path: Path) -> None:
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO))
    made.model.language_model.layers[0].input_layernorm.weight.data[0] = float("nan")
    broken = open_checkpoint(checkpoints.save_hub(tmp_path / "broken", made))
    with pytest.raises(CheckpointError, match=r"layers.0.*is multiplied with on '.*' is not finite. Repair"):
        calibrate(broken, spoken)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--out", "FOLDER"), "is a folder. Name a file in it: --out"),
        (("--out", "FOLDER/file/a"), "file' is not a folder that you may write to"),
        (("--out", "FOLDER/a", "--imatrix", "FOLDER"), "is a folder. Name a file in it: --imatrix"),
        (("--out", "FOLDER/a", "--imatrix", "FOLDER/b/../a"), "cannot hold both forms"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    (tmp_path / "file").touch()
    asked = [word.replace("FOLDER", str(tmp_path)) for word in options]
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "no checkpoint"), *asked])
    assert done.exit_code == 1
    assert said in done.output
    if asked[-2] == "--out":
        assert said in CliRunner().invoke(app, ["quantize", str(tmp_path / "no checkpoint"), *asked]).output


def test_the_command_writes_both_files(checkpoint: Checkpoint, spoken: Path, tmp_path: Path) -> None:
    out, llamacpp = tmp_path / "out.safetensors", tmp_path / "out.gguf"
    done = CliRunner().invoke(
        app,
        ["calibrate", str(checkpoint.location), "--speech", str(spoken), "--out", str(out), "--imatrix", str(llamacpp)],
    )
    assert done.exit_code == 0, done.output
    assert calibration.is_calibration(out)
    assert llamacpp.is_file()
