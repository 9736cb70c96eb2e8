from types import SimpleNamespace

import pytest
from ossicle.targets.contract import Port, TracedStage
from ossicle.targets.needs import needs

LAYER = "model.language_model.layers.0."
SHAPES = {
    "model.language_model.embed_tokens.weight": (9000, 16),
    "model.audio_tower.embed_positions.weight": (8000, 16),
    f"{LAYER}input_layernorm.weight": (7000,),
    "model.audio_tower.conv1.weight": (6000, 16, 3),
    f"{LAYER}mlp.up_proj.weight": (48, 16),
    f"{LAYER}mlp.down_proj.weight": (16, 48),
}
CACHES = tuple(Port(f"past_key_values.0.{kind}", "float32", ("batch_size", 2, "past", 8)) for kind in ("key", "value"))
WEIGHTS = SimpleNamespace(source=lambda name: SimpleNamespace(shape=SHAPES[name]))


@pytest.mark.parametrize(("stage", "positions"), [("audio_encoder", 1500), ("decoder", 1024), ("embed_tokens", 0)])
@pytest.mark.parametrize("width", [2, 4])
def test_what_a_stage_needs_is_reckoned_from_its_shapes(stage: str, positions: int, width: int) -> None:
    """The cache by heads and their width; activations by the tallest product, whatever tables and vectors there are."""
    traced = TracedStage(stage, None, CACHES, (), {name: name for name in SHAPES}, {})
    found = needs(traced, WEIGHTS, 123, width)
    assert (found.weights, found.kv_per_token) == (123, width * 2 * 2 * 8)
    assert found.working == 4 * width * positions * 48
