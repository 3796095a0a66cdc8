"""Hostile programs, run for real: each does nothing outside, or is refused where it cannot be held.

Every test holds on both kinds of machine: where the kernel lacks a mechanism, the run must be
refused by name, and the program must not have run.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from epistill.errors import EpistillError
from epistill.tasks.sandbox import UNSAFE_VARIABLE, Execution, Limits, run_python
from epistill.tasks.sandbox_child import CALLS, call_filter

SMALL = Limits(
    wall_s=4.0, memory_bytes=256 * 2**20, threads=4, file_bytes=2**20, output_bytes=100_000
)


@pytest.fixture(autouse=True)
def _protected(monkeypatch):
    monkeypatch.delenv(UNSAFE_VARIABLE, raising=False)


def attempt(source: str, **options) -> Execution | None:
    """What came out, or None where this machine refuses (which must name a mechanism)."""
    try:
        return run_python(source, limits=options.pop("limits", SMALL), **options)
    except EpistillError as error:
        refusal = str(error)
    assert any(name in refusal for name in ("Landlock", "seccomp", "capabilities"))
    assert "\n" not in refusal
    assert UNSAFE_VARIABLE in refusal
    return None


def test_an_honest_program_runs():
    done = attempt("import sys\nprint(sum(map(int, sys.stdin.read().split())))", stdin="1 2 3")
    assert done is None or (done.succeeded, done.stdout) == (True, "6\n")


def test_exit_status_and_both_streams_come_back():
    done = attempt("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    if done is not None:
        assert (done.ended, done.exit_code, done.stdout, done.stderr) == (
            "exit",
            3,
            "out\n",
            "err\n",
        )
        assert not done.succeeded


def test_it_may_write_inside_its_folder_and_the_folder_is_gone_afterwards():
    done = attempt("import os; open('a','w').write('x'); print(os.getcwd(), open('a').read())")
    if done is not None:
        folder, read = done.stdout.split()
        assert read == "x"
        assert not Path(folder).exists()


FORKS = {
    "fork": "import os\nwhile True: os.fork()",
    "swallowed errors": """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/true'], check=True)",
    "new session": "import os\npid = os.fork()\nif pid == 0: os.setsid(); os.fork()",
    "posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
}


@pytest.mark.parametrize("source", FORKS.values(), ids=FORKS)
def test_a_fork_bomb_makes_not_one_process(source, tmp_path):
    # The count is the program's own: each child that existed would leave a file of its own.
    marked = f"import os\nos.register_at_fork(after_in_child=lambda: print('CHILD', flush=True))\n{source}"
    done = attempt(marked, limits=Limits(wall_s=1.0, threads=4))
    if done is not None:
        assert not done.succeeded
        assert "CHILD" not in done.stdout
        assert done.ended == "time" or "temporarily unavailable" in done.stderr


def test_threads_without_end_are_stopped():
    source = "import threading, time\nthreading.stack_size(32768)\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()"
    done = attempt(source)
    assert done is None or done.ended == "threads"


def test_the_thread_with_a_large_stack_that_contest_solutions_use_is_allowed():
    source = "import sys, threading\nthreading.stack_size(2**26)\nsys.setrecursionlimit(10**6)\nt = threading.Thread(target=lambda: print('deep'))\nt.start(); t.join()"
    done = attempt(source)
    assert done is None or done.stdout == "deep\n"


WRITES = {
    "open": "open({path!r}, 'w').write('x')",
    "append": "open({path!r}, 'a').write('x')",
    "truncate": "import os; os.truncate({path!r}, 0)",
    "unlink": "import os; os.unlink({path!r})",
    "rename": "import os; open('a', 'w').close(); os.rename('a', {path!r})",
    "link": "import os; os.link({path!r}, 'a'); open('a', 'w').write('x')",
    "symlink": "import os; os.symlink({path!r}, 'a'); open('a', 'w').write('x')",
    "mkdir": "import os; os.mkdir({path!r} + '.d')",
    "chmod": "import os; os.chmod({path!r}, 0o777)",
    "chown": "import os; os.chown({path!r}, 1, 1)",
    "utime": "import os; os.utime({path!r}, (0, 0))",
    "setxattr": "import os; os.setxattr({path!r}, 'user.x', b'x')",
    "read-only truncation": "import os; os.open({path!r}, os.O_RDONLY | os.O_TRUNC)",
    "reading a secret": "print(open({path!r}).read())",
    "another interpreter": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo x > ' + {path!r}])",
}


