"""The bundle's tokenizer as OpenVINO models, where the package openvino-tokenizers is installed.

`openvino_tokenizer.xml` gives the ids of plain text, in which no special token is recognized, `openvino_detokenizer.xml` the
text of ids, special tokens left out. Both need that package's extension to run.
"""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from .openvino_core import core

TOKENIZER, DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"
_NEVER = b"(?!)"  # a pattern that matches nothing
# Beside every special token's name: accents, scripts without spaces, signs of several code points, spaces of all kinds.
_SAMPLES = (
    "One two, 3 456; it's THE end.", "  two  spaces \n\n\ttab \r\n", "na\u00efve cafe\u0301 \u2013 \u00fcber\u00a0all",
    "\u65e5\u672c\u8a9e \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001d518 a\u200db",
)  # fmt: skip
_COUNTED = re.compile(r"[A-Z]\w*_\d+")  # a name that the engine made up
_log = logging.getLogger(__name__)


def write(tokenizer: Path, folder: Path) -> tuple[Path, ...]:
    """The files written under `folder` for a tokenizer.json: two xml, each with its `.bin`.

    None where openvino-tokenizers is not installed, and none where it cannot hold the tokenizer, which a warning says.
    """
    try:
        from openvino_tokenizers import convert_tokenizer
    except ImportError:
        return ()
    try:
        models = convert_tokenizer(_fast(tokenizer), with_detokenizer=True, **_PLAIN)
        _recognize_nothing(models[0])
        _check(models, tokenizer)
    except (RuntimeError, ValueError, TypeError, KeyError, NotImplementedError) as reason:
        _log.warning("'%s' is not written for OpenVINO: openvino-tokenizers cannot hold it (%s)", tokenizer, reason)
        return ()
    paths = [folder / name for name in (TOKENIZER, DETOKENIZER)]
    for model, path in zip(models, paths, strict=True):
        _save(model, path)
    return tuple(file for path in paths for file in (path, path.with_suffix(".bin")))


_PLAIN = {"add_special_tokens": False, "skip_special_tokens": True, "clean_up_tokenization_spaces": False}


def _fast(tokenizer: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), clean_up_tokenization_spaces=False)


def _recognize_nothing(model: Any) -> None:
    """Make the operator that looks for special tokens in a text find none."""
    from openvino import opset13 as operators

    for node in model.get_ops():
        if node.get_type_name() == "SpecialTokensSplit":
            pattern = node.input(node.get_input_size() - 1)
            pattern.replace_source_output(operators.constant(np.frombuffer(_NEVER, np.uint8)).output(0))


def _check(models: Sequence[Any], tokenizer: Path) -> None:
    """Raise `ValueError` for a text that the models do not make the same of as tokenizer.json does."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer))
    backend.encode_special_tokens = True
    encode, decode = (core().compile_model(model, "CPU") for model in models)
    specials = [token["content"] for token in json.loads(tokenizer.read_bytes())["added_tokens"]]
    for text in (*_SAMPLES, *specials):
        ids = backend.encode(text, add_special_tokens=False).ids
        if encode([text])["input_ids"][0].tolist() != ids or str(decode([np.array([ids])])[0][0]) != text:
            raise ValueError(f"it takes {text!r} otherwise")


def _save(model: Any, path: Path) -> None:
    """Write a model with names that do not count up over a process."""
    import openvino

    openvino.serialize(model, str(path), str(path.with_suffix(".bin")))
    tree = ElementTree.parse(path)
    for layer in tree.getroot().iter("layer"):
        name = f"{layer.get('type')}_{layer.get('id')}"
        layer.set("name", name)
        for element in (layer, *layer.iter("port")):
            for key in {"names", "output_names"} & element.attrib.keys():
                element.set(key, _COUNTED.sub(name, element.attrib[key]))
    tree.write(path, encoding="utf-8", xml_declaration=True)
