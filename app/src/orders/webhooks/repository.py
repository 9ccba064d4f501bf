"""All SQL of webhooks. An owner is a customer's identifier, or none: the operators."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import class_row, kwargs_row

from orders.sealing import Place
from orders.webhooks.schemas import Attempt, Delivery, Due, Happened, NewWebhook, Webhook, Why

MOST_ATTEMPTS = 50  # that are kept of a delivery

_COLUMNS = (
    "id, url, types, description, disabled_at IS NULL AS enabled, created_at, failing_since, disabled_at, disabled_because,"
    " CASE WHEN former_until > now() THEN former_until END AS former_secret_until"
)
_OF = "id = %s AND customer_id IS NOT DISTINCT FROM %s"
_CREATE = f"""
INSERT INTO webhook_endpoint (id, customer_id, url, types, description, secret) VALUES (%s, %s, %s, %s, %s, %s)
RETURNING {_COLUMNS}
"""  # noqa: S608  (a constant)
# Whoever switches it on begins anew; what is off already keeps why.
_CHANGE = f"""
UPDATE webhook_endpoint SET url = coalesce(%(url)s, url), types = coalesce(%(types)s::text[], types),
    description = coalesce(%(description)s, description),
    failing_since = CASE WHEN %(enabled)s::boolean AND disabled_at IS NOT NULL THEN NULL ELSE failing_since END,
    disabled_at = CASE %(enabled)s::boolean WHEN true THEN NULL WHEN false THEN coalesce(disabled_at, now())
        ELSE disabled_at END,
    disabled_because = CASE %(enabled)s::boolean WHEN true THEN NULL WHEN false THEN coalesce(disabled_because, 'owner')
        ELSE disabled_because END
WHERE id = %(id)s AND customer_id IS NOT DISTINCT FROM %(owner)s RETURNING {_COLUMNS}
"""  # noqa: S608  (a constant)
_LISTENING = "SELECT DISTINCT customer_id FROM webhook_endpoint WHERE customer_id = ANY (%s) OR customer_id IS NULL"
# One that was switched off has what it misses written down as failed, to be replayed, for as long as it was let fail.
_ADD = """
INSERT INTO webhook_delivery (endpoint_id, event_id, occurred_at, type, body, state, next_at)
SELECT w.id, e.id, e.occurred_at, e.type, e.body, CASE WHEN w.disabled_at IS NULL THEN 'pending' ELSE 'failed' END,
    CASE WHEN w.disabled_at IS NULL THEN now() END
FROM unnest(%s::bigint[], %s::timestamptz[], %s::text[], %s::text[], %s::text[]) AS e (id, occurred_at, type, customer_id, body)
JOIN webhook_endpoint w ON w.customer_id = e.customer_id OR w.customer_id IS NULL
WHERE (w.types = '{}' OR e.type = ANY (w.types)) AND e.occurred_at >= w.created_at
    AND (w.disabled_at IS NULL OR w.disabled_at > now() - make_interval(secs => %s))
ON CONFLICT DO NOTHING RETURNING endpoint_id, state
"""
# Each is taken for a while: who takes it and dies leaves it to others after that. Of an endpoint that fails one at a time.
_CLAIM = """
WITH due AS (
    SELECT event_id, occurred_at FROM webhook_delivery
    WHERE endpoint_id = %(endpoint)s AND state = 'pending' AND next_at <= now() ORDER BY event_id
    LIMIT (SELECT CASE WHEN failing_since IS NULL THEN %(most)s ELSE 1 END FROM webhook_endpoint WHERE id = %(endpoint)s)
    FOR UPDATE SKIP LOCKED
)
UPDATE webhook_delivery d SET next_at = now() + make_interval(secs => %(lease)s)
FROM due JOIN webhook_endpoint w ON w.id = %(endpoint)s AND w.disabled_at IS NULL
WHERE d.endpoint_id = %(endpoint)s AND d.event_id = due.event_id AND d.occurred_at = due.occurred_at
RETURNING d.event_id, d.occurred_at, d.body, d.step, w.url, w.secret,
    CASE WHEN w.former_until > now() THEN w.former_secret END AS former_secret
