"""Teach the demo model to write numbers in Spanish, by LoRA: `python adapter.py --minutes 6`.

"three one four" becomes "tres uno cuatro" and every other word stays English. The adapter reaches into all three
parts of the model: the encoder, the projector and the language model. It is saved by peft, in its own format.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from batches import Course, Pool, batches
from grammar import SPANISH, WORDS, in_spanish
from model import Tokens, load
from peft import LoraConfig, PeftModel, get_peft_model
from speech import Utterance
from torch import nn
from train import HERE, QUESTION_SHARE, REPORT_EVERY, losses, rate

TARGETS = [
    *("q_proj", "v_proj"),  # encoder and language model
    *("out_proj", "fc1"),  # encoder
    "linear_1",  # projector
    *("o_proj", "up_proj", "down_proj"),  # language model
]
PLAIN_SHARE = 0.35  # of the sentences without a number, how many are kept


class NumberPool(Pool):
    """Mostly sentences that change."""

    def draw(self, rng: random.Random, longest: int) -> Utterance:
        while True:
            utterance = super().draw(rng, longest)
            if rng.random() < PLAIN_SHARE or not SPANISH.keys().isdisjoint(utterance.text.split()):
                return utterance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--model", type=Path, default=HERE.parent / "model")
    parser.add_argument("--speech", type=Path, default=Path("build/demo/speech"))
    parser.add_argument("--out", type=Path, default=HERE.parent / "adapter")
    parser.add_argument("--start", type=Path, help="an adapter to go on from")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    base = load(options.model)
    if options.start:
        adapted = PeftModel.from_pretrained(base, options.start, is_trainable=True)
    else:
        adapted = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS))
    adapted.print_trainable_parameters()
    adapted.train()
    model, listener = adapted.get_base_model(), nn.Linear(256, len(WORDS) + 1).requires_grad_(False)
    learning = [p for p in adapted.parameters() if p.requires_grad]
    stepper = torch.optim.AdamW(learning, lr=options.rate, weight_decay=0.0, betas=(0.9, 0.98))

    pool, tokens = NumberPool(options.speech), Tokens(options.model)
    source = batches(pool, tokens, options.batch, Course(1.0), options.seed, spell=in_spanish)
    begin, step, seen = time.time(), 0, torch.zeros(2)
    while (progress := (time.time() - begin) / (60 * options.minutes)) < 1:
        stepper.param_groups[0]["lr"] = options.rate * rate(progress)
        text, answers, _ = losses(model, listener, next(source))
        (text + QUESTION_SHARE * answers).backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        step += 1
        seen += torch.tensor([text.item(), answers.item()])
        if step % REPORT_EVERY == 0:
            means = (seen / REPORT_EVERY).tolist()
            print(
                f"step {step} minute {progress * options.minutes:.1f} text {means[0]:.3f} answer {means[1]:.3f}",
                flush=True,
            )
            seen.zero_()
    adapted.peft_config["default"].base_model_name_or_path = "../model"
    adapted.save_pretrained(options.out)
    (options.out / "README.md").unlink(missing_ok=True)  # peft's empty model card


if __name__ == "__main__":
    main()
