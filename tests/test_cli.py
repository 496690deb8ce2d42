"""The command `agentstore`, as a process."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import termios
import time
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path

import pytest

from agentstore.cli import main

AGENTSTORE = str(Path(sysconfig.get_path("scripts")) / "agentstore")
RECORDED = Path(__file__).parent / "data" / "agent_sessions.jsonl"
SECRET = "p@ss:w/rd"
SOON = 20  # seconds: ample for a process that has next to nothing to do


def run(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [AGENTSTORE, *arguments], input=stdin, capture_output=True, timeout=SOON, check=False
    )


def line(session_id: str, *texts: str, **ours: object) -> bytes:
    messages = [{"role": "user", "content": text} for text in texts or ("hello",)]
    record = {"session_id": session_id, "messages": messages, "agentstore": ours}
    return json.dumps(record).encode() + b"\n"


def ids(exported: bytes) -> list[str]:
    return [json.loads(one)["session_id"] for one in exported.splitlines()]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Import the recorded sessions once."""
    path = tmp_path_factory.mktemp("imported") / "store.db"
    assert run("import", f"sqlite:///{path}", RECORDED).returncode == 0
    return path


@pytest.fixture
def full(imported: Path, url: str, tmp_path: Path) -> str:
    shutil.copy(imported, tmp_path)
    return url


def test_sessions_go_in_and_out(url: str, tmp_path: Path) -> None:
    """Import, the same again, export, import elsewhere: two exports are equal, byte for byte.

    Each command tells in one line what it did.
    """
    out, other = tmp_path / "out.jsonl", f"sqlite:///{tmp_path}/other.db"
    first = run("import", url, RECORDED)
    assert (first.returncode, first.stdout) == (0, b"")
    assert first.stderr == (
        b"agentstore: imported 120 sessions; 3202 messages are new, 0 were stored before\n"
    )
    again = run("import", url, "-", stdin=RECORDED.read_bytes())
    assert (again.returncode, again.stdout) == (0, b"")
    assert again.stderr == (
        b"agentstore: imported 120 sessions; 0 messages are new, 3202 were stored before\n"
    )
    to_file = run("export", url, out)
    assert (to_file.returncode, to_file.stdout) == (0, b"")
    assert to_file.stderr == b"agentstore: exported 120 sessions, 3202 messages\n"
    assert run("import", other, out).returncode == 0
    to_stdout = run("export", other)
    assert to_stdout.returncode == 0
    assert to_stdout.stdout == out.read_bytes()
    assert len(to_stdout.stdout.splitlines()) == 120


def test_options_choose_what_is_exported(url: str, tmp_path: Path) -> None:
    """A tenant, a user, a beginning of ids, and the state, from a store of its own."""
    both = (url, "--state-url", f"sqlite:///{tmp_path}/state.db", "--tenant", "t")
    sessions = [line("a1", user_id="ann", state={"k": 1}), line("a2"), line("b1", user_id="ann")]
    assert run("import", *both, "-", stdin=b"".join(sessions)).returncode == 0

    assert ids(run("export", *both).stdout) == ["a1", "a2", "b1"]
    assert ids(run("export", *both, "--user", "ann", "--prefix", "b").stdout) == ["b1"]
    assert run("export", url).stdout == b""
    (found,) = run("export", *both, "--user=ann", "--prefix=a", "--state").stdout.splitlines()
    assert json.loads(found)["agentstore"] == {"user_id": "ann", "state": {"k": 1}}


def test_left_out_sessions_are_counted(url: str) -> None:
    """Whoever imports what has expired is told."""
    given = line("there") + line("gone", expires_at="2024-05-15T14:30:00Z")
    done = run("import", url, "-", stdin=given)
    assert done.returncode == 0
    assert b"imported 1 sessions, left out 1 that are empty or expired; 1 messages" in done.stderr


def test_a_table_is_imported(url: str, tmp_path: Path) -> None:
    """An application's own messages, by the names of its columns and of its roles."""
    with sqlite3.connect(tmp_path / "app.db") as connection:
        connection.execute("CREATE TABLE messages (id, thread_id, speaker, text, at)")
        rows = [(2, "t", "ai", "4", 10), (1, "t", "human", "2+2?", 10), (3, "u", "human", "?", 9)]
        connection.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()
    done = run(
        *("import", url, "--table", "messages", "--from", f"sqlite:///{tmp_path}/app.db"),
        *("--columns", "session_id=thread_id,role=speaker,content=text,order=at,order=id"),
        *("--roles", "human=user,ai=assistant"),
    )
    assert done.stderr == (
        b"agentstore: imported 2 sessions; 3 messages are new, 0 were stored before\n"
    )
    first, _ = run("export", url).stdout.splitlines()
    messages = json.loads(first)["messages"]
    assert [(one["role"], one["content"]) for one in messages] == [
        ("user", "2+2?"),
        ("assistant", "4"),
    ]


