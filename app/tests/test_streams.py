"""Server-sent events: an order's history and what happens, replay from the stream, bounds, and an end that holds up no deploy."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import httpx
import psycopg
import pytest

from orders.events.stream import MOST_OF_ONE
from servers import frozen, wait_until, waiting
from service import Api, Platform, Workers

ALL = ["order.settled", "order.shipped", "order.delivered"]


class Told(NamedTuple):
    """One server-sent event."""

    id: str
    type: str
    data: dict[str, Any]


class Client:
    """An event source, as a browser has it: it keeps the last id, also of an event that holds nothing else."""

    def __init__(self, api: Api, path: str, subject: str, *roles: str, **parameters: str) -> None:
        self.last_id = parameters.pop("last_event_id", "")
        self.told: list[Told] = []
        self.opened = threading.Event()
        self.status = 0
        self.headers = httpx.Headers()
        self.over = threading.Event()
        self._leave = threading.Event()
        headers = {**api.bearer(subject, *roles), **({"Last-Event-ID": self.last_id} if self.last_id else {})}
        self._thread = threading.Thread(
            target=self._listen, args=(f"{api.url}{path}", headers, parameters), daemon=True
        )
        self._thread.start()

    def _listen(self, url: str, headers: dict[str, str], parameters: dict[str, str]) -> None:
        try:
            with httpx.stream(
                "GET", url, headers=headers, params=parameters, timeout=httpx.Timeout(5, read=40)
            ) as answer:
                self.status, self.headers = answer.status_code, answer.headers
                self._read(answer)
        except httpx.TransportError:
            pass
        finally:
            self.opened.set()
            self.over.set()

    def _read(self, answer: httpx.Response) -> None:
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if self._leave.is_set():
                return
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            self.last_id = fields.get("id", self.last_id)
            if "data" in fields:
                self.told.append(Told(fields.get("id", ""), fields["event"], json.loads(fields["data"])))
            if "retry" not in fields:
                self.opened.set()
            fields = {}

    @property
    def types(self) -> list[str]:
        """The types of what was told."""
        return [told.type for told in self.told]

    def wait(self, number: int, seconds: float = 5) -> list[Told]:
        """Return once so many events were told."""
        wait_until(lambda: len(self.told) >= number, f"{number} events", seconds)
        return self.told

    def ids(self) -> list[str]:
        """Return the events' own ids."""
        return [told.data["id"] for told in self.told]


def placed(api: Api, connection: psycopg.Connection, name: str, number: int = 0) -> str:
    """Return the address of a customer's order whose settlement is published."""
    address = api.place({"P-00031": 1}, f"{name}-{number}", name)
    api.decided(address)
    wait_until(lambda: waiting(connection) == 0, "its event", 20)
    return address


def move(connection: psycopg.Connection, address: str, *states: str) -> None:
    """Have an order go through states."""
    for state in states:
        connection.execute("UPDATE orders SET state = %s WHERE id = %s", (state, address.removeprefix("/v1/orders/")))


@contextmanager
def another(platform: Platform, port: int = 8118) -> Iterator[Api]:
    """Have one more replica."""
    api = Api(platform, port)
    try:
        api.wait_until_ready()
        yield api
    finally:
        api.stop()


def test_an_order_is_heard_from_its_acceptance_to_its_delivery(
    api: Api, workers: Workers, connection: psycopg.Connection, name: str
) -> None:
    workers.stop()
    address = api.place({"P-00031": 1}, name, name)
    client = Client(api, f"{address}/events", name)
    assert client.wait(1)[0].type == "order.accepted"
    assert client.told[0].data["data"]["state"] == "accepted"
    assert client.headers["content-type"].startswith("text/event-stream")
    assert (client.headers["cache-control"], client.headers["x-accel-buffering"]) == ("no-store", "no")
    workers.start()
    client.wait(2, 10)
    move(connection, address, "shipped", "delivered")
    client.wait(4)
    assert client.types == ["order.accepted", *ALL]
    assert client.told[-1].data["data"]["state"] == "delivered"
    late = Client(api, f"{address}/events", name, wait="false")
    late.over.wait(5)
    assert late.types == ALL
    assert late.ids() == [told.data["id"] for told in client.told[1:]]


