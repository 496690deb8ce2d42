"""How PostgreSQL carries out the hot statements: by their indexes, with statistics or not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from agentstore import connect
from agentstore.url import URL
from agentstore_sql import PostgreSQLDriver

pytestmark = pytest.mark.asyncio

_OURS = "agentstore_"

_FILL = """
INSERT INTO agentstore_sessions (tenant, session_id, user_id, metadata, created_at, updated_at,
  next_seq, last_seq, message_count, operation, dropped)
SELECT 't' || n % 3, 's' || n, 'u' || n % 50, '{}', n, n, 1, 0, 0, '', 0
FROM generate_series(1, 5000) AS n;
INSERT INTO agentstore_messages (session_pk, seq, id, digest, body, created_at)
SELECT pk, n, 'm' || n, ''::bytea, 'body', n
FROM agentstore_sessions, generate_series(1, 2000) AS n WHERE session_id IN ('s1', 's2', 's3')
UNION ALL SELECT pk, n, 'm' || n, ''::bytea, 'body', n
FROM agentstore_sessions, generate_series(1, 2) AS n WHERE pk > 3;
INSERT INTO agentstore_state (tenant, scope, owner, key, value, version, operation)
SELECT 't' || n % 3, 'user', 'u' || n % 100, 'k' || n, '1', n, ''
FROM generate_series(1, 10000) AS n;
"""


def _statements(url: str) -> dict[str, tuple[str, set[str]]]:
    """Give each hot statement, and the indexes that it is to use."""
    driver = PostgreSQLDriver(URL.parse(url))
    every, single = driver.statements, driver.single
    window = {"messages_pk", "sessions_id"}
    wanted: dict[str, tuple[str, set[str]]] = {
        "append": (single.append, {"sessions_id"}),
        "put": (single.put, set()),
        "replace": (single.replace, {"state_pk"}),
        "get": (every.find.call(tenant="", session_id="")[0], {"sessions_id"}),
        "value": (every.value.call(tenant="", scope="", owner="", key="")[0], {"state_pk"}),
        "find_message": (every.find_message.call(session=1, id="")[0], {"messages_id"}),
    }
    bounds = {"after": 0, "before": 0, "limit": 0}
    place = {"updated_at": 0, "behind": "", "limit": 0}
    for (of_user, backwards), statement in every.slices.items():
        text, _ = statement.call(tenant="", session_id="", user_id="", **bounds)
        wanted[f"slice {of_user=} {backwards=}"] = text, window
    for of_user, statement in every.newest.items():
        text, _ = statement.call(tenant="", user_id="", **place)
        index = "sessions_user" if of_user else "sessions_newest"
        wanted[f"newest {of_user=}"] = text, {index}
    text, _ = every.by_id[False].call(tenant="", start="", stop="", behind="", limit=1)
    wanted["by_id"] = text, {"sessions_id"}
    text, _ = every.values.call(
        tenant="", scope="", owner="", start="", stop="", behind="", limit=1
    )
    wanted["items"] = text, {"state_pk"}
    return wanted


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


@pytest.mark.parametrize("tables", ["fresh", "filled", "analyzed"])
async def test_plans(postgresql_url: str, tables: str) -> None:
    """Each hot statement is entered by its index and sorts nothing, with statistics or without."""
    async with connect(postgresql_url):
        pass
    witness = await asyncpg.connect(postgresql_url, ssl=False)
    wrong = {}
    try:
        for name in ("sessions", "messages", "state"):
            await witness.execute(f"ALTER TABLE {_OURS}{name} SET (autovacuum_enabled = off)")
        if tables != "fresh":
            await witness.execute(_FILL)
        if tables == "analyzed":
            await witness.execute("ANALYZE")
        # As the driver connects.
        await witness.execute("SET enable_bitmapscan = off; SET enable_seqscan = off")
        await witness.execute("SET plan_cache_mode = force_generic_plan")
        for name, (text, indexes) in _statements(postgresql_url).items():
            await witness.execute(f"PREPARE hot AS {text}")
            count = max(int(number) for number in re.findall(r"\$(\d+)", text))
            nulls = ", ".join(["NULL"] * count)
            (row,) = await witness.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE hot({nulls})")
            await witness.execute("DEALLOCATE hot")
            nodes = list(_nodes(json.loads(row[0])[0]["Plan"]))
            used = {
                node["Index Name"].removeprefix(_OURS) for node in nodes if "Index Name" in node
            }
            kinds = {node["Node Type"] for node in nodes}
            if used != indexes or kinds & {"Seq Scan", "Sort", "Incremental Sort"}:
                wrong[name] = used, sorted(kinds)
    finally:
        await witness.close()
    assert [f"{name}: {plan}" for name, plan in wrong.items()] == []
