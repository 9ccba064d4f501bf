"""Products are read from the process's memory, a second old at most, and from wherever a database answers."""

import asyncio
import signal
import socket
import time
from collections.abc import Iterator

import psycopg
import pytest

from orders.hints import Hints
from orders.settings import Settings
from servers import wait_until
from service import Api, Platform, Products, Workers, skus

PROCESS_MISSES = 'orders_cache_total{level="process",outcome="miss"}'


def test_pages_follow_each_other_without_gap_or_repeat(api: Api) -> None:
    first = api.client.get("/v1/products", params={"limit": 3, "after": "P-"}).json()
    second = api.client.get("/v1/products", params={"limit": 2, "after": first[-1]["sku"]}).json()
    assert [product["sku"] for product in first + second] == [f"P-0000{number}" for number in range(1, 6)]


def test_a_product_has_its_price_in_cents_with_a_currency(api: Api) -> None:
    response = api.client.get("/v1/products/P-00001")
    assert response.json() == {"sku": "P-00001", "name": "Product 1", "price_cents": 137, "currency": "EUR"}
    assert response.headers["cache-control"] == "public, max-age=1, stale-while-revalidate=1, stale-if-error=60"
    assert len(response.headers["x-request-id"]) == 32


def test_an_unknown_sku_is_a_404_problem_that_names_it(api: Api) -> None:
    response = api.client.get("/v1/products/GHOST", headers={"X-Request-Id": "abc-1"})
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")
    assert "GHOST" in response.json()["detail"]
    assert response.headers["x-request-id"] == response.json()["request_id"] == "abc-1"


@pytest.mark.parametrize(("name", "value"), [("limit", "0"), ("limit", "201"), ("limit", "many"), ("after", "a b")])
def test_a_parameter_out_of_range_is_named(api: Api, name: str, value: str) -> None:
    response = api.client.get("/v1/products", params={name: value})
    assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json")
    assert [error["field"] for error in response.json()["errors"]] == [name]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/v1/products", 405)])
def test_what_is_not_there_is_a_problem_too(api: Api, method: str, path: str, status: int) -> None:
    response = api.client.request(method, path)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert response.json()["status"] == status


def test_a_change_is_seen_within_two_seconds(api: Api, connection: psycopg.Connection) -> None:
    assert api.client.get("/v1/products/P-00099").json()["name"] == "Product 99"
    connection.execute("UPDATE product SET name = 'Renamed' WHERE sku = 'P-00099'")
    time.sleep(2)
    assert api.client.get("/v1/products/P-00099").json()["name"] == "Renamed"


