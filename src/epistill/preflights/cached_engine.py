"""Results that outlive an interrupted call: every chunk of work in a file of its own.

Enters: an engine and a folder. Leaves: the same engine, asking only for what is not in the folder.
A chunk's name is the hash of the model's identity, the prompts' ids (so also of the contexts in
them) and every setting that decides the numbers; a file is written whole or not at all, and its
SHA-256 lies beside it: a chunk that is not what was written is asked for again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Unpack

import torch

from epistill.json_files import open_file, write_atomic
from epistill.records import Rollout, rollout_from_json, rollout_to_json
from epistill.rollouts.engine import Drawing, Engine, Ids, PromptRequest, TokenScores

FORMAT = 1
CHUNK_ROWS = 64  # responses that are asked for, and kept, together


class CachedEngine:
    """An engine that remembers.

    Args:
        engine: Asked for what is not there yet.
        folder: Of the chunks.

    Attributes:
        found, asked: Chunks so far that were there, and that were not.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self.identity: Mapping[str, Any] = engine.identity
        self.tokenizer = engine.tokenizer
        self.eos_ids = engine.eos_ids
        self.max_positions = engine.max_positions
        self.found = self.asked = 0

    def sample(
        self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]
    ) -> list[Rollout]:
        """`Engine.sample`, chunk by chunk; a request's draws do not depend on its chunk."""
        size = max(1, CHUNK_ROWS // drawing["samples"])
        how = {"policy_version": 0, **drawing}
        how["sampling"] = drawing["sampling"].model_dump(mode="json")
        rollouts: list[Rollout] = []
        for start in range(0, len(requests), size):
            chosen = requests[start : start + size]
            key = {"what": "sample", "requests": [asdict(request) for request in chosen], **how}

            def ask(chosen: Sequence[PromptRequest] = chosen) -> list[dict[str, Any]]:
                return [rollout_to_json(r) for r in self._engine.sample(chosen, **drawing)]

            rollouts += [rollout_from_json(row) for row in self._rows(key, ask)]
        return rollouts

    def score(
        self, prompts: Sequence[Ids], completions: Sequence[Ids], *, mass_of: Ids | None = None
    ) -> list[TokenScores]:
        """`Engine.score` in float64, chunk by chunk."""
        scores: list[TokenScores] = []
        for start in range(0, len(prompts), CHUNK_ROWS):
            pair = [c[start : start + CHUNK_ROWS] for c in (prompts, completions)]
            key = {"what": "score", "rows": [list(map(list, rows)) for rows in pair]}
            key["mass_of"] = None if mass_of is None else list(mass_of)

            def ask(pair: Sequence[Sequence[Ids]] = pair) -> list[dict[str, Any]]:
                found = self._engine.score(pair[0], pair[1], mass_of=mass_of)
                names = [field.name for field in fields(TokenScores)]
                return [
                    {n: v if (v := getattr(r, n)) is None else v.tolist() for n in names}
                    for r in found
                ]

            for row in self._rows(key, ask):
                columns: dict[str, Any] = {
                    name: None if column is None else torch.tensor(column, dtype=torch.float64)
                    for name, column in row.items()
                }
                scores.append(TokenScores(**columns))
        return scores

    def _rows(
        self, key: Mapping[str, Any], ask: Callable[[], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        whole = {"format": FORMAT, "identity": dict(self.identity), **key}
        text = json.dumps(whole, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.parquet"
        rows = _stored(path)
        if rows is not None:
            self.found += 1
            return rows
        import polars as pl

        self.asked += 1
        rows = ask()
        buffer = io.BytesIO()
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(buffer)
        content = buffer.getvalue()
        write_atomic(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest())
        write_atomic(path, content)
        return rows


def _stored(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a chunk; None where it is not there, or not what was written."""
    import polars as pl

    try:
        with open_file(path) as chunk, open_file(path.with_suffix(".sha256")) as mark:
            content, sha256 = chunk.read(), mark.read()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest().encode() != sha256:
        logging.getLogger("epistill").warning("%s is damaged; it is asked for again", path)
        return None
    return pl.read_parquet(io.BytesIO(content)).to_dicts()