@pytest.mark.parametrize("source", WRITES.values(), ids=WRITES)
def test_nothing_outside_the_folder_is_read_or_changed(source, tmp_path):
    target = tmp_path / "secret"
    target.write_text("the answer")
    before = target.stat()
    done = attempt(source.format(path=str(target)))
    after = target.stat()
    assert target.read_text() == "the answer"
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]
    for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_nlink", "st_ino"):
        assert getattr(before, field) == getattr(after, field)
    if done is not None:
        assert not done.succeeded
        assert "the answer" not in done.stdout


SOCKETS = {
    "TCP": "socket.create_connection(('127.0.0.1', {port}), 2).send(b'x')",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
    "listening": "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
    "Unix": "socket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a pair, stream": "socket.socketpair()",
    "a pair, datagram": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', '/dev/log')",
    "a pair, packets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
    "pip": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')",
}


@pytest.mark.parametrize("source", SOCKETS.values(), ids=SOCKETS)
def test_no_socket_opens(source):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        done = attempt("import socket\n" + source.format(port=server.getsockname()[1]))
        with pytest.raises(TimeoutError):  # nobody knocked
            server.accept()
    if done is not None:
        assert not done.succeeded
        assert "not permitted" in done.stderr


MEMORY = {
    "at once": "x = bytearray(1 << 30)",
    "bit by bit": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "memory file": "import os\nf = os.memfd_create('x')\nwhile True: os.write(f, bytes(1 << 20))",
    "shared map": "import mmap\nx = [mmap.mmap(-1, 1 << 26) for _ in range(64)]",
    "raised limit": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
}


@pytest.mark.parametrize("source", MEMORY.values(), ids=MEMORY)
def test_memory_is_limited(source):
    done = attempt(source)
    if done is not None:
        assert not done.succeeded
        words = ("MemoryError", "Cannot allocate", "not permitted", "not allowed", "exceeds")
        assert any(word in done.stderr for word in words), done


def test_a_loop_without_end_is_stopped():
    done = attempt("while True: pass", limits=Limits(wall_s=0.5))
    assert done is None or (done.ended, done.exit_code) == ("time", None)


def test_sleeping_with_closed_pipes_is_stopped_too():
    source = "import os, time\nfor fd in (0, 1, 2): os.close(fd)\ntime.sleep(60)"
    done = attempt(source, limits=Limits(wall_s=0.5))
    assert done is None or done.ended == "time"


def test_output_without_end_is_stopped_and_cut():
    done = attempt("while True: print('x' * 1000)")
    if done is not None:
        assert done.ended == "output"
        assert len(done.stdout) <= SMALL.output_bytes


def test_a_disk_is_not_filled_by_one_file_or_many():
    one = attempt("f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 16))")
    many = attempt("i = 0\nwhile True: open(str(i), 'w').close(); i += 1")
    if one is not None and many is not None:
        assert "File too large" in one.stderr
        assert many.ended == "disk"


WRITE = """
import os, mmap, time, ctypes
block = bytes(1 << 19)
def fill(name, **where):
    file = os.open(name, os.O_CREAT | os.O_RDWR, **where)
    os.write(file, block)
    return file
"""
HIDDEN = {
    "without a name": "kept = []\nfor i in range(40): kept.append(fill('x')); os.unlink('x')",
    "never named": "kept = []\nfor i in range(40):\n    f = os.open('.', os.O_TMPFILE | os.O_RDWR); os.write(f, block); kept.append(f)",
    "replaced": "kept = []\nfor i in range(40): kept.append(fill('x')); open('y', 'w').close(); os.rename('y', 'x')",
    "only mapped": "kept = []\nfor i in range(40):\n    f = fill('x'); kept.append(mmap.mmap(f, 4096)); os.close(f); os.unlink('x')",
    "reserved": "libc = ctypes.CDLL(None)\nfor i in range(40): libc.fallocate(fill(str(i)), 1, ctypes.c_long(0), ctypes.c_long(1 << 20)) and os.write(9, b'')",
    "beyond the longest path": "for _ in range(25): os.mkdir('d' * 200); os.chdir('d' * 200)\nfor i in range(20): os.close(fill(str(i)))",
    "closed folder": "os.mkdir('c', 0o300)\nfor i in range(20): os.close(fill('c/%d' % i))",
    "closed folder in a closed one": "os.mkdir('c', 0o300); os.mkdir('c/c', 0o300)\nfor i in range(20): os.close(fill('c/c/%d' % i))",
    "a thread's own descriptors": "kept = []\nfor i in range(40): kept.append(fill('x')); os.unlink('x')\nimport threading; threading.Thread(target=time.sleep, args=(9,)).start()",
    "many folders": "i = 0\nwhile True: os.mkdir(str(i)); i += 1",
}


