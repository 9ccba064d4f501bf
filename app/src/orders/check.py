"""Whether what the service has written down fits together, and whether every order that it accepted is somewhere.

All but the look into the queues is read from one snapshot of the primary, with the service's own rights, and nothing is written.
"""

import argparse
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg import Connection, IsolationLevel

from orders.dead_letters import QUEUE, DeadLetter, dead_letters
from orders.errors import CommandError
from orders.ordering.identity import CONTENT_BYTES
from orders.settings import Settings
from orders.worker.reading import DeadLetterError, parse

MOST_NAMED = 20
# What is looked at in a queue is kept from the workers meanwhile.
MOST_QUEUED = 10_000
LANES = ("intake-1", "intake-2", "intake-3")
# A worker may hold an order that is in no queue and in no store.
HELD_SECONDS = 20.0
CONNECT_SECONDS = 8.0
_LOOK_SECONDS = 1.0
_CONTENT = f"substring(uuid_send(id) FROM 1 FOR {CONTENT_BYTES})"

# What an order in a state must have brought: its events, in this order.
_EVENTS = """
(VALUES ('settled', ARRAY['order.settled']), ('refused', ARRAY['order.refused']),
    ('shipped', ARRAY['order.settled', 'order.shipped']),
    ('delivered', ARRAY['order.settled', 'order.shipped', 'order.delivered']),
    ('cancelled', ARRAY['order.settled', 'order.cancelled'])) AS t (state, types)
"""

# The end of the last month of the ledger that is set apart.
_KEPT_SINCE = """
SELECT coalesce(max(m.ends_at), '-infinity') FROM ledger_month m
WHERE NOT EXISTS (SELECT FROM ledger_partition p WHERE p.ends_at = m.ends_at)
"""
_APART = """
SELECT m.name, m.entries FROM ledger_month m
WHERE NOT EXISTS (SELECT FROM ledger_partition p WHERE p.ends_at = m.ends_at) ORDER BY m.ends_at
"""

_ORDER = ("order", "orders")


class Check(NamedTuple):
    """Something that must hold, for each of what it is about."""

    name: str
    about: str  # SQL of how many there are
    things: str  # what these are
    subject: tuple[str, str]  # what it does not hold for: one, and more of them
    fault: str
    query: str  # of those, one text each


