"""Products are read from the process's memory, a second old at most, and from wherever a database answers."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest

from service import Api, Platform


def test_pages_follow_each_other_without_gap_or_repeat(api: Api) -> None:
    first = api.client.get("/v1/products", params={"limit": 3, "after": "P-"}).json()
    second = api.client.get("/v1/products", params={"limit": 2, "after": first[-1]["sku"]}).json()
    assert [product["sku"] for product in first + second] == [f"P-0000{number}" for number in range(1, 6)]


def test_a_product_has_its_price_in_cents_with_a_currency(api: Api) -> None:
    response = api.client.get("/v1/products/P-00001")
    assert response.json() == {"sku": "P-00001", "name": "Product 1", "price_cents": 137, "currency": "EUR"}
    assert response.headers["cache-control"] == "public, max-age=1"
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


def test_of_many_who_ask_for_one_thing_one_asks_the_database(api: Api) -> None:
    def reads() -> float:
        return api.metric("orders_cache_total")

    def ask(_: int) -> int:
        return httpx.get(f"{api.url}/v1/products/P-00050").status_code

    before = api.metric('orders_cache_total{outcome="hit"}'), reads()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(64))) == {200}
    assert reads() - before[1] == 64


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
