"""What a program in the sandbox keeps on disk, wherever it hides it; and its removal.

Enters: an open folder, threads in /proc. Leaves: bytes. Only file descriptors are followed, never
paths, so that neither their length, nor links, nor closed folders matter.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDERS_AT_ONCE = 100  # that are held open while they are counted; nobody needs as many
_UP = f"up-{os.urandom(8).hex()}-"  # a name that no program has guessed


def folder_bytes(top: int, enough: int) -> int:
    """Bytes under an open folder, however deep or long its paths; a page for each entry besides."""
    total, waiting = 0, [os.dup(top)]
    try:
        while waiting and total <= enough:
            folder = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        try:
                            total += 4096 + _bytes(entry.stat(follow_symlinks=False))
                            if entry.is_dir(follow_symlinks=False):
                                waiting.append(_opened(entry.name, folder))
                        except OSError:  # removed meanwhile
                            continue
                        if total > enough or len(waiting) > _FOLDERS_AT_ONCE:
                            return enough + 1
            finally:
                os.close(folder)
    finally:
        for folder in waiting:
            os.close(folder)
    return total


def _bytes(found: os.stat_result) -> int:
    return max(found.st_size, 512 * found.st_blocks)  # blocks may be reserved beyond the end


def _opened(name: str, parent: int) -> int:
    """A folder of the program's, opened; one that it closed, to us or itself, is opened up."""
    pinned = os.open(name, os.O_PATH | FOLDER, dir_fd=parent)  # no link leads out of here
    try:
        path = f"/proc/self/fd/{pinned}"
        if os.fstat(pinned).st_mode & 0o700 != 0o700:
            os.chmod(path, 0o700)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(pinned)


def unlinked_bytes(threads: list[str], largest: int) -> int:
    """Bytes of files without a name that a thread holds open, or has mapped.

    A map does not tell how long its file is: it counts as the largest file that may be.
    """
    held: dict[int, int] = {}  # by inode
    for thread in threads:
        try:
            for descriptor in os.listdir(f"{thread}/fd"):
                found = os.stat(f"{thread}/fd/{descriptor}")
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                    held[found.st_ino] = _bytes(found)
        except OSError:  # closed, or ended, meanwhile
            continue
    for thread in threads:
        try:
            maps = Path(thread, "maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in maps.splitlines():
            _, _, _, _, inode, *path = line.split(maxsplit=5)
            if path and path[0].endswith(" (deleted)") and not path[0].startswith("/dev/zero"):
                held.setdefault(int(inode), largest)
    return sum(held.values())


def empty_folder(top: int) -> None:
    """Remove all that is in an open folder: what lies deeper is brought up, level by level."""
    number = 0
    while names := os.listdir(top):
        for name in names:
            if _is_removed(name, top):
                continue
            folder = _opened(name, top)
            try:
                for inner in os.listdir(folder):
                    if not _is_removed(inner, folder):
                        os.close(_opened(inner, folder))  # a closed one could not be moved
                        number += 1
                        os.rename(inner, f"{_UP}{number}", src_dir_fd=folder, dst_dir_fd=top)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)


def _is_removed(name: str, folder: int) -> bool:
    """Remove a file; False where it is a folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True