CHECKS = (
    Check(
        "once",
        "SELECT count(*) FROM orders",
        "orders",
        _ORDER,
        "decided more than once",
        # The indexes are not trusted: their promise is what is checked.
        f"""
        SELECT string_agg(id::text, ' = ' ORDER BY id) FROM orders GROUP BY {_CONTENT} HAVING count(*) > 1
        UNION ALL
        SELECT string_agg(id::text, ' = ' ORDER BY id) FROM orders WHERE refusal IS DISTINCT FROM 'key_reused'
        GROUP BY customer_id, idempotency_key HAVING count(*) > 1 AND count(DISTINCT {_CONTENT}) > 1
        """,  # noqa: S608  (a constant)
    ),
    Check(
        "states",
        "SELECT count(*) FROM orders",
        "orders",
        _ORDER,
        "in a state that does not fit the rest",
        f"""
        SELECT o.id || ' (' || o.state || ')' FROM orders o
        WHERE NOT EXISTS (SELECT FROM {_EVENTS} WHERE t.state = o.state)
            OR (o.state = 'refused') <> (o.refusal IS NOT NULL) OR (o.state = 'refused') <> (o.total_cents IS NULL)
            OR (o.total_cents IS NULL) <> (o.currency IS NULL)
            OR (o.state IN ('settled', 'refused')) <> (o.changed_at IS NULL)
        """,  # noqa: S608  (a constant)
    ),
    Check(
        "lines",
        "SELECT count(*) FROM order_line",
        "lines",
        _ORDER,
        "with another total than that of the lines",
        """
        SELECT coalesce(o.id, l.order_id)::text FROM orders o FULL JOIN (
            SELECT order_id, sum(quantity * unit_price_cents) AS total_cents FROM order_line GROUP BY order_id
        ) l ON l.order_id = o.id
        WHERE o.id IS NULL OR l.order_id IS NULL OR o.state <> 'refused' AND o.total_cents IS DISTINCT FROM l.total_cents
        """,
    ),
    Check(
        "stock",
        "SELECT count(*) FROM stock",
        "products",
        ("product", "products"),
        "with another number of pieces than came, less those that were sold",
        """
        SELECT sku || ' (' || coalesce(s.quantity, 0) || ', not ' || coalesce(c.pieces, 0) - coalesce(o.pieces, 0) || ')'
        FROM stock s
        FULL JOIN (SELECT sku, sum(change) AS pieces FROM stock_change GROUP BY sku) c USING (sku)
        FULL JOIN (
            SELECT l.sku, sum(l.quantity) AS pieces FROM order_line l JOIN orders o ON o.id = l.order_id
            WHERE o.state IN ('settled', 'shipped', 'delivered') GROUP BY l.sku
        ) o USING (sku)
        WHERE s.quantity < 0 OR coalesce(s.quantity, 0) <> coalesce(c.pieces, 0) - coalesce(o.pieces, 0)
        """,
    ),
    Check(
        "ledger",
        "SELECT count(*) FROM ledger_entry",
        "entries",
        _ORDER,
        "with other entries than the state implies",
        # Where the month is set apart no entries are expected, unless they were booked later than it happened.
        f"""
        WITH due AS (
            SELECT o.id AS order_id, e.account, k.kind, k.sign * e.amount_cents AS amount_cents, o.currency,
                CASE k.kind WHEN 'sale' THEN o.decided_at ELSE o.changed_at END >= ({_KEPT_SINCE}) AS is_kept
            FROM orders o
            JOIN (VALUES ('sale', 1), ('reversal', -1)) AS k (kind, sign) ON k.kind = 'sale' OR o.state = 'cancelled',
            LATERAL (VALUES ('customer:' || o.customer_id, o.total_cents), ('revenue', -o.total_cents))
                AS e (account, amount_cents)
            WHERE o.state <> 'refused'
        ), booked AS (
            SELECT order_id, account, kind, amount_cents, currency, count(*) AS times FROM ledger_entry
            GROUP BY order_id, account, kind, amount_cents, currency
        )
        SELECT DISTINCT order_id::text FROM due d
        FULL JOIN booked b USING (order_id, account, kind, amount_cents, currency)
        WHERE d.is_kept IS NULL OR b.times > 1 OR (b.times IS NULL AND d.is_kept)
        """,  # noqa: S608  (a constant)
    ),
    Check(
        "balance",
        "SELECT count(DISTINCT currency) FROM ledger_entry",
        "currencies",
        ("currency", "currencies"),
        "in which the ledger does not sum to zero",
        """
        SELECT currency || ' (' || sum(amount_cents) || ')' FROM (
            SELECT currency, amount_cents FROM ledger_balance
            UNION ALL
            SELECT currency, amount_cents FROM ledger_entry
            WHERE occurred_at >= coalesce((SELECT max(ends_at) FROM ledger_month), '-infinity')
        ) booked GROUP BY currency HAVING sum(amount_cents) <> 0
        """,
    ),
    Check(
        "months",
        "SELECT count(*) FROM ledger_month",
        "closed months of the ledger",
        ("month", "months"),
        "closed with other balances than the entries make",
        # Of a month that is set apart no more is known than how many entries it had.
        """
        WITH booked AS (
            SELECT p.ends_at, e.account, e.currency, sum(e.amount_cents) AS amount_cents, count(*) AS entries
            FROM ledger_entry e JOIN ledger_partition p ON p.oid = e.tableoid
            WHERE e.occurred_at < (SELECT max(ends_at) FROM ledger_month) GROUP BY p.ends_at, e.account, e.currency
        ), kept AS (
            SELECT b.* FROM ledger_balance b JOIN ledger_partition p USING (ends_at)
        ), wrong AS (
            SELECT ends_at FROM booked b FULL JOIN kept k USING (ends_at, account, currency)
            WHERE (b.amount_cents, b.entries) IS DISTINCT FROM (k.amount_cents, k.entries)
            UNION
            SELECT m.ends_at FROM ledger_month m LEFT JOIN ledger_balance b USING (ends_at)
            GROUP BY m.ends_at, m.entries HAVING m.entries <> coalesce(sum(b.entries), 0)
        )
        SELECT coalesce(m.name, p.name, w.ends_at::text) FROM wrong w
        LEFT JOIN ledger_month m USING (ends_at) LEFT JOIN ledger_partition p USING (ends_at)
        """,
    ),
    Check(
        "events",
        "SELECT count(*) FROM event",
        "events",
        _ORDER,
        "with other events than the state implies",
        # Of what was decided before the first event that there is, the last events may be there: older months were detached,
        # or there were no events yet.
        f"""
        WITH told AS (
            SELECT order_id, array_agg(type ORDER BY id) AS types FROM event GROUP BY order_id
        ), began AS (
            SELECT min(occurred_at) AS since FROM event
        )
        SELECT coalesce(o.id, e.order_id)::text FROM orders o LEFT JOIN {_EVENTS} USING (state)
        FULL JOIN told e ON e.order_id = o.id CROSS JOIN began
        WHERE o.id IS NULL OR t.types IS NULL OR NOT CASE
            WHEN o.decided_at < began.since OR began.since IS NULL THEN e.types IS NULL
                OR e.types = t.types[cardinality(t.types) - cardinality(e.types) + 1 : cardinality(t.types)]
            ELSE e.types IS NOT DISTINCT FROM t.types END
        """,  # noqa: S608  (a constant)
    ),
)
# The relay is to have published what happened longer ago.
_OUTBOX = Check(
    "outbox",
    "SELECT count(*) FROM event",
    "events",
    ("event", "events"),
    "not published in time",
    """
    SELECT e.id || ' (order ' || e.order_id || ')' FROM event e LEFT JOIN relay r ON r.name = 'events'
    WHERE (e.xid, e.id) > (coalesce(r.xid, '0'), coalesce(r.id, 0))
        AND e.occurred_at < now() - make_interval(secs => %(seconds)s)
    """,
)
_DECIDED = f"SELECT {_CONTENT} FROM orders WHERE {_CONTENT} = ANY (%s)"  # noqa: S608  (a constant)