def test_a_bad_line_is_one_line(url: str) -> None:
    """It is named with its session; what came before it is stored, and nothing of it."""
    given = line("first") + line("second").replace(b"user", b"human") + line("third")
    done = run("import", url, "-", stdin=given)
    assert done.returncode == 1
    assert done.stderr.startswith(
        b"agentstore: line 2: session 'second': messages[0]: role is 'human', and has to be one of "
    )
    assert done.stderr.count(b"\n") == 1
    assert ids(run("export", url).stdout) == ["first"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "the following arguments are required: COMMAND (see agentstore --help)"),
        (["imprt"], 2, "invalid choice: 'imprt' (choose from"),
        (["import", "memory://"], 2, "give FILE or --table, and not both"),
        (["import", "memory://", "x", "--table", "t"], 2, "give FILE or --table, and not both"),
        (["import", "memory://", "x", "y"], 2, "unrecognized arguments: y (see agentstore --help)"),
        (["export", "memory://", "--usr=x"], 2, "unrecognized arguments: --usr=x"),
        (["import", "memory://", "--table", "t"], 2, "--table needs --from"),
        (["import", "memory://", "-", "--columns", "a"], 2, "'a' is not NAME=VALUE,NAME=VALUE"),
        (["import", "memory://", "missing.jsonl"], 1, "missing.jsonl: No such file or directory"),
        (["import", "memory://", "."], 1, ".: Is a directory"),
        (["import", "store.db", os.devnull], 2, "database_url is not a URL"),
        (["import", "memory://?colour=red", os.devnull], 2, "colour"),
        (["export", "sqllite:///store.db"], 2, "did you mean sqlite://?"),
        (["export", "sqlite:///missing/store.db"], 2, "missing of the database is missing"),
        (["export", "memory://", "missing/out.jsonl"], 2, "the directory of missing/out.jsonl"),
        (["export", "memory://", "--user", ""], 1, "user_id is empty"),
        (["export", f"nosql://ann:{SECRET}@host/d"], 2, "no driver serves nosql://"),
        ([f"nosql://ann:{SECRET}@host/d", "export"], 2, "'nosql://ann:***@host/d'"),
        (["export", "memory://", "out", f"nosql://ann:{SECRET}@host/d"], 2, "nosql://ann:***@host"),
        (["export", "memory://", f"nosql://ann:{SECRET}@host/d"], 2, "nosql://ann:***@host/d"),
        (["import", "memory://", f"nosql://host/d?password={SECRET}"], 1, "password=***"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No traceback, no password, no file that is left behind: 2 for the command, 1 for the rest."""
    try:
        with chdir(tmp_path):
            result: object = main(arguments)
    except SystemExit as ended:  # how argparse ends a program
        result = ended.code
    shown = capfd.readouterr()
    assert result == code
    assert said in shown.err
    assert shown.err.startswith("agentstore: ")
    assert shown.err.count("\n") == 1
    assert SECRET not in shown.err
    assert "ss:w" not in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_version_and_the_help_are_told() -> None:
    """They go to stdout, and are a success."""
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.decode() == f"agentstore {version('agentstore-sdk')}\n"
    for command in ((), ("import",), ("export",)):
        done = run(*command, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(" ".join(["usage: agentstore", *command]).encode())


def test_an_export_replaces_a_file_when_it_is_whole(full: str, tmp_path: Path) -> None:
    """An export that fails half-way leaves the file that was there, and nothing beside it.

    A file that is written is its owner's alone, and a link to it stays one.
    """
    out, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    out.write_text("as it was")
    link.symlink_to(out)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        (body,) = connection.execute(
            "SELECT body FROM agentstore_messages WHERE session_pk = 60 AND seq = 2"
        ).fetchone()
        damage = "UPDATE agentstore_messages SET body = ? WHERE session_pk = 60 AND seq = 2"
        connection.execute(damage, ("{",))
        connection.commit()
        done = run("export", full, link)
        assert done.returncode == 1
        assert done.stderr.startswith(b"agentstore: sqlite:///")
        assert b"is damaged" in done.stderr
        assert out.read_text() == "as it was"
        assert not [one for one in tmp_path.iterdir() if one.name.startswith(".agentstore")]
        connection.execute(damage, (body,))
        connection.commit()
    connection.close()
    assert run("export", full, link).returncode == 0
    assert link.is_symlink()
    assert len(out.read_bytes().splitlines()) == 120
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_a_pipe_is_written_and_not_replaced(url: str, tmp_path: Path) -> None:
    """FILE may be a pipe or a device: it stays what it is."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert run("import", url, "-", stdin=line("s")).returncode == 0
    with subprocess.Popen([AGENTSTORE, "export", url, fifo], stderr=subprocess.PIPE) as process:
        assert ids(fifo.read_bytes()) == ["s"]
        assert process.wait(SOON) == 0
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_reader_that_leaves_is_no_error_to_tell(full: str) -> None:
    """As in `agentstore export … | head -1`: no traceback, no complaint at exit."""
    with subprocess.Popen(
        [AGENTSTORE, "export", full], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert ids(process.stdout.readline()) == ["airline-task0-trial0"]
        process.stdout.close()
        assert process.wait(SOON) == 1
        assert process.stderr.read() == b""


def test_ctrl_c_ends_an_import_that_waits(url: str, tmp_path: Path) -> None:
    """While stdin is silent, one Ctrl-C is enough; what was stored is stored."""
    with subprocess.Popen(
        [AGENTSTORE, "import", url, "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(line("s"))
        process.stdin.flush()
        deadline = time.monotonic() + SOON
        while stored_sessions(tmp_path / "store.db") != 1:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 130
        assert process.stderr.read() == b"agentstore: interrupted\n"
    assert ids(run("export", url).stdout) == ["s"]


def stored_sessions(path: Path) -> int:
    if not path.exists():
        return 0
    connection = sqlite3.connect(path, timeout=SOON)
    try:
        return int(connection.execute("SELECT count(*) FROM agentstore_sessions").fetchone()[0])
    except sqlite3.OperationalError:  # no such table yet
        return 0
    finally:
        connection.close()


def test_ctrl_c_ends_an_export_that_nobody_reads(full: str) -> None:
    """While the pipe is full, one Ctrl-C is enough."""
    with subprocess.Popen(
        [AGENTSTORE, "export", full], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 130
        assert process.stderr.read() == b"agentstore: interrupted\n"


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_terminal_gets_a_progress_bar(command: str, full: str, tmp_path: Path) -> None:
    """It is on stderr, and the summary stands alone at its end."""
    pytest.importorskip("tqdm")
    file = RECORDED if command == "import" else tmp_path / "out.jsonl"
    code, shown = on_a_terminal([AGENTSTORE, command, full, str(file)])
    assert code == 0
    assert ("0.00/1.98M" if command == "import" else "0 sessions [00:00") in shown
    last = shown.replace("\r\n", "\n").rpartition("\r")[2]
    assert last.startswith(f"agentstore: {command}ed 120 sessions")
    assert last.count("\n") == 1


def test_without_tqdm_there_is_no_bar(full: str, tmp_path: Path) -> None:
    """It is an extra: without it the command does the same, and tells it at the end."""
    hidden = "import sys; sys.modules['tqdm'] = None; from agentstore.cli import main; main()"
    code, shown = on_a_terminal([sys.executable, "-c", hidden, "export", full, f"{tmp_path}/out"])
    assert (code, shown) == (0, "agentstore: exported 120 sessions, 3202 messages\r\n")


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """Run a command whose stderr is a terminal, and give its code and what was shown."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    shown = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave) as process:
        os.close(slave)
        try:
            while part := os.read(master, 65536):
                shown += part
        except OSError:  # Linux says so that the other end is closed
            pass
        finally:
            os.close(master)
        return process.wait(SOON), shown.decode()


def test_migrate(tmp_path: Path) -> None:
    """`migrate` makes the schema, and says the same when there is nothing to do."""
    url = f"sqlite:///{tmp_path}/a.db"
    for _ in range(2):
        ended = run("migrate", url)
        assert (ended.returncode, ended.stderr) == (
            0,
            f"agentstore: {url} is up to date\n".encode(),
        )
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("SELECT count(*) FROM agentstore_sessions").fetchall() == [(0,)]
    connection.close()


def test_migrate_shows_no_password() -> None:
    """A URL that fails is shown without what is secret in it."""
    ended = run("migrate", "sqlite://user:hunter2@host/a.db")
    assert ended.returncode == 2
    assert b"hunter2" not in ended.stderr
