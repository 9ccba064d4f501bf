"""Months of events and ledger: made ahead of their time, the ledger's closed when they are over, and set apart when they are old."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import psycopg
import pytest

from orders.settings import Settings
from servers import wait_until
from service import NUMBERS, Api, Platform, Workers

DATABASE = "months"


@pytest.fixture(scope="module")
def months(platform: Platform) -> Iterator[psycopg.Connection]:
    """Have a database with an event in each of three old months, the ledger's and deliveries' as well, and connect as its superuser."""
    platform.postgres.make_database(DATABASE)
    url = platform.postgres.url(database=DATABASE)
    assert platform.finish("migrate", ORDERS_DATABASE_URL=url)[0] == 0
    with platform.postgres.admin(DATABASE) as connection:
        for table, month, after in (
            *(
                ("event", "2020_01", "2020-02-01"),
                ("event", "2020_02", "2020-03-01"),
                ("event", "2020_03", "2020-04-01"),
            ),
            ("ledger_entry", "2020_01", "2020-02-01"),
            ("webhook_delivery", "2020_01", "2020-02-01"),
        ):
            first = f"{month.replace('_', '-')}-01"
            connection.execute(
                f"CREATE TABLE {table}_{month} PARTITION OF {table} FOR VALUES FROM ('{first} UTC') TO ('{after} UTC');"
                f"ALTER TABLE {table}_{month} OWNER TO orders_owner"
            )
        for number in (1, 2, 3):
            connection.execute(
                "INSERT INTO event (order_id, customer_id, type, body, occurred_at)"
                " VALUES (gen_random_uuid(), 'c1', 'order.settled', '{}', %s)",
                (datetime(2020, number, 15, tzinfo=UTC),),
            )
        yield connection


def keep(platform: Platform, number: object, *more: str, database: str = DATABASE) -> tuple[int, str]:
    """Run the command."""
    url = platform.postgres.url(database=database)
    return platform.finish("partitions", "--keep-months", str(number), *more, ORDERS_DATABASE_URL=url)


def publish(connection: psycopg.Connection, before: str) -> None:
    """Have the relay's cursor behind every event that happened before a day."""
    connection.execute(
        "UPDATE relay SET (xid, id) = (SELECT xid, id FROM event WHERE occurred_at < %s ORDER BY xid DESC, id DESC LIMIT 1)",
        (before,),
    )


def attached(connection: psycopg.Connection, table: str) -> list[str]:
    """Return the months of a table that are old."""
    rows = connection.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1", (table,)
    ).fetchall()
    return [name.removeprefix(f"{table}_") for (name,) in rows if "_20" in name and "_2020_" in name]


def test_old_months_of_events_are_detached_once_published_and_never_dropped(
    platform: Platform, months: psycopg.Connection
) -> None:
    publish(months, "2020-02-01")
    now = datetime.now(UTC)
    since_march = (
        (now.year - 2020) * 12 + now.month - 3
    )  # whole months from the end of February 2020 to this month's begin
    done = "closed ledger_entry_2020_01\ndetached event_2020_01\ndetached webhook_delivery_2020_01\n"
    assert keep(platform, since_march + 1) == (0, done)
    assert attached(months, "event") == ["2020_02", "2020_03"]
    status, output = keep(platform, since_march)
    assert (status, output) == (1, "orders: event_2020_02 stays: it has events that are not published\n")
    publish(months, "2020-03-01")
    assert keep(platform, since_march) == (0, "detached event_2020_02\n")
    assert keep(platform, since_march) == (0, "")
    assert (attached(months, "event"), attached(months, "ledger_entry")) == (["2020_03"], ["2020_01"])
    assert months.execute("SELECT count(*) FROM event_2020_01").fetchone() == (1,)
    assert months.execute("SELECT count(*) FROM event").fetchone() == (1,)
    assert months.execute("SELECT has_table_privilege('orders', 'event_2020_01', 'SELECT, INSERT')").fetchone() == (
        False,
    )


def test_months_that_are_missing_are_made_and_named(platform: Platform, months: psycopg.Connection) -> None:
    month = f"{datetime.now(UTC):%Y_%m}"
    tables = [f"{table}_{month}" for table in ("event", "ledger_entry", "webhook_delivery")]
    for table in tables:
        months.execute(f"DROP TABLE {table}")
    status, output = keep(platform, 1200)
    assert (status, output) == (0, "".join(f"made {table}\n" for table in tables))


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_the_month_of_now_cannot_be_asked_away(platform: Platform, number: str) -> None:
    status, output = platform.finish("partitions", f"--keep-months={number}")
    assert (status, f"{number!r} is not a number from 1 on" in output) == (2, True)


@pytest.mark.parametrize("number", ["0", "x"])
def test_the_ledgers_month_of_now_cannot_be_asked_away(platform: Platform, number: str) -> None:
    status, output = keep(platform, 1, f"--keep-ledger-months={number}")
    assert (status, f"{number!r} is not a number from 1 on" in output) == (2, True)