class Report:
    """What was found, said line by line as it is found."""

    def __init__(self) -> None:
        self.failed = False

    def well(self, name: str, text: str) -> None:
        """Say that something holds."""
        print(f"ok   {name}: {text}", flush=True)

    def warn(self, name: str, text: str) -> None:
        """Say something that somebody may want to act on."""
        print(f"warn {name}: {text}", flush=True)

    def fail(self, name: str, text: str) -> None:
        """Say that something does not hold."""
        self.failed = True
        print(f"FAIL {name}: {text}", flush=True)


def run(settings: Settings, arguments: argparse.Namespace) -> None:
    """Look at everything; exit with 1 if something does not hold.

    Raises:
        CommandError: not everything could be looked at.
    """
    accepted = _read(arguments.accepted) if arguments.accepted else {}
    report = Report()
    with _primary(settings) as connection:
        with connection.transaction():
            for check in CHECKS:
                _look(connection, report, check)
            apart = connection.execute(_APART).fetchall()
            if apart:
                names = _named([name for name, _ in apart])
                report.well(
                    "apart", f"{sum(entries for _, entries in apart):,} entries, which are not looked at: {names}"
                )
            _look(connection, report, _OUTBOX, seconds=arguments.outbox_seconds)
        if arguments.accepted:
            _account(settings, connection, report, accepted)
    _count_dead_letters(settings, report, refuse=arguments.no_dead_letters)
    if report.failed:
        sys.exit(1)


@contextmanager
def _primary(settings: Settings) -> Iterator[Connection]:
    try:
        with _connect(settings) as connection:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            yield connection
    except psycopg.Error as error:
        raise CommandError(f"The database cannot be looked at: {str(error).strip()}") from error


def _connect(settings: Settings) -> Connection:
    # For as long as a planned switchover takes.
    until = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return psycopg.connect(settings.conninfo(settings.database_url), autocommit=True, prepare_threshold=None)
        except psycopg.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(_LOOK_SECONDS)


def _look(connection: Connection, report: Report, check: Check, **parameters: object) -> None:
    query = f"""
    WITH found (named) AS ({check.query})
    SELECT ({check.about}), (SELECT count(*) FROM found), ARRAY(SELECT named FROM found ORDER BY named LIMIT {MOST_NAMED})
    """  # noqa: S608  (constants)
    row: tuple[int, int, list[str]] | None = connection.execute(query, parameters or None).fetchone()
    assert row is not None
    about, count, named = row
    if count:
        report.fail(check.name, f"{_counted(count, check.subject)} {check.fault}: {_named(named, count)}")
    else:
        report.well(check.name, f"{about:,} {check.things}")


