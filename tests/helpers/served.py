"""A real vLLM server for tests: the lab model in a shape its CPU kernels serve, start and stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ENVIRONMENT = "EPISTILL_TEST_VLLM"
START_SECONDS = 400  # 20 to 80 on two cores; more beside other work
WIDE = 32  # vLLM's CPU attention serves no head of 16 dimensions, which the lab model has


def widen_heads(source: Path, folder: Path, wide: int = WIDE) -> Path:
    """Write the same function with wider attention heads: the added dimensions are zero.

    Rotary pairs keep their frequency: dimension j of d goes to j * wide/d within its half. The
    norms of queries and keys divide by the root mean square over more dimensions, and scores are
    divided by the root of more; their weights take both back. Only the norm's epsilon differs.
    """
    old = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    config = type(old.config).from_pretrained(source)
    narrow, heads = config.head_dim, config.num_attention_heads
    factor = wide // narrow
    config.head_dim = wide
    new = type(old)(config).double()
    half = torch.arange(narrow // 2) * factor
    places = torch.cat([half, wide // 2 + half])

    def spread(weight: torch.Tensor) -> torch.Tensor:
        """[heads * narrow, ...] to [heads * wide, ...], zeros between."""
        out = weight.new_zeros(weight.shape[0] // narrow, wide, *weight.shape[1:])
        out[:, places] = weight.view(-1, narrow, *weight.shape[1:])
        return out.flatten(0, 1)

    state = dict(old.state_dict())
    for name, weight in old.state_dict().items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            state[name] = spread(weight)
        elif kind == "o_proj":
            state[name] = spread(weight.T).T.contiguous()
        elif kind in ("q_norm", "k_norm"):
            # sqrt(narrow / wide) takes back the norm; the query also takes back the score's scale.
            state[name] = spread(weight) * (1.0 if kind == "q_norm" else (narrow / wide) ** 0.5)
    assert heads * wide == state["model.layers.0.self_attn.q_proj.weight"].shape[0]
    new.load_state_dict(state)
    new.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def with_misleading_defaults(folder: Path) -> None:
    """Sampling defaults such as real models ship: a client that leaves them out samples wrongly."""
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) | {"do_sample": True, "temperature": 0.1, "top_k": 1}
    path.write_text(json.dumps(settings))


@contextmanager
def serving(model: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server, wait until it answers, stop it and its children at the end."""
    environment = os.environ.get(ENVIRONMENT)
    if environment is None:
        pytest.fail(f"{ENVIRONMENT} is not set; scripts/setup_vllm.sh FOLDER makes what it names")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        Path(environment) / "bin" / "vllm", "serve", model, "--served-model-name", "m",
        "--host", "127.0.0.1", "--port", port, "--max-model-len", 512, "--enforce-eager",
        "--dtype", "float32", "--logprobs-mode", "processed_logprobs",
        # On a CPU vLLM 0.32 ends when the prompt of a seeded request is cut into chunks ("CPU
        # Generator does not use offset").
        "--no-enable-chunked-prefill",
        "--enable-scale-out", "--enable-prefix-caching", "--enable-prompt-tokens-details",
    ]  # fmt: skip
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=variables,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            tail = log.read_text(errors="replace")[-3000:]
            assert process.poll() is None, f"the server ended while starting:\n{tail}"
            assert time.monotonic() < deadline, f"the server did not start:\n{tail}"
            try:
                if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url, process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the server and all its workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
