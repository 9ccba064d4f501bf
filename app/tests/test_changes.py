"""What becomes of an order after it was settled, and of its money and pieces."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from uuid import uuid4

import psycopg
import pytest

from orders.ordering.schemas import TRANSITIONS
from servers import frozen, wait_until
from service import Api, Platform, Products, Workers


def settled(api: Api, products: Products, name: str, quantity: int = 2) -> str:
    """Return the address of a settled order of a product of which there are ten pieces, at 100 cents each."""
    sku = products.create("A")
    products.stock("A", 10)
    address = api.place({sku: quantity}, name, name)
    assert api.decided(address)["state"] == "settled"
    return address


def pieces(connection: psycopg.Connection, products: Products) -> int:
    """Return how many pieces of the test's product there are."""
    row = connection.execute("SELECT quantity FROM stock WHERE sku = %s", (f"{products.prefix}A",)).fetchone()
    assert row is not None
    return int(row[0])


def booked(connection: psycopg.Connection, address: str) -> list[tuple[str, str, int]]:
    """Return what an order brought the ledger."""
    return connection.execute(
        "SELECT kind, split_part(account, ':', 1), amount_cents FROM ledger_entry WHERE order_id = %s ORDER BY id",
        (address.rpartition("/")[2],),
    ).fetchall()


def told(connection: psycopg.Connection, address: str) -> list[tuple[str, str]]:
    """Return the events of an order, each with the state that its body says."""
    return connection.execute(
        "SELECT type, body ->> 'state' FROM event WHERE order_id = %s ORDER BY xid, id",
        (address.rpartition("/")[2],),
    ).fetchall()


def test_an_order_is_shipped_and_delivered_once(
    api: Api, worker: Workers, products: Products, connection: psycopg.Connection, name: str
) -> None:
    address = settled(api, products, name)
    early = api.client.post(f"{address}/delivery")
    assert (early.status_code, early.headers["content-type"]) == (409, "application/problem+json")
    assert early.json()["detail"] == "The order is settled, and cannot be delivered."
    for action, state in (("shipment", "shipped"), ("delivery", "delivered")):
        first = api.client.post(f"{address}/{action}")
        again = api.client.post(f"{address}/{action}")
        assert (first.status_code, first.json()["state"]) == (200, state)
        assert again.json() == first.json() == api.client.get(address).json()
    assert api.client.post(f"{address}/cancellation").status_code == 409
    assert told(connection, address) == [(f"order.{s}", s) for s in ("settled", "shipped", "delivered")]
    assert booked(connection, address) == [("sale", "customer", 200), ("sale", "revenue", -200)]


def test_a_cancelled_order_gives_back_its_money_and_its_pieces_once(
    api: Api, worker: Workers, products: Products, connection: psycopg.Connection, name: str
) -> None:
    address = settled(api, products, name)
    assert pieces(connection, products) == 8
    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(lambda _: api.client.post(f"{address}/cancellation", headers=api.bearer(name)), range(6))]
    assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [(200, "cancelled")] * 6
    assert pieces(connection, products) == 10
    assert booked(connection, address) == [
        *(("sale", "customer", 200), ("sale", "revenue", -200)),
        *(("reversal", "customer", -200), ("reversal", "revenue", 200)),
    ]
    assert told(connection, address) == [("order.settled", "settled"), ("order.cancelled", "cancelled")]
    assert api.client.post(f"{address}/shipment").status_code == 409


def test_of_a_shipment_and_a_cancellation_at_once_one_wins(
    api: Api, worker: Workers, products: Products, connection: psycopg.Connection, name: str
) -> None:
    sku = products.create("A")
    products.stock("A", 20)
    addresses = [api.place({sku: 1}, f"{name}-{number}", name) for number in range(10)]
    for address in addresses:
        api.decided(address)
    with ThreadPoolExecutor(8) as pool:
        actions = [f"{address}/{action}" for address in addresses for action in ("shipment", "cancellation")]
        statuses = [answer.status_code for answer in pool.map(api.client.post, actions)]
    assert [sorted(statuses[n : n + 2]) for n in range(0, 20, 2)] == [[200, 409]] * 10
    states = [api.client.get(address).json()["state"] for address in addresses]
    assert pieces(connection, products) == 10 + states.count("cancelled")
    assert [len(told(connection, address)) for address in addresses] == [2] * 10


def test_another_customers_order_cannot_be_cancelled_and_is_not_found(
    api: Api, worker: Workers, products: Products, name: str
) -> None:
    address = settled(api, products, name)
    answer = api.client.post(f"{address}/cancellation", headers=api.bearer(f"{name}-other"))
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert api.client.get(address).json()["state"] == "settled"


def test_an_order_that_waits_for_its_settlement_cannot_be_changed_yet(api: Api, no_worker: Workers, name: str) -> None:
    address = api.place({"P-00001": 1}, name, name)
    answer = api.client.post(f"{address}/cancellation", headers=api.bearer(name))
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "The order is not settled yet, and cannot be cancelled now.",
    )


