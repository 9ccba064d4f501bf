"""Months of events and ledger: made ahead of their time, and set apart when they are old."""

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest

from service import Platform

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


def keep(platform: Platform, number: object) -> tuple[int, str]:
    """Run the command."""
    url = platform.postgres.url(database=DATABASE)
    return platform.finish("partitions", "--keep-months", str(number), ORDERS_DATABASE_URL=url)


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
    assert keep(platform, since_march + 1) == (0, "detached event_2020_01\ndetached webhook_delivery_2020_01\n")
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