def _account(settings: Settings, connection: Connection, report: Report, accepted: Mapping[bytes, str]) -> None:
    """Say of accepted orders, by their contents, whether each is decided or queued."""
    until = time.monotonic() + HELD_SECONDS
    undecided = _undecided(connection, accepted)
    queued: dict[bytes, str] = {}
    lost = undecided
    while lost:
        # First the queues, then the database: an order goes from there to here, and not back.
        queued = _queued(settings, undecided)
        undecided = _undecided(connection, undecided)
        lost = undecided - queued.keys()
        if lost and time.monotonic() > until:
            break
        if lost:
            time.sleep(_LOOK_SECONDS)
    if waiting := sorted(f"{accepted[each]} ({queued[each]})" for each in undecided - lost):
        report.warn("queued", f"{_counted(len(waiting), _ORDER)} not decided yet: {_named(waiting)}")
    if lost:
        text = f"{_counted(len(lost), _ORDER)} lost, neither decided nor queued"
        report.fail("accepted", f"{text}: {_named(sorted(accepted[each] for each in lost))}")
    else:
        report.well(
            "accepted", f"{_counted(len(accepted), _ORDER)}, {len(accepted) - len(undecided):,} of them decided"
        )


def _read(path: str) -> Mapping[bytes, str]:
    """Return the identifiers of a file, or of the standard input for `-`, one a line, by what the content decides of them."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from error
    found = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line:
            continue
        try:
            identifier = UUID(line)
        except ValueError as error:
            raise CommandError(f"{path}: line {number} is no identifier: {line[:80]!a}") from error
        found[identifier.bytes[:CONTENT_BYTES]] = str(identifier)
    return found


def _undecided(connection: Connection, contents: Iterable[bytes]) -> set[bytes]:
    """Return those of contents for which there is no order now."""
    wanted = {*contents}
    with connection.transaction():
        return wanted - {content for (content,) in connection.execute(_DECIDED, ([*wanted],))}


def _queued(settings: Settings, contents: Collection[bytes]) -> dict[bytes, str]:
    """Return which of contents are in a queue, and in which; what is looked at goes back when all was.

    Raises:
        CommandError: no broker lets us in, or there is more than may be kept from the workers.
    """
    found: dict[bytes, str] = {}
    with dead_letters(settings) as letters:
        for queue in (*LANES, QUEUE):
            for number, letter in enumerate(letters.of(queue), 1):
                if number > MOST_QUEUED:
                    raise CommandError(f"{queue} has more than {MOST_QUEUED:,} messages. Look again once it has less.")
                found |= {content: queue for content in _contents(letter) if content in contents}
    return found


def _contents(letter: DeadLetter) -> set[bytes]:
    """Return what the contents decide of the identifiers of a message's orders; what has none is not among them."""
    found = set()
    for body in letter.bodies:
        with suppress(DeadLetterError):
            found.add(parse(body).id.bytes[:CONTENT_BYTES])
    if not found:
        with suppress(ValueError):
            found.add(UUID(letter.properties.message_id or "").bytes[:CONTENT_BYTES])
    return found


def _count_dead_letters(settings: Settings, report: Report, *, refuse: bool) -> None:
    with dead_letters(settings) as letters:
        # In their number, but not further than what may be looked at.
        found = sorted(letter.identifier for letter, _ in zip(letters, range(MOST_QUEUED), strict=False))
    if not found:
        report.well("dead letters", "none")
        return
    text = f"{_counted(len(found), ('message', 'messages'))} that settled no order: {_named(found)}"
    (report.fail if refuse else report.warn)("dead letters", text)


def _counted(count: int, subject: tuple[str, str]) -> str:
    return f"{count:,} {subject[count != 1]}"


def _named(found: Sequence[str], count: int = 0) -> str:
    named = ", ".join(found[:MOST_NAMED])
    more = max(count, len(found)) - MOST_NAMED
    return f"{named} ... and {more:,} more" if more > 0 else named
