"""Whether a file is still what was written: checksums, and the one line about a damaged file.

It guards against disks and accidents, not against somebody who also edits the checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epistill.errors import damaged, why_unread
from epistill.json_files import open_file, read_json

MANIFEST = "manifest.json"

Mark = Sequence[Any]  # of a file: a number of bytes, and the SHA-256 of that beginning


def sha256_of(path: Path, folder: Path | None = None) -> str:
    """The SHA-256 of a file; Damaged where it cannot be read; `folder` is what may be removed."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise damaged(path, why_unread(error), folder) from error


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON record with the SHA-256 of itself."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return {**record, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def unsealed(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `sealed`; Damaged where a letter of what was read from `path` has changed."""
    bare = {key: value for key, value in record.items() if key != "sha256"}
    if sealed(bare) != record:
        raise damaged(path, "it is not what was written (its checksum differs)")
    return bare


def head(path: Path, size: int) -> bytes:
    """The first bytes of a file; Damaged where it has fewer."""
    try:
        with open_file(path) as file:
            found = file.read(size)
    except OSError as error:
        raise damaged(path, why_unread(error)) from error
    if len(found) < size:
        raise damaged(path, f"it has {len(found)} bytes, expected at least {size}")
    return found


def require(path: Path, mark: Mark, folder: Path) -> None:
    """Damaged where a file does not begin as it did when the mark was taken."""
    size, sha256 = mark
    if hashlib.sha256(head(path, size)).hexdigest() != sha256:
        raise damaged(path, f"its first {size} bytes are not those of the checkpoint", folder)


def read_sealed(path: Path) -> dict[str, Any]:
    """A record that `sealed` closed; Damaged where a letter of it has changed."""
    return unsealed(path, read_json(path))


def listed_checksum(folder: Path, name: str) -> str | None:
    """The SHA-256 that the folder's manifest.json has of a file; None where it lists none."""
    path = folder / MANIFEST
    return read_sealed(path)["files"].get(name) if path.exists() else None


def check_against_manifest(folder: Path, name: str) -> None:
    """Damaged where a file is listed in the folder's manifest.json and is another one now."""
    listed = listed_checksum(folder, name)
    if listed is None or sha256_of(folder / name, folder) == listed:
        return
    if listed_checksum(folder, name) == listed:  # else both were written anew in between
        what = f"it is not what was written, whose checksum is in {MANIFEST}"
        raise damaged(folder / name, what, folder)


def check_part(folder: Path, part: str) -> None:
    """Damaged where what a run wrote into a folder of its own is not all there, or is not the same.

    Nothing is known of a run that is not finished.
    """
    manifest = folder / MANIFEST
    if manifest.exists():
        for name in read_sealed(manifest)["files"]:
            if name.startswith(f"{part}/"):
                check_against_manifest(folder, name)
    elif (folder / "result.json").exists():
        raise damaged(manifest, "it is missing, and the folder holds a finished run", folder)


def check_file_of_a_run(path: Path) -> None:
    """Damaged where a table lies in the folder of a run that wrote another one; else nothing."""
    folder = path.parent.parent
    if all((folder / name).is_file() for name in ("environment.json", MANIFEST)):
        check_against_manifest(folder, f"{path.parent.name}/{path.name}")
