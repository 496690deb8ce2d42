"""What MySQL does in one round trip, for which the generic jobs take several."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.engine.interfaces import Dialect

from agentstore.driver import TOUCH_INTERVAL

from ._mysql_pool import BEGIN
from ._statements import Statements, draw_number

# The session is locked until the commit, which is what orders the `seq`. Where there is none that
# may be appended to, the message finds no session, and the error ends the statements there.
_APPEND = (
    BEGIN,
    "SET @pk = NULL",
    """
    SELECT pk, next_seq INTO @pk, @first FROM {sessions}
    WHERE tenant = %s AND session_id = %s AND (expires_at IS NULL OR expires_at > {now})
      AND (%s IS NULL OR user_id = %s) AND (%s IS NULL OR last_seq = %s)
    FOR UPDATE
    """,
    """
    INSERT INTO {messages} (session_pk, seq, id, digest, body, tokens, created_at)
    VALUES {rows}
    """,
    """
    UPDATE {sessions} SET
      next_seq = @first + {count}, last_seq = @first + {count} - 1,
      message_count = message_count + {count},
      updated_at = IF({now} - updated_at >= {touch}, {now}, updated_at),
      expires_at = COALESCE({now} + %s, expires_at)
    WHERE pk = @pk
    """,
    "COMMIT",
    "SELECT @first",
)
_ROW = "(@pk, @first + {place}, %s, %s, %s, %s, %s)"
# Not INSERT IGNORE: that cuts values to fit, too.
_BEGIN_SESSION = """
INSERT INTO {sessions} (
  tenant, session_id, user_id, agent, title, metadata, created_at, updated_at, expires_at,
  next_seq, last_seq, message_count, operation, dropped
) VALUES (%s, %s, %s, %s, NULL, '{{}}', {now}, {now}, NULL, 1, 0, 0, '', 0)
ON DUPLICATE KEY UPDATE pk = pk
"""
# How a value of state changes: whatever is there, only where nothing is, or this version alone.
# Where this operation was here before, nothing changes; so `operation` comes last.
_INSERT = """
INSERT INTO {state} (tenant, scope, owner, `key`, value, expires_at, operation, version)
VALUES (%s, %s, %s, %s, %s, {now} + %s, %s, LAST_INSERT_ID())
"""
_PUT = f"""
{_INSERT}
ON DUPLICATE KEY UPDATE
  value = IF(operation = VALUES(operation), value, VALUES(value)),
  version = IF(operation = VALUES(operation), version, VALUES(version)),
  expires_at = IF(operation = VALUES(operation), expires_at, VALUES(expires_at)),
  operation = VALUES(operation)
"""
_REPLACE = """
UPDATE {state} SET version = LAST_INSERT_ID(), value = %s, expires_at = {now} + %s, operation = %s
WHERE tenant = %s AND scope = %s AND owner = %s AND `key` = %s
  AND version = %s AND (expires_at IS NULL OR expires_at > {now})
"""
# A change that found nothing to change has no version.
_CHANGE = (
    BEGIN,
    "SET @version = NULL",
    draw_number("{versions}"),
    "{change}",
    """
    SELECT version INTO @version FROM {state}
    WHERE tenant = %s AND scope = %s AND owner = %s AND `key` = %s AND operation = %s
    """,
    "COMMIT",
    "SELECT @version",
)
_CHECK = """
SELECT @@max_allowed_packet, @@read_only, @@innodb_flush_log_at_trx_commit = 1,
  @@sql_mode LIKE '%%STRICT%%', (SELECT version_num FROM {version})
"""


class Trip(NamedTuple):
    """Several statements that are sent together."""

    text: str

    @property
    def statements(self) -> int:
        """How many they are: what is a value in them is not in the text yet."""
        return self.text.count(";") + 1


class SingleTrips:
    """The texts over one set of tables."""

    def __init__(self, statements: Statements, dialect: Dialect) -> None:
        tables, preparer = statements.tables, dialect.identifier_preparer
        self._names = {
            "sessions": preparer.format_table(tables.sessions),
            "messages": preparer.format_table(tables.messages),
            "state": preparer.format_table(tables.state),
            "version": preparer.quote(tables.version),
            "versions": preparer.quote(f"{tables.prefix}versions"),
            "now": str(statements.now),
            "touch": TOUCH_INTERVAL,
        }
        self.check = _CHECK.format_map(self._names)
        self.put, self.insert, self.replace = map(self._change, (_PUT, _INSERT, _REPLACE))

    def _change(self, change: str) -> Trip:
        text = ";".join(_CHANGE).replace("{change}", change)
        return Trip(text.format_map(self._names))

    def append(self, count: int, *, begin: bool) -> Trip:
        """Give the statements that append so many messages.

        With `begin`, the session is made where it never was.
        """
        rows = ", ".join(_ROW.format(place=place) for place in range(count))
        parts = [_APPEND[0], *((_BEGIN_SESSION,) if begin else ()), *_APPEND[1:]]
        names = {**self._names, "rows": rows, "count": count}
        return Trip(";".join(parts).format_map(names))
