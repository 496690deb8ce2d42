"""The history checker: silent on what a correct store does, and never on what a broken one does."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest

from agentstore.errors import CapacityError, OutcomeUnknownError
from agentstore.testing.history import Append, Kind, Outcome, Read, Recorder, check

FAILED, ACKED, UNKNOWN = Outcome.FAILED, Outcome.ACKED, Outcome.UNKNOWN


@dataclass
class Simulated:
    """What clients of a list that works saw; `order` is the list in the end."""

    random: random.Random
    appends: list[Append] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def recorder(self) -> Recorder:
        recorder = Recorder()
        for append in self.appends:
            recorder.record(append)
        for read in self.reads:
            recorder.record(read)
        recorder.final(self.order)
        return recorder

    def pick(self, fits: Callable[[Append], bool]) -> Append:
        return self.random.choice([append for append in self.appends if fits(append)])

    def take(self, id_: str) -> None:
        """Take an id out of the list, as though no read had ever seen it."""
        self.order.remove(id_)
        self.rewrite(lambda ids: tuple(each for each in ids if each != id_))

    def rewrite(self, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        self.reads = [replace(read, ids=change(read.ids)) for read in self.reads]


def simulate(seed: int) -> Simulated:  # noqa: C901 - one story, told in one place
    """Let writers and readers work on one list at once, and lose answers, requests and calls.

    Each append happens at one moment within its call, or later if it was only buffered, or at any
    time or never if its outcome is unknown.
    """
    chance = random.Random(seed)
    simulated = Simulated(chance)
    moments: dict[str, float] = {}

    def write(writer: str) -> None:
        now = number = 0

        def call(id_: str, outcome: Outcome, *, committed: bool = True) -> Append:
            nonlocal now, number
            start = now + chance.randrange(1, 100)
            now = start + chance.randrange(1, 100)
            append = Append(
                session="session",
                writer=writer,
                number=number,
                id=id_,
                start=start,
                end=now,
                outcome=outcome,
                committed=committed,
            )
            number += 1
            simulated.appends.append(append)
            return append

        for index in range(30):
            id_ = f"{writer}.{index}"
            match chance.choices(["ack", "fail", "lose", "repeat", "buffer"], [12, 1, 1, 1, 1])[0]:
                case "ack":
                    append = call(id_, ACKED)
                    moments[id_] = chance.uniform(append.start, append.end)
                case "fail":
                    call(id_, FAILED)
                case "lose":
                    append = call(id_, UNKNOWN)
                    if chance.random() < 0.7:
                        moments[id_] = append.start + chance.expovariate(1 / 200)
                case "repeat":
                    first, last = call(id_, UNKNOWN), call(id_, ACKED)
                    moments[id_] = chance.uniform(first.start, last.end)
                case _:
                    buffered = [f"{id_}.{part}" for part in range(chance.randrange(1, 4))]
                    for each in buffered:
                        call(each, ACKED, committed=False)
                    for each in buffered:
                        now += chance.randrange(1, 50)
                        moments[each] = now

    for index in range(4):
        write(f"w{index}")
    simulated.order = sorted(moments, key=moments.__getitem__)
    for index in range(3):
        now = 0
        while now < 3000:
            start = now + chance.randrange(1, 300)
            now = start + chance.randrange(1, 100)
            seen = chance.uniform(start, now)
            ids = tuple(id_ for id_ in simulated.order if moments[id_] <= seen)
            simulated.reads.append(
                Read(session="session", reader=f"r{index}", start=start, end=now, ids=ids)
            )
    return simulated


def lose(run: Simulated) -> str:
    lost = run.pick(lambda append: append.outcome is ACKED).id
    run.take(lost)
    return lost


def duplicate(run: Simulated) -> str:
    twice = run.random.choice(run.order)
    run.order.append(twice)
    return twice


def invent(run: Simulated) -> str:
    run.order.insert(run.random.randrange(len(run.order)), "invented")
    return "invented"


def resurrect(run: Simulated) -> str:
    failed = run.pick(lambda append: append.outcome is FAILED).id
    run.order.insert(run.random.randrange(len(run.order)), failed)
    return failed


def swap(run: Simulated) -> str:
    """Let two neighbours of one writer change places, in every read that saw both."""
    repeated = {append.id for append in run.appends if append.outcome is UNKNOWN}
    sent = [
        (append.writer, append.id)
        for append in run.appends
        if append.outcome is ACKED and append.id not in repeated
    ]
    pairs = [(one[1], two[1]) for one, two in pairwise(sent) if one[0] == two[0]]
    one, two = run.random.choice(pairs)
    places = run.order.index(one), run.order.index(two)
    run.order[places[0]], run.order[places[1]] = two, one
    run.rewrite(lambda ids: tuple(run.order[: len(ids)]))
    return one


def move(run: Simulated) -> str:
    """Let an append of one writer wait until others, sent after its ack, have overtaken it."""
    late = run.pick(
        lambda append: append.outcome is ACKED and append.committed and append.end < 2000
    )
    run.order.remove(late.id)
    run.order.append(late.id)
    run.rewrite(lambda ids: tuple(run.order[: len(ids)]))
    return late.id


def skip(run: Simulated) -> str:
    """Let one read miss an entry in the middle."""
    index = run.random.choice([at for at, read in enumerate(run.reads) if len(read.ids) > 1])
    read = run.reads[index]
    missed = run.random.choice(read.ids[:-1])
    ids = tuple(id_ for id_ in read.ids if id_ != missed)
    run.reads[index] = replace(read, ids=ids)
    return missed


def lag(run: Simulated) -> str:
    """Let a read of somebody new end just before an entry that was acked when it began."""
    start = run.random.randrange(300, 3000)
    acked = [
        run.order.index(append.id)
        for append in run.appends
        if append.outcome is ACKED and append.committed and append.end < start
    ]
    ids = tuple(run.order[: max(acked)])
    run.reads.append(Read(session="session", reader="new", start=start, end=start + 1, ids=ids))
    return run.order[max(acked)]


def forget(run: Simulated) -> str:
    """Let a reader's last read end before an entry that its read before that had."""
    before = max((read for read in run.reads if read.reader == "r0"), key=lambda read: read.start)
    gone = run.random.choice(before.ids)
    ids = before.ids[: before.ids.index(gone)]
    run.reads.append(replace(before, start=before.end + 1, end=before.end + 2, ids=ids))
    return gone


