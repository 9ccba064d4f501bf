"""Operators keep products: conditionally, with the history of prices, and never a stock below nothing."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from orders.catalogue.schemas import MOST_STOCK
from service import Api, Products


def prices(api: Api, sku: str, **parameters: int) -> list[tuple[int, int, str]]:
    """Return a product's history, the newest first: version, price, currency."""
    answer = api.client.get(f"/v1/products/{sku}/prices", params=parameters)
    assert answer.status_code == 200, answer.text
    return [(price["version"], price["price_cents"], price["currency"]) for price in answer.json()]


def history(connection: psycopg.Connection, sku: str) -> list[tuple[int, int, str]]:
    """Return the same as the database has it."""
    statement = "SELECT version, price_cents, currency FROM product_price WHERE sku = %s ORDER BY version DESC"
    return connection.execute(statement, (sku,)).fetchall()


def test_a_product_is_created_once_and_changed_by_its_tag(api: Api, products: Products) -> None:
    sku = f"{products.prefix}A"
    created = products.put(sku, {"If-None-Match": "*"}, name="Lamp", description="Bends")
    assert (created.status_code, created.headers["location"]) == (201, f"/v1/products/{sku}")
    assert (created.headers["etag"], created.headers["cache-control"]) == ('"1.1"', "no-store")
    assert products.put(sku, {"If-None-Match": "*"}).status_code == 412
    seen = api.client.get(f"/v1/products/{sku}")
    assert seen.headers["etag"] == '"1.1"'
    assert seen.json() == {
        "sku": sku,
        "name": "Lamp",
        "price_cents": 100,
        "currency": "EUR",
        "description": "Bends",
    }
    changed = products.put(sku, {"If-Match": '"1.1"'}, name="Desk lamp", price_cents=200)
    assert (changed.status_code, changed.headers["etag"], changed.json()["etag"]) == (200, '"1.2"', '"1.2"')
    assert api.client.get(f"/v1/products/{sku}").json()["name"] == "Desk lamp"
    assert products.put(sku, {"If-Match": '"1.1"'}).status_code == 412
    record = api.client.get(f"/v1/products/{sku}/record")
    assert record.headers["cache-control"] == "no-store"
    assert {**record.json(), "changed_at": ""} == {
        "sku": sku,
        "name": "Desk lamp",
        "description": "",
        "price_cents": 200,
        "currency": "EUR",
        "active": True,
        "quantity": 0,
        "changed_at": "",
        "etag": '"1.2"',
    }


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 428),
        ({"If-Match": '"1.1"', "If-None-Match": "*"}, 400),
        ({"If-None-Match": '"1.1"'}, 400),
        ({"If-Match": "1.1"}, 400),
        ({"If-Match": ""}, 400),
        ({"If-Match": '"1.1'}, 400),
        ({"If-Match": 'W/"1.1"'}, 412),
        ({"If-Match": '"1.2"'}, 412),
        ({"If-Match": '"of,another"'}, 412),
        ({"If-Match": f'"1.{"9" * 30}"'}, 412),
        ({"If-Match": '"x" , "1.7",, "1.1"'}, 200),
        ({"If-Match": "*"}, 200),
    ],
    ids=str,
)
def test_a_change_counts_only_under_its_condition(
    api: Api, products: Products, headers: dict[str, str], status: int
) -> None:
    sku = products.create("A", name="Before")
    answer = products.put(sku, headers, name="After")
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
    expected = "After" if status == 200 else "Before"
    assert api.client.get(f"/v1/products/{sku}/record").json()["name"] == expected


