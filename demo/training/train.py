"""Train the demo model: `python train.py --minutes 60`, then look at it with evaluate.py.

Decoder cross entropy plus a word-level CTC on the audio embeddings from the first step; Muon on the matrices,
AdamW on the rest; cosine to zero over the wall clock given.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batches import IGNORED, Batch, Course, Pool, batches
from grammar import WORDS
from model import BEGIN_AUDIO, BOS, FRAMES_PER_GROUP, GROUPS, INST, Tokens, fresh, load, save
from muon import Muon
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss, gelu
from transformers import VoxtralForConditionalGeneration

HERE = Path(__file__).parent
PREFIX = (BOS, INST, BEGIN_AUDIO)
CTC_SHARE = 0.5
QUESTION_SHARE = 0.5
REPORT_EVERY = 50


def embed_audio(model: VoxtralForConditionalGeneration, batch: Batch) -> Tensor:
    """Audio embeddings of each window, its spoken groups and then its silent ones: [rows * windows, groups, 256]."""
    tower = model.model.audio_tower
    rows = len(batch.silence)

    def frames(mel: Tensor) -> Tensor:
        return gelu(tower.conv2(gelu(tower.conv1(mel)))).transpose(1, 2)

    spoken = frames(batch.mel).reshape(rows * batch.windows, -1, tower.config.hidden_size)
    still = frames(batch.silence[:, None, None].expand(-1, 128, 12))[:, 3:4].repeat_interleave(batch.windows, 0)
    silent = still.expand(-1, batch.silent.shape[1] * FRAMES_PER_GROUP, -1)
    places = torch.cat([batch.spoken, batch.silent], dim=1).repeat(rows, 1)
    at = (places[..., None] * FRAMES_PER_GROUP + torch.arange(FRAMES_PER_GROUP, device=places.device)).flatten(1)
    hidden = torch.cat([spoken, silent], dim=1) + tower.embed_positions.weight[at]

    counted = torch.zeros(hidden.shape[1], device=hidden.device)
    counted[spoken.shape[1] :] = batch.weight
    mask = counted.expand(1, 1, hidden.shape[1], -1).contiguous()
    for layer in tower.layers:
        hidden = layer(hidden, attention_mask=mask)
    joined = tower.layer_norm(hidden).reshape(len(hidden), -1, FRAMES_PER_GROUP * hidden.shape[-1])
    embedded: Tensor = model.model.multi_modal_projector(joined)
    return embedded


def decoder_places(batch: Batch) -> tuple[Tensor, Tensor]:
    """Positions of every decoder column in the full prompt, and the additive attention mask [1, 1, all, all].

    The question follows the audio as if the transcription were not there.
    """
    device = batch.mel.device
    window = GROUPS * torch.arange(batch.windows, device=device)[:, None]
    audio = (window + torch.cat([batch.spoken, batch.silent], dim=1)).flatten() + len(PREFIX)
    end = len(PREFIX) + GROUPS * batch.windows
    positions = torch.cat([torch.arange(len(PREFIX), device=device), audio, end + batch.positions])

    suffix = len(PREFIX) + len(audio)
    forbidden = positions[None, :] > positions[:, None]
    forbidden[suffix + batch.transcription :, suffix : suffix + batch.transcription] = True
    forbidden[suffix : suffix + batch.transcription, suffix + batch.transcription :] = True
    counted = torch.zeros(len(positions), device=device)
    counted[len(PREFIX) : suffix].view(batch.windows, -1)[:, batch.spoken.shape[1] :] = batch.weight
    mask = counted.expand(len(positions), -1).masked_fill(forbidden, float("-inf"))
    return positions, mask[None, None]


def losses(model: VoxtralForConditionalGeneration, listener: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of the transcription, of the answers, and the CTC of the words."""
    audio = embed_audio(model, batch)
    rows, spoken = len(batch.ids), batch.spoken.shape[1]
    embed = model.get_input_embeddings()
    prefix = embed(torch.tensor(PREFIX, device=audio.device)).expand(rows, -1, -1)
    inputs = torch.cat([prefix, audio.reshape(rows, -1, audio.shape[-1]), embed(batch.ids)], dim=1)
    positions, mask = decoder_places(batch)
    hidden = model.model.language_model(
        inputs_embeds=inputs,
        position_ids=positions.expand(rows, -1),
        attention_mask=mask,
        use_cache=False,
    ).last_hidden_state[:, -batch.ids.shape[1] :]

    def entropy(columns: slice) -> Tensor:
        wanted = batch.labels[:, columns]
        return cross_entropy(model.lm_head(hidden[:, columns][wanted != IGNORED]), wanted[wanted != IGNORED])

    words = listener(audio[:, :spoken]).float().log_softmax(-1).transpose(0, 1)
    flat = torch.tensor([word for row in batch.words for word in row], device=audio.device)
    ctc = ctc_loss(
        words,
        flat,
        torch.full((len(audio),), spoken),
        torch.tensor([len(row) for row in batch.words]),
        zero_infinity=True,
    )
    return entropy(slice(batch.transcription)), entropy(slice(batch.transcription, None)), ctc


