"""A customer's orders, page by page."""

from datetime import UTC, datetime

import psycopg
import pytest

from orders.ordering.repository import PAGE
from service import Api, Workers


def pages(api: Api, customer: str, limit: int) -> list[list[dict[str, object]]]:
    """Return all pages of a customer's orders."""
    found, after = [], ""
    while True:
        answer = api.client.get("/v1/orders", params={"after": after, "limit": limit}, headers=api.bearer(customer))
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["orders"])
        after = answer.json().get("next", "")
        if not after:
            return found


def test_a_customer_sees_each_order_once_the_newest_first(api: Api, worker: Workers, name: str) -> None:
    placed = [api.place({"P-00021": number + 1}, f"{name}-{number}", name) for number in range(5)]
    alien = api.place({"P-00021": 1}, f"{name}-alien", f"{name}-alien")
    decided = [api.decided(address) for address in [*placed, alien]]
    found = pages(api, name, 2)
    assert [len(page) for page in found] == [2, 2, 1]
    assert [order for page in found for order in page] == decided[4::-1]
    assert pages(api, name, 5) == [decided[4::-1]]
    assert pages(api, f"{name}-nobody", 5) == [[]]


def test_orders_of_one_moment_are_all_listed(
    api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    addresses = [api.place({"P-00021": 1}, f"{name}-{number}", name) for number in range(5)]
    for address in addresses:
        api.decided(address)
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # the service changes no time
        moment = "2026-01-01 12:00:00.123456Z"
        connection.execute("UPDATE orders SET accepted_at = %s WHERE customer_id = %s", (moment, name))
    found = [str(order["id"]) for page in pages(api, name, 2) for order in page]
    assert sorted(found) == sorted(address.removeprefix("/v1/orders/") for address in addresses)


def test_an_order_under_a_key_that_was_rotated_is_listed_under_its_address_of_today(
    api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    address = api.place({"P-00021": 1}, name, name)
    api.decided(address)
    identifier = address.removeprefix("/v1/orders/")
    stored = identifier[:26] + "0123456789"
    connection.execute("SET session_replication_role = replica")  # lines and order change apart from each other
    connection.execute("UPDATE order_line SET order_id = %s WHERE order_id = %s", (stored, identifier))
    connection.execute("UPDATE orders SET id = %s WHERE id = %s", (stored, identifier))
    connection.execute("RESET session_replication_role")
    ((order,),) = pages(api, name, 1)
    assert order["id"] == identifier


@pytest.mark.parametrize("after", ["x", "_" * 32, "A" * 31, "A" * 33, "ä" * 32])
def test_a_cursor_that_is_not_ours_is_named(api: Api, after: str) -> None:
    response = api.client.get("/v1/orders", params={"after": after}, headers=api.bearer("c1"))
    assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json")
    assert [error["field"] for error in response.json()["errors"]] == ["after"]


def test_a_list_is_the_tokens_subjects_whoever_a_header_names(api: Api, worker: Workers, name: str) -> None:
    order = api.decided(api.place({"P-00021": 1}, name, name))
    for customer, listed in ((name, [order]), (f"{name}-other", [])):
        answer = api.client.get("/v1/orders", headers={"X-Customer-Id": name, **api.bearer(customer)})
        assert answer.json()["orders"] == listed


def test_a_page_costs_its_own_orders_however_many_there_are(connection: psycopg.Connection) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute(
            "INSERT INTO orders (id, customer_id, idempotency_key, state, refusal, accepted_at)"
            " SELECT gen_random_uuid(), 'many-' || number % 20, number::text, 'refused', 'unknown_product',"
            " now() - number * interval '1 s' FROM generate_series(1, 20000) AS number"
        )
        connection.execute("ANALYZE orders")
        row = connection.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {PAGE}", ("many-1", datetime.now(UTC), "f" * 32, 51)
        ).fetchone()
    assert row is not None
    nodes = [row[0][0]["Plan"]]
    for node in nodes:
        nodes.extend(node.get("Plans", []))
    (orders,) = (node for node in nodes if node.get("Relation Name") == "orders")
    assert orders["Index Name"] == "orders_of_customer"
    assert orders["Actual Rows"] == 51  # of a thousand: nothing is sorted