@pytest.mark.parametrize("source", HIDDEN.values(), ids=HIDDEN)
def test_the_disk_limit_counts_what_is_hidden(source):
    done = attempt(f"{WRITE}{source}\ntime.sleep(9)")
    assert done is None or done.ended == "disk", done


def test_folders_that_nobody_may_enter_are_removed_however_deep(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    deep = "import os\nfor _ in range(1200): os.mkdir('d'); os.chdir('d')\nprint(1)"
    closed = "import os\nos.mkdir('c', 0o700)\nos.mkdir('c/d', 0); os.mkdir('c/e', 0o500); open('c/f', 'w')\nprint(1)"
    for done in (attempt(deep, limits=Limits()), attempt(closed)):
        assert done is None or done.stdout == "1\n"
    assert not list(tmp_path.iterdir())


def test_an_ordinary_user_counts_and_removes_closed_folders_too():
    if os.getuid() != 0:
        pytest.skip("the tests above run as an ordinary user already")
    code = """
import os, sys
from pathlib import Path
import tempfile
from epistill.tasks.sandbox_disk import FOLDER, empty_folder, folder_bytes
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with tempfile.TemporaryDirectory() as name:
    os.makedirs(f"{name}/a/b")
    Path(name, "a/b/f").write_bytes(bytes(100_000))
    os.chmod(f"{name}/a/b", 0o300); os.chmod(f"{name}/a", 0)
    top = os.open(name, FOLDER)
    assert folder_bytes(top, 10**9) > 100_000
    os.chmod(f"{name}/a/b", 0); os.chmod(f"{name}/a", 0o100)
    empty_folder(top)
    assert os.listdir(name) == []
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("scopes", ["0b11", "0"], ids=["this kernel", "Linux 6.2 to 6.11"])
def test_no_signal_through_the_owner_of_a_pipe(scopes, tmp_path, monkeypatch):
    """Landlock keeps signals in from Linux 6.12 on; before that the filter alone does."""
    from epistill.tasks import sandbox

    child = tmp_path / "child.py"
    child.write_text(sandbox._CHILD.read_text().replace("_SCOPES = 0b11", f"_SCOPES = {scopes}"))
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        source = f"""
import os, fcntl, struct
for own in ((fcntl.F_SETOWN, {victim.pid}), (15, struct.pack("ii", 1, {victim.pid}))):
    for signal in (None, 9):
        r, w = os.pipe()
        try: fcntl.fcntl(r, *own)
        except OSError: pass
        try: signal and fcntl.fcntl(r, 10, signal)
        except OSError: pass
        fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.write(w, b"x")
print("tried")
"""
        done = attempt(source)
        assert victim.poll() is None
        victim.kill()
    assert done is None or done.stdout == "tried\n"


def test_it_cannot_undo_what_its_supervisor_counts_on():
    source = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for option in (1, 4):  # parent-death signal, dumpable
    print(libc.prctl(option, 0, 0, 0, 0), ctypes.get_errno())
"""
    done = attempt(source)
    assert done is None or done.stdout == "-1 1\n-1 1\n"


def test_a_program_dies_with_its_grader(tmp_path):
    """Killed with SIGKILL, the grader has no moment left to end what it started."""
    if attempt("pass") is None:
        return
    grader = subprocess.Popen(
        [sys.executable, "-c", "from epistill.tasks.sandbox import *\nrun_python('import os, time\\n"
         "open(\"started\", \"w\")\\nwhile True: time.sleep(1)', limits=Limits(wall_s=600))"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/work/started")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{grader.pid}/task/{grader.pid}/children").read_text().split()
    assert children
    grader.kill()
    grader.wait()
    while any(Path(f"/proc/{child}/exe").exists() for child in children):
        assert time.monotonic() < deadline, "the program outlives its grader"
        time.sleep(0.01)


def test_no_other_process_can_be_reached():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        sources = [
            f"import os; os.kill({victim.pid}, 9)",
            f"import os; os.kill({os.getpid()}, 0)",
            "import os; os.kill(-1, 15)",
            f"import os; os.setpriority(os.PRIO_PROCESS, {victim.pid}, 19)",
            f"import resource; resource.prlimit({victim.pid}, resource.RLIMIT_CPU, (1, 1))",
            f"open('/proc/{victim.pid}/mem', 'r+b')",
            f"print(open('/proc/{victim.pid}/environ').read())",
        ]
        ends = [attempt(source) for source in sources]
        assert victim.poll() is None
        victim.kill()
    assert not any(end.succeeded for end in ends if end is not None)


def test_it_may_kill_itself():
    done = attempt("import os; os.abort()")
    assert done is None or done.exit_code == -signal.SIGABRT


def test_our_environment_is_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = attempt("import os; print(dict(os.environ))")
    assert done is None or (done.succeeded and "hf_secret" not in done.stdout)


def test_large_input_that_nobody_reads_does_no_harm():
    done = attempt("print('done')", stdin="x" * 5_000_000)
    assert done is None or done.stdout == "done\n"


@pytest.mark.parametrize(
    ("source", "stdin", "expected"),
    [
        ("def f(a, b):\n    print('noise')\n    return a + b", "[1, 2]", "3"),
        ("class Solution:\n    def f(self, x: List[int]) -> int:\n        return max(x)", "[[1, 9]]", "9"),
        ("def f(n): return Counter([n, n]).most_common(1), pow(3, n, 5), gcd(4, 6)", "[2]", "[[[2, 2]], 4, 2]"),
    ],
)  # fmt: skip
def test_functions_are_called_and_their_prints_are_no_result(source, stdin, expected):
    done = attempt(source, stdin=stdin, function="f", prelude=True)
    assert done is None or (done.succeeded, done.stdout) == (True, expected)


def without(calls: str, source: str, *, unsafe: bool) -> subprocess.CompletedProcess[str]:
    """Run a program where the kernel answers "no such call" to some calls, as an old one does."""
    code = f"""
import errno, sys
from epistill.tasks.sandbox_child import install_filter
test = [(0x20, 0, 0, 0)]
for number in {calls}:
    test += [(0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | errno.ENOSYS)]
install_filter([*test, (0x06, 0, 0, 0x7FFF0000)])
from epistill.tasks.sandbox import run_python
print(run_python({source!r}))
"""
    environment = {**os.environ, UNSAFE_VARIABLE: "1" if unsafe else ""}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )


PRCTL = {"x86_64": 157, "aarch64": 167}


@pytest.mark.parametrize(
    ("calls", "name"),
    [("(444, 445, 446)", "Landlock"), (f"({PRCTL.get(os.uname().machine)},)", "seccomp")],
)
def test_without_a_mechanism_the_run_is_refused_by_name_and_nothing_runs(calls, name, tmp_path):
    mark = tmp_path / "ran"
    done = without(calls, f"open({str(mark)!r}, 'w')", unsafe=False)
    assert done.returncode == 1
    refusal = done.stderr.splitlines()[-1]
    assert "the code sandbox lacks" in refusal
    assert f"{name}: " in refusal
    assert not mark.exists()


def test_unsafe_runs_with_what_there_is(tmp_path):
    mark = tmp_path / "ran"
    done = without("(444, 445, 446)", f"open({str(mark)!r}, 'w')", unsafe=True)
    assert done.returncode == 0, done.stderr
    assert mark.exists()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_lands_inside_it(machine):
    program = call_filter(machine, 7)
    assert len(program) <= 4096
    for place, (code, when_true, when_false, _) in enumerate(program):
        if code & 0x07 == 0x05:
            assert place + 1 + max(when_true, when_false) < len(program)
    assert program[-1][0] == 0x06


def test_numbers_are_those_of_the_kernel_headers():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.is_file():
        pytest.skip("no kernel headers here")
    found = dict(
        line.split()[1:3] for line in header.read_text().splitlines() if "#define __NR_" in line
    )
    for name, number in (
        *CALLS["x86_64"]["denied"].items(),
        *CALLS["every machine"]["denied"].items(),
    ):
        assert found.get(f"__NR_{name}", str(number)) == str(number), name
