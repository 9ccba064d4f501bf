"""A customer's orders, page by page."""

import psycopg
import pytest

from service import Api, Workers


def pages(api: Api, customer: str, limit: int) -> list[list[dict[str, object]]]:
    """Return all pages of a customer's orders."""
    found, after = [], ""
    while True:
        answer = api.client.get(
            "/v1/orders", params={"after": after, "limit": limit}, headers={"X-Customer-Id": customer}
        )
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
    connection.execute("UPDATE orders SET accepted_at = '2026-01-01 12:00:00.123456Z' WHERE customer_id = %s", (name,))
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
    response = api.client.get("/v1/orders", params={"after": after}, headers={"X-Customer-Id": "c1"})
    assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json")
    assert [error["field"] for error in response.json()["errors"]] == ["after"]


def test_nobody_is_refused_by_name(api: Api) -> None:
    response = api.client.get("/v1/orders")
    assert response.status_code == 400
    assert [error["field"].lower() for error in response.json()["errors"]] == ["x-customer-id"]


def test_a_page_is_read_from_the_index_alone_however_many_orders_others_have(connection: psycopg.Connection) -> None:
    connection.execute("SET enable_seqscan = off")  # the tests' table is small
    plan = connection.execute(
        "EXPLAIN SELECT id FROM orders WHERE customer_id = 'c1' AND (accepted_at, id) < (now(), gen_random_uuid())"
        " ORDER BY accepted_at DESC, id DESC LIMIT 51"
    ).fetchall()
    connection.execute("RESET enable_seqscan")
    text = "\n".join(line for (line,) in plan)
    assert "orders_of_customer" in text
    assert "Sort" not in text