def test_of_two_hundred_who_ask_for_one_thing_at_once_one_asks_the_database(
    platform: Platform, api: Api, connection: psycopg.Connection
) -> None:
    def counts() -> tuple[float, float]:
        return api.metric('orders_catalogue_reads_total{what="product"}'), api.metric(PROCESS_MISSES)

    sockets = [socket.create_connection(("127.0.0.1", 8100), timeout=10) for _ in range(200)]
    before = counts()
    with connection.transaction():
        connection.execute("LOCK TABLE product")  # so that all of them come while it is read
        for client in sockets:
            client.sendall(b"GET /v1/products/P-00050 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        time.sleep(0.3)
    for client in sockets:
        with client:
            assert client.recv(12) == b"HTTP/1.1 200"
    assert [after - former for after, former in zip(counts(), before, strict=True)] == [1, 200]


def test_without_replicas_the_primary_is_read(platform: Platform) -> None:
    api = Api(platform, 8103, ORDERS_DATABASE_RO_URL=platform.postgres.url(port=1))
    try:
        api.wait_until_ready()
        assert api.client.get("/v1/products/P-00002").status_code == 200
        assert api.metric("orders_replica_fallbacks_total") > 0
    finally:
        api.stop()


def test_the_figures_are_labelled_by_route_and_not_by_path(api: Api) -> None:
    api.client.get("/v1/products/P-00003")
    figures = api.client.get("/metrics").text
    assert 'orders_http_request_seconds_count{method="GET",route="/v1/products/{sku}",status="200"}' in figures
    assert "P-00003" not in figures


def test_whoever_has_a_product_or_a_list_is_told_that_it_is_as_it_was(api: Api) -> None:
    for path in ("/v1/products/P-00004", "/v1/products", "/v1/products/P-00004/prices", "/v1/products/P-00004/stock"):
        first = api.client.get(path)
        etag = first.headers["etag"]
        assert etag.startswith('"')
        for known in (etag, f'"other", W/{etag}', "*"):
            again = api.client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == etag
            assert again.headers["cache-control"] == first.headers["cache-control"]
            assert len(again.headers["x-request-id"]) == 32
        assert api.client.get(path, headers={"If-None-Match": '"other"'}).content == first.content


def test_a_search_finds_products_with_words_that_begin_with_each_of_its_words(api: Api, products: Products) -> None:
    products.create("A", name="Desk lamp", description="Bends wherever the light is wanted")
    products.create("B", name="Standing LAMP", description="Übermütig, for O'Neill's: 100% oak\\ash")
    products.create("C", name="Desk", description="Wi-fi not included")
    found = {
        "lamp": "AB",
        "LAM": "AB",
        "lamp des": "A",
        "desk bend": "A",
        "amp": "",
        "über oak": "B",
        "o'neill": "B",
        "oak\\ash": "B",
        "wi-fi": "C",
        "wi-f": "C",
        "desk -lamp": "A",
        "lamp & !desk | x:*": "",
        "' \\ : ( <->": "",
    }
    for q, expected in found.items():
        listed = skus(api, q=q, after=products.prefix, limit=200)
        assert [sku for sku in listed if sku.startswith(products.prefix)] == [products.prefix + c for c in expected], q
    assert skus(api, q="' : (") == []


def test_filters_hold_together(api: Api, products: Products) -> None:
    for letter, price, currency, quantity in (
        ("A", 100, "XTS", 1),
        ("B", 200, "XTS", 0),
        ("C", 300, "XTS", 1),
        ("D", 200, "XXX", 1),
        ("E", 200, "XTS", None),
    ):
        products.create(letter, name="Filtered thing", price_cents=price, currency=currency)
        if quantity is not None:
            products.stock(letter, quantity)
    products.create("F", name="Filtered thing", price_cents=200, currency="XTS", active=False)

    def found(**parameters: object) -> str:
        return "".join(sku[-1] for sku in skus(api, after=products.prefix, q="filtered", **parameters))

    assert found() == "ABCDE"
    assert found(currency="XTS") == "ABCE"
    assert found(currency="XTS", min_price_cents=200) == "BCE"
    assert found(currency="XTS", min_price_cents=200, max_price_cents=299) == "BE"
    assert found(in_stock=True) == "ACD"
    assert found(in_stock=False) == "BE"
    assert found(currency="XTS", max_price_cents=200, in_stock=True) == "A"


def test_pages_of_a_search_hold_each_product_once(api: Api, products: Products) -> None:
    made = [products.create(f"{number:02}", name=f"Pageable {number}") for number in range(23)]
    found: list[str] = []
    while page := skus(api, q="pageable", after=found[-1] if found else products.prefix, limit=5):
        found += page
    assert found == made


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("q", "x" * 101),
        ("q", "a\0"),
        ("currency", "eur"),
        ("min_price_cents", "0"),
        ("max_price_cents", "1000000001"),
        ("in_stock", "some"),
    ],
)
def test_a_filter_out_of_range_is_named(api: Api, name: str, value: str) -> None:
    response = api.client.get("/v1/products", params={name: value})
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == [name]


def test_what_is_not_on_sale_is_not_found_and_not_sold(api: Api, worker: Workers, products: Products) -> None:
    sku = products.create("A")
    products.stock("A", 5)
    products.change("A", active=False)
    for path in ("", "/prices", "/stock"):
        assert api.client.get(f"/v1/products/{sku}{path}").status_code == 404
    record = api.client.get(f"/v1/products/{sku}/record").json()
    assert (record["active"], record["quantity"]) == (False, 5)
    assert api.decided(api.place({sku: 1}, products.prefix))["refusal"] == "unknown_product"
    products.change("A", active=True)
    assert api.client.get(f"/v1/products/{sku}").status_code == 200
    assert api.decided(api.place({sku: 1}, f"{products.prefix}again"))["state"] == "settled"


@pytest.fixture(scope="module")
def second(platform: Platform) -> Iterator[Api]:
    """Have one more replica of the service."""
    second = Api(platform, 8115)
    second.wait_until_ready()
    yield second
    second.stop()


def names(api: Api, sku: str, seconds: float) -> list[tuple[float, str]]:
    """Return the names that a product has for so long, each with the seconds until it was seen."""
    started = time.monotonic()
    found: list[tuple[float, str]] = []
    while (now := time.monotonic() - started) < seconds:
        name = str(api.client.get(f"/v1/products/{sku}").json()["name"])
        if not found or found[-1][1] != name:
            found.append((now, name))
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("by", ["the interface", "SQL"])
def test_a_change_reaches_another_replica_within_two_seconds_for_good(
    api: Api, second: Api, products: Products, connection: psycopg.Connection, by: str
) -> None:
    sku = products.create("A", name="Before")
    for replica in (api, second):
        assert replica.client.get(f"/v1/products/{sku}").json()["name"] == "Before"
    if by == "SQL":
        connection.execute("UPDATE product SET name = 'After' WHERE sku = %s", (sku,))
    else:
        products.change("A", name="After")
        assert api.client.get(f"/v1/products/{sku}").json()["name"] == "After"
    seen = names(second, sku, 3.5)
    assert [name for _, name in seen][-1] == "After"
    assert len(seen) <= 2
    assert seen[-1][0] < 2


