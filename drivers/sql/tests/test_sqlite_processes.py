"""Several processes on one file, and processes that are killed."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from sqlite_workers import FORKS, append_all, append_for_ever

from agentstore import connect
from agentstore.testing.history import Outcome, Recorder, check


def stored_ids(path: Path, session: str) -> list[str]:
    """The ids that the file holds, in the order of `seq`, by SQLite alone; the file is sound."""
    with closing(sqlite3.connect(path)) as witness:
        assert witness.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = witness.execute(
            "SELECT m.id FROM agentstore_messages AS m"
            " JOIN agentstore_sessions AS s ON s.pk = m.session_pk"
            " WHERE s.session_id = ? ORDER BY m.seq",
            [session],
        )
        return [message_id for (message_id,) in rows]


async def read_ids(url: str, session: str) -> list[str]:
    async with connect(url) as database:
        return [message.id for message in await database.conversations.read(session)]


def run_writers(
    url: str, directory: Path, processes: Sequence[Sequence[Sequence[str]]]
) -> Recorder:
    """Run processes that append at once, each with the sessions of its tasks."""
    start = FORKS.Barrier(len(processes))
    logs = [directory / f"{number}.log" for number in range(len(processes))]
    running = [
        FORKS.Process(target=append_all, args=(url, log, f"p{number}", writers, start))
        for number, (log, writers) in enumerate(zip(logs, processes, strict=True))
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(50)
    try:
        assert [process.exitcode for process in running] == [0] * len(running)
    finally:
        for process in running:
            process.kill()
    return Recorder.load(*logs)


def check_history(recorder: Recorder, url: str, path: Path) -> Counter[str]:
    """Check what is stored against what was recorded; count what each session holds."""
    sizes: Counter[str] = Counter()
    for session in {append.session for append in recorder.appends}:
        ids = stored_ids(path, session)
        assert asyncio.run(read_ids(url, session)) == ids
        recorder.final(ids, session=session)
        sizes[session] = len(ids)
    assert check(recorder) == []
    return sizes


def test_two_processes_on_one_session(url: str, path: Path, tmp_path: Path) -> None:
    """Two processes x 300 appends to one session: all stored once, in each writer's order."""
    recorder = run_writers(url, tmp_path, [[["s"] * 300]] * 2)
    assert check_history(recorder, url, path) == {"s": 600}


def test_sixteen_processes(url: str, path: Path, tmp_path: Path) -> None:
    """16 processes x 200 appends, to sessions of all and to one: once each, in each order."""
    spread = [f"s{number % 10}" for number in range(100)]
    recorder = run_writers(url, tmp_path, [[["hot"] * 100, spread]] * 16)
    sizes = check_history(recorder, url, path)
    assert sizes == {"hot": 1600} | {f"s{number}": 160 for number in range(10)}
    assert {append.outcome for append in recorder.appends} == {Outcome.ACKED}


def test_killed_processes_lose_nothing(url: str, path: Path, tmp_path: Path) -> None:
    """Kill -9 of a writer, 60 times: what was acknowledged is there, once and in order.

    Each process sends again what the one before it had under way, and something of what it had
    been acknowledged.
    """
    chance = random.Random(60)
    logs: list[Path] = []
    again: list[str] = []
    stored: list[str] = []
    for number in range(60):
        logs.append(tmp_path / f"{number}.log")
        process = FORKS.Process(target=append_for_ever, args=(url, logs[-1], f"w{number}", again))
        _kill_at_work(process, logs[-1], after=chance.random() * 0.05)
        mine = Recorder.load(logs[-1]).appends
        acked = [append.id for append in mine if append.outcome is Outcome.ACKED]
        again = [append.id for append in mine if append.outcome is Outcome.UNKNOWN] + acked[-3:]
        stored = stored_ids(path, "s")
        assert set(acked) <= set(stored), f"kill {number}"
        assert len(stored) == len(set(stored)), f"kill {number}"
    recorder = Recorder.load(*logs)
    ids = asyncio.run(read_ids(url, "s"))
    recorder.final(ids, session="s")
    assert ids == stored
    assert check(recorder) == []
    assert len(ids) > 60


def _kill_at_work(process: ForkServerProcess, log: Path, *, after: float) -> None:
    process.start()
    try:
        deadline = time.monotonic() + 20
        while not (log.exists() and log.stat().st_size):
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(after)
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
