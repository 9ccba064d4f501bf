"""Events: out of the outbox to the exchange, in order and at least once, and from the stream to whoever listens."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from orders.events.relay import PATIENCE_SECONDS
from orders.worker.consumer import MOST as BATCH
from servers import QUEUES, RabbitMQ, frozen, wait_until, waiting
from service import Api, Platform, Workers
from test_failures import message


class Heard(NamedTuple):
    """An event as the exchange gives it out."""

    key: str
    order_id: str
    properties: Any
    body: dict[str, Any]


class Listener:
    """Whoever binds a queue of its own to the exchange."""

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        # By the third broker: tests stop the first.
        self._connection = rabbitmq.connect(rabbitmq.ports[2])
        self._channel = self._connection.channel()
        self.queue = self._channel.queue_declare("", exclusive=True, arguments={"x-queue-type": "classic"}).method.queue
        self._channel.queue_bind(self.queue, "events", "order.*")
        self.heard: list[Heard] = []

    def of(self, *orders: str) -> list[Heard]:
        """Take what came, and return what it has of some orders."""
        while (message := self._channel.basic_get(self.queue, auto_ack=True))[0] is not None:
            method, properties, body = message
            order_id = properties.headers["order_id"]
            self.heard.append(Heard(method.routing_key, order_id, properties, json.loads(body)))
        return [heard for heard in self.heard if heard.order_id in orders]

    def close(self) -> None:
        """Leave."""
        self._connection.close()


@pytest.fixture
def listener(platform: Platform, api: Api) -> Iterator[Listener]:
    # A queue that is declared at one broker is unknown to another that keeps apart.
    platform.rabbitmq.heal()
    wait_until(lambda: api.metric("orders_lane_ready") == 3, "all lanes", 60)
    listener = Listener(platform.rabbitmq)
    yield listener
    listener.close()


def identifier(address: str) -> str:
    """Return the order's identifier of its address."""
    return address.removeprefix("/v1/orders/")


def move(connection: psycopg.Connection, order: str, *states: str) -> None:
    """Have an order go through states, each in a transaction of its own."""
    for state in states:
        connection.execute("UPDATE orders SET state = %s WHERE id = %s", (state, order))


def in_stream(rabbitmq: RabbitMQ, *orders: str) -> dict[str, list[str]]:
    """Return what the stream has of orders: the types of each one's events, in the order of their first arrivals."""
    found: dict[str, dict[str, str]] = {order: {} for order in orders}
    # By the third broker: after a power cut of the first its copy of the stream takes a while to come back.
    with rabbitmq.connect(rabbitmq.ports[2]) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1000)
        arguments = {"x-stream-offset": "first"}
        for method, properties, _ in channel.consume("events", arguments=arguments, inactivity_timeout=1):
            if method is None:
                break
            channel.basic_ack(method.delivery_tag)
            if properties.headers["order_id"] in found:
                found[properties.headers["order_id"]].setdefault(properties.message_id, properties.type)
    return {order: list(events.values()) for order, events in found.items()}


def test_what_happens_to_an_order_is_published_in_its_order(
    api: Api, worker: Workers, listener: Listener, connection: psycopg.Connection, name: str
) -> None:
    address = api.place({"P-00030": 1}, name, name)
    decided = api.decided(address)
    order = identifier(address)
    wait_until(lambda: len(listener.of(order)) == 1, "the settlement's event", 5)
    move(connection, order, "shipped", "delivered")
    wait_until(lambda: len(listener.of(order)) == 3, "all events", 5)
    heard = listener.of(order)
    assert [event.key for event in heard] == ["order.settled", "order.shipped", "order.delivered"]
    first = heard[0]
    assert first.properties.headers == {"order_id": order, "customer_id": name}
    assert (first.properties.message_id, first.properties.type) == (first.body["id"], "order.settled")
    assert first.body["data"]["total_cents"] == decided["total_cents"]
    assert sorted(int(event.body["id"]) for event in heard) == [int(event.body["id"]) for event in heard]
    wait_until(lambda: waiting(connection) == 0, "the cursor's move", 5)


def test_an_event_follows_its_settlement_within_half_a_second(
    api: Api, worker: Workers, listener: Listener, name: str
) -> None:
    order = identifier(api.place({"P-00030": 1}, name, name))
    api.decided(f"/v1/orders/{order}")
    wait_until(lambda: listener.of(order), "its event", 0.5)