"""
_LOG = f"CASE WHEN jsonb_array_length(attempts) >= {MOST_ATTEMPTS} THEN attempts - 0 ELSE attempts END || %(attempt)s::jsonb"
_THIS = "endpoint_id = %(endpoint)s AND event_id = %(event)s AND occurred_at = %(occurred_at)s"
_SUCCEED = f"""
WITH delivered AS (UPDATE webhook_delivery SET state = 'delivered', next_at = NULL, attempts = {_LOG} WHERE {_THIS})
UPDATE webhook_endpoint SET failing_since = NULL WHERE id = %(endpoint)s AND failing_since IS NOT NULL
"""  # noqa: S608  (a constant)
# Its time counts from its first failure, which is no earlier than its endpoint's: whatever is given up where nothing else arrives has
# the endpoint switched off in the same transaction.
_GIVEN_UP = "step > 0 AND queued_at <= now() - make_interval(secs => %(patience)s)"
_FAIL = f"""
UPDATE webhook_delivery SET attempts = {_LOG}, step = step + 1,
    queued_at = CASE WHEN step = 0 THEN now() ELSE queued_at END,
    state = CASE WHEN {_GIVEN_UP} THEN 'failed' ELSE 'pending' END,
    next_at = CASE WHEN {_GIVEN_UP} THEN NULL ELSE now() + make_interval(secs => %(wait)s) END
WHERE {_THIS} AND state = 'pending'
"""  # noqa: S608  (a constant)
_BLAME = """
UPDATE webhook_endpoint SET failing_since = coalesce(failing_since, now()),
    disabled_at = CASE WHEN %(gone)s OR failing_since <= now() - make_interval(secs => %(patience)s) THEN now() END,
    disabled_because = CASE WHEN %(gone)s THEN 'gone'
        WHEN failing_since <= now() - make_interval(secs => %(patience)s) THEN 'failing' END
WHERE id = %(endpoint)s AND disabled_at IS NULL
    AND (%(gone)s OR failing_since IS NULL OR failing_since <= now() - make_interval(secs => %(patience)s))
RETURNING disabled_because
"""
_GIVE_UP = "UPDATE webhook_delivery SET state = 'failed', next_at = NULL WHERE endpoint_id = %s AND state = 'pending'"
_DUE = """
SELECT d.endpoint_id, extract(epoch FROM now() - min(d.next_at))::float8 FROM webhook_delivery d
JOIN webhook_endpoint w ON w.id = d.endpoint_id AND w.disabled_at IS NULL
WHERE d.state = 'pending' AND d.next_at <= now() GROUP BY d.endpoint_id ORDER BY min(d.next_at) LIMIT %s
"""
_PAGE = """
SELECT event_id::text, type, occurred_at, state, attempts::text, next_at FROM webhook_delivery
WHERE endpoint_id = %s AND event_id < %s AND (%s::text IS NULL OR state = %s::text) ORDER BY event_id DESC LIMIT %s
"""
_AGAIN = "state = 'pending', queued_at = now(), next_at = now(), step = 0"
_REPLAY_SINCE = f"""
WITH failed AS (
    SELECT event_id, occurred_at FROM webhook_delivery
    WHERE endpoint_id = %(endpoint)s AND state = 'failed' AND occurred_at >= %(since)s ORDER BY event_id LIMIT %(limit)s
    FOR UPDATE
)
UPDATE webhook_delivery d SET {_AGAIN} FROM failed
WHERE d.endpoint_id = %(endpoint)s AND d.event_id = failed.event_id AND d.occurred_at = failed.occurred_at AND d.state = 'failed'
"""  # noqa: S608  (a constant)

_ATTEMPTS = msgspec.json.Decoder(list[Attempt])
_ENCODER = msgspec.json.Encoder()


def places(endpoint_id: UUID) -> tuple[Place, Place]:
    """Return where an endpoint's secret and the one before it are."""
    row = str(endpoint_id)
    return Place("webhook_endpoint", "secret", row), Place("webhook_endpoint", "former_secret", row)


