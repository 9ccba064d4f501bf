"""An order is taken by way of the queue, settled or refused, and found by its address."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest

from service import Api, Platform, Workers, same_order


def test_an_order_is_accepted_and_settled(api: Api, worker: Workers, name: str) -> None:
    response = api.order({"P-00002": 3, "P-00001": 1}, name)
    assert response.status_code == 202
    assert response.json() == {"id": response.headers["location"].removeprefix("/v1/orders/"), "state": "accepted"}
    order = api.decided(response.headers["location"])
    assert (order["state"], order["total_cents"], order["currency"]) == ("settled", 137 + 3 * 174, "EUR")
    assert order["lines"] == [
        {"sku": "P-00002", "quantity": 3, "unit_price_cents": 174},
        {"sku": "P-00001", "quantity": 1, "unit_price_cents": 137},
    ]
    assert worker.ready()


def test_an_order_that_no_store_knows_yet_is_accepted(api: Api, no_worker: Workers, name: str) -> None:
    address = api.place({"P-00001": 1}, name)
    assert api.client.get(address).json() == {"id": address.removeprefix("/v1/orders/"), "state": "accepted"}


@pytest.mark.parametrize("text", [str(uuid4()), "x", "%00", "0" * 5000])
def test_an_identifier_that_is_not_ours_is_not_found(api: Api, text: str) -> None:
    response = api.client.get(f"/v1/orders/{text}")
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"lines": [{"sku": "P-00001", "quantity": 0}]}', "lines[0].quantity"),
        (b'{"lines": [{"sku": "P-00001", "quantity": 1}, {"sku": "P-00002", "quantity": "1"}]}', "lines[1].quantity"),
        (b'{"lines": [{"sku": "p", "quantity": 1}]}', "lines[0].sku"),
        (b'{"lines": [{"sku": "P\\n", "quantity": 1}]}', "lines[0].sku"),
        (b'{"lines": [{"sku": "P-00001"}]}', "lines[0]"),
        (b'{"lines": [{"sku": "P-00001", "quantity": 1}, {"sku": "P-00001", "quantity": 2}]}', "lines[1].sku"),
        (b'{"lines": []}', "lines"),
        (b'{"lines": [{"sku": "P-00001", "quantity": 1, "price": 0}]}', "lines[0]"),
        (b'{"lines": [], "discount": 100}', "lines"),
        (b'{"rows": []}', "body"),
        (b"[" * 10000, "body"),
        (b'{"lines": ' + b"[" * 10000, "lines[0]"),
        (b"{", "body"),
        (b"", "body"),
        (b"\xff", "body"),
    ],
)
def test_a_bad_body_is_a_400_that_names_the_field(api: Api, name: str, body: bytes, field: str) -> None:
    headers = {"Idempotency-Key": name, "Content-Type": "application/json", **api.bearer("c1")}
    response = api.client.post("/v1/orders", content=body, headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json")
    assert [error["field"] for error in response.json()["errors"]] == [field]


@pytest.mark.parametrize(
    ("headers", "named"),
    [({}, "Idempotency-Key"), ({"Idempotency-Key": "k" * 256}, "Idempotency-Key")],
)
def test_a_bad_header_is_a_400_that_names_it(api: Api, headers: dict[str, str], named: str) -> None:
    body = {"lines": [{"sku": "P-00001", "quantity": 1}]}
    response = api.client.post("/v1/orders", json=body, headers={**headers, **api.bearer("c1")})
    assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json")
    assert [error["field"] for error in response.json()["errors"]] == [named]


def test_a_body_that_is_too_large_or_not_json_is_refused(api: Api, name: str) -> None:
    headers = {"Idempotency-Key": name, **api.bearer("c1")}
    large = api.client.post("/v1/orders", content=b" " * 20000, headers={**headers, "Content-Type": "application/json"})
    assert (large.status_code, large.headers["content-type"]) == (413, "application/problem+json")
    other = api.client.post("/v1/orders", data={"lines": "1"}, headers=headers)
    assert (other.status_code, other.headers["content-type"]) == (415, "application/problem+json")


def test_the_same_order_again_is_the_same_order(
    api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    with ThreadPoolExecutor(8) as pool:
        addresses = set(pool.map(lambda _: api.place({"P-00003": 1}, name, name), range(24)))
    assert len(addresses) == 1
    assert api.decided(addresses.pop())["state"] == "settled"
    assert connection.execute("SELECT count(*) FROM orders WHERE customer_id = %s", (name,)).fetchone() == (1,)


def test_a_key_reused_is_a_conflict_at_once_where_valkey_remembers(api: Api, worker: Workers, name: str) -> None:
    api.place({"P-00003": 1}, name)
    response = api.order({"P-00003": 2}, name)
    assert (response.status_code, response.headers["content-type"]) == (409, "application/problem+json")


def test_a_key_reused_through_two_instances_at_once_is_refused_in_the_end(
    platform: Platform, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    apis = [Api(platform, port, ORDERS_VALKEY_CACHE_NODES="") for port in (8104, 8105)]
    try:
        for api in apis:
            api.wait_until_ready()
        with ThreadPoolExecutor(8) as pool:

            def place(number: int) -> str:
                return apis[number % 2].place({"P-00004": 1 + number % 4}, f"{name}-{number // 4}", name)

            addresses = [*pool.map(place, range(40))]
        orders = [apis[0].decided(address) for address in addresses]
    finally:
        for api in apis:
            api.stop()
    for key in range(10):
        states = sorted((str(order["state"]), order.get("refusal")) for order in orders[4 * key : 4 * key + 4])
        assert states == [("refused", "key_reused")] * 3 + [("settled", None)]
    assert connection.execute(
        "SELECT count(*) FILTER (WHERE state = 'settled'), count(*) FROM orders WHERE customer_id = %s", (name,)
    ).fetchone() == (10, 40)


def test_after_a_rotation_of_the_key_it_is_still_the_same_order(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    before = api.place({"P-00005": 1}, name, name)
    api.decided(before)
    rotated = platform.folder / f"secrets-{name}"
    rotated.mkdir()
    for secret in platform.secrets.iterdir():
        (rotated / secret.name).write_text(secret.read_text())
    (rotated / "orders_hmac_key").rename(rotated / "orders_hmac_key_previous")
    (rotated / "orders_hmac_key").write_text("another key of the tests, long enough as well")
    new = Api(platform, 8106, ORDERS_SECRETS_DIR=str(rotated))
    try:
        new.wait_until_ready()
        after = new.place({"P-00005": 1}, name, name)
        assert after != before
        assert same_order(after.rpartition("/")[2], before.rpartition("/")[2])
        for address in (before, after):
            assert new.decided(address)["state"] == "settled"
    finally:
        new.stop()
    assert connection.execute("SELECT count(*) FROM orders WHERE customer_id = %s", (name,)).fetchone() == (1,)


def test_what_cannot_be_sold_is_refused_with_the_reason_and_alone(
    api: Api, workers: Workers, connection: psycopg.Connection, name: str
) -> None:
    sku = name.upper()[-30:]
    for suffix, currency, stock in (("A", "EUR", 5), ("B", "USD", 5), ("C", "EUR", 5)):
        connection.execute("INSERT INTO product VALUES (%s, 'a part', 100, %s)", (f"{sku}{suffix}", currency))
        connection.execute("INSERT INTO stock VALUES (%s, %s)", (f"{sku}{suffix}", stock))
    workers.stop()  # so that all of them come in one batch
    cases: list[tuple[dict[str, int], str | None]] = [
        ({f"{sku}A": 6}, "too_little_stock"),
        ({f"{sku}A": 1}, None),
        ({f"{sku}A": 1, "GHOST": 1}, "unknown_product"),
        ({f"{sku}A": 1, f"{sku}B": 1}, "mixed_currencies"),
        ({f"{sku}B": 5}, None),
        ({f"{sku}A": 4}, None),
        ({f"{sku}C": 5}, None),
    ]
    addresses = [api.place(lines, f"{name}-{number}") for number, (lines, _) in enumerate(cases)]
    workers.start()
    orders = [api.decided(address) for address in addresses]
    assert [order.get("refusal") for order in orders] == [refusal for _, refusal in cases]
    assert connection.execute("SELECT sum(quantity) FROM stock WHERE sku LIKE %s", (f"{sku}%",)).fetchone() == (0,)


def test_stock_never_falls_below_nothing_with_two_workers_and_many_buyers(
    api: Api, worker: Workers, second_worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    sku = name.upper()[-30:]
    connection.execute("INSERT INTO product VALUES (%s, 'rare', 100, 'EUR')", (sku,))
    connection.execute("INSERT INTO stock VALUES (%s, 50)", (sku,))
    with ThreadPoolExecutor(8) as pool:
        addresses = [*pool.map(lambda n: api.place({sku: 1, "P-00006": 1}, f"{name}-{n}", name), range(80))]
    orders = [api.decided(address) for address in addresses]
    assert second_worker.stop() == 0
    assert sorted(str(order.get("refusal")) for order in orders) == ["None"] * 50 + ["too_little_stock"] * 30
    assert connection.execute("SELECT quantity FROM stock WHERE sku = %s", (sku,)).fetchone() == (0,)
    sold = "SELECT sum(quantity) FROM order_line JOIN orders ON id = order_id WHERE sku = %s AND state = 'settled'"
    assert connection.execute(sold, (sku,)).fetchone() == (50,)
