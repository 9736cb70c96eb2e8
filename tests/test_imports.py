"""Imports run one way, vendor packages only inside functions, and running a bundle loads no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "targets", "compiler", "runtimes", "cli")

# What each room may import of ours, beside itself.
ALLOWED: dict[str, set[str]] = {
    "kernels": set(),
    "targets": {"kernels"},
    "compiler": {"kernels", "targets"},
    "runtimes": {"kernels", "targets"},
    "cli": {"kernels", "targets", "compiler", "runtimes"},
}
# What may be imported at the top of a module: the standard library, ours, and numpy; the command line is made with more.
AT_TOP = {*sys.stdlib_module_names, "numpy", "ossicle"}
OF_CLI = {"typer", "rich"}


def _modules(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def _imports(path: Path, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module imported under a node, by absolute name, and its line."""
    package = ["ossicle", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def _top_level(path: Path) -> Iterator[tuple[str, int]]:
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _imports(path, statement)


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "ossicle" and len(parts) > 1 and parts[1] in ROOMS else None


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_one_way(room: str) -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in _modules(room)
        for module, line in _imports(path, ast.parse(path.read_text(encoding="utf-8")))
        if _room(module) not in {None, room, *ALLOWED[room]}
    ]
    assert faults == []


@pytest.mark.parametrize("room", ROOMS)
def test_vendor_packages_are_imported_where_they_are_needed(room: str) -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {module} at the top"
        for path in _modules(room)
        for module, line in _top_level(path)
        if module.split(".")[0] not in AT_TOP | (OF_CLI if room == "cli" else set())
    ]
    assert faults == []


def test_the_package_imports_itself_relatively() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _modules(*ROOMS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "ossicle")
    ]
    assert faults == []


def test_nothing_is_unpickled() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in _modules(*ROOMS)
        for module, line in _imports(path, ast.parse(path.read_text(encoding="utf-8")))
        if module.split(".")[0] in {"pickle", "marshal", "shelve", "dill", "joblib"}
    ]
    assert faults == []


SESSION = """
import sys
from pathlib import Path
import numpy as np
import ossicle
from ossicle.runtimes.audio import load_audio
from ossicle.runtimes.prompt import Prompts
from ossicle.runtimes.registry import runtimes
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session
from ossicle.runtimes import probe
from ossicle.kernels.logmel import log_mel
assert all(runtime.usable() is None for runtime in runtimes())
log_mel(load_audio(np.ones(8000, np.int16), rate=8000))
ossicle.load, ossicle.doctor()
print(" ".join(sorted(name for name in sys.modules if name.partition(".")[0] in {"torch", "transformers", "onnx"})))
"""


def test_running_loads_neither_torch_nor_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


IMPORT = "from time import perf_counter as now; t = now(); import ossicle; print(now() - t)"


def test_the_package_is_imported_in_no_time() -> None:
    times = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    assert min(times) < 0.15