def test_events_of_a_backlog_follow_its_orders(
    platform: Platform, no_worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    count = 3000
    bodies = [message(name, number, [("P-00030", 1)])[1] for number in range(count)]
    for number, queue in enumerate(QUEUES):
        platform.rabbitmq.publish(queue, *bodies[number :: len(QUEUES)])
    settled = "SELECT count(*) FROM orders WHERE customer_id = %s"
    no_worker.start(wait=False)
    wait_until(lambda: connection.execute(settled, (name,)).fetchone() == (count,), "the backlog", 60)
    began = "SELECT max(decided_at) - min(decided_at) < %s::interval FROM orders WHERE customer_id = %s"
    in_time = connection.execute(began, (f"{PATIENCE_SECONDS} s", name)).fetchone() == (True,)
    # Where orders took longer than events are patient, some events came between them.
    assert waiting(connection) > 0 or not in_time
    wait_until(lambda: waiting(connection) == 0, "the events", 30)


def test_events_of_the_last_full_batch_wait_for_nothing(
    platform: Platform, no_worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    count = 5 * BATCH
    platform.rabbitmq.publish(QUEUES[0], *(message(name, number, [("P-00030", 1)])[1] for number in range(count)))
    settled = "SELECT count(*) FROM orders WHERE customer_id = %s"
    no_worker.start(wait=False)
    wait_until(lambda: connection.execute(settled, (name,)).fetchone() == (count,), "the backlog", 60)
    wait_until(lambda: waiting(connection) == 0, "the events", PATIENCE_SECONDS - 1)


def test_an_orders_events_come_as_they_happened_whichever_transaction_began_first(
    platform: Platform, api: Api, worker: Workers, listener: Listener, connection: psycopg.Connection, name: str
) -> None:
    order = identifier(api.place({"P-00030": 1}, name, name))
    api.decided(f"/v1/orders/{order}")
    with platform.postgres.admin() as older:
        older.execute("BEGIN")
        older.execute("SELECT pg_current_xact_id()")
        move(connection, order, "shipped")
        move(older, order, "delivered")
        older.execute("COMMIT")
    wait_until(lambda: len(listener.of(order)) == 3, "all events", 5)
    assert [event.key for event in listener.of(order)] == ["order.settled", "order.shipped", "order.delivered"]


def test_an_event_waits_for_a_transaction_that_began_before_its_own(
    platform: Platform, api: Api, worker: Workers, listener: Listener, connection: psycopg.Connection, name: str
) -> None:
    first, second = (identifier(api.place({"P-00030": 1}, f"{name}-{n}", name)) for n in range(2))
    for order in (first, second):
        api.decided(f"/v1/orders/{order}")
    wait_until(lambda: len(listener.of(first, second)) == 2, "the settlements' events", 5)
    with platform.postgres.admin() as slow:
        slow.execute("BEGIN")
        move(slow, first, "shipped")
        move(connection, second, "shipped")
        time.sleep(2.5)
        assert len(listener.of(first, second)) == 2
        slow.execute("COMMIT")
    wait_until(lambda: len(listener.of(first, second)) == 4, "both events", 5)
    assert [event.order_id for event in listener.of(first, second)[2:]] == [first, second]


ALL = ["order.settled", "order.shipped", "order.delivered"]


def age(worker: Workers) -> float:
    """Return how old the oldest event is that a worker knows as not published."""
    lines = worker.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("orders_outbox_age_seconds "))


def test_while_every_broker_is_away_events_wait_and_none_is_lost(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    order = identifier(api.place({"P-00030": 1}, name, name))
    api.decided(f"/v1/orders/{order}")
    wait_until(lambda: waiting(connection) == 0, "the settlement's event", 5)
    with frozen(*platform.rabbitmq.brokers):
        move(connection, order, "shipped")
        wait_until(lambda: age(worker) > 2, "the outbox's age", 20)
        move(connection, order, "delivered")
        assert waiting(connection) == 2
    wait_until(lambda: waiting(connection) == 0, "the broker's return", 60)
    wait_until(lambda: age(worker) == 0, "the outbox's age", 5)
    wait_until(lambda: in_stream(platform.rabbitmq, order)[order] == ALL, "the stream", 60)
    wait_until(lambda: api.metric("orders_lane_ready") == 3, "all lanes", 60)


def test_one_dead_broker_delays_events_and_loses_none(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    order = identifier(api.place({"P-00030": 1}, name, name))
    api.decided(f"/v1/orders/{order}")
    with frozen(platform.rabbitmq.brokers[0]):
        move(connection, order, "shipped", "delivered")
        wait_until(lambda: waiting(connection) == 0, "another broker", 40)
    wait_until(lambda: api.metric("orders_lane_ready") == 3, "all lanes", 60)
    wait_until(lambda: in_stream(platform.rabbitmq, order)[order] == ALL, "the stream", 60)


def test_workers_that_are_killed_as_they_publish_lose_no_event_and_keep_their_order(
    platform: Platform, api: Api, workers: Workers, second_worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    workers.start()
    orders = [identifier(api.place({"P-00030": 1}, f"{name}-{n}", name)) for n in range(40)]
    for order in orders:
        api.decided(f"/v1/orders/{order}")
    for round_ in range(4):
        victim = (workers, second_worker)[round_ % 2]
        for order in orders[round_ * 10 : round_ * 10 + 10]:
            move(connection, order, "shipped", "delivered")
        victim.stop(signal.SIGKILL)
        victim.start(wait=False)
    wait_until(lambda: waiting(connection) == 0, "the outbox's end", 30)
    wait_until(lambda: in_stream(platform.rabbitmq, *orders) == dict.fromkeys(orders, ALL), "the stream", 60)


def test_a_worker_that_is_told_to_stop_publishes_what_it_settled_or_leaves_it_to_the_next(
    platform: Platform, api: Api, workers: Workers, connection: psycopg.Connection, name: str
) -> None:
    workers.start()
    orders = [identifier(api.place({"P-00030": 1}, f"{name}-{n}", name)) for n in range(20)]
    started = time.monotonic()
    assert workers.stop() == 0
    assert time.monotonic() - started < 6
    workers.start()
    for order in orders:
        api.decided(f"/v1/orders/{order}")
    wait_until(lambda: waiting(connection) == 0, "the outbox's end", 20)
    wait_until(lambda: in_stream(platform.rabbitmq, *orders) == dict.fromkeys(orders, ALL[:1]), "the stream", 60)


def test_an_idle_worker_costs_next_to_nothing(worker: Workers, connection: psycopg.Connection) -> None:
    wait_until(lambda: waiting(connection) == 0, "the outbox's end", 20)
    before, started = used(worker), time.monotonic()
    time.sleep(10)
    assert (used(worker) - before) / (time.monotonic() - started) < 0.02  # 0.002 to 0.004 where nothing else runs


def used(worker: Workers) -> float:
    """Return the seconds of processor time that a worker has used."""
    assert worker.process.process is not None
    fields = Path(f"/proc/{worker.process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
