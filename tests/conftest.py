"""Fixtures: the lab model, tiny random models of several families, a folder of real data."""

from __future__ import annotations

import gc
import gzip
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Commands in processes of their own add in the same order as this process, which has one thread.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import polars as pl
import pyarrow as pa
import pytest
import torch

from tests.helpers.runtime_types import check_annotations

check_annotations()
torch.set_num_threads(1)
# No test cuts the power: what is written need not be on the disk.
os.fsync = lambda descriptor: None
# A deadline per example is an assertion about wall-clock time.
# CI looks at the same examples each time, so that a landing does not hang on a draw; everyone else's
# run looks at new ones.
hypothesis.settings.register_profile("epistill", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("epistill")


def pytest_collection_finish():
    """What is here for all of the run is left out where a run collects garbage: a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _only_what_is_new_is_collected():
    """Nor is what the files before left here: late in a run each collection took a second."""
    yield
    gc.collect()
    gc.freeze()


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data files beside the checkout; tests that read them skip where they are absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Small cases beside the checkout; tests that read them skip where they are absent."""
    folder = SHARED / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}")
    return folder


@pytest.fixture(scope="session")
def lab_model():
    """The shipped model; do not train it in place."""
    from epistill.rollouts.load_model import load_model

    return load_model("lab")


@pytest.fixture
def tiny_model():
    """A random one-layer Qwen3 with the lab's tokenizer, fresh for every test, float32."""
    from tests.helpers.models import make_tiny_model

    return make_tiny_model()


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


@pytest.fixture
def write(tmp_path):
    """Write records (or raw bytes) under a name; what the file is follows from the name."""

    def write(name, records):
        path = tmp_path / name
        if name.endswith(".parquet"):
            pl.DataFrame(records, strict=False, infer_schema_length=None).write_parquet(path)
            return path
        data = records
        if not isinstance(records, bytes):
            data = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)
        if name.endswith(".gz"):
            data = gzip.compress(data)
        if name.endswith(".zst"):
            data = zstd(data)
        path.write_bytes(data)
        return path

    return write