def optimizers(model: nn.Module, listener: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers and of the projector, AdamW for everything else that learns."""
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in learning if p.dim() == 2 and (".layers." in name or "projector" in name)]
    chosen = set(map(id, matrices))
    rest = [p for _, p in learning if id(p) not in chosen] + list(listener.parameters())
    return [
        Muon(matrices, lr=3e-3, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=1.5e-3, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


def rate(progress: float, warm_up: float = 0.02) -> float:
    return progress / warm_up if progress < warm_up else 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Plan:
    """What the command line asks for."""

    minutes: float
    speech: Path
    tokenizer: Path
    out: Path
    start: Path | None
    speed: float
    batch: int
    workers: int
    seed: int
    save_every: float


def average(parameters: list[nn.Parameter], progress: float) -> float:
    """Replace the gradients by their mean over the workers; gives back the first worker's progress."""
    own = [progress if dist.get_rank() == 0 else 0.0]
    flat = torch.cat([torch.tensor(own), *(p.grad.flatten() for p in parameters if p.grad is not None)])
    dist.all_reduce(flat)
    flat[1:] /= dist.get_world_size()
    at = 1
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[at : at + p.numel()].view_as(p))
            at += p.numel()
    return flat[0].item()


def work(rank: int, plan: Plan, meeting: str) -> None:
    """One of the workers, each of one thread: on a busy machine they lose less time to one another than threads do."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=plan.workers)
    tokens, pool, course = Tokens(plan.tokenizer), Pool(plan.speech), Course(1.0 if plan.start else 0.0)
    torch.manual_seed(plan.seed)
    model = load(plan.start) if plan.start else fresh(plan.seed)
    model.train()
    listener = nn.Linear(256, len(WORDS) + 1)
    steppers = optimizers(model, listener)
    groups = [group for stepper in steppers for group in stepper.param_groups]
    learning = [p for group in groups for p in group["params"]]
    full_rates = [group["lr"] * plan.speed for group in groups]

    source = batches(pool, tokens, plan.batch, course, plan.seed, rank)
    begin = saved = time.time()
    step, presented, progress, seen = 0, 0, 0.0, torch.zeros(3)
    while progress < 1:
        if not plan.start:
            course.progress = progress
        for group, full in zip(groups, full_rates, strict=True):
            group["lr"] = full * rate(progress)
        batch = next(source)
        parts = losses(model, listener, batch)
        (parts[0] + QUESTION_SHARE * parts[1] + CTC_SHARE * parts[2]).backward()
        progress = average(learning, (time.time() - begin) / (60 * plan.minutes))
        nn.utils.clip_grad_norm_(learning, 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        step, presented = step + 1, presented + batch.presented * plan.workers
        seen += torch.tensor([part.item() for part in parts])
        if rank == 0 and step % REPORT_EVERY == 0:
            spent = time.time() - begin
            text, answers, ctc = (seen / REPORT_EVERY).tolist()
            print(
                f"step {step} minute {spent / 60:.1f} text {text:.3f} answer {answers:.3f} ctc {ctc:.3f}, "
                f"{presented} presented of a pool of {len(pool)}, {presented / spent:.0f}/s",
                flush=True,
            )
            seen.zero_()
        if rank == 0 and time.time() - saved > 60 * plan.save_every:
            save(model, plan.out)
            saved = time.time()
    if rank == 0:
        save(model, plan.out)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--speech", type=Path, default=Path("build/demo/speech"))
    parser.add_argument("--tokenizer", type=Path, default=HERE.parent / "model", help="folder of tekken.json")
    parser.add_argument("--out", type=Path, default=Path("build/demo/model"))
    parser.add_argument("--start", type=Path, help="a trained checkpoint to go on from")
    parser.add_argument("--speed", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--batch", type=int, default=20, help="utterances in a worker's step")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=8, help="minutes")
    plan = Plan(**vars(parser.parse_args()))
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / "tekken.json").write_bytes((plan.tokenizer / "tekken.json").read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (plan, f"{folder}/meeting"), nprocs=plan.workers)


if __name__ == "__main__":
    main()
