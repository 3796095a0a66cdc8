"""The inside of the sandbox: takes every right away from its own process, then runs a program.

    python -I -S sandbox_child.py SETTINGS_JSON      (started by `tasks/sandbox.py`, never by hand)

Standard library only; it does not import the package. It writes what it could not switch on to the
status pipe, as a JSON object from mechanism to reason, and runs nothing if there is any and the
settings do not allow it. What each mechanism stops is told in `tasks/sandbox.py`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import struct
import sys
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)

# ---- capabilities ------------------------------------------------------------------------------

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_DROP, _SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_CAPABILITY_V3 = 0x20080522


def drop_capabilities() -> None:
    """Give up every capability, for good; a root user becomes an ordinary owner of its files."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as last:
        for capability in range(int(last.read()) + 1):
            # Fails without CAP_SETPCAP, and then there is nothing that an exec could regain.
            _LIBC.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_V3, 0)
    _check(_LIBC.capset(header, bytes(24)), "capset")
    _check(_LIBC.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def die_with(parent: int) -> None:
    """The kernel kills this process when the one that started it ends, however that happens."""
    _check(_LIBC.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent-death signal")
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


# ---- Landlock: files ---------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_EXECUTE, _WRITE, _READ, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = (1 << 15) - 1  # ABI 3: everything up to truncate
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15  # ABI 5
_SPECIAL_FILES = (1 << 6) | (1 << 9) | (1 << 10) | (1 << 11)  # character, socket, fifo, block
_TCP = 0b11  # ABI 4: bind, connect
_SCOPES = 0b11  # ABI 6: abstract sockets, signals
LEAST_LANDLOCK = 3


def restrict_files(readable: list[str], writable: list[str]) -> None:
    """Read only `readable` and `writable`, write only `writable`, nothing anywhere else."""
    version = _LIBC.syscall(_CREATE_RULESET, None, 0, 1)
    _check(version, "Landlock")
    if version < LEAST_LANDLOCK:
        raise OSError(errno.ENOSYS, f"Landlock version {version}, expected {LEAST_LANDLOCK}")
    handled = _FILE_RIGHTS | (_IOCTL_DEV if version >= 5 else 0)
    attributes = struct.pack(
        "=QQQ", handled, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _LIBC.syscall(_CREATE_RULESET, attributes, size, 0)
    _check(ruleset, "Landlock")
    for paths, rights in (
        (readable, _EXECUTE | _READ | _READ_DIR),
        (writable, _FILE_RIGHTS & ~_SPECIAL_FILES & ~_EXECUTE),
    ):
        for path in paths:
            _allow(ruleset, path, rights)
    _check(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= _EXECUTE | _WRITE | _READ | _TRUNCATE
    rule = struct.pack("=Qi", rights, parent)
    _check(_LIBC.syscall(_ADD_RULE, ruleset, 1, rule, 0), f"Landlock rule for {path}")
    os.close(parent)


# ---- seccomp: system calls ---------------------------------------------------------------------

# By machine, from the kernel's tables; read before anything is restricted.
with open(os.path.join(os.path.dirname(__file__), "sandbox_calls.json"), encoding="ascii") as _file:
    CALLS: dict[str, dict[str, Any]] = json.load(_file)
_CLONE3 = 435
# F_SETOWN, F_SETSIG, F_SETOWN_EX: a signal of one's choice to any process, when a pipe is written.
_SIGNALLING_FCNTL = (8, 10, 15)
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data; of arguments the lower half, which is all that the kernel uses.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000

Instruction = tuple[int, int, int, int]


def call_filter(machine: str, pid: int) -> list[Instruction]:
    """The filter: no new process, no socket, no signal to anybody else, no change of metadata."""
    calls = CALLS[machine]
    refused: Instruction = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    allowed: Instruction = (_RETURN, 0, 0, _ALLOW)
    busy: Instruction = (_RETURN, 0, 0, _ERROR | errno.EAGAIN)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, calls["audit"]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_IF_AT_LEAST, 0, 1, _X32_BIT), refused]
    denied = {*CALLS["every machine"]["denied"].values(), *calls["denied"].values()}
    for number in sorted(denied):
        program += [(_IF_EQUAL, 0, 1, number), refused]
    # The flags of clone3 lie in memory, where a filter cannot look: libc then falls back to clone.
    program += [(_IF_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    # call, place of the argument, test, values; what is done where one fits, and where none does
    for name, argument, test, values, then, otherwise in (
        ("clone", _FIRST_ARGUMENT, _IF_ANY_BIT, (_CLONE_THREAD,), allowed, busy),
        ("kill", _FIRST_ARGUMENT, _IF_EQUAL, (pid,), allowed, refused),
        ("tgkill", _FIRST_ARGUMENT, _IF_EQUAL, (pid,), allowed, refused),
        ("prlimit64", _FIRST_ARGUMENT, _IF_EQUAL, (0, pid), allowed, refused),
        ("fcntl", _SECOND_ARGUMENT, _IF_EQUAL, _SIGNALLING_FCNTL, refused, allowed),
        # What the supervisor counts on: it dies with us, and we may look at its files.
        ("prctl", _FIRST_ARGUMENT, _IF_EQUAL, (_SET_PDEATHSIG, _SET_DUMPABLE), refused, allowed),
    ):
        tests = [(test, len(values) - place, 0, value) for place, value in enumerate(values)]
        program += [(_IF_EQUAL, 0, len(values) + 3, calls[name]), (_LOAD, 0, 0, argument)]
        program += [*tests, otherwise, then]
    return [*program, allowed]


def install_filter(program: list[Instruction]) -> None:
    """Hand a filter to the kernel; it holds until the process ends, and across exec."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _check(_LIBC.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_LIBC.prctl(_SET_SECCOMP, 2, header), "seccomp")


def restrict_calls() -> None:
    """Install the filter of this machine."""
    machine = os.uname().machine
    if machine not in CALLS:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {machine}")
    install_filter(call_filter(machine, os.getpid()))


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


# ---- limits, and the program -------------------------------------------------------------------


def restrict_use(memory_bytes: int, file_bytes: int, cpu_s: int) -> None:
    """Limits of the process; nobody without capabilities can raise them again."""
    import resource  # not everywhere, and this file must be readable everywhere

    for name, limit in (
        ("AS", memory_bytes), ("FSIZE", file_bytes), ("CPU", cpu_s), ("NOFILE", 64), ("CORE", 0),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


# What judges of such problems have always imported for the solver: typing before collections, whose
# Counter it shadows, and builtins last, over the pow of math and the abs of operator.
_STAR_IMPORTS = "typing bisect collections functools heapq itertools math operator builtins"
PRELUDE = "\n".join(
    (
        "import bisect, collections, functools, heapq, io, itertools, json, math, operator",
        "import random, re, string, sys",
        *(f"from {module} import *" for module in _STAR_IMPORTS.split()),
    )
)


def _run(settings: dict[str, Any]) -> None:
    """Run the program as `__main__`; a function's result goes out as one JSON line."""
    import types

    source: str = settings["source"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["main.py"]
    space = vars(module)
    if settings["prelude"]:
        exec(PRELUDE, space)
    function = settings["function"]
    if function is None:
        exec(compile(source, "main.py", "exec"), space)
        return
    result_pipe = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the program prints is not its result
    arguments = json.loads(sys.stdin.read())
    exec(compile(source, "main.py", "exec"), space)
    owner = space.get("Solution")
    called = getattr(owner(), function) if owner is not None else space[function]
    result = json.dumps(called(*arguments))
    with open(result_pipe, "w", encoding="ascii") as pipe:
        pipe.write(result)


def main() -> None:
    """Restrict, report, run."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    sys.path.extend(settings["packages"])
    os.chdir(settings["folder"])
    # A lone surrogate is an error of the program, when it is compiled.
    with open(settings["program"], encoding="utf-8", errors="surrogatepass") as program:
        settings["source"] = program.read()
    missing: dict[str, str] = {}
    for name, restrict in (
        ("limits", lambda: restrict_use(*settings["limits"])),
        ("capabilities", drop_capabilities),
        ("parent-death signal", lambda: die_with(settings["parent"])),
        ("Landlock", lambda: restrict_files(settings["readable"], settings["writable"])),
        ("seccomp", restrict_calls),
    ):
        try:
            restrict()
        except (OSError, AttributeError, ValueError) as error:
            missing[name] = str(error)
    os.write(settings["status"], json.dumps(missing).encode())
    os.close(settings["status"])
    if missing and not settings["allow_unsafe"]:
        sys.exit(1)
    _run(settings)


if __name__ == "__main__":
    main()