def test_no_replica_tells_the_state_from_before_a_change_that_was_answered(
    platform: Platform, api: Api, worker: Workers, products: Products, name: str
) -> None:
    other = Api(platform, 8121)
    try:
        other.wait_until_ready()
        address = settled(api, products, name)
        key = f"orders:decision:{address.rpartition('/')[2]}"
        wait_until(lambda: platform.valkey.keys(key), "Valkey's copy", 10)
        assert other.client.get(address).json()["state"] == "settled"
        assert api.client.post(f"{address}/shipment").status_code == 200
        assert other.client.get(address).json()["state"] == "shipped"
    finally:
        other.stop()


def test_a_change_while_valkey_is_silent_is_told_as_soon_as_valkey_is_back(
    platform: Platform, api: Api, worker: Workers, products: Products, name: str
) -> None:
    address = settled(api, products, name)
    wait_until(lambda: platform.valkey.keys(f"orders:decision:{address.rpartition('/')[2]}"), "Valkey's copy", 10)
    with frozen(*platform.valkey.nodes):
        assert api.client.post(f"{address}/shipment").status_code == 200
        assert api.client.get(address).json()["state"] == "shipped"
    wait_until(lambda: api.client.get(address).json()["state"] == "shipped", "the change in Valkey", 15)


def test_the_code_and_the_database_allow_the_same_changes(connection: psycopg.Connection) -> None:
    allowed = {(before, after) for after, befores in TRANSITIONS.items() for before in befores}
    assert set(connection.execute("SELECT from_state, to_state FROM order_transition").fetchall()) == allowed


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE orders SET state = 'delivered' WHERE state = 'settled' AND customer_id = %s",
        "UPDATE orders SET state = 'settled' WHERE customer_id = %s",
        "UPDATE ledger_entry SET amount_cents = 1 WHERE account = 'customer:' || %s",
        "DELETE FROM ledger_entry WHERE account = 'customer:' || %s",
        "UPDATE event SET type = 'x' WHERE customer_id = %s",
        "DELETE FROM event WHERE customer_id = %s",
        (
            "INSERT INTO ledger_entry (account, order_id, kind, amount_cents, currency)"
            " SELECT 'revenue', id, 'sale', 1, 'EUR' FROM orders WHERE customer_id = %s"
        ),
        (
            "INSERT INTO ledger_entry (account, order_id, kind, amount_cents, currency)"
            " SELECT 'revenue', id, 'sale', v.cents, v.currency FROM orders, (VALUES (1, 'EUR'), (-1, 'USD')) v (cents, currency)"
            " WHERE customer_id = %s"
        ),
    ],
)
def test_the_database_refuses_what_no_order_and_no_ledger_does_from_anybody(
    api: Api, worker: Workers, products: Products, connection: psycopg.Connection, name: str, statement: str
) -> None:
    settled(api, products, name)
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.RestrictViolation)):
        connection.execute(statement, (name,))


@pytest.mark.parametrize(
    ("account", "is_one"),
    [
        ("revenue", True),
        ("customer:a", True),
        ("customer:Aa9._-", True),
        (f"customer:{'x' * 64}", True),
        (f"customer:{'x' * 65}", False),
        ("customer:", False),
        ("customer:a b", False),
        ("customer:a\n", False),
        ("customer:\u00e4", False),
        ("revenue\n", False),
        ("x", False),
        ("", False),
    ],
)
def test_an_entry_is_of_an_account_that_can_be(connection: psycopg.Connection, account: str, *, is_one: bool) -> None:
    statement = (
        "INSERT INTO ledger_entry (account, order_id, kind, amount_cents, currency)"
        " SELECT e.account, %s, 'sale', e.cents, 'EUR' FROM (VALUES (%s, 1), ('revenue', -1)) AS e (account, cents)"
    )
    refused = nullcontext() if is_one else pytest.raises(psycopg.errors.CheckViolation)
    with connection.transaction(force_rollback=True), refused:
        connection.execute(statement, (uuid4(), account))


@pytest.mark.parametrize("table", ["event", "ledger_entry", "stock_change"])
def test_what_is_only_added_to_is_never_emptied(connection: psycopg.Connection, table: str) -> None:
    partitions = connection.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass", (table,)
    ).fetchall()
    assert len(partitions) == (0 if table == "stock_change" else 3)
    for name in (table, *(name for (name,) in partitions)):
        with pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(f"TRUNCATE {name}")


def test_a_worker_makes_the_months_that_are_missing(workers: Workers, connection: psycopg.Connection) -> None:
    workers.stop()
    query = "SELECT count(*) FROM pg_inherits WHERE inhparent IN ('event'::regclass, 'ledger_entry'::regclass)"
    assert connection.execute(query).fetchone() == (6,)
    for table in ("event", "ledger_entry"):
        row = connection.execute(
            "SELECT max(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = %s::regclass", (table,)
        ).fetchone()
        assert row is not None
        connection.execute(f"DROP TABLE {row[0]}")
    workers.start()
    wait_until(lambda: connection.execute(query).fetchone() == (6,), "the months", 10)


