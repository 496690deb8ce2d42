"""Windows: the end of a session as a model can be shown it, checked by brute force."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ..._ids import uuid7
from ...conversations import Conversations
from ...types import Message
from ..strategies import conversations as generated
from ._base import Suite, contract, examples, say, texts

__all__ = ["WindowTests"]


def _made(message: Message) -> set[str]:
    """Give the names of the calls that a message makes, as results would have them."""
    made = {f"tool {call['id']}" for call in message.tool_calls or ()}
    legacy = message.extra.get("function_call")
    return made | {f"function {legacy['name']}"} if legacy else made


def _answered(message: Message) -> str | None:
    if message.role == "tool":
        return f"tool {message.tool_call_id}"
    return f"function {message.name}" if message.role == "function" else None


def _is_whole(session: Sequence[Message], start: int) -> bool:
    """Say whether no result from `start` on has its nearest preceding call before `start`."""
    for place in range(start, len(session)):
        answered = _answered(session[place])
        called = [earlier for earlier in range(place) if answered in _made(session[earlier])]
        if called and called[-1] < start:
            return False
    return True


def _starts(session: Sequence[Message]) -> list[int]:
    return [start for start in range(len(session)) if _is_whole(session, start)]


def _window(session: Sequence[Message], last: int) -> Sequence[Message]:
    """The shortest end of the session that is whole and has `last` messages, or all of it."""
    return session[max((s for s in _starts(session) if s <= len(session) - last), default=0) :]


def _affordable(
    session: Sequence[Message], budget: int, *, last: int | None = None
) -> Sequence[Message]:
    """The longest whole end that costs no more than `budget`, or else the shortest there is."""
    floor = 0 if last is None else len(session) - len(_window(session, last))
    starts = [start for start in _starts(session) if start >= floor]
    fitting = [s for s in starts if sum(one.tokens or 0 for one in session[s:]) <= budget]
    return session[min(fitting) if fitting else max(starts, default=0) :]


class WindowTests(Suite):
    """The windows of rule 4."""

    @contract
    async def test_window_holds_the_call_of_its_first_result(
        self, conversations: Conversations
    ) -> None:
        """A window never begins with a result: it is widened to the call that it answers."""
        await conversations.append("s", _exchange("a", results=2))
        for last, size in ((1, 1), (2, 4), (3, 4), (4, 4), (5, 5), (6, 5)):
            window = await conversations.read("s", last=last)
            assert len(window) == size, f"a window of {last}"

    async def test_unbounded_read_is_whole(self, conversations: Conversations) -> None:
        """Without `first`, `last` and bounds a read gives everything."""
        await conversations.append("s", [say(str(i)) for i in range(150)])
        assert texts(await conversations.read("s")) == [str(i) for i in range(150)]

    @examples(40)
    @given(session=generated(), wanted=st.lists(st.integers(1, 60), min_size=1, max_size=6))
    async def test_generated_windows(
        self, conversations: Conversations, session: list[Message], wanted: list[int]
    ) -> None:
        """A window of n is the shortest end with n messages in which no result lacks its call."""
        session_id = uuid7()
        if session:
            await conversations.append(session_id, session)
        for last in wanted:
            window = await conversations.read(session_id, last=last)
            assert texts(window) == texts(_window(session, last)), f"a window of {last}"

    @examples(40)
    @given(session=generated(), budgets=st.lists(st.integers(1, 120), min_size=1, max_size=6))
    async def test_generated_budgets(
        self, conversations: Conversations, session: list[Message], budgets: list[int]
    ) -> None:
        """`max_tokens` gives the newest exchanges that fit, and the newest one always."""
        session_id = uuid7()
        if session:
            await conversations.append(session_id, session)
        for budget in budgets:
            window = await conversations.read(session_id, max_tokens=budget)
            assert texts(window) == texts(_affordable(session, budget)), f"{budget} tokens"
            window = await conversations.read(session_id, max_tokens=budget, last=7)
            expected = _affordable(session, budget, last=7)
            assert texts(window) == texts(expected), f"{budget} tokens of the last 7"

    @examples(20)
    @given(session=generated().filter(bool), data=st.data())
    async def test_generated_budgets_before_a_bound(
        self, conversations: Conversations, session: list[Message], data: st.DataObject
    ) -> None:
        """`max_tokens` with `before` gives what it would give if the session ended there."""
        session_id = uuid7()
        seqs = (await conversations.append(session_id, session)).seqs
        place = data.draw(st.integers(0, len(session) - 1))
        budget = data.draw(st.integers(1, 120))
        window = await conversations.read(session_id, max_tokens=budget, before=seqs[place])
        assert texts(window) == texts(_affordable(session[:place], budget))

    async def test_call_far_back(self, conversations: Conversations) -> None:
        """A window reaches back to a call however much was said between it and its result."""
        call, result = _exchange("c", results=1)[1:3]
        for distance in (1, 7, 8, 9, 63, 64, 65, 300):
            between = [say(str(i)) for i in range(distance)]
            session = [say("hello"), call, *between, result, say("thanks")]
            await conversations.append(f"s{distance}", session)
            window = await conversations.read(f"s{distance}", last=2)
            assert texts(window) == texts(session[1:]), f"{distance} messages between"
            assert texts(await conversations.read(f"s{distance}", last=1)) == ["thanks"]
            assert texts(await conversations.read(f"s{distance}", max_tokens=1)) == ["thanks"]

    async def test_twenty_parallel_calls(self, conversations: Conversations) -> None:
        """An exchange of 20 calls comes whole, and one that lies behind it isn't begun."""
        for name in ("a", "b"):
            await conversations.append("s", _exchange(name, results=20))
        window = await conversations.read("s", last=2)
        assert len(window) == 22
        assert window[0].tool_calls not in (None, [])
        assert [message.tool_call_id for message in window[1:21]] == [f"b{i}" for i in range(20)]

    async def test_call_ids_that_come_again(self, conversations: Conversations) -> None:
        """A result answers the nearest call before it, though older ones had the same id."""
        for _ in range(3):
            await conversations.append("s", _exchange("same", results=1))
        window = await conversations.read("s", last=2)
        assert [message.role for message in window] == ["assistant", "tool", "assistant"]

    async def test_result_without_a_call(self, conversations: Conversations) -> None:
        """A result whose call was never there widens no window."""
        orphan = Message(role="tool", tool_call_id="gone", content="orphan")
        await conversations.append("s", [say("a"), say("b"), orphan, say("c")])
        assert texts(await conversations.read("s", last=2)) == ["orphan", "c"]

    async def test_call_that_was_rewound(self, conversations: Conversations) -> None:
        """A window doesn't answer a call that is no longer there."""
        first = await conversations.append("s", [say("a"), *_exchange("c", results=1)[1:2]])
        await conversations.rewind("s", to=first.seqs[0] or 0)
        await conversations.append("s", _exchange("c", results=1)[1:])
        assert len(await conversations.read("s", last=2)) == 3

    async def test_replaced_result_stays_in_its_exchange(
        self, conversations: Conversations
    ) -> None:
        """Redacting a result changes nothing about the window that it stands in."""
        session = _exchange("c", results=2)
        await conversations.append("s", session)
        await conversations.replace("s", session[3].id, content="[redacted]")
        window = await conversations.read("s", last=2)
        assert texts(window) == ["", "result 0", "[redacted]", "done"]

    async def test_cost_is_guessed_where_nobody_said(self, conversations: Conversations) -> None:
        """Messages without `tokens` count by their size, so that a budget holds all the same."""
        session = [replace(say("word " * 100), tokens=None) for _ in range(20)]
        await conversations.append("s", session)
        sizes = [len(await conversations.read("s", max_tokens=n)) for n in (1, 500, 2000, 10**6)]
        assert sizes[0] == 1
        assert sizes[3] == 20
        assert 1 < sizes[1] < sizes[2] < 20


def _exchange(name: str, *, results: int) -> list[Message]:
    """Make a user's turn with parallel calls, their results, and the answer."""
    ids = [f"{name}{i}" for i in range(results)]
    function = {"name": "f", "arguments": "{}"}
    calls = [{"id": one, "type": "function", "function": function} for one in ids]
    return [
        say("question", tokens=1),
        Message(role="assistant", content=None, tool_calls=calls, tokens=1),
        *(
            Message(role="tool", tool_call_id=one, content=f"result {i}", tokens=1)
            for i, one in enumerate(ids)
        ),
        Message(role="assistant", content="done", tokens=1),
    ]
