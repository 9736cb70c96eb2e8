"""The manifest: what is written is read again, and whatever else is read is one clear refusal."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import BundleError
from ossicle.tests.fakes import write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path)
    return tmp_path


def change(bundle: Path, **entries: object) -> None:
    path = bundle / manifests.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_what_is_written_is_read_again(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    manifests.write(other, manifests.read(bundle))
    assert manifests.read(other) == manifests.read(bundle)
    assert (other / manifests.NAME).read_bytes() == (bundle / manifests.NAME).read_bytes()


def test_a_newer_version_is_refused_with_the_way_out(bundle: Path) -> None:
    change(bundle, version=manifests.VERSION + 1)
    with pytest.raises(BundleError, match=r"is of version 2; this ossicle reads up to 1\. Upgrade with: pip install"):
        manifests.read(bundle)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "onnx/../../outside"])
def test_paths_that_leave_the_bundle_are_refused(bundle: Path, path: str) -> None:
    change(bundle, files=[{"path": path, "size": 1, "sha256": "0"}])
    with pytest.raises(BundleError, match="leaves the bundle"):
        manifests.read(bundle)


@pytest.mark.parametrize("name", ["family", "artifacts", "audio", "text", "source"])
def test_a_missing_entry_is_named(bundle: Path, name: str) -> None:
    path = bundle / manifests.NAME
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name}))
    with pytest.raises(BundleError, match=name):
        manifests.read(bundle)


def test_every_damaged_file_is_listed(bundle: Path) -> None:
    (bundle / "model.fake").write_bytes(b"fakf")
    with pytest.raises(BundleError, match="does not match its sha256"):
        manifests.check_files(bundle, manifests.read(bundle))
    manifests.check_files(bundle, manifests.read(bundle), hashes=False)
    (bundle / "model.fake").write_bytes(b"longer than it was")
    with pytest.raises(BundleError, match="has 18 bytes instead of 4"):
        manifests.check_files(bundle, manifests.read(bundle), hashes=False)
    (bundle / "model.fake").unlink()
    with pytest.raises(BundleError, match=r"model\.fake is missing"):
        manifests.check_files(bundle, manifests.read(bundle))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("version", "artifacts", "files", "audio", "text", "source", "adapters", "recipe")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=JSON)
def test_any_entry_replaced_is_read_or_refused(tmp_path: Path, key: str, value: object) -> None:
    write_bundle(tmp_path)
    change(tmp_path, **{key: value})
    with suppress(BundleError):
        assert manifests.read(tmp_path).version == manifests.VERSION


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / manifests.NAME).write_bytes(data)
    with pytest.raises(BundleError):
        manifests.read(tmp_path)
