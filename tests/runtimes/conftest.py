"""What several tests of runtimes read and none writes."""

import pytest
from ossicle.tests.runtimes.tiny_adapters import AdaptedBundle, build


@pytest.fixture(scope="session")
def adapted_bundle(tmp_path_factory: pytest.TempPathFactory) -> AdaptedBundle:
    """A bundle for ONNX Runtime and llama.cpp that keeps three adapters."""
    return build(tmp_path_factory.mktemp("adapters"))