PLANTED = {
    lose: Kind.LOST,
    duplicate: Kind.DUPLICATE,
    invent: Kind.PHANTOM,
    resurrect: Kind.RESURRECTED,
    swap: Kind.WRITER_ORDER,
    move: Kind.REALTIME,
    skip: Kind.HOLE,
    lag: Kind.STALE,
    forget: Kind.NON_MONOTONIC,
}


def test_correct_histories_are_clean() -> None:
    """A list that works raises no alarm, with lost answers, repeats and buffered appends."""
    outcomes = set()
    for seed in range(200):
        run = simulate(seed)
        assert check(run.recorder()) == [], f"seed {seed}"
        outcomes |= {(append.outcome, append.committed) for append in run.appends}
    assert outcomes == {(ACKED, True), (ACKED, False), (FAILED, True), (UNKNOWN, True)}


@pytest.mark.parametrize(("plant", "kind"), PLANTED.items(), ids=[*PLANTED.values()])
def test_planted_bugs_are_found(plant: Callable[[Simulated], str], kind: Kind) -> None:
    """Each kind of bug, planted into a correct history, is found, as what it is and where it is."""
    for seed in range(100):
        run = simulate(seed)
        culprit = plant(run)
        found = check(run.recorder())
        assert any(it.kind is kind and culprit in it.ids for it in found), f"seed {seed}"
        assert all(
            it.kind in str(it) and all(repr(id_) in str(it) for id_ in it.ids) for it in found
        )


def append(
    id_: str, start: int, end: int, *, number: int = 0, writer: str = "", committed: bool = True
) -> Append:
    return Append(
        session="session",
        writer=writer or id_,
        number=number,
        id=id_,
        start=start,
        end=end,
        outcome=ACKED,
        committed=committed,
    )


def kinds(*operations: Append | Read, final: str) -> list[Kind]:
    recorder = Recorder()
    for operation in operations:
        recorder.record(operation)
    recorder.final(final.split())
    return [anomaly.kind for anomaly in check(recorder)]


def test_a_buffered_append_may_come_late() -> None:
    """Reads may lack, and others overtake, what was acked but not committed; nothing else."""
    later = append("b", 20, 30)
    read = Read(session="session", reader="r", start=40, end=50, ids=("b",))
    buffered = append("a", 0, 10, committed=False)
    assert kinds(buffered, later, read, final="b a") == []
    committed = append("a", 0, 10)
    assert kinds(committed, later, read, final="b a") == [Kind.REALTIME, Kind.STALE]


def test_a_buffered_append_is_held_to_all_else() -> None:
    """What was acked but not committed is there, once, and in the order of its writer."""
    one = append("a", 0, 10, writer="w", number=0, committed=False)
    two = append("b", 20, 30, writer="w", number=1, committed=False)
    assert kinds(one, two, final="a b") == []
    assert kinds(one, two, final="b") == [Kind.LOST]
    assert kinds(one, two, final="a b b") == [Kind.DUPLICATE]
    assert kinds(one, two, final="b a") == [Kind.WRITER_ORDER]


