"""What happened to orders, on its way from the database to the stream and to those who listen."""

import json
import signal
import time
from collections import defaultdict

import psycopg

from servers import EVENTS, QUEUES, frozen, wait_until
from service import Api, Platform, Workers
from test_failures import counts, message


def written(connection: psycopg.Connection, customer: str) -> list[str]:
    """Return the identifiers of a customer's events in the database."""
    found = connection.execute("SELECT id FROM event WHERE customer_id = %s ORDER BY xid, id", (customer,))
    return [str(identifier) for (identifier,) in found]


def streamed(platform: Platform, customer: str) -> list[str]:
    """Return the identifiers of a customer's events in the stream, as often as they are there."""
    found = [
        properties for properties, _ in platform.rabbitmq.events() if properties.headers["customer_id"] == customer
    ]
    return [str(properties.message_id) for properties in found]


def relayed(platform: Platform, connection: psycopg.Connection, customer: str) -> list[str]:
    """Return what the stream has of a customer once it has all that the database has."""
    found: list[str] = []

    def all_there() -> bool:
        found[:] = streamed(platform, customer)
        return set(found) == set(written(connection, customer))

    wait_until(all_there, "every event in the stream", 60)
    return found


def is_ordered(platform: Platform, customer: str) -> bool:
    """Return whether each order's events, first come, are in the order in which they were written."""
    by_order: dict[str, list[int]] = defaultdict(list)
    for properties, _ in platform.rabbitmq.events():
        if properties.headers["customer_id"] == customer:
            number, seen = int(properties.message_id), by_order[properties.headers["order_id"]]
            if number not in seen:
                seen.append(number)
    return bool(by_order) and all(seen == sorted(seen) for seen in by_order.values())


def test_what_happens_to_orders_is_in_the_stream_in_order(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    addresses = [api.place({"P-00030": 1}, f"{name}-{number}", name) for number in range(5)]
    refused = api.place({"P-00031": 1, "NO-SUCH": 1}, f"{name}-refused", name)
    for address in addresses:
        api.decided(address)
        assert api.client.post(f"{address}/shipment").status_code == 200
    assert api.client.post(f"{addresses[0]}/delivery").status_code == 200
    assert api.decided(refused)["state"] == "refused"
    assert len(relayed(platform, connection, name)) == 12
    assert is_ordered(platform, name)
    told: dict[str, list[str]] = defaultdict(list)
    for properties, body in platform.rabbitmq.events():
        if properties.headers["customer_id"] == name:
            event = json.loads(body)
            assert properties.headers["order_id"] == event["id"]
            assert properties.content_type == "application/json"
            assert properties.type == f"order.{event['state']}"
            assert abs(properties.timestamp - time.time()) < 120
            told[event["id"]].append(properties.type)
    last = {address.rpartition("/")[2]: ["order.settled", "order.shipped"] for address in addresses}
    last[addresses[0].rpartition("/")[2]].append("order.delivered")
    assert told == {**last, refused.rpartition("/")[2]: ["order.refused"]}


def test_an_event_is_in_the_stream_soon_after_its_commit(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    api.decided(api.place({"P-00030": 1}, name, name))
    wait_until(lambda: streamed(platform, name) == written(connection, name), "the event", 4)
    figures = worker.client.get("/metrics").text
    assert "orders_events_relayed_total" in figures
    wait_until(lambda: "orders_outbox_age_seconds 0.0" in worker.client.get("/metrics").text, "an empty outbox", 5)


def test_orders_are_settled_while_the_stream_takes_nothing_and_their_events_come_later(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    with platform.rabbitmq.connect() as operator:
        channel = operator.channel()
        channel.queue_unbind(EVENTS, EVENTS, "#")
        try:
            addresses = [api.place({"P-00030": 1}, f"{name}-{number}", name) for number in range(5)]
            assert {api.decided(address)["state"] for address in addresses} == {"settled"}
            waiting = "orders_outbox_age_seconds"

            def age() -> float:
                lines = worker.client.get("/metrics").text.splitlines()
                return float(next(line for line in lines if line.startswith(f"{waiting} ")).rpartition(" ")[2])

            wait_until(lambda: age() > 2, "events that wait", 20)
            assert not streamed(platform, name)
            assert worker.ready()
        finally:
            channel.queue_bind(EVENTS, EVENTS, "#")
    relayed(platform, connection, name)
    assert is_ordered(platform, name)


def test_events_wait_for_brokers_that_are_silent(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    address = api.place({"P-00030": 1}, name, name)
    api.decided(address)
    with frozen(*platform.rabbitmq.brokers):
        assert api.client.post(f"{address}/shipment").status_code == 200
        time.sleep(3)
        assert api.client.post(f"{address}/delivery").status_code == 200
    relayed(platform, connection, name)
    assert is_ordered(platform, name)
    wait_until(lambda: api.metric("orders_lane_ready") == 3, "all lanes", 30)


def test_killed_workers_leave_no_event_out(
    platform: Platform, workers: Workers, connection: psycopg.Connection, name: str
) -> None:
    workers.stop()
    total = 3000
    bodies = [message(name, number, [("P-00032", 1)])[1] for number in range(total)]
    for lane, queue in enumerate(QUEUES):
        platform.rabbitmq.publish(queue, *bodies[lane::3])
    settled = 0
    for _ in range(5):
        workers.start(wait=False)

        def some_more(settled: int = settled) -> bool:
            return counts(connection, name)[0] >= min(settled + 300, total)

        wait_until(some_more, "some progress", 30)
        workers.stop(signal.SIGKILL)
        settled = counts(connection, name)[0]
    workers.start()
    wait_until(lambda: counts(connection, name)[0] == total, "every order", 60)
    assert len(set(relayed(platform, connection, name))) == total
    assert is_ordered(platform, name)


def test_of_two_workers_one_relays_at_a_time(
    platform: Platform,
    worker: Workers,
    second_worker: Workers,
    connection: psycopg.Connection,
    name: str,
) -> None:
    total = 2000
    bodies = [message(name, number, [("P-00033", 1)])[1] for number in range(total)]
    for lane, queue in enumerate(QUEUES):
        platform.rabbitmq.publish(queue, *bodies[lane::3])
    wait_until(lambda: counts(connection, name)[0] == total, "every order", 60)
    assert sorted(relayed(platform, connection, name)) == sorted(written(connection, name))  # each once
    assert (worker.stop(), second_worker.stop()) == (0, 0)