def test_what_is_not_there_cannot_be_changed(api: Api, products: Products) -> None:
    sku = f"{products.prefix}GHOST"
    for etag in ('"1.1"', "*"):
        assert products.put(sku, {"If-Match": etag}).status_code == 412
    assert api.client.get(f"/v1/products/{sku}/record").status_code == 404
    for method, body in (("PUT", {"quantity": 1}), ("PATCH", {"change": 1})):
        assert api.client.request(method, f"/v1/products/{sku}/stock", json=body).status_code == 404
    refused = products.put("a b", {"If-None-Match": "*"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "sku")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "   "),
        ("name", "two\nlines"),
        ("name", "x" * 201),
        ("name", None),
        ("description", "a\0b"),
        ("description", "x" * 2001),
        ("price_cents", 0),
        ("price_cents", 1.5),
        ("price_cents", 1_000_000_001),
        ("currency", "euro"),
        ("active", 1),
        ("stock", 1),
    ],
)
def test_a_field_that_is_wrong_is_named(products: Products, field: str, value: object) -> None:
    answer = products.put(f"{products.prefix}A", {"If-None-Match": "*"}, **{field: value})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert field in answer.text


def test_of_twenty_changes_by_one_tag_exactly_one_counts(
    api: Api, products: Products, connection: psycopg.Connection
) -> None:
    sku = products.create("A")
    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(lambda n: products.put(sku, {"If-Match": '"1.1"'}, price_cents=200 + n), range(20))]
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 19
    (winner,) = (answer.json()["price_cents"] for answer in answers if answer.status_code == 200)
    assert history(connection, sku) == [(2, winner, "EUR"), (1, 100, "EUR")]


def test_of_twenty_who_create_one_product_exactly_one_does(products: Products) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(lambda _: products.put(f"{products.prefix}A", {"If-None-Match": "*"}), range(20))]
    assert sorted(answer.status_code for answer in answers) == [201] + [412] * 19


def test_every_price_is_in_the_history_whoever_changed_it(
    api: Api, products: Products, connection: psycopg.Connection
) -> None:
    sku = products.create("A")
    products.change("A", price_cents=200)
    products.change("A", name="Renamed")  # no change of the price
    with connection.transaction():
        connection.execute("UPDATE product SET price_cents = 300 WHERE sku = %s", (sku,))
        connection.execute("UPDATE product SET currency = 'USD', version = 1 WHERE sku = %s", (sku,))
    connection.execute("INSERT INTO product VALUES (%s, 'by hand', 7, 'EUR')", (f"{sku}2",))
    expected = [(5, 300, "USD"), (4, 300, "EUR"), (2, 200, "EUR"), (1, 100, "EUR")]
    assert history(connection, sku) == expected
    assert prices(api, sku) == expected
    assert prices(api, sku, limit=2) == expected[:2]
    assert prices(api, sku, before=4) == expected[2:]
    assert prices(api, sku, before=1) == []
    assert prices(api, f"{sku}2") == [(1, 7, "EUR")]
    times = connection.execute(
        "SELECT valid_from FROM product_price WHERE sku = %s ORDER BY version", (sku,)
    ).fetchall()
    assert times == sorted(times)
    assert api.client.get(f"/v1/products/{sku}/record").json()["etag"] == '"1.5"'


def test_stock_is_set_and_changed_and_never_below_nothing_nor_beyond_what_is_documented(
    api: Api, products: Products
) -> None:
    sku = products.create("A")
    address = f"/v1/products/{sku}/stock"

    def change(pieces: int) -> int:
        answer = api.client.patch(address, json={"change": pieces})
        assert answer.status_code in {200, 409}, answer.text
        assert answer.headers["content-type"] == (
            "application/json" if answer.status_code == 200 else "application/problem+json"
        )
        return answer.status_code

    assert api.client.get(address).json() == {"in_stock": False}
    assert [change(-1), change(30)] == [409, 200]
    assert api.client.get(address).json() == {"in_stock": True}
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(change, [-1] * 40)) == [200] * 30 + [409] * 10
    assert api.client.get(f"/v1/products/{sku}/record").json()["quantity"] == 0
    products.stock("A", 7)
    assert [change(-8), change(-7)] == [409, 200]
    assert api.client.get(address).json() == {"in_stock": False}
    products.stock("A", MOST_STOCK)
    assert [change(1), change(-1), change(1)] == [409, 200, 200]
    wrong = api.client.put(address, json={"quantity": -1})
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (400, "quantity")