class Books(NamedTuple):
    """A ledger with entries in three old months and now, and the service that reads it."""

    platform: Platform
    connection: psycopg.Connection
    api: Api
    database: str

    def book(self, at: str, cents: int, currency: str = "EUR", customer: str = "c1", count: int = 1) -> None:
        """Add the entries of sales."""
        self.connection.execute(
            "INSERT INTO ledger_entry (account, order_id, kind, amount_cents, currency, occurred_at)"
            " SELECT e.account, o.id, 'sale', e.cents, %(currency)s, %(at)s::timestamptz + n * interval '1 second'"
            " FROM generate_series(1, %(count)s) n, LATERAL (SELECT md5(%(at)s || %(currency)s || n)::uuid AS id) o,"
            " LATERAL (VALUES (%(account)s, %(cents)s), ('revenue', -%(cents)s)) AS e (account, cents)",
            {"at": at, "cents": cents, "currency": currency, "account": f"customer:{customer}", "count": count},
        )

    def seen(self, account: str) -> dict[str, int]:
        """Return what stands on an account."""
        found = self.api.client.get(f"/v1/accounts/{account}").json()
        return {each["currency"]: each["amount_cents"] for each in found["balances"]}

    def statement(self, account: str) -> list[tuple[int, int, str]]:
        """Return an account's entries, page by page: amount, balance after it, currency."""
        found, after = [], ""
        while True:
            page = self.api.client.get(f"/v1/accounts/{account}/statement", params={"limit": 3, "after": after}).json()
            found += [(each["amount_cents"], each["balance_cents"], each["currency"]) for each in page["entries"]]
            if not (after := page.get("next", "")):
                return found


@pytest.fixture
def books(platform: Platform) -> Iterator[Books]:
    database = f"books_{next(NUMBERS)}"
    platform.postgres.make_database(database)
    url = platform.postgres.url(database=database)
    assert platform.finish("migrate", ORDERS_DATABASE_URL=url)[0] == 0
    api = Api(platform, 8151, ORDERS_DATABASE_URL=url, ORDERS_DATABASE_RO_URL=url, ORDERS_VALKEY_CACHE_NODES="")
    try:
        with platform.postgres.admin(database) as connection:
            for month, after in (("2020_01", "2020-02-01"), ("2020_02", "2020-03-01"), ("2020_03", "2020-04-01")):
                name, first = f"ledger_entry_{month}", f"{month.replace('_', '-')}-01"
                connection.execute(
                    f"CREATE TABLE {name} PARTITION OF ledger_entry FOR VALUES FROM ('{first} UTC') TO ('{after} UTC');"
                    f"ALTER TABLE {name} OWNER TO orders_owner"
                )
            books = Books(platform, connection, api, database)
            books.book("2020-01-10", 100, count=3)
            books.book("2020-01-20", 7, "USD")
            books.book("2020-02-10", 1000, customer="c2")
            books.book("2020-03-10", 20, count=2)
            books.book(f"{datetime.now(UTC):%Y-%m-%d}", 3)
            api.wait_until_ready()
            yield books
    finally:
        api.stop()


def since(month: int) -> int:
    """Return how many whole months are over since a month of 2020 ended."""
    now = datetime.now(UTC)
    return (now.year - 2020) * 12 + now.month - month - 1


ACCOUNTS = ("customer:c1", "customer:c2", "revenue")


def test_balances_and_statements_stay_when_months_are_closed_and_detached(books: Books) -> None:
    balances = {account: books.seen(account) for account in ACCOUNTS}
    statements = {account: books.statement(account) for account in ACCOUNTS}
    assert balances == {
        "customer:c1": {"EUR": 343, "USD": 7},
        "customer:c2": {"EUR": 1000},
        "revenue": {"EUR": -1343, "USD": -7},
    }
    assert [entry[:2] for entry in statements["customer:c1"]] == [
        *((3, 343), (20, 340), (20, 320), (7, 7), (100, 300), (100, 200), (100, 100)),
    ]
    closed = "".join(f"closed ledger_entry_2020_0{month}\n" for month in (1, 2, 3))
    assert keep(books.platform, 1200, database=books.database) == (0, closed)
    assert {account: books.seen(account) for account in ACCOUNTS} == balances
    assert {account: books.statement(account) for account in ACCOUNTS} == statements
    books.book(f"{datetime.now(UTC):%Y-%m-%d} 00:01", 5)
    balances["customer:c1"]["EUR"] += 5
    balances["revenue"]["EUR"] -= 5
    detached = "detached ledger_entry_2020_01\ndetached ledger_entry_2020_02\n"
    more = f"--keep-ledger-months={since(2)}"
    assert keep(books.platform, 1200, more, database=books.database) == (0, detached)
    assert keep(books.platform, 1200, more, database=books.database) == (0, "")
    assert {account: books.seen(account) for account in ACCOUNTS} == balances
    assert books.statement("customer:c1") == [
        *((5, 348, "EUR"), (3, 343, "EUR"), (20, 340, "EUR"), (20, 320, "EUR")),
    ]
    assert books.statement("customer:c2") == []
    assert books.connection.execute("SELECT count(*) FROM ledger_entry_2020_01").fetchone() == (8,)