def test_calls_that_touch_may_be_in_either_order() -> None:
    """Only an append that began after another's ack has to stand behind it, however far."""
    long = append("long", 0, 90)
    touching = append("a", 0, 10), append("b", 10, 20)
    assert kinds(*touching, long, final="b long a") == []
    apart = append("a", 0, 10), append("b", 11, 20)
    assert kinds(*apart, long, final="b long a") == [Kind.REALTIME]


def test_a_resurrected_append_accuses_no_other() -> None:
    """What failed for certain was never sent, so nothing is out of order with it."""
    failed = replace(append("a", 40, 50), outcome=FAILED)
    assert kinds(failed, append("b", 0, 10), final="a b") == [Kind.RESURRECTED]


def test_an_id_sent_by_two_writers_has_one_place() -> None:
    """Writers that race one id are served by either of their calls, and one entry is enough."""
    race = [
        append("a", 0, 10, writer="w1", number=0),
        append("x", 20, 30, writer="w1", number=1),
        append("x", 0, 10, writer="w2", number=5),
        append("b", 20, 30, writer="w2", number=6),
    ]
    assert kinds(*race, final="a x b") == []
    assert kinds(*race, final="x a b") == []
    assert kinds(*race, final="a b x") == [Kind.REALTIME]


def test_an_id_sent_again_has_its_place_from_the_attempt_that_may_have_worked() -> None:
    """After an unknown outcome it may stand where either attempt was, after a failed one not."""
    first = replace(append("a", 0, 10, writer="w", number=0), outcome=UNKNOWN)
    between = append("b", 20, 30, writer="w", number=1)
    again = append("a", 40, 50, writer="w", number=2)
    assert kinds(first, between, again, final="a b") == []
    assert kinds(first, between, again, final="b a") == []
    first = replace(first, outcome=FAILED)
    assert kinds(first, between, again, final="b a") == []
    assert kinds(first, between, again, final="a b") == [Kind.WRITER_ORDER, Kind.REALTIME]


def test_sessions_are_judged_apart() -> None:
    """Reads and appends of one session say nothing about another."""
    recorder = Recorder()
    for session in ("one", "two"):
        with recorder.append("w", f"{session}.1", f"{session}.2", session=session):
            pass
    recorder.final(["one.1", "one.2"], session="one")
    recorder.final(["two.2"], session="two")
    assert [(it.kind, it.session, it.ids) for it in check(recorder)] == [
        (Kind.LOST, "two", ("two.1",))
    ]


def test_a_session_needs_its_final_read() -> None:
    """Without a final read there is nothing to judge by; with several, the last one counts."""
    recorder = Recorder()
    with recorder.append("w", "a"):
        pass
    with pytest.raises(ValueError, match=r"'session' has no final read: .* Recorder\.final"):
        check(recorder)
    recorder.final(["a"])
    with recorder.append("w", "b"):
        pass
    recorder.final(["a", "b"])
    assert check(recorder) == []


def test_an_anomaly_explains_itself() -> None:
    """Its text has the kind, the session, the ids, the calls with their times, and the places."""
    recorder = Recorder()
    recorder.record(append("a", 0, 1_000_000, writer="w"))
    recorder.record(append("b", 2_000_000, 3_500_000, writer="v", number=7))
    recorder.record(
        Read(session="session", reader="final", start=4, end=9_000_000, ids=("b", "a"), final=True)
    )
    (anomaly,) = check(recorder)
    assert str(anomaly) == (
        "REALTIME in 'session': 'b' at 0 (append 7 of 'v', acked, +0.002000 to +0.003500 s)"
        " stands before 'a' at 1 (append 0 of 'w', acked, +0.000000 to +0.001000 s),"
        " acked when it began"
    )


def test_the_outcome_follows_from_how_the_block_ends() -> None:
    """No error means acked; an error means unknown, unless it or the block is sure of failure."""
    recorder = Recorder()
    with recorder.append("w", "acked"):
        pass
    for error in (CapacityError("full"), OutcomeUnknownError("?", outcome_unknown=True), OSError()):
        with pytest.raises(type(error)), recorder.append("w", type(error).__name__):
            raise error
    with recorder.append("w", "told") as call:
        call.outcome = FAILED
        call.committed = False
    assert [(it.number, it.id, it.outcome, it.committed) for it in recorder.appends] == [
        (0, "acked", ACKED, True),
        (1, "CapacityError", FAILED, True),
        (2, "OutcomeUnknownError", UNKNOWN, True),
        (3, "OSError", UNKNOWN, True),
        (4, "told", FAILED, False),
    ]