def test_a_stock_is_what_was_counted_and_moved_less_what_is_sold(
    api: Api, worker: Workers, products: Products, connection: psycopg.Connection, name: str
) -> None:
    address = settled(api, products, name, 4)
    place = f"/v1/products/{products.prefix}A/stock"
    for method, body in (("PATCH", {"change": 5}), ("PUT", {"quantity": 3}), ("PATCH", {"change": -1})):
        assert api.client.request(method, place, json=body).status_code == 200
    assert api.client.request("PATCH", place, json={"change": -9}).status_code == 409
    query = (
        "SELECT (SELECT array_agg(change ORDER BY id) FROM stock_change WHERE sku = %(sku)s),"
        " (SELECT sum(change) FROM stock_change WHERE sku = %(sku)s) - coalesce((SELECT sum(l.quantity) FROM order_line l"
        " JOIN orders o ON o.id = l.order_id WHERE l.sku = %(sku)s AND o.state IN ('settled', 'shipped', 'delivered')), 0)"
    )
    sku = {"sku": f"{products.prefix}A"}
    assert connection.execute(query, sku).fetchone() == ([10, 5, -8, -1], 2)
    assert pieces(connection, products) == 2
    assert api.client.post(f"{address}/cancellation").status_code == 200
    assert connection.execute(query, sku).fetchone() == ([10, 5, -8, -1], 6)
    assert pieces(connection, products) == 6


def test_an_account_says_what_is_owed_and_its_statement_why(
    api: Api, worker: Workers, products: Products, name: str
) -> None:
    sku, dear = products.create("A"), products.create("B", price_cents=7, currency="USD")
    products.stock("A", 10)
    products.stock("B", 10)
    orders = []
    for number, lines in enumerate(({sku: 1}, {sku: 2}, {dear: 3})):
        orders.append(api.decided(api.place(lines, f"{name}-{number}", name))["id"])
    assert api.client.post(f"/v1/orders/{orders[1]}/cancellation").status_code == 200

    def ask(path: str, customer: str = name, *roles: str) -> dict[str, object]:
        answer = api.client.get(f"/v1/accounts/{path}", headers=api.bearer(customer, *roles))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    balances = [{"currency": "EUR", "amount_cents": 100}, {"currency": "USD", "amount_cents": 21}]
    expected = {"account": f"customer:{name}", "balances": balances}
    assert ask("me") == ask(f"customer:{name}") == ask(f"customer:{name}", "staff", "operator") == expected
    first = ask("me/statement?limit=3")
    second = ask(f"me/statement?limit=3&after={first['next']}")
    entries = [*first["entries"], *second["entries"]]  # type: ignore[misc]
    assert [(e["order_id"], e["kind"], e["amount_cents"], e["balance_cents"]) for e in entries] == [
        (orders[1], "reversal", -200, 100),
        (orders[2], "sale", 21, 21),
        (orders[1], "sale", 200, 300),
        (orders[0], "sale", 100, 100),
    ]
    assert "next" not in second


def test_a_customer_sees_no_other_account(api: Api, name: str) -> None:
    for account in ("revenue", f"customer:{name}-other"):
        for path in (account, f"{account}/statement"):
            answer = api.client.get(f"/v1/accounts/{path}", headers=api.bearer(name))
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert api.client.get("/v1/accounts/revenue").status_code == 200


@pytest.mark.parametrize("account", ["x", "customer:", "customer:%0A", "revenue%0A", "%C2%84"])
def test_what_is_no_account_is_named(api: Api, account: str) -> None:
    for path in (account, f"{account}/statement"):
        answer = api.client.get(f"/v1/accounts/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert [error["field"] for error in answer.json()["errors"]] == ["account"]


def test_operators_find_orders_by_customer_state_and_time(
    api: Api, worker: Workers, products: Products, name: str
) -> None:
    sku = products.create("A")
    products.stock("A", 3)
    placed = [api.decided(api.place({sku: quantity}, f"{name}-{quantity}", name)) for quantity in (1, 9, 2)]

    def search(**parameters: object) -> dict[str, object]:
        answer = api.client.get("/v1/orders/search", params={k: str(v) for k, v in parameters.items()})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    owned = [{**order, "customer_id": name} for order in placed]
    assert search(customer=name)["orders"] == owned[::-1]
    assert search(customer=name, state="refused")["orders"] == [owned[1]]
    assert search(customer=name, since=placed[1]["accepted_at"])["orders"] == owned[:0:-1]
    page = search(customer=name, limit=2)
    assert page["orders"] == owned[:0:-1]
    assert search(customer=name, limit=2, after=page["next"])["orders"] == owned[:1]
    assert all(order["state"] == "refused" for order in search(state="refused")["orders"])  # type: ignore[attr-defined]
