"""Does transformers.js, as published on npm, load our bundles and hear in them what we hear?

`make interop` installs it under build/interop, builds the demo model at each precision, transcribes every shipped recording
of at most one window with both, prints the texts side by side, and fails on any difference. Needs node and npm.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ossicle.runtimes.audio import load_audio

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "interop"
PACKAGE = "@huggingface/transformers"

# transformers.js puts [BEGIN_AUDIO] before the audio itself. Longer audio it normalizes window by window, unlike the original.
PROMPT = "<s>[INST][AUDIO][/INST]lang:en[TRANSCRIBE]"
LONGEST = 30 * 16000  # samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--quant", nargs="+", default=["fp32", "int4"], metavar="RECIPE")
    options = parser.parse_args()
    install()
    clips = recordings(ROOT / "demo" / "speech")
    differences = sum(compare(build(options.checkpoint, recipe), recipe, clips) for recipe in options.quant)
    if differences:
        sys.exit(f"{differences} texts differ")
    print(f"{PACKAGE} {pinned()}: all {len(options.quant) * len(clips)} texts equal")


def install() -> None:
    """Put the pinned package and the script that uses it under build/interop."""
    if shutil.which("npm") is None:
        sys.exit("npm is not installed: interop needs node 20 or later with npm (https://nodejs.org)")
    WORK.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "transcribe.mjs"):
        shutil.copy(HERE / name, WORK / name)
    installed = WORK / "node_modules" / PACKAGE / "package.json"
    if not installed.is_file() or json.loads(installed.read_text())["version"] != pinned():
        # Install scripts would only fetch GPU libraries; the package brings its CPU engine along.
        run("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", cwd=WORK)


def pinned() -> str:
    """The version that package.json asks for."""
    version: str = json.loads((HERE / "package.json").read_text())["dependencies"][PACKAGE]
    return version


def recordings(folder: Path) -> list[Path]:
    """The recordings of at most one window."""
    clips = [path for path in sorted(folder.glob("*.wav")) if len(load_audio(path)) <= LONGEST]
    if not clips:
        sys.exit(f"no recordings of at most 30 s in {folder}")
    return clips


def build(checkpoint: Path, recipe: str) -> Path:
    """The folder of a fresh bundle."""
    out = WORK / recipe
    ossicle("build", checkpoint, "--out", out, "--quant", recipe, "--no-verify", "--force")
    return out


def compare(bundle: Path, recipe: str, clips: Sequence[Path]) -> int:
    """How many texts differ, all of them printed."""
    rows = list(zip(clips, ours(bundle, clips), theirs(bundle, clips), strict=True))
    print(f"\n{recipe:28} {'ossicle':60} transformers.js")
    for clip, our, their in rows:
        print(f"{clip.name:28} {our:60} {'=' if our == their else their + '  <- differs'}")
    return sum(our != their for _, our, their in rows)


def ours(bundle: Path, clips: Sequence[Path]) -> list[str]:
    """What `ossicle run` hears."""
    entries = json.loads(ossicle("run", bundle, *clips, "--language", "en", "--json"))
    return [entry["text"].strip() for entry in entries]


def theirs(bundle: Path, clips: Sequence[Path]) -> list[str]:
    """What transformers.js hears in the same samples."""
    files = [WORK / f"{clip.stem}.f32" for clip in clips]
    for clip, file in zip(clips, files, strict=True):
        file.write_bytes(load_audio(clip).astype("<f4").tobytes())
    # Runtimes may print before; the answer is the last line.
    answer = run("node", "transcribe.mjs", bundle, PROMPT, *files, cwd=WORK).splitlines()[-1]
    return [text.strip() for text in json.loads(answer)]


def ossicle(*arguments: str | Path) -> str:
    return run(Path(sys.executable).parent / "ossicle", *arguments, cwd=WORK)


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; where it fails, everything it said, and the end."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, command[:3]))} failed ({done.returncode}):\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return done.stdout


if __name__ == "__main__":
    main()
