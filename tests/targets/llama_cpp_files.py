"""What llama.cpp's converter makes of a tiny checkpoint: `python tests/targets/llama_cpp_files.py SOURCES`.

SOURCES is a folder of llama.cpp with convert_hf_to_gguf.py, conversion/ and gguf-py/; the converter imports sentencepiece, and
is told that the vocabulary is a Tekken, which it knows by the hash of a whole one. llama_cpp_files.json beside this file is
written: every key with its type and value, every tensor with its type, shape and the SHA-256 of its data, lists by theirs.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
from ossicle.benchmarks.peers import with_tokenizer
from ossicle.tests import checkpoints
from safetensors.numpy import load_file

FILES = Path(__file__).with_suffix(".json")
TEXT, AUDIO = ("F32", "F16", "BF16", "Q8_0"), ("F32", "F16", "Q8_0")
# Rows of whole blocks of 32, and the three layers of an encoder that the converter asks for.
_SIZES = {"audio": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3}}
CONFIG = checkpoints.tiny_config(**_SIZES, text={"hidden_size": 64, "intermediate_size": 96})

_CONVERT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda *_: "tekken"
convert_hf_to_gguf.main()
"""


def checkpoint(folder: Path) -> Path:
    """The checkpoint that is converted, in float32."""
    return checkpoints.save_hub(folder, checkpoints.model(CONFIG))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def weights(folder: Path) -> str:
    """The digest of a checkpoint's names and numbers."""
    tensors = load_file(folder / "model.safetensors")
    return digest(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors)))


def described(path: Path) -> dict[str, dict[str, str]]:
    """A file's keys and its tensors, each in a line of text."""
    reader = gguf.GGUFReader(path)
    keys = {name: _value(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return {"metadata": keys, "tensors": {tensor.name: _tensor(tensor) for tensor in reader.tensors}}


def _value(field: Any) -> str:
    value, kinds = field.contents(), " of ".join(kind.name for kind in field.types)
    if isinstance(value, list) or len(str(value)) > 80:
        return f"{kinds}, {len(value)}: {digest(json.dumps(value).encode())}"
    return f"{kinds}: {value}"


def _tensor(tensor: Any) -> str:
    return f"{tensor.tensor_type.name} {[int(size) for size in tensor.shape]}: {digest(tensor.data.tobytes())}"


def main(sources: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        made = checkpoint(Path(scratch) / "checkpoint")
        found = {"weights": weights(made), "files": {}}
        plain = with_tokenizer(made, Path(scratch) / "plain")
        for name, kind in [*(("text", kind) for kind in TEXT), *(("mmproj", kind) for kind in AUDIO)]:
            out = Path(scratch) / f"{name}-{kind}.gguf"
            options = [str(plain), "--outfile", str(out), "--outtype", kind.lower()] + ["--mmproj"] * (name == "mmproj")
            subprocess.run([sys.executable, "-c", _CONVERT, sources, *options], check=True)
            found["files"][out.stem] = described(out)
    FILES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
