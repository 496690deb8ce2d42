"""The command `agentstore`.

A subcommand is a function that adds its parser and sets the coroutine function that runs it.
What a program reads goes to stdout, what a person reads to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, NoReturn

from .database import Database, connect
from .errors import AgentStoreError, ConfigurationError, MissingDependencyError
from .transfer import Record, dump_line, export_sessions, import_sessions
from .url import URL

__all__ = ["main"]

_FAILED, _WRONG, _INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and tell the exit code.

    0 where it is done, 1 where it failed, 2 where the command, a URL or an option is wrong.
    """
    arguments = _parsed(argv)
    try:
        asyncio.run(arguments.run(arguments))
    except KeyboardInterrupt:
        _forget_stdout()
        _say("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return _FAILED
    except ConfigurationError as error:
        _say(str(error))
        return _WRONG
    except AgentStoreError as error:
        _say(str(error))
        return _FAILED
    except OSError as error:
        _say(": ".join(_masked(part) for part in (error.filename, error.strerror) if part))
        return _FAILED
    return 0


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and getattr(arguments, "file", "") is None and (rest[0] == "-" or rest[0][:1] != "-"):
        # argparse leaves an optional FILE over where options stand between URL and it.
        arguments.file, *rest = rest
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="agentstore", description="Conversations and state of AI agents.")
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('agentstore-sdk')}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_import, _add_export, _add_migrate):
        add(commands)
    return parser


def _add_import(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "import",
        help="store sessions from JSON lines, or from a table of another database",
        description="Store sessions; what is stored already stays as it is.",
    )
    _add_database(parser)
    parser.add_argument("file", metavar="FILE", nargs="?", help="JSON lines; - is stdin")
    parser.add_argument("--table", help="instead of FILE: a table in the database of --from")
    parser.add_argument("--from", dest="source", metavar="URL", help="as SQLAlchemy reads it")
    parser.add_argument(
        "--columns",
        type=_pairs,
        default=[],
        metavar="FIELD=COLUMN,...",
        help="what the table's columns are: session_id, role, content, order and more",
    )
    parser.add_argument(
        "--roles",
        type=_pairs,
        default=[],
        metavar="THEIRS=OURS,...",
        help="what the table's roles are, as in human=user,ai=assistant",
    )
    parser.set_defaults(run=_import)


async def _import(arguments: argparse.Namespace) -> None:
    if (arguments.file is None) == (arguments.table is None):
        raise ConfigurationError("give FILE or --table, and not both")
    async with AsyncExitStack() as stack:
        # The source comes first: where it is missing, no store is made.
        records: AsyncIterator[Record] | Iterator[bytes]
        if arguments.table is None:
            file = stack.enter_context(_input(arguments.file))
            size = os.fstat(file.fileno()).st_size or None
            advance = stack.enter_context(_progress(total=size, unit="B", unit_scale=True))
            records = _lines(file, advance)
        else:
            table = await stack.enter_async_context(aclosing(_table(arguments)))
            advance = stack.enter_context(_progress(unit=" sessions"))
            records = _counted(table, advance)
        database = await stack.enter_async_context(_connected(arguments))
        report = await import_sessions(database, records)
    left_out = f", left out {report.left_out} that are empty or expired" if report.left_out else ""
    _say(
        f"imported {report.sessions} sessions{left_out}; "
        f"{report.created} messages are new, {report.repeated} were stored before"
    )


def _add_migrate(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "migrate",
        help="bring the schema of a database up to date",
        description="Make what is missing of the schema, and bring the rest up to date. "
        "Opening a database does the same, unless the URL says create_schema=false.",
    )
    parser.add_argument("url", metavar="URL", help="with the rights to change tables")
    parser.set_defaults(run=_migrate)


async def _migrate(arguments: argparse.Namespace) -> None:
    async with connect(arguments.url):
        _say(f"{URL.parse(arguments.url)} is up to date")


def _add_export(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "export",
        help="write sessions as JSON lines",
        description="Write sessions as JSON lines, a session each, by their ids.",
    )
    _add_database(parser)
    parser.add_argument("file", metavar="FILE", nargs="?", help="stdout by default")
    parser.add_argument("--user", metavar="ID", help="only the sessions of this user")
    parser.add_argument("--prefix", metavar="TEXT", default="", help="only ids that begin so")
    parser.add_argument("--state", action="store_true", help="with the state of each session")
    parser.set_defaults(run=_export)


