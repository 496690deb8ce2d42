"""Reading pages: from either end, within bounds, without gap or repeat."""

from __future__ import annotations

import asyncio

from ...conversations import Conversations
from ...database import Database
from ...types import Message
from ._base import Suite, contract, require, say, texts

__all__ = ["ReadingTests"]


class ReadingTests(Suite):
    """The pages of rule 4."""

    async def test_absent_session_is_empty(self, conversations: Conversations) -> None:
        """A session that doesn't exist reads as no messages, whatever is asked of it."""
        assert list(await conversations.read("s")) == []
        assert list(await conversations.read("s", last=5)) == []
        assert list(await conversations.read("s", first=5, after=1)) == []
        assert list(await conversations.read("s", max_tokens=5)) == []

    async def test_history_is_fresh(self, conversations: Conversations) -> None:
        """A read that reached the store isn't stale, and nothing of it is pending."""
        await conversations.append("s", [say("x")])
        history = await conversations.read("s")
        assert (history.stale, history.pending) == (False, 0)
        assert history.as_of.utcoffset() is not None

    async def test_first_and_last(self, conversations: Conversations) -> None:
        """`first` and `last` take from either end, and always answer oldest first."""
        await conversations.append("s", [say(str(i)) for i in range(9)])
        assert texts(await conversations.read("s", first=3)) == ["0", "1", "2"]
        assert texts(await conversations.read("s", last=3)) == ["6", "7", "8"]
        for more in (9, 10, 1000):
            assert len(await conversations.read("s", first=more)) == 9
            assert len(await conversations.read("s", last=more)) == 9

    @contract
    async def test_bounds_are_exclusive(self, conversations: Conversations) -> None:
        """`after` and `before` leave their own `seq` out, alone and together."""
        result = await conversations.append("s", [say(str(i)) for i in range(9)])
        third, sixth = result.seqs[2], result.seqs[5]
        assert texts(await conversations.read("s", after=third)) == list("345678")
        assert texts(await conversations.read("s", before=third)) == list("01")
        assert texts(await conversations.read("s", after=third, before=sixth)) == list("34")
        assert texts(await conversations.read("s", after=third, first=2)) == list("34")
        assert texts(await conversations.read("s", after=third, last=2)) == list("78")
        assert texts(await conversations.read("s", before=sixth, first=2)) == list("01")
        assert texts(await conversations.read("s", before=sixth, last=2)) == list("34")

    async def test_bounds_need_not_be_there(self, conversations: Conversations) -> None:
        """Bounds beyond the session, or where nothing lies, are no error."""
        seqs = (await conversations.append("s", [say(str(i)) for i in range(3)])).seqs
        first, last = seqs[0] or 0, seqs[2] or 0
        huge = (1 << 63) - 1
        assert texts(await conversations.read("s", after=0)) == list("012")
        assert texts(await conversations.read("s", before=huge)) == list("012")
        nothing: list[tuple[int | None, int | None]] = [
            *((last, None), (huge, None), (None, first), (None, 0)),
            *((last, first), (first, first), (last, huge)),
        ]
        for after, before in nothing:
            assert list(await conversations.read("s", after=after, before=before)) == []

    @contract
    async def test_pages_of_messages_join(self, conversations: Conversations) -> None:
        """Pages of any size, forward or backward, are the whole session, once."""
        result = await conversations.append("s", [say(str(i)) for i in range(11)])
        # Rewinding leaves a gap in `seq`.
        await conversations.rewind("s", to=result.seqs[6] or 0)
        await conversations.append("s", [say(str(i)) for i in range(11, 15)])
        whole = list(await conversations.read("s"))
        assert len(whole) == 11
        for size in (1, 2, 3, 10, 11, 12):
            assert await _forward(conversations, size) == whole, f"pages of {size}"
            assert await _backward(conversations, size) == whole, f"pages of {size}, backward"

    async def test_bounded_page_is_exact(self, conversations: Conversations) -> None:
        """A page within bounds holds as many as were asked for, tools' results or not."""
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        result = await conversations.append(
            "s",
            [
                Message(role="assistant", content=None, tool_calls=[call]),
                Message(role="tool", tool_call_id="c", content="result"),
                say("thanks"),
                say("more"),
            ],
        )
        page = await conversations.read("s", last=2, before=result.seqs[3])
        assert texts(page) == ["result", "thanks"]

    @contract
    async def test_pager_misses_nothing(self, database: Database) -> None:
        """A reader that pages by `seq` while others write sees every message, in order, once."""
        require(database, order="commit")
        conversations = database.conversations
        writers, appends = 8, 6
        done = asyncio.Event()

        async def write(writer: int) -> None:
            for turn in range(appends):
                await conversations.append("s", [say(f"{writer}.{turn}"), say("reply")])

        async def follow(size: int) -> list[str]:
            seen: list[str] = []
            after = 0
            while True:
                ended = done.is_set()
                page = await conversations.read("s", first=size, after=after)
                seen += [message.id for message in page]
                after = page[-1].seq or 0 if page else after
                if ended and not page:
                    return seen
                await asyncio.sleep(0)

        readers = [asyncio.create_task(follow(size)) for size in (1, 5, 100)]
        await asyncio.gather(*(write(writer) for writer in range(writers)))
        done.set()
        seen = await asyncio.gather(*readers)
        whole = [message.id for message in await conversations.read("s")]
        assert len(whole) == writers * appends * 2
        assert seen == [whole] * 3

    async def test_backward_pages_while_writing(self, database: Database) -> None:
        """Paging back from a message is not disturbed by what is appended meanwhile."""
        conversations = database.conversations
        await conversations.append("s", [say(str(i)) for i in range(20)])
        page = await conversations.read("s", last=6)
        seen = texts(page)
        while page:
            await conversations.append("s", [say("new")])
            page = await conversations.read("s", last=6, before=page[0].seq)
            seen = texts(page) + seen
        assert seen == [str(i) for i in range(20)]


async def _forward(conversations: Conversations, size: int) -> list[Message]:
    found: list[Message] = []
    while page := await conversations.read("s", first=size, after=found[-1].seq if found else None):
        assert len(page) <= size
        found += page
    return found


async def _backward(conversations: Conversations, size: int) -> list[Message]:
    found: list[Message] = []
    # The first page needs a bound as well: without one it would be a window.
    before: int | None = (1 << 63) - 1
    while page := await conversations.read("s", last=size, before=before):
        assert len(page) <= size
        found = [*page, *found]
        before = page[0].seq
    return found