def test_a_worker_makes_closes_and_detaches_months_by_itself(books: Books) -> None:
    connection = books.connection
    month = f"{datetime.now(UTC):%Y_%m}"
    connection.execute(
        f"DROP TABLE webhook_delivery_{month};"
        "CREATE TABLE event_2020_01 PARTITION OF event FOR VALUES FROM ('2020-01-01 UTC') TO ('2020-02-01 UTC');"
        "CREATE TABLE event_2020_02 PARTITION OF event FOR VALUES FROM ('2020-02-01 UTC') TO ('2020-03-01 UTC');"
        "ALTER TABLE event_2020_01 OWNER TO orders_owner; ALTER TABLE event_2020_02 OWNER TO orders_owner"
    )
    url = books.platform.postgres.url(database=books.database)
    workers = Workers(books.platform, 8152, ORDERS_DATABASE_URL=url, ORDERS_KEEP_MONTHS=str(since(1)))
    workers.start()
    try:
        closed = "SELECT name FROM ledger_month ORDER BY name"
        wait_until(lambda: len(connection.execute(closed).fetchall()) == 3, "the close", 10)
    finally:
        workers.stop()
    assert (attached(connection, "event"), attached(connection, "ledger_entry")) == (
        ["2020_02"],
        ["2020_01", "2020_02", "2020_03"],
    )
    made = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"webhook_delivery_{month}",)).fetchone()
    assert made == (True,)
    for line in ("Partition ledger_entry_2020_03: closed", "Partition event_2020_01: detached"):
        assert line in workers.process.tail()


def test_the_service_cannot_have_a_month_detached_that_is_not_over(books: Books) -> None:
    url = books.platform.postgres.url(database=books.database)
    settings = Settings.from_environment({**books.platform.environment, "ORDERS_DATABASE_URL": url})
    with psycopg.connect(settings.conninfo(url), autocommit=True, prepare_threshold=None) as service:
        for months in (0, -1, None):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                service.execute("SELECT detach_month(%s::integer)", (months,))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute("SELECT close_ledger_months(now())")


def test_nothing_is_added_to_a_closed_month_and_its_balances_never_change(books: Books) -> None:
    assert keep(books.platform, 1200, database=books.database)[0] == 0
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="ledger_entry_2020_02 is closed"):
        books.book("2020-02-11", 1)
    for table in ("ledger_month", "ledger_balance"):
        for act in ("UPDATE {} SET entries = 9", "DELETE FROM {}", "TRUNCATE {} CASCADE"):
            with pytest.raises(psycopg.errors.RestrictViolation, match="is only added to"):
                books.connection.execute(act.format(table))
        for right in ("INSERT", "UPDATE", "DELETE", "TRUNCATE"):
            row = books.connection.execute("SELECT has_table_privilege('orders', %s, %s)", (table, right)).fetchone()
            assert row == (False,)
    with pytest.raises(psycopg.errors.CheckViolation, match="do not sum to zero"):
        books.connection.execute(
            "INSERT INTO ledger_balance SELECT 'customer:c7', 'EUR', min(ends_at), 1, 1 FROM ledger_month"
        )
    row = books.connection.execute(
        "SELECT has_function_privilege('orders', 'close_ledger_months(timestamptz)', 'EXECUTE')"
    ).fetchone()
    assert row == (False,)


def test_a_month_that_is_not_over_is_not_closed(books: Books) -> None:
    assert books.connection.execute("SELECT close_ledger_months(now() + interval '1 year')").fetchall() == [
        *((f"ledger_entry_2020_0{month}",) for month in (1, 2, 3)),
    ]
    books.book(f"{datetime.now(UTC):%Y-%m-%d}", 1, "USD")


def test_a_month_is_closed_after_who_still_writes_into_it_and_before_none_older(books: Books) -> None:
    with books.platform.postgres.admin(books.database) as other, other.transaction():
        Books(books.platform, other, books.api, books.database).book("2020-03-11", 50)
        status, output = keep(books.platform, 1200, database=books.database)
        assert (status, "lock timeout" in output) == (2, True), output
    assert keep(books.platform, 1200, database=books.database)[0] == 0
    assert books.seen("customer:c1")["EUR"] == 393
    books.connection.execute(
        "CREATE TABLE ledger_entry_2019_12 PARTITION OF ledger_entry FOR VALUES FROM ('2019-12-01 UTC') TO ('2020-01-01 UTC')"
    )
    status, output = keep(books.platform, 1200, database=books.database)
    assert (status, "ledger_entry_2019_12 is older than one that is closed" in output) == (2, True), output
