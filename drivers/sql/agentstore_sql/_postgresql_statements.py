"""What PostgreSQL does in one statement, for which the generic jobs take several.

Each gives no row and changes nothing where there is something to decide; then the job decides.
"""

from __future__ import annotations

from sqlalchemy.engine.interfaces import Dialect

from agentstore.driver import TOUCH_INTERVAL

from ._statements import Statements

# For a session of the right owner that is there, or for one that never was: not for one that
# expired or was deleted, for another owner's, or for one with another last `seq`.
# The row of the session is locked until the commit, which is what orders the `seq`.
_APPEND = """
WITH session AS (
  INSERT INTO {sessions} AS old (
    tenant, session_id, user_id, agent, title, metadata, created_at, updated_at, expires_at,
    next_seq, last_seq, message_count, operation, dropped
  )
  SELECT $1::text, $2::text, $3::text, $4::text, NULL, '{{}}', now, now, now + $5::bigint,
    $7::bigint + 1, $7::bigint, $7::bigint, '', 0
  FROM (SELECT {now}) AS at (now)
  WHERE coalesce($6::bigint, 0) = 0
    OR EXISTS (
      SELECT FROM {sessions}
      WHERE tenant = $1::text AND session_id = $2::text AND last_seq = $6::bigint
    )
  ON CONFLICT (tenant, session_id) DO UPDATE SET
    next_seq = old.next_seq + $7::bigint,
    last_seq = old.next_seq + $7::bigint - 1,
    message_count = old.message_count + $7::bigint,
    updated_at = CASE WHEN excluded.updated_at - old.updated_at >= {touch}
      THEN excluded.updated_at ELSE old.updated_at END,
    expires_at = coalesce(excluded.expires_at, old.expires_at)
  WHERE (old.expires_at IS NULL OR old.expires_at > excluded.updated_at)
    AND ($3::text IS NULL OR old.user_id = $3::text)
    AND ($6::bigint IS NULL OR old.last_seq = $6::bigint)
  RETURNING pk, next_seq - $7::bigint AS first
)
INSERT INTO {messages} (session_pk, seq, id, digest, body, tokens, created_at)
SELECT pk, first + place - 1, id, digest, body, tokens, created_at
FROM session, unnest($8::text[], $9::bytea[], $10::text[], $11::bigint[], $12::bigint[])
  WITH ORDINALITY AS message (id, digest, body, tokens, created_at, place)
RETURNING seq
"""

# Whatever is there, or (with $8) only where nothing is, or nothing that has not expired.
# Not where this operation was here before.
_PUT = """
INSERT INTO {state} AS old (tenant, scope, owner, key, value, version, expires_at, operation)
VALUES ($1::text, $2::text, $3::text, $4::text, $5::text, nextval('{versions}'),
  {now} + $6::bigint, $7::text)
ON CONFLICT (tenant, scope, owner, key) DO UPDATE SET
  value = excluded.value, version = excluded.version, expires_at = excluded.expires_at,
  operation = excluded.operation
WHERE old.operation <> excluded.operation AND (NOT $8::boolean OR old.expires_at <= {now})
RETURNING version
"""

# Where this version is there, and nobody has to be told that it is not.
_REPLACE = """
UPDATE {state} SET
  value = $5::text, version = nextval('{versions}'), expires_at = {now} + $6::bigint,
  operation = $7::text
WHERE tenant = $1::text AND scope = $2::text AND owner = $3::text AND key = $4::text
  AND version = $8::bigint AND (expires_at IS NULL OR expires_at > {now})
RETURNING version
"""

_CHECK = """
SELECT current_setting('server_encoding'), current_setting('transaction_read_only') = 'on',
  current_setting('synchronous_commit') <> 'off' AND current_setting('fsync') = 'on',
  (SELECT version_num FROM {version})
"""


class SingleStatements:
    """The texts over one set of tables."""

    def __init__(self, statements: Statements, dialect: Dialect) -> None:
        tables, preparer = statements.tables, dialect.identifier_preparer
        within = f"{preparer.quote(tables.schema)}." if tables.schema else ""
        names = {
            "sessions": preparer.format_table(tables.sessions),
            "messages": preparer.format_table(tables.messages),
            "state": preparer.format_table(tables.state),
            "version": within + preparer.quote(tables.version),
            "versions": within + preparer.quote(f"{tables.prefix}versions"),
            "now": str(statements.now),
            "touch": TOUCH_INTERVAL,
        }
        self.append = _APPEND.format_map(names)
        self.put = _PUT.format_map(names)
        self.replace = _REPLACE.format_map(names)
        self.check = _CHECK.format_map(names)
