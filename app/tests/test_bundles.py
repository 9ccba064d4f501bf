"""Orders that come closely go as one message; whatever happens to it, each of them is an order of its own."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from orders.ordering.bundles import MOST_ORDERS, TYPE, bundle
from servers import DEAD_QUEUE, QUEUE_ARGUMENTS, QUEUES, frozen, wait_until
from service import Api, Platform, Workers
from test_failures import counts, message

pytestmark = pytest.mark.usefixtures("no_messages")

KEPT_MS = "20"


@pytest.fixture(scope="module")
def bundling(platform: Platform) -> Iterator[Api]:
    """Have an instance that may keep an order for others."""
    api = Api(platform, 8141, ORDERS_BUNDLE_MILLISECONDS=KEPT_MS)
    api.wait_until_ready()
    yield api
    assert api.stop() == 0


def place(api: Api, name: str, count: int) -> float:
    """Place orders of a customer at once, all of which must be accepted, and return how long the slowest took."""

    def one(number: int) -> float:
        started = time.monotonic()
        api.place({"P-00030": 1}, f"{name}-{number}", name)
        return time.monotonic() - started

    with ThreadPoolExecutor(count) as pool:
        return max(pool.map(one, range(count)))


def take(platform: Platform) -> list[tuple[str | None, int]]:
    """Take all messages out of the intake: of each its type and how many orders it holds."""
    found = []
    with platform.rabbitmq.connect() as connection:
        channel = connection.channel()
        for queue in QUEUES:
            while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
                held = json.loads(got[2])
                found.append((got[1].type, len(held) if isinstance(held, list) else 1))
    return found


def test_orders_that_come_closely_share_messages(platform: Platform, bundling: Api, name: str) -> None:
    before = bundling.metric("orders_intake_message_orders_count")
    place(bundling, name, 40)
    place(bundling, f"{name}-more", 40)
    assert bundling.metric("orders_intake_message_orders_count") - before < 60
    found = take(platform)
    assert sum(count for _, count in found) >= 80  # more where a lane hesitated
    assert all((kind == TYPE) == (count > 1) and count <= MOST_ORDERS for kind, count in found)
    assert max(count for _, count in found) > 1


def test_an_order_that_comes_alone_goes_alone_and_at_once(platform: Platform, bundling: Api, name: str) -> None:
    for number in range(20):
        bundling.place({"P-00030": 1}, f"{name}-{number}", name)
        time.sleep(0.1)
    found = take(platform)
    assert {kind for kind, _ in found} == {None}
    assert len(found) >= 20


def test_unless_it_is_told_to_the_service_sends_each_order_by_itself(platform: Platform, api: Api, name: str) -> None:
    place(api, name, 40)
    assert {*take(platform)} == {(None, 1)}


def test_what_came_in_bundles_is_settled_each_once(
    platform: Platform, bundling: Api, workers: Workers, connection: psycopg.Connection, name: str
) -> None:
    for part in range(3):
        place(bundling, f"{name}-{part}", 40)
    workers.start()
    ours = "SELECT count(*) FROM orders WHERE customer_id LIKE %s AND state = 'settled'"
    wait_until(lambda: connection.execute(ours, (f"{name}-%",)).fetchone() == (120,), "all orders", 30)
    assert (workers.stop(), platform.rabbitmq.depth(*QUEUES, DEAD_QUEUE)) == (0, 0)


def test_what_is_no_order_leaves_its_bundle_and_dies_alone(
    platform: Platform, workers: Workers, connection: psycopg.Connection, name: str
) -> None:
    good = [message(name, number, [("P-00031", 1)])[1] for number in range(20)]
    forged = json.dumps({**json.loads(good[0]), "lines": [["P-00031", 9]]}).encode()
    dead = [b'{"id": 1}', b"7", b'"\xff"', forged]
    whole = [b"[]", b"{", b"[" * 5000]
    platform.rabbitmq.publish("intake-2", bundle([*good[:9], *dead, *good[9:18]]), *whole, kind=TYPE)
    platform.rabbitmq.publish("intake-2", *good[18:])
    workers.start()
    wait_until(lambda: counts(connection, name) == (20, 20), "the good orders", 30)
    wait_until(lambda: platform.rabbitmq.depth(DEAD_QUEUE) == len(dead) + len(whole), "the dead letters", 30)
    assert workers.stop() == 0
    _, listed = platform.finish("dead-letters", "list")
    lines = [line.split("  ") for line in listed.splitlines()]
    assert {(line[2], line[3]) for line in lines} == {("intake-2", "rejected")}
    assert json.loads(good[0])["id"] in [line[0] for line in lines]
    assert sorted(platform.rabbitmq.take(DEAD_QUEUE)) == sorted([*dead, *whole])
    assert platform.rabbitmq.depth(*QUEUES) == 0


def test_a_batch_of_nothing_but_dead_letters_does_not_cost_the_connection(platform: Platform, workers: Workers) -> None:
    workers.start()
    before = len(workers.process.log.read_text())
    platform.rabbitmq.publish("intake-1", b"7", b"8")
    wait_until(lambda: platform.rabbitmq.depth(DEAD_QUEUE) == 2, "the dead letters", 30)
    time.sleep(1)
    assert workers.stop() == 0
    assert "PRECONDITION_FAILED" not in workers.process.log.read_text()[before:]


def test_an_order_that_the_database_rejects_leaves_its_bundle(
    platform: Platform, workers: Workers, connection: psycopg.Connection, name: str
) -> None:
    connection.execute("ALTER TABLE order_line ADD CONSTRAINT planted CHECK (sku <> 'P-00032')")
    try:
        orders = [message(name, n, [("P-00032" if n == 4 else "P-00033", 1)]) for n in range(10)]
        platform.rabbitmq.publish("intake-3", bundle([body for _, body in orders]), kind=TYPE)
        workers.start()
        wait_until(lambda: counts(connection, name)[0] == 9, "the other orders", 30)
        wait_until(lambda: platform.rabbitmq.depth(DEAD_QUEUE) == 1, "the dead letter", 30)
        assert platform.finish("dead-letters", "list")[1].startswith(f"{orders[4][0]}  ")
    finally:
        connection.execute("ALTER TABLE order_line DROP CONSTRAINT planted")
    wait_until(lambda: platform.rabbitmq.depth(DEAD_QUEUE) == 1, "what was looked at", 20)
    assert platform.finish("dead-letters", "replay", "--all")[0] == 0
    wait_until(lambda: counts(connection, name)[0] == 10, "the last order", 30)


def test_a_worker_that_is_killed_over_a_bad_bundle_loses_nothing(
    platform: Platform, workers: Workers, connection: psycopg.Connection, name: str
) -> None:
    total = 3000
    bodies = [message(name, number, [("P-00034", 1)])[1] for number in range(total)]
    bundles = [bundle([*bodies[n : n + 30], b"7"]) for n in range(0, total, 30)]
    for lane, queue in enumerate(QUEUES):
        platform.rabbitmq.publish(queue, *bundles[lane::3], kind=TYPE)
    for part in range(8):
        workers.start(wait=False)

        def some_more(least: int = 300 * part + 1) -> bool:
            return counts(connection, name)[0] >= least

        wait_until(some_more, "some progress", 30)
        workers.stop(signal.SIGKILL)
    workers.start()
    wait_until(lambda: counts(connection, name) == (total, total), "every order", 60)
    # Of a bundle that came again the dead one may have died before: each is there once at least.
    wait_until(lambda: platform.rabbitmq.depth(DEAD_QUEUE) >= len(bundles), "the dead letters", 30)

    def drained() -> bool:  # what the worker holds as well
        lines = platform.rabbitmq.ctl(
            "list_queues", "-p", "orders", "name", "messages", "--no-table-headers"
        ).splitlines()
        return all(
            line.split() in [[queue, "0"] for queue in QUEUES]
            for line in lines
            if line.startswith("intake-") and DEAD_QUEUE not in line
        )

    wait_until(drained, "no message that came again", 60)
    assert {*platform.rabbitmq.take(DEAD_QUEUE)} == {b"7"}
    assert counts(connection, name) == (total, total)


@pytest.mark.parametrize("broker", [0, 2])
def test_bundles_pass_a_dead_broker_by(platform: Platform, bundling: Api, name: str, broker: int) -> None:
    wait_until(lambda: bundling.metric("orders_lane_ready") == 3, "all lanes", 60)
    with frozen(platform.rabbitmq.brokers[broker]):
        slowest = max(place(bundling, f"{name}-{part}", 30) for part in range(5))
    assert slowest < 2.9, slowest  # with 30 threads on a shared machine; of it a dead lane takes 0.15
    wait_until(lambda: bundling.metric("orders_lane_ready") == 3, "all lanes", 60)


def test_bundles_pass_a_queue_by_that_is_gone(platform: Platform, bundling: Api, name: str) -> None:
    with platform.rabbitmq.connect() as operator:
        channel = operator.channel()
        channel.queue_delete("intake-3")
        try:
            for part in range(5):
                place(bundling, f"{name}-{part}", 30)
        finally:
            channel.queue_declare("intake-3", durable=True, arguments=QUEUE_ARGUMENTS)
    wait_until(lambda: bundling.metric("orders_lane_ready") == 3, "all lanes", 30)
    assert sum(count for _, count in take(platform)) >= 150


def test_an_order_that_comes_again_waits_with_its_bundle(
    platform: Platform, bundling: Api, workers: Workers, connection: psycopg.Connection, name: str
) -> None:
    wait_until(lambda: bundling.metric("orders_lane_ready") == 3, "all lanes", 60)
    with ThreadPoolExecutor(60) as pool, frozen(*platform.rabbitmq.brokers):
        answers = [pool.submit(bundling.order, {"P-00035": 1}, f"{name}-{n}", name) for n in range(30)]
        time.sleep(0.4)
        answers += [pool.submit(bundling.order, {"P-00035": 1}, f"{name}-{n}", name) for n in range(30)]
        time.sleep(0.4)
    assert [answer.result().status_code for answer in answers] == [202] * 60
    wait_until(lambda: bundling.metric("orders_lane_ready") == 3, "all lanes", 30)
    assert platform.rabbitmq.depth(*QUEUES) <= 30 * 3
    workers.start()
    wait_until(lambda: counts(connection, name) == (30, 30), "all orders", 30)


def test_without_any_broker_all_orders_of_a_bundle_are_refused_in_time(
    platform: Platform, bundling: Api, name: str
) -> None:
    with ThreadPoolExecutor(20) as pool, frozen(*platform.rabbitmq.brokers):
        started = time.monotonic()
        answers = [*pool.map(lambda n: bundling.order({"P-00030": 1}, f"{name}-{n}", name).status_code, range(20))]
        took = time.monotonic() - started
    assert answers == [503] * 20
    assert took < 5.8, took
    wait_until(lambda: bundling.metric("orders_lane_ready") == 3, "all lanes", 60)


def test_operators_see_and_replay_bundles_and_check_finds_orders_in_them(
    platform: Platform, workers: Workers, connection: psycopg.Connection, name: str, tmp_path: Path
) -> None:
    orders = [message(name, number, [("P-00036", 1)]) for number in range(5)]
    file = tmp_path / "accepted"
    file.write_text("".join(f"{identifier}\n" for identifier, _ in orders))
    tmp_path.chmod(0o755)
    platform.rabbitmq.publish("intake-1", bundle([body for _, body in orders]), kind=TYPE)
    # What a worker that knew no bundles would have done.
    with platform.rabbitmq.connect() as broker:
        channel = broker.channel()
        channel.basic_reject(channel.basic_get("intake-1")[0].delivery_tag, requeue=False)
        wait_until(lambda: platform.rabbitmq.depth(DEAD_QUEUE) == 1, "the dead letter", 20)
    _, output = platform.finish("check", f"--accepted={file}")
    assert "warn queued: 5 orders not decided yet: " in output
    assert all(f"{identifier} (intake-dead)" in output for identifier, _ in orders)
    wait_until(lambda: platform.rabbitmq.depth(DEAD_QUEUE) == 1, "what was looked at", 20)
    _, output = platform.finish("dead-letters", "list")
    assert output.rstrip().endswith(" bytes of 5 orders  could be settled now")
    wait_until(lambda: platform.rabbitmq.depth(DEAD_QUEUE) == 1, "what was looked at", 20)
    status, shown = platform.finish("dead-letters", "show", output.split("  ")[0])
    assert (status, all(str(identifier) in shown for identifier, _ in orders)) == (0, True)
    wait_until(lambda: platform.rabbitmq.depth(DEAD_QUEUE) == 1, "what was looked at", 20)
    assert platform.finish("dead-letters", "replay", "--all")[0] == 0
    workers.start()
    wait_until(lambda: counts(connection, name) == (5, 5), "all orders", 30)
    assert workers.stop() == 0
    assert platform.rabbitmq.depth(*QUEUES, DEAD_QUEUE) == 0


@pytest.mark.parametrize("milliseconds", ["-1", "51", "x"])
def test_how_long_an_order_is_kept_has_bounds(platform: Platform, milliseconds: str) -> None:
    status, output = platform.finish("serve", ORDERS_BUNDLE_MILLISECONDS=milliseconds)
    assert (status, "bundle_milliseconds" in output) == (2, True), output
