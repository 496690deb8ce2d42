"""Processes that don't outlive the tests, however these end.

Run as a program, it is the guard itself: it reads ids of processes until its input ends, which is
when the tests close it or die, and then kills these processes and removes their directory.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

DEADLINE = 30.0  # a server ends in a tenth of a second, on a machine that isn't overloaded


class Guard:
    """A directory, and the processes that run in it, until `close()` or the end of the tests.

    Where root runs the tests, both belong to nobody: PostgreSQL refuses root, and no server of
    the machine is harmed by what nobody does.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="agentstore-"))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.directory],
            stdin=subprocess.PIPE,
            start_new_session=True,  # out of reach of a Ctrl-C, as are those that it guards
        )

    def write(self, name: str, content: bytes) -> Path:
        """Write a file that only the processes can read."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        if self._user:
            os.chown(path, self._user["user"], self._user["group"])
        return path

    def spawn(
        self, command: Iterable[str | Path], *, log: Path, stdin: Path = Path(os.devnull)
    ) -> subprocess.Popen[bytes]:
        """Start a process; what it prints goes to the end of `log`."""
        with stdin.open("rb") as source:
            return subprocess.Popen(
                # The shell that becomes the process is what names it to the guard: so there is
                # no moment in which it runs and the guard doesn't know it.
                ["/bin/sh", "-c", 'echo $$ && exec "$@" >>"$0" 2>&1', log, *command],
                stdin=source,
                stdout=self._guard.stdin,
                cwd=self.directory,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                start_new_session=True,
                **self._user,
            )

    def close(self) -> None:
        """Kill what runs and remove the directory."""
        self._guard.communicate(timeout=DEADLINE)
        if self._guard.returncode:
            raise RuntimeError(f"{self.directory} and what runs in it may be left behind")


def freeze(pid: int) -> list[int]:
    """Stop a process and all that come from it, and return their ids.

    Those that can start others stand still before anybody looks for the others.
    """
    family: list[int] = []
    found = [pid]
    while found:
        for member in found:
            _signal(member, signal.SIGSTOP)
        _wait(found, "TZX")
        family += found
        everybody = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        found = [
            other for other in everybody if _stat(other).parent in family and other not in family
        ]
    return family


def thaw(family: list[int]) -> None:
    """Let go on what `freeze()` stopped."""
    for pid in reversed(family):
        _signal(pid, signal.SIGCONT)


def kill(pid: int) -> None:
    """Kill a process and all that come from it, and wait until they are gone."""
    family = freeze(pid)
    for member in family:
        _signal(member, signal.SIGKILL)
    _wait(family, "ZX")


def _wait(pids: list[int], states: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not all(_stat(pid).state in states for pid in pids):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{pids} are not in one of the states {states}")
        time.sleep(0.005)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class _Stat(NamedTuple):
    state: str
    parent: int
    started: int


def _stat(pid: int) -> _Stat:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return _Stat("X", 0, 0)
    fields = stat.rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[1]), int(fields[19]))


def _guard(directory: Path) -> None:
    # The time of its start tells a process from another that gets its id later.
    guarded = {pid: _stat(pid).started for pid in map(int, sys.stdin)}
    for pid, started in guarded.items():
        if _stat(pid).started == started:
            kill(pid)
    shutil.rmtree(directory)
    for pid in guarded:
        _remove_shared_memory(pid)


def _remove_shared_memory(creator: int) -> None:
    """Remove the segment that a PostgreSQL leaves when it is killed: 56 bytes until the reboot."""
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        _, segment, _, _, by, _, attached, owner, *_ = line.split()
        if (int(by), int(attached)) == (creator, 0):
            # As its owner: root in a container may not.
            subprocess.run(["/usr/bin/ipcrm", "--shmem-id", segment], check=True, user=int(owner))


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