class WebhookRepository:
    """Reads and writes endpoints and deliveries; a caller's connection decides the transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    # Endpoints

    async def of(self, owner: str | None) -> list[Webhook]:
        """Return all endpoints of an owner, the oldest first."""
        statement = (
            f"SELECT {_COLUMNS} FROM webhook_endpoint WHERE customer_id IS NOT DISTINCT FROM %s ORDER BY created_at, id"  # noqa: S608
        )
        async with self._connection.cursor(row_factory=kwargs_row(Webhook)) as cursor:
            return await (await cursor.execute(statement, (owner,))).fetchall()

    async def get(self, endpoint_id: UUID, owner: str | None) -> Webhook | None:
        """Return an owner's endpoint."""
        return await self._one(f"SELECT {_COLUMNS} FROM webhook_endpoint WHERE {_OF}", (endpoint_id, owner))  # noqa: S608

    async def count(self, owner: str | None) -> int:
        """Return how many endpoints an owner has, and let nobody else add one until the transaction's end."""
        key = f"webhook_endpoint of {owner or ''}"
        await self._connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (key,))
        statement = "SELECT count(*) FROM webhook_endpoint WHERE customer_id IS NOT DISTINCT FROM %s"
        row = await (await self._connection.execute(statement, (owner,))).fetchone()
        assert row is not None
        return int(row[0])

    async def create(self, endpoint_id: UUID, owner: str | None, new: NewWebhook, secret: bytes) -> Webhook:
        """Make an endpoint and return it."""
        made = await self._one(_CREATE, (endpoint_id, owner, new.url, list(new.types), new.description, secret))
        assert made is not None
        return made

    async def change(
        self,
        endpoint_id: UUID,
        owner: str | None,
        *,
        url: str | None,
        types: Sequence[str] | None,
        description: str | None,
        enabled: bool | None,
    ) -> Webhook | None:
        """Change what is given of an endpoint and return it; none if the owner has none like that."""
        changed = await self._one(
            _CHANGE,
            {
                "id": endpoint_id,
                "owner": owner,
                "url": url,
                "types": None if types is None else list(types),
                "description": description,
                "enabled": enabled,
            },
        )
        if changed and not changed.enabled:
            await self._connection.execute(_GIVE_UP, (endpoint_id,))
        return changed

    async def delete(self, endpoint_id: UUID, owner: str | None) -> bool:
        """Have no such endpoint; return whether there was one. Its deliveries go with their month."""
        deleted = await self._connection.execute(f"DELETE FROM webhook_endpoint WHERE {_OF}", (endpoint_id, owner))  # noqa: S608
        if deleted.rowcount:
            await self._connection.execute(_GIVE_UP, (endpoint_id,))
        return bool(deleted.rowcount)

    async def secret(self, endpoint_id: UUID, owner: str | None) -> bytes | None:
        """Return an endpoint's secret as it is stored, and let nobody change it until the transaction's end."""
        row = await (
            await self._connection.execute(
                f"SELECT secret FROM webhook_endpoint WHERE {_OF} FOR UPDATE",  # noqa: S608
                (endpoint_id, owner),
            )
        ).fetchone()
        return row[0] if row else None

    async def rotate(self, endpoint_id: UUID, secret: bytes, former: bytes, seconds: int) -> datetime:
        """Replace an endpoint's secret; the one before it signs too for some seconds. Return until when."""
        row = await (
            await self._connection.execute(
                "UPDATE webhook_endpoint SET secret = %s, former_secret = %s, former_until = now() + make_interval(secs => %s)"
                " WHERE id = %s RETURNING former_until",
                (secret, former, seconds, endpoint_id),
            )
        ).fetchone()
        assert row is not None
        until: datetime = row[0]
        return until

    # Deliveries

    async def page(self, endpoint_id: UUID, *, before: int, state: str | None, limit: int) -> list[Delivery]:
        """Return up to `limit` deliveries of events before one, the newest first."""
        rows = await self._connection.execute(_PAGE, (endpoint_id, before, state, state, limit))
        return [
            Delivery(event_id, kind, occurred_at, now, _ATTEMPTS.decode(attempts), next_at)
            async for event_id, kind, occurred_at, now, attempts, next_at in rows
        ]

    async def replay(self, endpoint_id: UUID, event_id: int) -> bool:
        """Have a delivery made again, whatever came of it; return whether there is such a one."""
        statement = f"UPDATE webhook_delivery SET {_AGAIN} WHERE endpoint_id = %s AND event_id = %s"  # noqa: S608
        return bool((await self._connection.execute(statement, (endpoint_id, event_id))).rowcount)

    async def replay_since(self, endpoint_id: UUID, since: datetime, limit: int) -> int:
        """Have up to `limit` deliveries made again that failed, of events from a time on; return how many."""
        parameters = {"endpoint": endpoint_id, "since": since, "limit": limit}
        return (await self._connection.execute(_REPLAY_SINCE, parameters)).rowcount

    # The worker's

    def savepoint(self) -> AbstractAsyncContextManager[object]:
        """Return what undoes a part of the caller's transaction if that part fails."""
        return self._connection.transaction()

    async def listening(self, customers: Iterable[str]) -> set[str | None]:
        """Return which of these customers have endpoints, and none where the operators do."""
        rows = await self._connection.execute(_LISTENING, ([*customers],))
        return {customer_id async for (customer_id,) in rows}

    async def add(self, events: Sequence[Happened], patience: float) -> set[UUID]:
        """Write down for whom events are, each once; return the endpoints that are to get one now."""
        columns = [list(column) for column in zip(*events, strict=True)]
        rows = await self._connection.execute(_ADD, (*columns, patience))
        return {endpoint_id async for endpoint_id, state in rows if state == "pending"}

    async def due(self, limit: int) -> dict[UUID, float]:
        """Return up to `limit` endpoints to which something is to be sent now, and for how many seconds it has been due."""
        return {endpoint_id: seconds async for endpoint_id, seconds in await self._connection.execute(_DUE, (limit,))}

    async def claim(self, endpoint_id: UUID, *, most: int, lease: float) -> list[Due]:
        """Take up to `most` deliveries of an endpoint that are due, in the order of their events, for some seconds."""
        parameters = {"endpoint": endpoint_id, "most": most, "lease": lease}
        async with self._connection.cursor(row_factory=class_row(Due)) as cursor:
            found = await (await cursor.execute(_CLAIM, parameters)).fetchall()
        return sorted(found, key=lambda due: due.event_id)

    async def succeed(self, endpoint_id: UUID, due: Due, attempt: Attempt) -> None:
        """Note that a delivery was made."""
        await self._connection.execute(_SUCCEED, self._record(endpoint_id, due, attempt))

    async def fail(
        self, endpoint_id: UUID, due: Due, attempt: Attempt, *, wait: float, patience: float, gone: bool
    ) -> Why | None:
        """Note that a delivery failed: it waits some seconds, or is given up. Return why its endpoint is now off, if it is."""
        parameters = self._record(endpoint_id, due, attempt) | {"wait": wait, "patience": patience, "gone": gone}
        await self._connection.execute(_FAIL, parameters)
        row = await (await self._connection.execute(_BLAME, parameters)).fetchone()
        if row is None or row[0] is None:
            return None
        await self._connection.execute(_GIVE_UP, (endpoint_id,))
        why: Why = row[0]
        return why

    @staticmethod
    def _record(endpoint_id: UUID, due: Due, attempt: Attempt) -> dict[str, object]:
        return {
            "endpoint": endpoint_id,
            "event": due.event_id,
            "occurred_at": due.occurred_at,
            "attempt": _ENCODER.encode([attempt]).decode(),
        }

    async def _one(self, statement: str, parameters: object) -> Webhook | None:
        async with self._connection.cursor(row_factory=kwargs_row(Webhook)) as cursor:
            await cursor.execute(statement, parameters)  # type: ignore[call-overload]
            return await cursor.fetchone()
