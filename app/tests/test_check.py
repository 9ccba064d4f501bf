"""`orders check` finds nothing where all is well, and names what was damaged."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString, NamedTuple
from uuid import UUID

import psycopg
import pytest

from orders.ordering.identity import Identities
from servers import DEAD_QUEUE, QUEUES, Postgres, wait_until
from service import HMAC_KEY, NUMBERS, Api, Platform, Workers

LIVED = "checked"
PORT, WORKER_PORT = 8131, 8132
CUSTOMER = "checked"
SKU = "P-00001"  # at 137 cents
STATES = ("settled", "shipped", "delivered", "cancelled", "refused")


def empty(platform: Platform) -> None:
    """Have no message anywhere."""
    for queue in (*QUEUES, DEAD_QUEUE):
        platform.rabbitmq.take(queue)
    wait_until(lambda: platform.rabbitmq.depth(*QUEUES, DEAD_QUEUE) == 0, "empty queues", 20)


def end_connections(postgres: Postgres, database: str) -> None:
    """Have nobody in a database, so that it can be copied or dropped."""
    with postgres.admin("postgres") as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,))
        left = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        wait_until(lambda: connection.execute(left, (database,)).fetchone() == (0,), "the end of connections", 10)


class Apart:
    """The service and a worker on a database, without Valkey, by which they would share what other tests know."""

    def __init__(self, platform: Platform, url: str) -> None:
        environment = {"ORDERS_DATABASE_URL": url, "ORDERS_DATABASE_RO_URL": url, "ORDERS_VALKEY_CACHE_NODES": ""}
        self.api = Api(platform, PORT, **environment)
        self.api.wait_until_ready()
        self.workers = Workers(platform, WORKER_PORT, **environment)

    def act(self, address: str, *actions: str) -> None:
        """Have things happen to an order."""
        for action in actions:
            assert self.api.client.post(f"{address}/{action}").status_code == 200

    def stop(self) -> None:
        """End both."""
        self.workers.close()
        self.api.stop()


@pytest.fixture(scope="module")
def lived(platform: Platform, workers: Workers) -> dict[str, str]:
    """Have a database in which orders went every way, and return their identifiers by state."""
    workers.stop()
    empty(platform)
    platform.postgres.make_database(LIVED)
    url = platform.postgres.url(database=LIVED)
    for arguments in (["migrate"], ["seed", "--products", "10", "--stock", "50"]):
        status, output = platform.finish(*arguments, ORDERS_DATABASE_URL=url)
        assert status == 0, output
    apart = Apart(platform, url)
    try:
        apart.workers.start()
        stock = f"/v1/products/{SKU}/stock"
        assert apart.api.client.patch(stock, json={"change": 7}).status_code == 200
        orders = {
            state: apart.api.place({"NONE" if state == "refused" else SKU: 2}, state, CUSTOMER) for state in STATES
        }
        found = {state: apart.api.decided(address)["state"] for state, address in orders.items()}
        assert found == {**dict.fromkeys(STATES, "settled"), "refused": "refused"}
        reused = apart.api.place({SKU: 9}, "settled", CUSTOMER)
        assert apart.api.decided(reused)["refusal"] == "key_reused"
        apart.act(orders["shipped"], "shipment")
        apart.act(orders["delivered"], "shipment", "delivery")
        apart.act(orders["cancelled"], "cancellation")
        assert apart.api.client.put(stock, json={"quantity": 40}).status_code == 200
        with platform.postgres.admin(LIVED) as connection:
            waiting = "SELECT count(*) FROM event WHERE (xid, id) > (SELECT xid, id FROM relay WHERE name = 'events')"
            wait_until(lambda: connection.execute(waiting).fetchone() == (0,), "the relay", 20)
    finally:
        apart.stop()
    return {state: address.rpartition("/")[2] for state, address in orders.items()}


class Shop(NamedTuple):
    """A copy of that database, for one test."""

    platform: Platform
    url: str
    orders: dict[str, str]
    connection: psycopg.Connection

    def check(self, *arguments: str) -> tuple[int, list[str]]:
        """Run the command, and return its status and all lines but those that say ok."""
        status, output = self.platform.finish("check", *arguments, ORDERS_DATABASE_URL=self.url)
        return status, [line for line in output.splitlines() if not line.startswith("ok   ")]

    def damage(self, *statements: LiteralString, **parameters: object) -> None:
        """Do what no service can."""
        with self.connection.transaction():
            self.connection.execute("SET LOCAL session_replication_role = replica")
            for statement in statements:
                self.connection.execute(statement, parameters)


@pytest.fixture
def shop(platform: Platform, lived: dict[str, str], no_worker: Workers) -> Iterator[Shop]:
    database = f"{LIVED}_{next(NUMBERS)}"
    empty(platform)
    end_connections(platform.postgres, LIVED)
    with platform.postgres.admin("postgres") as connection:
        connection.execute(f"CREATE DATABASE {database} TEMPLATE {LIVED} OWNER orders_owner")
    with platform.postgres.admin(database) as connection:
        yield Shop(platform, platform.postgres.url(database=database), lived, connection)
    empty(platform)


def test_nothing_is_found_after_orders_that_went_every_way(shop: Shop) -> None:
    status, output = shop.platform.finish("check", ORDERS_DATABASE_URL=shop.url)
    assert (status, output.splitlines()) == (
        0,
        [
            "ok   once: 6 orders",
            "ok   states: 6 orders",
            "ok   lines: 6 lines",
            "ok   stock: 10 products",
            "ok   ledger: 10 entries",
            "ok   balance: 1 currencies",
            "ok   months: 0 closed months of the ledger",
            "ok   events: 10 events",
            "ok   outbox: 10 events",
            "ok   dead letters: none",
        ],
    )


def test_an_order_without_its_row_is_named(shop: Shop, tmp_path: Path) -> None:
    order = shop.orders["shipped"]
    file = tmp_path / "accepted"
    file.write_text("".join(f"{identifier}\n" for identifier in shop.orders.values()))
    tmp_path.chmod(0o755)
    assert shop.check(f"--accepted={file}") == (0, [])
    shop.damage("DELETE FROM orders WHERE id = %(order)s", order=order)
    assert shop.check(f"--accepted={file}") == (
        1,
        [
            f"FAIL lines: 1 order with another total than that of the lines: {order}",
            "FAIL stock: 1 product with another number of pieces than came, less those that were sold: P-00001 (40, not 42)",
            f"FAIL ledger: 1 order with other entries than the state implies: {order}",
            f"FAIL events: 1 order with other events than the state implies: {order}",
            f"FAIL accepted: 1 order lost, neither decided nor queued: {order}",
        ],
    )


def test_identifiers_come_by_the_standard_input_as_well(shop: Shop) -> None:
    command = [sys.executable, "-m", "orders", "check", "--accepted", "-"]
    environment = {**os.environ, **shop.platform.environment, "ORDERS_DATABASE_URL": shop.url}
    text = "".join(f"{identifier}\n" for identifier in shop.orders.values())
    done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok   accepted: 5 orders, 5 of them decided" in done.stdout.splitlines()


def test_an_order_that_is_decided_twice_is_named(shop: Shop) -> None:
    order = UUID(shop.orders["refused"])
    twin = Identities([b"another key, which is as long as it must be"]).renew(order)
    one, other = sorted(map(str, (order, twin)))
    shop.damage(
        "DROP INDEX orders_content, orders_key",
        "INSERT INTO orders (id, customer_id, idempotency_key, state, refusal, accepted_at, decided_at)"
        " SELECT %(twin)s, customer_id, idempotency_key, state, refusal, accepted_at, decided_at FROM orders WHERE id = %(order)s",
        order=order,
        twin=twin,
    )
    status, lines = shop.check()
    assert (status, lines[0]) == (1, f"FAIL once: 1 order decided more than once: {one} = {other}")


def test_a_key_that_is_used_twice_is_named(shop: Shop) -> None:
    one, other = sorted((shop.orders["refused"], shop.orders["settled"]))
    shop.damage(
        "DROP INDEX orders_key",
        "UPDATE orders SET idempotency_key = 'k' WHERE id IN (%(one)s, %(other)s)",
        one=one,
        other=other,
    )
    assert shop.check() == (1, [f"FAIL once: 1 order decided more than once: {one} = {other}"])


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("UPDATE stock SET quantity = 41 WHERE sku = 'P-00001'", "P-00001 (41, not 40)"),
        ("DELETE FROM stock WHERE sku = 'P-00002'", "P-00002 (0, not 50)"),
        ("INSERT INTO stock_change (sku, change, why) VALUES ('P-00003', -51, 'moved')", "P-00003 (50, not -1)"),
        ("DELETE FROM stock_change WHERE sku = 'P-00004'", "P-00004 (50, not 0)"),
    ],
)
def test_a_stock_that_is_not_its_movements_is_named(shop: Shop, statement: LiteralString, wrong: str) -> None:
    shop.damage(statement)
    fault = "1 product with another number of pieces than came, less those that were sold"
    assert shop.check() == (1, [f"FAIL stock: {fault}: {wrong}"])


def test_a_stock_below_nothing_is_named_also_where_its_movements_say_so(shop: Shop) -> None:
    shop.damage(
        "ALTER TABLE stock DROP CONSTRAINT stock_quantity_check",
        "UPDATE stock SET quantity = -1 WHERE sku = 'P-00005'",
        "INSERT INTO stock_change (sku, change, why) VALUES ('P-00005', -51, 'moved')",
    )
    fault = "1 product with another number of pieces than came, less those that were sold"
    assert shop.check() == (1, [f"FAIL stock: {fault}: P-00005 (-1, not -1)"])


@pytest.mark.parametrize(
    ("state", "statement"),
    [
        ("settled", "DELETE FROM ledger_entry WHERE order_id = %(order)s"),
        ("cancelled", "DELETE FROM ledger_entry WHERE order_id = %(order)s AND kind = 'reversal'"),
        ("shipped", "UPDATE ledger_entry SET amount_cents = 2 * amount_cents WHERE order_id = %(order)s"),
        (
            "delivered",
            "UPDATE ledger_entry SET account = 'customer:other' WHERE order_id = %(order)s AND account <> 'revenue'",
        ),
        (
            "settled",
            (
                "INSERT INTO ledger_entry (account, order_id, kind, amount_cents, currency)"
                " SELECT account, order_id, kind, amount_cents, currency FROM ledger_entry WHERE order_id = %(order)s"
            ),
        ),
        (
            "refused",
            (
                "INSERT INTO ledger_entry (account, order_id, kind, amount_cents, currency)"
                " VALUES ('customer:checked', %(order)s, 'sale', 1, 'EUR'), ('revenue', %(order)s, 'sale', -1, 'EUR')"
            ),
        ),
    ],
)
def test_an_order_whose_entries_are_not_those_of_its_state_is_named(
    shop: Shop, state: str, statement: LiteralString
) -> None:
    shop.damage(statement, order=shop.orders[state])
    fault = "1 order with other entries than the state implies"
    assert shop.check() == (1, [f"FAIL ledger: {fault}: {shop.orders[state]}"])


def test_a_currency_in_which_the_ledger_is_not_balanced_is_named(shop: Shop) -> None:
    order = shop.orders["settled"]
    shop.damage("DELETE FROM ledger_entry WHERE order_id = %(order)s AND account = 'revenue'", order=order)
    assert shop.check() == (
        1,
        [
            f"FAIL ledger: 1 order with other entries than the state implies: {order}",
            "FAIL balance: 1 currency in which the ledger does not sum to zero: EUR (274)",
        ],
    )


OLD = "ledger_entry_2020_01"


@pytest.fixture
def closed(shop: Shop) -> Shop:
    """Have what was settled, shipped and delivered sold in an old month of the ledger, which is closed."""
    shop.connection.execute(
        f"CREATE TABLE {OLD} PARTITION OF ledger_entry FOR VALUES FROM ('2020-01-01 UTC') TO ('2020-02-01 UTC')"
    )
    shop.damage(
        "UPDATE orders SET decided_at = '2020-01-15 UTC', accepted_at = '2020-01-15 UTC' WHERE state <> 'cancelled'",
        "UPDATE ledger_entry SET occurred_at = '2020-01-15 UTC'"
        " WHERE order_id IN (SELECT id FROM orders WHERE state <> 'cancelled')",
    )
    assert shop.check() == (0, [])
    assert shop.connection.execute("SELECT close_ledger_months(now() - interval '1 day')").fetchall() == [(OLD,)]
    assert shop.check() == (0, [])
    return shop


def test_orders_whose_entries_are_set_apart_are_named_by_month_and_do_not_fail(closed: Shop) -> None:
    closed.connection.execute(f"ALTER TABLE ledger_entry DETACH PARTITION {OLD}")
    status, output = closed.platform.finish("check", ORDERS_DATABASE_URL=closed.url)
    lines = output.splitlines()
    assert status == 0, output
    assert "ok   ledger: 4 entries" in lines
    assert "ok   months: 1 closed months of the ledger" in lines
    assert f"ok   apart: 6 entries, which are not looked at: {OLD}" in lines
    # What should be there still is missed as ever, and what was booked later than it happened is no fault, once.
    order = closed.orders["cancelled"]
    closed.damage("DELETE FROM ledger_entry WHERE order_id = %(order)s AND kind = 'reversal'", order=order)
    fault = "1 order with other entries than the state implies"
    assert closed.check() == (1, [f"FAIL ledger: {fault}: {order}"])


def test_an_order_that_was_booked_late_is_no_fault_once_its_month_is_set_apart(closed: Shop) -> None:
    closed.connection.execute(f"ALTER TABLE ledger_entry DETACH PARTITION {OLD}")
    order = closed.orders["settled"]
    entry = "account, order_id, kind, amount_cents, currency"
    booking = "INSERT INTO ledger_entry ({0}) SELECT {0} FROM {1} WHERE order_id = %s"
    closed.connection.execute(booking.format(entry, OLD), (order,))
    assert closed.check() == (0, [])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_balance SET amount_cents = 2 * amount_cents",
        "UPDATE ledger_balance SET account = 'customer:other' WHERE account <> 'revenue'",
        "DELETE FROM ledger_balance",
        "UPDATE ledger_month SET entries = entries + 2",
    ],
)
def test_a_closed_month_whose_balances_are_not_its_entries_is_named(closed: Shop, statement: LiteralString) -> None:
    closed.damage(statement)
    assert closed.check() == (1, [f"FAIL months: 1 month closed with other balances than the entries make: {OLD}"])


def test_a_balance_that_is_lost_of_a_month_that_is_set_apart_is_missed(closed: Shop) -> None:
    closed.connection.execute(f"ALTER TABLE ledger_entry DETACH PARTITION {OLD}")
    closed.damage("DELETE FROM ledger_balance WHERE account = 'revenue'")
    assert closed.check() == (
        1,
        [
            "FAIL balance: 1 currency in which the ledger does not sum to zero: EUR (822)",
            f"FAIL months: 1 month closed with other balances than the entries make: {OLD}",
        ],
    )


@pytest.mark.parametrize(
    ("state", "statement"),
    [
        ("shipped", "DELETE FROM event WHERE order_id = %(order)s AND type = 'order.shipped'"),
        ("shipped", "DELETE FROM event WHERE order_id = %(order)s AND type = 'order.settled'"),
        (
            "cancelled",
            "UPDATE event SET type = 'order.refused' WHERE order_id = %(order)s AND type = 'order.cancelled'",
        ),
        ("delivered", "DELETE FROM event WHERE order_id = %(order)s"),
    ],
)
def test_an_order_whose_events_are_not_those_of_its_state_is_named(
    shop: Shop, state: str, statement: LiteralString
) -> None:
    shop.damage(statement, order=shop.orders[state])
    fault = "1 order with other events than the state implies"
    assert shop.check() == (1, [f"FAIL events: {fault}: {shop.orders[state]}"])


def test_of_an_order_from_before_the_first_event_no_more_than_the_last_ones_are_expected(shop: Shop) -> None:
    order = shop.orders["delivered"]
    shop.damage(
        "UPDATE orders SET decided_at = decided_at - interval '1 year' WHERE id = %(order)s",
        "DELETE FROM event WHERE order_id = %(order)s AND type = 'order.settled'",
        order=order,
    )
    assert shop.check() == (0, [])
    shop.damage("DELETE FROM event WHERE order_id = %(order)s AND type = 'order.delivered'", order=order)
    assert shop.check()[0] == 1
    shop.damage("DELETE FROM event WHERE order_id = %(order)s", order=order)
    assert shop.check() == (0, [])


def test_an_order_in_a_state_that_it_did_not_reach_is_named(shop: Shop) -> None:
    order, other = shop.orders["settled"], shop.orders["shipped"]
    shop.damage(
        "ALTER TABLE orders DROP CONSTRAINT orders_state",
        "UPDATE orders SET state = 'delivered', changed_at = now() WHERE id = %(order)s",
        "UPDATE orders SET state = 'lent' WHERE id = %(other)s",
        order=order,
        other=other,
    )
    both = ", ".join(sorted((order, other)))
    assert shop.check() == (
        1,
        [
            f"FAIL states: 1 order in a state that does not fit the rest: {other} (lent)",
            "FAIL stock: 1 product with another number of pieces than came, less those that were sold: P-00001 (40, not 42)",
            f"FAIL events: 2 orders with other events than the state implies: {both}",
        ],
    )


def test_an_event_that_is_not_published_in_time_is_named(shop: Shop) -> None:
    row = shop.connection.execute("SELECT id FROM event ORDER BY xid DESC, id DESC LIMIT 1").fetchone()
    assert row is not None
    shop.damage(
        "UPDATE relay SET (xid, id) = (SELECT xid, id FROM event ORDER BY xid DESC, id DESC OFFSET 1 LIMIT 1)",
        "UPDATE event SET occurred_at = now() - interval '59 seconds' WHERE id = %(event)s",
        event=row[0],
    )
    assert shop.check("--outbox-seconds=600") == (0, [])
    status, lines = shop.check("--outbox-seconds=1")
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith(f"FAIL outbox: 1 event not published in time: {row[0]} (order ")


def test_an_accepted_order_is_told_from_a_lost_one_while_it_is_queued(shop: Shop, tmp_path: Path) -> None:
    apart = Apart(shop.platform, shop.url)
    try:
        queued, dead = (apart.api.place({SKU: 1}, key, CUSTOMER).rpartition("/")[2] for key in ("queued", "dead"))
    finally:
        apart.stop()
    rabbitmq = shop.platform.rabbitmq
    with rabbitmq.connect() as connection:
        channel = connection.channel()
        held = {}
        for queue in QUEUES:
            while (message := channel.basic_get(queue))[0] is not None:
                held[message[1].message_id] = message[0].delivery_tag
        assert {*held} == {queued, dead}
        channel.basic_reject(held[dead], requeue=False)
        wait_until(lambda: rabbitmq.depth(DEAD_QUEUE) == 1, "the dead letter", 20)
    wait_until(lambda: rabbitmq.depth(*QUEUES) == 1, "the queued order", 20)
    lost = Identities([HMAC_KEY.encode()]).identify(CUSTOMER, "lost", [(SKU, 1)])
    # What the identifier was before its key was rotated names the order as well.
    settled = Identities([b"another key, which is as long as it must be"]).renew(UUID(shop.orders["settled"]))
    file = tmp_path / "accepted"
    file.write_text(f"{queued}\n{dead}\n\n{settled}\n")
    warned = f"warn dead letters: 1 message that settled no order: {dead}"
    status, lines = shop.check(f"--accepted={file}")
    assert (status, lines[1:]) == (0, [warned])
    assert lines[0].startswith("warn queued: 2 orders not decided yet: ")
    assert f"{dead} (intake-dead)" in lines[0]
    assert f"{queued} (intake-" in lines[0]
    with file.open("a") as more:
        more.write(f"{lost}\n")
    status, lines = shop.check(f"--accepted={file}")
    assert (status, lines[1:]) == (1, [f"FAIL accepted: 1 order lost, neither decided nor queued: {lost}", warned])
    # What was looked at is where it was.
    wait_until(lambda: (rabbitmq.depth(*QUEUES), rabbitmq.depth(DEAD_QUEUE)) == (1, 1), "the messages", 20)
    assert shop.check("--no-dead-letters") == (1, [warned.replace("warn", "FAIL")])


def test_many_are_counted_and_twenty_named(shop: Shop) -> None:
    shop.damage(
        "INSERT INTO stock_change (sku, change, why) SELECT 'X-' || n, 1, 'moved' FROM generate_series(10, 39) n"
    )
    status, lines = shop.check()
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("FAIL stock: 30 products with")
    assert lines[0].count("X-") == 20
    assert lines[0].endswith("X-29 (0, not 1) ... and 10 more")


def test_what_cannot_be_looked_at_is_another_status(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "accepted"
    file.write_text(f"{shop.orders['settled']}\nno identifier\n")
    assert shop.check(f"--accepted={file}") == (2, [f"orders: {file}: line 2 is no identifier: 'no identifier'"])
    assert shop.check(f"--accepted={file}.not")[0] == 2
    nowhere = {"ORDERS_DATABASE_URL": "postgresql://orders@127.0.0.1:1/orders"}
    status, output = shop.platform.finish("check", **nowhere)
    assert (status, output.startswith("orders: The database cannot be looked at: ")) == (2, True)
    status, output = shop.platform.finish("check", ORDERS_DATABASE_URL=shop.url, ORDERS_RABBITMQ_NODES="127.0.0.1:1")
    assert (status, output.splitlines()[-1].startswith("orders: No broker of 127.0.0.1:1 lets us in")) == (2, True)
