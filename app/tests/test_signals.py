"""The figures that tell where orders wait move when they do."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from servers import QUEUES, frozen, wait_until
from service import Api, Platform, Workers


def figure(client: httpx.Client, name: str) -> float:
    """Return the sum of a metric over its labels."""
    lines = client.get("/metrics").text.splitlines()
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
    assert found, name
    return sum(found)


@pytest.fixture
def narrow(platform: Platform) -> Iterator[Api]:
    """Have an instance with one connection to each database."""
    api = Api(platform, 8161, ORDERS_DATABASE_POOL_SIZE="1")
    api.wait_until_ready()
    yield api
    assert api.stop() == 0


def test_an_order_that_waits_for_a_worker_shows_in_its_age_and_its_settlement(
    platform: Platform, api: Api, no_worker: Workers, name: str
) -> None:
    for queue in QUEUES:
        platform.rabbitmq.take(queue)
    confirmed = figure(api.client, "orders_intake_seconds_count")
    address = api.place({"P-00040": 1}, name, name)
    assert figure(api.client, "orders_intake_seconds_count") == confirmed + 1
    assert figure(api.client, "orders_intake_seconds_sum") > 0
    time.sleep(1.5)
    no_worker.start()
    assert api.decided(address)["state"] == "settled"
    client = no_worker.client
    wait_until(lambda: figure(client, "orders_settlement_lag_seconds_count") == 1, "the figures", 5)
    age, lag = (figure(client, f"orders_{name}_seconds_sum") for name in ("queue_age", "settlement_lag"))
    assert 1.5 <= age <= lag < 30, (age, lag)
    assert figure(client, 'orders_queue_age_seconds_bucket{le="1.0"}') == 0
    assert figure(client, "orders_batch_orders_count") >= 1
    assert figure(client, "orders_batch_orders_sum") >= 1  # 2 where a lane hesitated
    assert figure(client, "orders_batch_seconds_sum") > 0


def test_what_settled_orders_come_to_is_counted_and_what_was_refused_is_not(
    api: Api, no_worker: Workers, name: str
) -> None:
    no_worker.start()
    settled = api.decided(api.place({"P-00040": 3}, f"{name}-settled", name))
    refused = api.decided(api.place({"NEVER-SOLD": 1}, f"{name}-refused", name))
    assert (settled["state"], refused["state"]) == ("settled", "refused")
    total = settled["total_cents"]
    wait_until(lambda: figure(no_worker.client, 'orders_worker_orders_total{outcome="settled"}') == 1, "the figures", 5)
    assert figure(no_worker.client, f'orders_settled_cents_total{{currency="{settled["currency"]}"}}') == total
    assert figure(no_worker.client, "orders_settled_cents_total") == total


def test_requests_that_wait_for_a_connection_are_counted_with_their_time(narrow: Api) -> None:
    before = figure(narrow.client, 'orders_pool_waits_total{pool="replicas"}')
    with ThreadPoolExecutor(16) as pool:
        answers = [*pool.map(lambda _: narrow.client.get("/v1/orders/search?customer=c1").status_code, range(64))]
    assert {*answers} <= {200, 503}
    assert figure(narrow.client, 'orders_pool_waits_total{pool="replicas"}') > before
    assert figure(narrow.client, "orders_pool_wait_seconds_total") > 0
    assert figure(narrow.client, "orders_pool_waiting") == 0


def test_a_product_that_is_known_counts_as_a_hit_of_the_cache(api: Api) -> None:
    hits = 'orders_cache_total{level="process",outcome="hit"}'
    assert api.client.get("/v1/products/P-00041").status_code == 200
    before = figure(api.client, hits)
    wait_until(
        lambda: api.client.get("/v1/products/P-00041").status_code == 200 and figure(api.client, hits) > before,
        "a hit",
        5,
    )


def test_an_event_that_cannot_be_published_ages(platform: Platform, api: Api, worker: Workers, name: str) -> None:
    wait_until(lambda: figure(worker.client, "orders_outbox_age_seconds") == 0, "the relay", 20)
    address = api.place({"P-00042": 1}, name, name)
    api.decided(address)
    wait_until(lambda: figure(worker.client, "orders_outbox_age_seconds") == 0, "the relay", 20)
    with frozen(*platform.rabbitmq.brokers):
        assert api.client.post(f"{address}/cancellation").status_code == 200
        wait_until(lambda: figure(worker.client, "orders_outbox_age_seconds") > 1, "its age", 20)
    wait_until(lambda: figure(worker.client, "orders_outbox_age_seconds") == 0, "its publication", 60)
    wait_until(lambda: api.metric("orders_lane_ready") == 3, "all lanes", 60)