async def _export(arguments: argparse.Namespace) -> None:
    sessions = messages = 0
    async with _connected(arguments) as database:
        with _output(arguments.file or "-") as file, _progress(unit=" sessions") as advance:
            async for record in export_sessions(
                database, user_id=arguments.user, prefix=arguments.prefix, state=arguments.state
            ):
                with _interruptible():
                    file.write(dump_line(record))
                advance(1)
                sessions, messages = sessions + 1, messages + len(record["messages"])
    _say(f"exported {sessions} sessions, {messages} messages")


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the store, such as sqlite:///agents.db")
    parser.add_argument("--state-url", metavar="URL", help="where its state is, if elsewhere")
    parser.add_argument("--tenant", default="", help="whose data it is, if there are several")


def _connected(arguments: argparse.Namespace) -> AbstractAsyncContextManager[Database]:
    return connect(arguments.url, state_url=arguments.state_url, tenant=arguments.tenant)


def _table(arguments: argparse.Namespace) -> AsyncGenerator[Record, None]:
    if arguments.source is None:
        raise ConfigurationError("--table needs --from, the URL of the table's database")
    try:
        # By its name: the core imports no driver.
        sql = import_module("agentstore_sql")
    except ModuleNotFoundError:
        raise MissingDependencyError(
            'reading a table needs SQLAlchemy: run pip install "agentstore-sql"'
        ) from None
    columns: dict[str, list[str]] = {}
    for field, column in arguments.columns:
        columns.setdefault(field, []).append(column)
    records: AsyncGenerator[Record, None] = sql.read_table(
        arguments.source, arguments.table, columns, roles=dict(arguments.roles)
    )
    return records


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and value for name, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE,NAME=VALUE")
    return [(name, value) for name, _, value in pairs]


@contextmanager
def _input(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
    else:
        with open(name, "rb") as file:  # noqa: PTH123 - an error shows it as it was typed
            yield file


@contextmanager
def _output(name: str) -> Iterator[IO[bytes]]:
    """Open what is written: a file is replaced when it is whole, and not before."""
    path = Path(name)
    if name == "-":
        yield sys.stdout.buffer
        with _interruptible():
            sys.stdout.buffer.flush()
    elif path.exists() and not path.is_file():
        # A pipe or a device, which a rename would replace.
        with path.open("wb") as file:
            yield file
    elif not path.parent.is_dir():
        raise ConfigurationError(f"the directory of {_masked(name)} is missing")
    else:
        path = path.resolve()
        # For its owner alone, as a store's own files are.
        with NamedTemporaryFile(dir=path.parent, prefix=".agentstore-", delete=False) as new:
            try:
                yield new
                new.flush()
                os.fsync(new.fileno())
                Path(new.name).replace(path)
            except BaseException:
                Path(new.name).unlink()
                raise


def _lines(file: IO[bytes], advance: Callable[[int], object]) -> Iterator[bytes]:
    while True:
        with _interruptible():
            line = file.readline()
        if not line:
            return
        yield line
        advance(len(line))


async def _counted(
    records: AsyncIterator[Record], advance: Callable[[int], object]
) -> AsyncIterator[Record]:
    async for record in records:
        yield record
        advance(1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a read or a write that blocks.

    asyncio's own handler only notes it, and Python then goes on with the read or write.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _progress(**options: Any) -> Iterator[Callable[[int], object]]:
    """Show a bar where stderr is a terminal and tqdm is installed."""
    if sys.stderr.isatty() and find_spec("tqdm"):
        from tqdm import tqdm

        with tqdm(leave=False, **options) as bar:
            yield bar.update
    else:
        yield lambda _: None


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and show no password."""

    def error(self, message: str) -> NoReturn:
        _say(f"{_masked(message)} (see {self.prog} --help)")
        self.exit(_WRONG)


def _forget_stdout() -> None:
    """Let what Python still has to flush at exit go nowhere: its reader has left, or waits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    print(f"agentstore: {text}", file=sys.stderr)


def _masked(text: str) -> str:
    """Hide the secrets of a URL in what was typed."""
    return _URL.sub(lambda found: str(URL.parse(found[0])), text)


# To the last "@": people don't escape what is in their passwords.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://(?:.*@)?\S*")