def test_replicas_share_what_they_read(platform: Platform, api: Api, second: Api, products: Products) -> None:
    sku = products.create("A")
    reads = 'orders_catalogue_reads_total{what="product"}'

    def total() -> float:
        return api.metric(reads) + second.metric(reads)

    before, until = total(), time.monotonic() + 6
    while time.monotonic() < until:
        for replica in (api, second):
            assert replica.client.get(f"/v1/products/{sku}").status_code == 200
    assert total() - before <= 8  # one a second, and not one a second and replica


def test_a_replica_of_the_database_that_is_behind_never_brings_an_older_version_back(
    platform: Platform, api: Api, products: Products
) -> None:
    # A database that is never told of a change is behind as far as one can be.
    platform.postgres.make_database("behind")
    behind = platform.postgres.url(database="behind")
    for arguments in (["migrate"], ["seed", "--products", "10"]):
        status, output = platform.finish(*arguments, ORDERS_DATABASE_URL=behind)
        assert status == 0, output
    late = Api(platform, 8116, ORDERS_DATABASE_RO_URL=behind)
    try:
        late.wait_until_ready()
        assert late.client.get("/v1/products/P-00009").json()["name"] == "Product 9"
        etag = api.client.get("/v1/products/P-00009/record").json()["etag"]
        products.put("P-00009", {"If-Match": etag}, name="Renamed").raise_for_status()
        seen = names(late, "P-00009", 4.5)
        assert [name for _, name in seen][-1] == "Renamed"
        assert len(seen) <= 2
        assert seen[-1][0] < 2
        assert late.metric("orders_replica_behind_total") > 0
        # What it creates itself, its replica of the database never heard of at all.
        made = late.client.put(
            f"/v1/products/{products.prefix}NEW", json=products.body(name="New"), headers={"If-None-Match": "*"}
        )
        assert made.status_code == 201
        assert names(late, f"{products.prefix}NEW", 3)[0][1] == "New"
    finally:
        late.stop()
    assert [name for _, name in names(api, "P-00009", 2.5)] == ["Renamed"]


def test_valkey_keeps_the_highest_version_in_whatever_order_they_come(platform: Platform, name: str) -> None:
    async def kept() -> tuple[bytes, int] | None:
        hints = Hints(Settings.from_environment(platform.environment))
        hints.start()
        try:
            for _ in range(200):
                if await hints.remember({name: b""}, 1):
                    break
                await asyncio.sleep(0.1)
            for version, value in ((9, b"b"), (10, b"a 1"), (10, b"a 2"), (9, b"c"), (10, b"a 1")):
                await hints.raise_to(f"{name}-versions", version, value, 10)
            return await hints.highest(f"{name}-versions")
        finally:
            await hints.stop()

    assert asyncio.run(kept()) == (b"a 2", 10)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_without_valkey_products_are_read_and_changed(
    platform: Platform, api: Api, products: Products, number: signal.Signals
) -> None:
    sku = products.create("A", name="Before")
    platform.valkey.send(number)
    try:
        until, slowest = time.monotonic() + 4, 0.0
        while time.monotonic() < until:
            started = time.monotonic()
            assert api.client.get(f"/v1/products/{sku}").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.05)
        assert slowest < 0.6, slowest  # the tests' machine is shared: little more than Valkey's 0.1 where it is not
        products.change("A", name="After")
        assert api.client.get(f"/v1/products/{sku}").json()["name"] == "After"
    finally:
        platform.valkey.send(signal.SIGCONT)
        if number == signal.SIGKILL:
            platform.valkey.start()

    def helps() -> bool:
        before = api.metric('orders_hints_total{outcome="answered"}')
        time.sleep(1.1)
        return (
            api.client.get(f"/v1/products/{sku}").is_success
            and api.metric('orders_hints_total{outcome="answered"}') > before
        )

    wait_until(helps, "Valkey's help", 30)


def test_without_the_database_what_was_known_is_still_told_and_nothing_is_changed(
    platform: Platform, api: Api, products: Products
) -> None:
    sku = products.create("A")
    known = api.client.get(f"/v1/products/{sku}")
    platform.postgres.stop(signal.SIGQUIT)
    try:
        time.sleep(2)
        assert api.client.get(f"/v1/products/{sku}").content == known.content
        started = time.monotonic()
        assert api.client.get(f"/v1/products/{sku}").content == known.content
        assert time.monotonic() - started < 0.3  # nobody waits twice for what is away
        assert api.client.get("/v1/products/P-00077").status_code in {200, 503}
        refused = products.put(sku, {"If-Match": "*"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    finally:
        platform.postgres.start()
    wait_until(lambda: products.put(sku, {"If-Match": "*"}).is_success, "a change", 20)


def test_what_clients_make_up_fills_nobodys_valkey(platform: Platform, api: Api) -> None:
    before = set(platform.valkey.keys("orders:catalogue:*"))
    for number in range(20):
        assert api.client.get(f"/v1/products/GHOST-{number}").status_code == 404
        for parameters in ({"q": f"ghost{number}"}, {"after": f"GHOST-{number}"}, {"min_price_cents": number + 1}):
            assert api.client.get("/v1/products", params=parameters).status_code == 200
    assert set(platform.valkey.keys("orders:catalogue:*")) <= before
