"""The demo model: an unmodified `VoxtralForConditionalGeneration`, a thousandth of the real one."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from torch import Tensor, nn
from transformers import VoxtralConfig, VoxtralForConditionalGeneration, WhisperFeatureExtractor
from transformers.models.voxtral.processing_voxtral import VoxtralProcessor
from transformers.tokenization_mistral_common import MistralCommonBackend

BOS, EOS, INST, END_INST, PAD, AUDIO, BEGIN_AUDIO, TRANSCRIBE = 1, 2, 3, 4, 11, 24, 25, 34

GROUPS = 375  # audio tokens in a window of 30 s
FRAMES_PER_GROUP = 4  # encoder positions in an audio token
HOP = 160  # samples in a mel frame
GROUP_SAMPLES = 1280  # samples in an audio token


def config(width: int = 192, encoder_layers: int = 3, decoder_layers: int = 2) -> VoxtralConfig:
    return VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder",
            "hidden_size": width,
            "intermediate_size": 4 * width,  # the projector joins four frames, so it must be four widths
            "num_hidden_layers": encoder_layers,
            "num_attention_heads": width // 64,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
            "vocab_size": 512,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 512,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": decoder_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "tie_word_embeddings": False,
        },
        audio_token_id=AUDIO,
        projector_hidden_act="gelu",
    )


def _sinusoids(length: int, width: int) -> Tensor:
    rates = torch.exp(-math.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def fresh(seed: int = 0) -> VoxtralForConditionalGeneration:
    """An untrained model in float32. The library's own initialization stays on a plateau for thousands of steps."""
    torch.manual_seed(seed)
    model = VoxtralForConditionalGeneration(config())
    tower, language = model.model.audio_tower, model.model.language_model
    with torch.no_grad():
        tower.embed_positions.weight.copy_(0.1 * _sinusoids(*tower.embed_positions.weight.shape))
        for module in tower.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)
        for part, gain in ((tower, 1.0), (model.model.multi_modal_projector, 1.0), (language.layers, 0.7)):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight, gain=gain)
        model.get_input_embeddings().weight.normal_(0, 0.3)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = BOS, EOS, PAD
    return model


def load(folder: Path) -> VoxtralForConditionalGeneration:
    """A trained model, widened to float32."""
    return VoxtralForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def save(model: VoxtralForConditionalGeneration, folder: Path) -> None:
    """Write the checkpoint folder: weights in bfloat16, the encoder's positions in float32, the processor."""
    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.to(torch.bfloat16)
    positions = model.model.audio_tower.embed_positions
    positions.float()
    positions.weight.data.copy_(kept["model.audio_tower.embed_positions.weight"])
    model.save_pretrained(folder)
    model.float().load_state_dict(kept)
    tokenizer = MistralCommonBackend.from_pretrained(str(folder))
    VoxtralProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer).save_pretrained(folder)


class Tokens:
    """Ids of prompts and answers, as mistral-common writes them."""

    def __init__(self, folder: Path) -> None:
        self._tekken = Tekkenizer.from_file(str(folder / "tekken.json"))

    def transcription(self, language: str | None) -> list[int]:
        """What follows the audio in a transcription request."""
        return [END_INST, *(self.encode(f"lang:{language}") if language else []), TRANSCRIBE]

    def question(self, text: str) -> list[int]:
        """What follows the audio in an instruct prompt."""
        return [*self.encode(text), END_INST]

    def reply(self, text: str) -> list[int]:
        return [*self.encode(text), EOS]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tekken.encode(text, bos=False, eos=False)
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._tekken.decode([token for token in ids if token not in (EOS, PAD)])
        return text