def test_calls_are_timed() -> None:
    """A call begins before its block and ends after it, by the monotonic clock in nanoseconds."""
    recorder = Recorder()
    before = time.monotonic_ns()
    with recorder.append("w", "a"):
        time.sleep(0.01)
    with recorder.read("r") as call:
        time.sleep(0.01)
        call.ids = ["a"]
    after = time.monotonic_ns()
    (made,), (read,) = recorder.appends, recorder.reads
    assert before <= made.start <= made.end - 10_000_000
    assert made.end <= read.start <= read.end - 10_000_000 <= after


def test_a_read_without_ids_is_not_recorded() -> None:
    """A read that failed, or that the store called stale, leaves no trace."""
    recorder = Recorder()
    with recorder.read("r"):
        pass
    with pytest.raises(OSError, match="gone"), recorder.read("r"):
        raise OSError("gone")
    assert recorder.reads == []


def test_threads_share_a_recorder() -> None:
    """Threads that append to one list, and read it, leave a clean history of all they did."""
    recorder, stored = Recorder(), list[str]()

    def work(name: str) -> None:
        for index in range(200):
            with recorder.append(name, f"{name}.{index}"):
                stored.append(f"{name}.{index}")
            with recorder.read(name) as call:
                call.ids = list(stored)

    workers = [threading.Thread(target=work, args=(f"w{index}",)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    recorder.final(stored)
    assert (len(recorder.appends), len(recorder.reads)) == (800, 801)
    assert check(recorder) == []


WRITER = """
import sys
from agentstore.testing.history import Recorder

name, log, store = sys.argv[1:]
with open(log, "w") as lines, open(store, "a") as store:
    recorder = Recorder(lines)
    for index in range(1_000_000):
        with recorder.append(name, f"{name}.{index}"):
            store.write(f"{name}.{index}\\n")
            store.flush()
"""


def test_killed_processes_leave_what_they_knew(tmp_path: Path) -> None:
    """The logs of killed writers merge into one history, and what a kill cut short is unknown."""
    logs, store = [tmp_path / "one", tmp_path / "two"], tmp_path / "store"
    for log in (*logs, store):
        log.touch()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, log.name, str(log), str(store)])
        for log in logs
    ]
    try:
        deadline = time.monotonic() + 20
        while min(log.stat().st_size for log in logs) < 50_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    final = store.read_text().split()
    recorder = Recorder.load(*logs)
    recorder.final(final)
    assert check(recorder) == []
    assert {made.writer for made in recorder.appends} == {"one", "two"}

    lost = next(made.id for made in reversed(recorder.appends) if made.outcome is ACKED)
    recorder = Recorder.load(*logs)
    recorder.final(id_ for id_ in final if id_ != lost)
    assert [(it.kind, it.ids) for it in check(recorder)] == [(Kind.LOST, (lost,))]


def test_a_log_comes_back_equal(tmp_path: Path) -> None:
    """What is read from a log equals what was recorded; a line that a kill tore is left out."""
    log = tmp_path / "log"
    with log.open("w") as lines:
        recorder = Recorder(lines)
        with recorder.append("w", "é\u2028", session="s") as made:
            made.committed = False
        with recorder.read("r", session="s") as read:
            read.ids = ["é\u2028"]
        recorder.final(["é\u2028"], session="s")
        lines.write('{"session": "s", "wri')
    loaded = Recorder.load(log)
    assert (loaded.appends, loaded.reads) == (recorder.appends, recorder.reads)


def test_two_processes_need_two_names(tmp_path: Path) -> None:
    """Logs in which one writer's name stands for two are refused, not mixed."""
    logs = [tmp_path / "one", tmp_path / "two"]
    for log in logs:
        with log.open("w") as lines, Recorder(lines).append("w", log.name):
            pass
    with pytest.raises(ValueError, match="append 0 of writer 'w' is recorded with two ids"):
        Recorder.load(*logs)


def test_a_long_history_is_checked_quickly() -> None:
    """20,000 appends and 400 full reads take a fraction of a second, so n² can't hide."""
    recorder = Recorder()
    ids = [f"message {index}" for index in range(20_000)]
    for index, id_ in enumerate(ids):
        made = append(id_, index * 10, index * 10 + 25, number=index, writer=f"w{index % 3}")
        recorder.record(made)
    for index in range(400):
        start, seen = index * 500 + 30, tuple(ids[: index * 50 + 6])
        recorder.record(
            Read(session="session", reader=f"r{index % 5}", start=start, end=start + 5, ids=seen)
        )
    recorder.final(ids)
    started = time.process_time()
    assert check(recorder) == []
    assert time.process_time() - started < 2.0