def test_what_was_missed_is_told_after_the_last_id_by_any_replica(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    address = placed(api, connection, name)
    client = Client(api, "/v1/events", name)
    assert client.opened.wait(5)
    before = client.last_id
    move(connection, address, "shipped")
    (shipped,) = client.wait(1)
    move(connection, address, "delivered")
    client.wait(2)
    with another(platform) as fresh:  # which has nothing in its memory
        for replica in (api, fresh):
            for last, types in ((before, ALL[1:]), (shipped.id, ALL[2:]), (client.last_id, [])):
                again = Client(replica, "/v1/events", name, wait="false", last_event_id=last)
                assert again.over.wait(10)
                assert (again.status, again.types) == (200, types)
        everything = Client(fresh, "/v1/events", name, wait="false", last_event_id="0")
        assert everything.over.wait(20)
        assert everything.types == ALL
        of_order = Client(fresh, f"{address}/events", name, wait="false", last_event_id=before)
        assert of_order.over.wait(10)
        assert of_order.types == ALL[1:]


def test_clients_of_two_replicas_hear_the_same_though_they_come_while_events_come(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    addresses = [placed(api, connection, name, number) for number in range(30)]
    first = Client(api, "/v1/events", name)
    assert first.opened.wait(5)
    start = first.last_id
    with another(platform) as other:
        clients = []
        for number, address in enumerate(addresses):
            move(connection, address, "shipped", "delivered")
            if number % 6 == 0:
                clients.append(Client((api, other)[number // 6 % 2], "/v1/events", name, last_event_id=start))
        for client in (first, *clients):
            client.wait(60, 15)
            time.sleep(0.2)
            assert client.ids() == first.ids()
        assert len(first.told) == 60


def test_a_customer_hears_of_nobody_elses_orders_and_an_operator_of_all(
    api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    address, others = placed(api, connection, name), placed(api, connection, f"{name}-other")
    own, staff = Client(api, "/v1/events", name), Client(api, "/v1/events", "staff", "operator")
    foreign = Client(api, f"{address}/events", f"{name}-other")
    assert foreign.over.wait(5)
    assert (foreign.status, foreign.headers["content-type"]) == (404, "application/problem+json")
    assert own.opened.wait(5)
    assert staff.opened.wait(5)
    move(connection, others, "shipped")
    move(connection, address, "shipped")
    own.wait(1)
    wait_until(lambda: len(staff.told) >= 2, "both events", 5)
    assert [told.data["data"]["id"] for told in own.told] == [address.removeprefix("/v1/orders/")]
    seen = [told.data["data"]["id"] for told in staff.told]
    assert {address.removeprefix("/v1/orders/"), others.removeprefix("/v1/orders/")} <= set(seen)
    operators = Client(api, f"{address}/events", "staff", "operator", wait="false")
    assert operators.over.wait(5)
    assert operators.types == ALL[:2]


def test_whoever_holds_an_accepted_orders_address_hears_nothing_more_once_it_is_anothers(
    api: Api, workers: Workers, name: str
) -> None:
    workers.stop()
    address = api.place({"P-00031": 1}, name, name)
    stranger = Client(api, f"{address}/events", f"{name}-other")
    owner = Client(api, f"{address}/events", name)
    stranger.wait(1)
    owner.wait(1)
    workers.start()
    owner.wait(2, 10)
    time.sleep(0.5)
    assert stranger.types == ["order.accepted"]


def test_streams_outlive_a_broker_and_miss_nothing(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    address = placed(api, connection, name)
    client = Client(api, "/v1/events", name)
    assert client.opened.wait(5)
    for broker, state in zip(platform.rabbitmq.brokers[:2], ("shipped", "delivered"), strict=True):
        with frozen(broker):
            move(connection, address, state)
            time.sleep(3)
        wait_until(lambda: api.metric("orders_lane_ready") == 3, "all lanes", 60)
    wait_until(lambda: {"order.shipped", "order.delivered"} <= set(client.types), "both events", 60)
    assert [*dict.fromkeys(client.types)] == ALL[1:]
    assert not client.over.is_set()


def test_sigterm_ends_streams_at_once_and_clients_go_on_elsewhere(
    platform: Platform, api: Api, worker: Workers, connection: psycopg.Connection, name: str
) -> None:
    address = placed(api, connection, name)
    with another(platform) as stopping:
        clients = [Client(stopping, "/v1/events", name) for _ in range(3)]
        clients.append(Client(stopping, f"{address}/events", name))
        assert all(client.opened.wait(5) for client in clients)
        started = time.monotonic()
        assert stopping.stop() == 0
        assert time.monotonic() - started < 4
        assert all(client.over.wait(1) for client in clients)
    move(connection, address, "shipped")
    for client in clients:
        again = Client(api, "/v1/events", name, last_event_id=client.last_id)
        assert again.wait(1)[0].type == "order.shipped"


def test_one_customer_takes_no_more_than_a_share_of_a_replicas_streams(api: Api, name: str) -> None:
    clients = [Client(api, "/v1/events", name) for _ in range(MOST_OF_ONE)]
    assert all(client.opened.wait(10) for client in clients)
    refused = api.client.get("/v1/events", headers=api.bearer(name))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["content-type"] == "application/problem+json"
    other = Client(api, "/v1/events", f"{name}-other", wait="false")
    assert other.over.wait(5)
    assert other.status == 200


def test_a_quiet_stream_says_something_every_fifteen_seconds(api: Api, name: str) -> None:
    with httpx.stream("GET", f"{api.url}/v1/events", headers=api.bearer(name), timeout=20) as answer:
        started = time.monotonic()
        lines = answer.iter_lines()
        assert next(lines) == "retry: 2000"
        assert next(line for line in lines if line.startswith(":")) == ":"
        assert 14 < time.monotonic() - started < 19


@pytest.mark.parametrize("last", ["-1", "x", "1.5", str(2**60)])
def test_a_last_id_that_is_none_is_refused_by_name(api: Api, name: str, last: str) -> None:
    for headers, parameters, field in (
        ({"Last-Event-ID": last}, {}, "Last-Event-Id"),
        ({}, {"last_event_id": last}, ""),
    ):
        answer = api.client.get("/v1/events", headers={**api.bearer(name), **headers}, params=parameters)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert not field or answer.json()["errors"][0]["field"]


def test_an_unknown_orders_stream_is_not_found(api: Api, name: str) -> None:
    for identifier in ("x", "00000000-0000-8000-8000-000000000000"):
        answer = api.client.get(f"/v1/orders/{identifier}/events", headers=api.bearer(name))
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_without_any_broker_a_stream_is_refused_in_time(platform: Platform, name: str) -> None:
    with another(platform) as fresh, frozen(*platform.rabbitmq.brokers):
        started = time.monotonic()
        answer = fresh.client.get("/v1/events", headers=fresh.bearer(name))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert time.monotonic() - started < 4


def test_clients_that_go_away_leave_nothing_behind(platform: Platform, worker: Workers, name: str) -> None:
    with another(platform) as fresh:
        for last in (None, "0"):
            parameters = {"last_event_id": last} if last else {}
            with ExitStack() as stack:
                for _ in range(5):
                    url = f"{fresh.url}/v1/events"
                    stack.enter_context(httpx.stream("GET", url, headers=fresh.bearer(name), params=parameters))
                wait_until(lambda: fresh.metric("orders_event_streams") == 5, "five streams", 5)
            wait_until(lambda: fresh.metric("orders_event_streams") == 0, "no streams", 5)
        assert fresh.metric('orders_event_streams_ended_total{why="client"}') == 10
