"""Sandboxed check of one answer, run as a script in a process that can only compute.

Stdin: {"check": {kind: value}, "answer", "messages", "cpu_s", "memory_bytes"}. Stdout: {"score": 0..1, "note"}.
Imports no module of this repository. Three layers, each effective where the others are missing:

- resource limits: CPU time, memory, no bytes written to files, no processes, few descriptors;
- a seccomp filter on Linux: no fork, exec, signals or sockets, and no change of a file system;
- an audit hook: the same in Python, for systems without seccomp; it also refuses to read /proc.

Only the score and the exception's name leave the process. A check that executes an answer trusts it with its score.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import sys
from typing import Any

SYSCALLS = {
    "x86_64": (0xC000003E, 257, (
        2, 41, 42, 53, 56, 57, 58, 59, 62, 76, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 101, 133, 165, 188, 200,
        234, 235, 258, 259, 260, 263, 264, 265, 266, 268, 272, 280, 308, 310, 311, 316, 321, 322, 424, 425, 434, 435,
        437,
    )),
    "aarch64": (0xC00000B7, 56, (
        5, 33, 34, 35, 36, 37, 38, 40, 45, 52, 53, 54, 55, 88, 97, 117, 129, 130, 131, 198, 199, 203, 220, 221, 268,
        270, 271, 276, 280, 281, 424, 425, 434, 435, 437,
    )),
}  # fmt: skip
"""(AUDIT_ARCH, openat, denied): open, socket, connect, socketpair, clone, fork, vfork, execve, kill, truncate, rename,
mkdir, rmdir, creat, link, unlink, symlink, chmod, chown, ptrace, mknod, mount, setxattr, tkill, tgkill, utimes, their
`at` forms, unshare, setns, process_vm_*, bpf, pidfd_*, io_uring_setup, clone3, openat2. From the kernel's tables."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
X32_BIT = 0x40000000
DENY, ALLOW, KILL = 0x00050001, 0x7FFF0000, 0x80000000
FORBIDDEN_EVENTS = (
    "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.remove", "os.rename", "os.rmdir",
    "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.chflags", "os.setxattr", "os.utime",
    "os.removexattr", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "signal.pthread_kill",
)  # fmt: skip
FORBIDDEN_IMPORTS = frozenset({"ctypes", "_ctypes", "_posixsubprocess", "_multiprocessing", "cffi", "_cffi_backend"})


class Instruction(ctypes.Structure):
    """The C structure sock_filter: one instruction of a filter."""

    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class Program(ctypes.Structure):
    """The C structure sock_fprog: a filter's program."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Set resource limits, soft and hard: nothing inside can raise them."""
    for name, value in (
        ("RLIMIT_CPU", cpu_s), ("RLIMIT_AS", memory_bytes), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0), ("RLIMIT_NOFILE", 64),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, name), (value, value))


def filter_system_calls() -> bool:
    """Install the seccomp filter; returns False on systems without one."""
    if sys.platform != "linux" or platform.machine() not in SYSCALLS:
        return False
    architecture, openat, denied = SYSCALLS[platform.machine()]
    load, equal, at_least, any_of, end = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, KILL), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, X32_BIT), (end, 0, 0, DENY)]
    for number in denied:
        program += [(equal, 0, 1, number), (end, 0, 0, DENY)]
    program += [(equal, 0, 3, openat), (load, 0, 0, 32), (any_of, 0, 1, WRITING), (end, 0, 0, DENY)]
    program += [(end, 0, 0, ALLOW)]
    instructions = (Instruction * len(program))(*(Instruction(*fields) for fields in program))
    described = Program(len(program), instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, with_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0):
        return False
    return bool(libc.prctl(set_seccomp, with_filter, ctypes.byref(described), 0, 0) == 0)


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: raise PermissionError for operations that a check does not need."""
    if event == "open":
        path, mode, flags = (*arguments, None, None)[:3]
        writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        if writes or (isinstance(flags, int) and flags & WRITING) or str(path).startswith("/proc"):
            raise PermissionError(f"a check may not open {str(path)[:80]!r} like this")
    elif event.startswith(FORBIDDEN_EVENTS) or (event == "import" and arguments[0] in FORBIDDEN_IMPORTS):
        raise PermissionError(f"a check may not do this: {event}")


def verdict(job: dict[str, Any]) -> tuple[float, str]:
    """Return (score, note) of a job; imports the schema library before access is restricted."""
    check, answer = job["check"], job["answer"]
    schema_check = None
    if "json_schema" in check:
        from jsonschema import Draft202012Validator  # noqa: PLC0415 - takes a quarter of a second, and other kinds do not need it

        schema_check = Draft202012Validator(check["json_schema"])
    limit(job["cpu_s"], job["memory_bytes"])
    filter_system_calls()
    for name in FORBIDDEN_IMPORTS:
        sys.modules.pop(name, None)
    sys.addaudithook(refuse)
    if "extract" in check:
        found = re.search(check["extract"], answer, re.MULTILINE)
        if found is None:
            return 0.0, "nothing to extract"
        answer = found.group(1 if found.re.groups else 0)
    if schema_check is not None:
        fault = next(iter(schema_check.iter_errors(json.loads(_strip_fence(answer)))), None)
        return (1.0, "") if fault is None else (0.0, f"{fault.json_path}: {fault.message}"[:200])
    if "regex" in check:
        return float(re.search(check["regex"], answer, re.MULTILINE) is not None), ""
    if "python" in check:
        names: dict[str, Any] = {"__name__": "check", "answer": answer, "messages": job["messages"], "score": 1.0}
        exec(compile(check["python"], "<check>", "exec"), names)
        return min(1.0, max(0.0, float(names["score"]))), ""
    same = (lambda text: text.strip().casefold()) if check.get("ignore_case") else str.strip
    return float(same(answer) == same(check["exact"])), ""


def _strip_fence(text: str) -> str:
    """Strip the code fence that models often put around JSON."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    return fenced.group(1) if fenced else text


def main() -> None:
    """Run the check; any exception scores 0, with its name as the note."""
    job = json.loads(sys.stdin.buffer.read())
    sys.dont_write_bytecode = True
    os.environ.clear()  # Python itself adds a locale
    # Output of the check is not the verdict: stdout goes to /dev/null, the verdict to a descriptor of its own.
    channel = os.dup(1)
    hole = os.open(os.devnull, os.O_WRONLY)
    os.dup2(hole, 1)
    os.dup2(hole, 2)
    try:
        score, note = verdict(job)
    except BaseException as error:  # noqa: BLE001 - SystemExit and MemoryError too
        score, note = 0.0, type(error).__name__
    os.write(channel, json.dumps({"score": score, "note": note}).encode())


if __name__ == "__main__":
    main()
