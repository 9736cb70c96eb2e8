"""Budgets on the command line: what cannot be meant is refused before anything is opened."""

from pathlib import Path
from typing import Any

import pytest
from ossicle.cli.budget import builder, quantizing
from ossicle.cli.common import file_size
from ossicle.compiler import budget, spending
from ossicle.targets.contract import OssicleError

REFUSED = [
    ({"max_size": "2.2"}, "'2.2' is no size of a file (it can be, for example: 2GB, 1.5GiB, 500MB). Give another --max-size"),
    ({"max_size": "0GB"}, "'0GB' is no size of a file"),
    ({"fit": "rtx-4061"}, "device 'rtx-4061' is unknown (nearest: rtx-4060"),
    ({"fit": "rtx-4060:many"}, "'many' is no number of tokens in --fit rtx-4060:many. Give, for example: --fit rtx-4060:8192"),
    ({"max_size": "2GB", "quant": "int4"}, "--quant does not go with the rest"),
    ({"recipe": Path("recipe.json"), "quant": "int4"}, "--quant does not go with the rest"),
    ({"recipe": Path("recipe.json"), "calibration": Path("data.jsonl")}, "--calibration does not go with the rest"),
    ({"calibration": Path("data.jsonl")}, "--calibration does not go with the rest: it measures losses for --max-size"),
]  # fmt: skip


def asked(**options: object) -> object:
    given: dict[str, object] = dict.fromkeys(("quant", "max_size", "fit", "recipe", "calibration"))
    return builder(**(given | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_cannot_be_meant_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(OssicleError) as caught:
        asked(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_size": "2GB", "quant": "int4"}, "--quant does not go with the rest: --max-size and --fit bring"),
        (
            {"fit": "rtx-4060", "recipe": Path("a.json")},
            "--recipe does not go with the rest: --max-size and --fit find",
        ),
        ({"target": "gguf"}, "--target does not go with the rest: integers are the same for every target"),
        ({"recipe": Path("a.json"), "quant": "int4"}, "--quant does not go with the rest"),
        ({"max_size": "much"}, "'much' is no size of a file"),
    ],
)
def test_what_quantize_cannot_mean_is_refused(options: dict[str, object], said: str) -> None:
    given: dict[str, Any] = dict.fromkeys(("quant", "max_size", "fit", "target", "recipe"))
    with pytest.raises(OssicleError) as caught:
        quantizing(**(given | options))
    assert said in str(caught.value)


def test_sizes_and_devices_become_limits() -> None:
    spent = getattr(asked(max_size="2.2GB", fit="rtx-4060:4096", calibration=Path("a")), "keywords")["spent"]  # noqa: B009
    assert isinstance(spent, spending.Budget)
    size, fit = spent.asked
    assert (size.name, size.size, size.device) == ("max-2.20GB", 2_200_000_000, None)
    assert (fit.name, fit.context) == ("fit-rtx-4060", 4096)
    assert fit.device is not None
    assert fit.size == int(fit.device.usable)
    assert budget.size(size.size) == "2.20 GB"


def test_sizes_are_read_in_powers_of_ten_and_of_two() -> None:
    assert [file_size(text, "--max-size") for text in ("2GB", "1.5 GiB", "500mb", "1MiB")] == [
        2 * 10**9, 3 * 2**29, 5 * 10**8, 2**20,
    ]  # fmt: skip
