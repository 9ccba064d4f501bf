"""Webhooks: signed, again until they arrive, told of in a log, and to nobody in a private network."""

import base64
import hashlib
import hmac
import json
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psycopg
import pytest

from orders.settings import Settings
from orders.webhooks.targets import is_public
from servers import DUE_QUEUE, RETRY_QUEUES, frozen, wait_until, waiting
from service import Api, Platform, Workers

HERE, OTHER = "127.7.0.1", "127.7.0.2"
RETRY_SECONDS = (0.5, 1, 1.5, 2, 2.5)
LOOK_SECONDS = 12.0  # within which a worker sees what no message tells of
LEASE_SECONDS = 20.0


class Got(NamedTuple):
    """What came to a receiver."""

    at: float
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def order(self) -> str:
        """The order's identifier."""
        return str(json.loads(self.body)["data"]["id"])


class Receiver:
    """A server of the web of somebody else's."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext | None = None) -> None:
        self.got: list[Got] = []
        self.statuses: list[int] = []  # of the next answers; then 200
        self.location = ""
        self.retry_after = ""
        self.hold = threading.Event()  # set: answers at once
        self.hold.set()
        self.endless = False
        self.connections = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.got.append(Got(time.monotonic(), self.path, headers, body))
                receiver.hold.wait(60)
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                if receiver.location:
                    self.send_header("Location", receiver.location)
                if receiver.retry_after:
                    self.send_header("Retry-After", receiver.retry_after)
                self.end_headers()
                while receiver.endless:
                    self.wfile.write(b"x" * 1024)

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> Any:  # noqa: ANN401
                connection, peer = self.socket.accept()
                receiver.connections += 1
                connection.settimeout(30)
                return connection, peer

            def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
                if context is None:
                    super().finish_request(request, client_address)
                    return
                with context.wrap_socket(request, server_side=True) as wrapped:
                    super().finish_request(wrapped, client_address)

            def handle_error(self, *_: object) -> None: ...  # whoever asks goes when it likes

        self._server = Server((address, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"{'https' if context else 'http'}://{address}:{port}"

    def of(self, order: str) -> list[Got]:
        """Return what came of an order."""
        return [got for got in self.got if got.order == order]

    def close(self) -> None:
        """Leave."""
        self.hold.set()
        self.endless = False
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Endpoint:
    """A webhook of somebody's."""

    def __init__(self, api: Api, headers: Mapping[str, str], url: str, **fields: object) -> None:
        self._client, self._headers = api.client, headers
        answer = self.ask("POST", "", json={"url": url, **fields})
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert answer.headers["location"] == f"/v1/webhooks/{made['id']}"
        assert answer.headers["cache-control"] == "no-store"
        self.id = str(made["id"])
        self.secret = str(made["secret"])

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:  # noqa: ANN401
        """Ask the service as the owner; what only reads again where the database hesitates, as the edge does."""
        until = time.monotonic() + 10
        while True:
            answer = self._client.request(method, f"/v1/webhooks{path}", headers=self._headers, **arguments)
            if method != "GET" or answer.status_code != 503 or time.monotonic() > until:
                return answer

    def now(self) -> dict[str, Any]:
        """Return it as it is."""
        answer = self.ask("GET", f"/{self.id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def change(self, **fields: object) -> dict[str, Any]:
        """Change it."""
        answer = self.ask("PATCH", f"/{self.id}", json=fields)
        assert answer.status_code == 200, answer.text
        changed: dict[str, Any] = answer.json()
        return changed

    def log(self, **parameters: object) -> list[dict[str, Any]]:
        """Return its deliveries, the newest event first."""
        answer = self.ask("GET", f"/{self.id}/deliveries", params={k: str(v) for k, v in parameters.items()})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["deliveries"]
        return found

    def states(self) -> list[str]:
        """Return what came of its deliveries, the oldest event first."""
        return [delivery["state"] for delivery in reversed(self.log())]


class Customer:
    """A customer of one test's, who has webhooks and orders things."""

    def __init__(self, api: Api, name: str) -> None:
        self._api = api
        self.name = name
        self.endpoints: list[Endpoint] = []
        self._orders = 0

    def webhook(self, url: str, *roles: str, **fields: object) -> Endpoint:
        """Have a webhook, as a customer or in other roles."""
        made = Endpoint(self._api, self._api.bearer(self.name, *(roles or ("customer",))), url, **fields)
        self.endpoints.append(made)
        return made

    def order(self) -> str:
        """Have an order settled, and return its identifier."""
        self._orders += 1
        address = self._api.place({"P-00031": 1}, f"{self.name}-{self._orders}", self.name)
        assert self._api.decided(address)["state"] == "settled"
        return address.removeprefix("/v1/orders/")

    def close(self) -> None:
        """Have no webhooks."""
        for endpoint in self.endpoints:
            endpoint.ask("DELETE", f"/{endpoint.id}")


@pytest.fixture
def receiver(platform: Platform) -> Iterator[Receiver]:
    """Have a receiver with a certificate that counts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(platform.certificates.certificate, platform.certificates.key)
    receiver = Receiver(HERE, 9443, context)
    yield receiver
    receiver.close()


@pytest.fixture
def plain_receiver() -> Iterator[Receiver]:
    """Have another receiver, without TLS."""
    receiver = Receiver(OTHER, 9080)
    yield receiver
    receiver.close()


@pytest.fixture
def trap() -> Iterator[Receiver]:
    """Have a receiver inside the platform, which nothing may come to."""
    receiver = Receiver("127.0.0.5", 9080)
    yield receiver
    assert receiver.connections == 0
    receiver.close()


@pytest.fixture
def customer(api: Api, name: str) -> Iterator[Customer]:
    customer = Customer(api, name)
    yield customer
    customer.close()


@pytest.fixture
def patient_worker(platform: Platform, no_worker: Workers) -> Iterator[Workers]:
    """Have a worker, alone, that has an endpoint fail for three seconds; and a proxy in its environment that is none of its business."""
    workers = Workers(
        platform,
        8103,
        ORDERS_WEBHOOK_FAILURE_SECONDS="3",
        HTTPS_PROXY="http://127.0.0.1:1",
        HTTP_PROXY="http://127.0.0.1:1",
    )
    workers.start()
    yield workers
    workers.close()


@pytest.fixture
def hosts() -> Iterator[None]:
    """Have names by /etc/hosts."""
    path = Path("/etc/hosts")
    before = path.read_text()
    lines = [
        f"{HERE} fine.hooks.test",
        "10.1.2.3 private.hooks.test",
        f"{HERE} mixed.hooks.test",
        "192.168.1.1 mixed.hooks.test",
    ]
    path.write_text(before.rstrip("\n") + "\n" + "\n".join(lines) + "\n")
    yield
    path.write_text(before)


class NameServer:
    """A name server of somebody else's, whose answers of a name change."""

    def __init__(self, name: str, answers: Sequence[str]) -> None:
        self.asked = 0
        self._name, self._answers = name, answers
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(512)
            if not query:
                return
            end = query.index(b"\0", 12) + 5
            question, (kind,) = query[12:end], struct.unpack_from("!H", query, end - 4)
            wanted = b"".join(bytes([len(part)]) + part.encode() for part in self._name.split(".")) + b"\0"
            answer = b""
            if kind == 1 and question[:-4].lower() == wanted:
                address = self._answers[min(self.asked, len(self._answers) - 1)]
                self.asked += 1
                answer = struct.pack("!HHHIH4s", 0xC00C, 1, 1, 0, 4, IPv4Address(address).packed)
            flags = 0x8580 if question[:-4].lower() == wanted else 0x8583
            head = query[:2] + struct.pack("!HHHHH", flags, 1, bool(answer), 0, 0)
            self._socket.sendto(head + question + answer, peer)

    def close(self) -> None:
        """Leave."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", 53))
        self._thread.join()
        self._socket.close()


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """Have a name server that tells a good address twice, and then one inside the platform, for no time at all."""
    path = Path("/etc/resolv.conf")
    before = path.read_text() if path.exists() else ""
    path.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    server = NameServer("changing.hooks.test", (OTHER, OTHER, "127.0.0.5"))
    yield server
    server.close()
    path.write_text(before)


def signature(secret: str, got: Got) -> str:
    """Return the signature that the specification has, by nothing of the service's."""
    assert secret.startswith("whsec_")
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    assert 24 <= len(key) <= 64
    content = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def arrived(receiver: Receiver, order: str, count: int = 1, seconds: float = 15.0) -> list[Got]:
    """Return what came of an order once there is enough of it."""
    wait_until(lambda: len(receiver.of(order)) >= count, f"{count} of the order {order}", seconds)
    return receiver.of(order)


def settled(endpoint: Endpoint, states: list[str], seconds: float = 15.0) -> None:
    """Return once an endpoint's deliveries are like this."""
    wait_until(lambda: endpoint.states() == states, f"{states}", seconds)


def tried(endpoint: Endpoint, count: int) -> None:
    """Return once an endpoint has so many deliveries, each of them tried."""
    wait_until(lambda: [bool(delivery["attempts"]) for delivery in endpoint.log()] == [True] * count, "attempts", 10)


def test_an_event_arrives_signed_by_the_specification_and_is_in_the_log(
    customer: Customer, worker: Workers, receiver: Receiver, connection: psycopg.Connection
) -> None:
    endpoint = customer.webhook(f"{receiver.url}/a/path?with=query", description="My shop")
    before = time.time()
    order = customer.order()
    (got,) = arrived(receiver, order)
    assert got.path == "/a/path?with=query"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-signature"] == signature(endpoint.secret, got)
    assert before - 1 <= int(got.headers["webhook-timestamp"]) <= time.time()
    body = json.loads(got.body)
    assert [*body] == ["type", "timestamp", "data"]
    assert (body["type"], body["data"]["state"]) == ("order.settled", "settled")
    assert datetime.fromisoformat(body["timestamp"]).timestamp() >= before - 1
    row = connection.execute("SELECT id::text FROM event WHERE order_id = %s", (order,)).fetchone()
    assert row == (got.headers["webhook-id"],)
    settled(endpoint, ["delivered"])
    (delivery,) = endpoint.log()
    assert (delivery["event_id"], delivery["type"]) == (got.headers["webhook-id"], "order.settled")
    (attempt,) = delivery["attempts"]
    assert (attempt["status"], 0 < attempt["seconds"] < 5, "next_at" in delivery) == (200, True, False)
    assert "failing_since" not in endpoint.now()
    assert worker.client.get("/metrics").text.count('orders_webhook_attempts_total{outcome="delivered"}') == 1


def test_what_fails_comes_again_later_and_later_under_the_same_id(
    customer: Customer, worker: Workers, receiver: Receiver
) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.statuses = [500, 404, 302]
    order = customer.order()
    wait_until(lambda: "failing_since" in endpoint.now(), "the failure's note", 10)
    got = arrived(receiver, order, 4)
    assert len({(each.headers["webhook-id"], each.body) for each in got}) == 1
    assert all(each.headers["webhook-signature"] == signature(endpoint.secret, each) for each in got)
    for former, latter, wait in zip(got, got[1:], RETRY_SECONDS, strict=False):
        assert 0.8 * wait <= latter.at - former.at < wait + 4  # by the queue, and not by a look at the database
    settled(endpoint, ["delivered"])
    assert [attempt["status"] for attempt in endpoint.log()[0]["attempts"]] == [500, 404, 302, 200]
    assert "failing_since" not in endpoint.now()


@pytest.mark.parametrize("form", ["seconds", "a date"])
def test_a_receiver_that_asks_for_time_has_it(
    customer: Customer, worker: Workers, receiver: Receiver, form: str
) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.statuses = [429]
    receiver.retry_after = "2" if form == "seconds" else formatdate(time.time() + 2.9, usegmt=True)
    order = customer.order()
    first, second = arrived(receiver, order, 2)
    assert max(RETRY_SECONDS[0], 1) < second.at - first.at < 2.9 + 4  # by the queue, and not by a look at the database
    settled(endpoint, ["delivered"])
    assert [attempt.get("retry_after") in (2, 3) for attempt in endpoint.log()[0]["attempts"]] == [True, False]


@pytest.mark.parametrize("asked", ["86400", "99999999999999999999", "-1", "soon", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_receiver_that_asks_for_too_much_or_nonsense_hears_within_the_longest_wait(
    customer: Customer, worker: Workers, receiver: Receiver, asked: str
) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.statuses = [503]
    receiver.retry_after = asked
    order = customer.order()
    first, second = arrived(receiver, order, 2)
    assert second.at - first.at < RETRY_SECONDS[-1] + 4
    settled(endpoint, ["delivered"])


def test_the_queues_of_what_waits_are_empty_in_the_end(platform: Platform, worker: Workers) -> None:
    wait_until(lambda: not platform.rabbitmq.depth(DUE_QUEUE, *RETRY_QUEUES), "empty queues", 20)


def test_a_delivery_is_made_again_on_demand(customer: Customer, worker: Workers, receiver: Receiver) -> None:
    endpoint = customer.webhook(receiver.url)
    order = customer.order()
    (got,) = arrived(receiver, order)
    settled(endpoint, ["delivered"])
    answer = endpoint.ask("POST", f"/{endpoint.id}/deliveries/{got.headers['webhook-id']}/replay")
    assert answer.status_code == 202, answer.text
    again = arrived(receiver, order, 2, LOOK_SECONDS + 3)[1]
    assert (again.headers["webhook-id"], again.body) == (got.headers["webhook-id"], got.body)
    wait_until(lambda: len(endpoint.log()[0]["attempts"]) == 2, "both attempts", 5)
    for unknown in ("1", "x", "9" * 30):
        assert endpoint.ask("POST", f"/{endpoint.id}/deliveries/{unknown}/replay").status_code == 404


def test_gone_switches_off_at_once_and_what_was_missed_can_be_had_later(
    customer: Customer, worker: Workers, receiver: Receiver
) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.statuses = [410]
    first = customer.order()
    wait_until(lambda: not endpoint.now()["enabled"], "the end of it", 10)
    assert endpoint.now()["disabled_because"] == "gone"
    assert endpoint.states() == ["failed"]
    second = customer.order()
    settled(endpoint, ["failed", "failed"])
    assert len(receiver.got) == 1
    since = {"since": "2020-01-01T00:00:00Z"}
    for path in (f"/{endpoint.id}/replay", f"/{endpoint.id}/deliveries/{endpoint.log()[0]['event_id']}/replay"):
        assert endpoint.ask("POST", path, json=since).status_code == 409
    changed = endpoint.change(enabled=True)
    assert (changed["enabled"], "disabled_because" in changed, "failing_since" in changed) == (True, False, False)
    assert endpoint.ask("POST", f"/{endpoint.id}/replay", json=since).json() == {"deliveries": 2, "more": False}
    arrived(receiver, first, 2, LOOK_SECONDS + 3)
    arrived(receiver, second, 1, LOOK_SECONDS + 3)
    settled(endpoint, ["delivered", "delivered"])
    assert endpoint.ask("POST", f"/{endpoint.id}/replay", json=since).json() == {"deliveries": 0, "more": False}


def test_nothing_but_failure_for_long_enough_switches_off_and_says_so(
    customer: Customer, patient_worker: Workers, receiver: Receiver
) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.statuses = [200, *[503] * 100]
    customer.order()
    settled(endpoint, ["delivered"])
    order = customer.order()
    wait_until(lambda: not endpoint.now()["enabled"], "the end of it", 20)
    now = endpoint.now()
    assert now["disabled_because"] == "failing"
    failing = datetime.fromisoformat(now["disabled_at"]) - datetime.fromisoformat(now["failing_since"])
    assert failing.total_seconds() >= 3
    assert endpoint.states() == ["delivered", "failed"]
    attempts = endpoint.log(state="failed")[0]["attempts"]
    assert [attempt["status"] for attempt in attempts] == [503] * len(receiver.of(order))
    assert len(attempts) > 2
    assert (
        patient_worker.client.get("/metrics").text.count('orders_webhooks_switched_off_total{why="failing"} 1.0') == 1
    )


def test_after_a_rotation_two_signatures_are_sent_until_the_overlap_ends(
    customer: Customer, worker: Workers, receiver: Receiver
) -> None:
    endpoint = customer.webhook(receiver.url)
    answer = endpoint.ask("POST", f"/{endpoint.id}/secret", params={"overlap_seconds": "3600"})
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    secret = answer.json()["secret"]
    assert secret != endpoint.secret
    assert endpoint.now()["former_secret_until"] == answer.json()["former_secret_until"]
    (got,) = arrived(receiver, customer.order())
    assert got.headers["webhook-signature"] == f"{signature(secret, got)} {signature(endpoint.secret, got)}"
    last = endpoint.ask("POST", f"/{endpoint.id}/secret", params={"overlap_seconds": "0"}).json()["secret"]
    (got,) = arrived(receiver, customer.order())
    assert got.headers["webhook-signature"] == signature(last, got)
    assert "former_secret_until" not in endpoint.now()


def test_a_secret_is_told_once_and_stored_sealed(customer: Customer, connection: psycopg.Connection) -> None:
    endpoint = customer.webhook("https://127.7.0.1:9443/")
    for answer in (
        endpoint.ask("GET", ""),
        endpoint.ask("GET", f"/{endpoint.id}"),
        endpoint.ask("PATCH", f"/{endpoint.id}", json={}),
    ):
        assert (answer.status_code, "secret" in answer.text) == (200, False)
    key = base64.b64decode(endpoint.secret.removeprefix("whsec_"))
    row = connection.execute("SELECT secret FROM webhook_endpoint WHERE id = %s", (endpoint.id,)).fetchone()
    assert row is not None
    assert (key in row[0], endpoint.secret.encode() in row[0]) == (False, False)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM webhook_delivery",
        "UPDATE webhook_delivery SET body = ''",
        "UPDATE webhook_endpoint SET customer_id = NULL",
        "INSERT INTO webhook_endpoint (created_at) VALUES (now())",
        "TRUNCATE webhook_endpoint",
    ],
)
def test_the_service_may_write_what_it_needs_and_no_more(platform: Platform, statement: str) -> None:
    conninfo = Settings.from_environment(platform.environment).conninfo(platform.postgres.url())
    with (
        psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as service,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        service.execute(statement)


def test_each_hears_of_its_own_orders_and_operators_of_all_and_of_what_they_asked_for(
    customer: Customer, api: Api, worker: Workers, receiver: Receiver, plain_receiver: Receiver
) -> None:
    other = Customer(api, f"{customer.name}x")
    try:
        customer.webhook(f"{receiver.url}/mine")
        other.webhook(f"{receiver.url}/other", types=["order.cancelled"])
        customer.webhook(f"{plain_receiver.url}/all", "operator", types=["order.settled", "order.shipped"])
        mine, others = customer.order(), other.order()
        for state in ("shipment", "delivery"):
            assert api.client.post(f"/v1/orders/{mine}/{state}").status_code == 200
        assert api.client.post(f"/v1/orders/{others}/cancellation").status_code == 200
        arrived(receiver, mine, 3)
        arrived(receiver, others, 1)
        arrived(plain_receiver, mine, 2)
        arrived(plain_receiver, others, 1)
    finally:
        other.close()

    def heard(server: Receiver, order: str) -> list[tuple[str, str]]:
        return sorted((got.path, json.loads(got.body)["type"]) for got in server.of(order))

    types = ("order.delivered", "order.settled", "order.shipped")
    assert heard(receiver, mine) == [("/mine", kind) for kind in types]
    assert heard(receiver, others) == [("/other", "order.cancelled")]
    assert heard(plain_receiver, mine) == [("/all", "order.settled"), ("/all", "order.shipped")]
    assert heard(plain_receiver, others) == [("/all", "order.settled")]


def test_another_s_webhook_is_not_there(customer: Customer, api: Api) -> None:
    endpoint = customer.webhook("https://127.7.0.1:9443/")
    operators = customer.webhook("https://127.7.0.1:9443/", "operator")
    since = {"since": "2020-01-01T00:00:00Z"}
    for found, headers in (
        (endpoint, api.bearer("somebody-else")),
        (endpoint, api.bearer("staff", "operator")),
        (operators, api.bearer(customer.name)),
    ):
        for method, path, body in (
            ("GET", "", None),
            ("PATCH", "", {"enabled": False}),
            ("DELETE", "", None),
            ("POST", "/secret", None),
            ("GET", "/deliveries", None),
            ("POST", "/deliveries/1/replay", None),
            ("POST", "/replay", since),
        ):
            answer = api.client.request(method, f"/v1/webhooks/{found.id}{path}", json=body, headers=headers)
            assert answer.status_code == 404, f"{method} {path} {answer.text}"
        listed = api.client.get("/v1/webhooks", headers=headers).json()["webhooks"]
        assert found.id not in [webhook["id"] for webhook in listed]
    # Operators share theirs.
    assert api.client.get(f"/v1/webhooks/{operators.id}", headers=api.bearer("staff", "operator")).status_code == 200
    assert (endpoint.now()["enabled"], operators.now()["enabled"]) == (True, True)


def test_a_webhook_is_changed_paused_and_deleted(customer: Customer, worker: Workers, receiver: Receiver) -> None:
    endpoint = customer.webhook("https://127.7.0.1:9443/old", types=["order.settled"])
    changed = endpoint.change(url=f"{receiver.url}/new", types=[], description="x")
    assert (changed["url"], changed["types"], changed["description"]) == (f"{receiver.url}/new", [], "x")
    paused = endpoint.change(enabled=False)
    assert (paused["enabled"], paused["disabled_because"], paused["url"]) == (False, "owner", f"{receiver.url}/new")
    customer.order()
    settled(endpoint, ["failed"])
    endpoint.change(enabled=True)
    (got,) = arrived(receiver, customer.order())
    assert got.path == "/new"
    assert endpoint.ask("DELETE", f"/{endpoint.id}").status_code == 204
    assert endpoint.ask("GET", f"/{endpoint.id}").status_code == 404
    count = len(receiver.got)
    customer.order()
    time.sleep(2)
    assert len(receiver.got) == count


def test_the_log_has_pages(customer: Customer, worker: Workers, receiver: Receiver) -> None:
    endpoint = customer.webhook(receiver.url)
    orders = [customer.order() for _ in range(3)]
    for order in orders:
        arrived(receiver, order)
    settled(endpoint, ["delivered"] * 3)
    first = endpoint.ask("GET", f"/{endpoint.id}/deliveries", params={"limit": "2"}).json()
    last = endpoint.ask("GET", f"/{endpoint.id}/deliveries", params={"limit": "2", "after": first["next"]}).json()
    identifiers = [int(delivery["event_id"]) for delivery in first["deliveries"] + last["deliveries"]]
    assert (identifiers, len(identifiers), "next" in last) == (sorted(identifiers, reverse=True), 3, False)
    assert endpoint.log(state="failed") == []


def test_nobody_has_more_than_twenty(customer: Customer) -> None:
    for _ in range(20):
        customer.webhook("https://127.7.0.1:9443/")
    answer = customer.endpoints[0].ask("POST", "", json={"url": "https://127.7.0.1:9443/"})
    assert (answer.status_code, "the most" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://127.0.0.1/", "leads to 127.0.0.1"),
        ("https://localhost/", "leads to"),
        ("https://0.0.0.0/", "leads to 0.0.0.0"),
        ("https://0/", "leads to 0.0.0.0"),
        ("https://2130706433/", "leads to 127.0.0.1"),
        ("https://0x7f.1/", "leads to 127.0.0.1"),
        ("https://0177.0.0.1/", ""),
        ("https://10.0.0.1/", "leads to 10.0.0.1"),
        ("https://169.254.169.254/latest/meta-data", "leads to 169.254.169.254"),
        ("https://[::1]/", "leads to ::1"),
        ("https://[::ffff:10.0.0.1]/", "leads to ::ffff:"),
        ("https://[fd00:ec2::254]/", "leads to fd00:ec2::254"),
        ("https://private.hooks.test/", "leads to 10.1.2.3"),
        ("https://mixed.hooks.test:9443/", "leads to 192.168.1.1"),
        ("https://no-such-name.invalid/", "does not resolve"),
        ("http://93.184.215.14:9080/", "is not https://"),
        ("https://93.184.215.14:22/", "port"),
        ("https://user:password@fine.hooks.test/", "has a user"),
        ("https://fine.hooks.test/#part", "a fragment"),
        ("https://fine.hooks.test\\@127.0.0.1/", ""),
        ("https://ⓛocalhost/", ""),
        ("https:///", ""),
        ("https://", ""),
        ("ftp://fine.hooks.test/", ""),
        ("file:///etc/passwd", ""),
        ("https://fine.hooks.test/\n", ""),
        ("https://fine.hooks.test/" + "x" * 2048, ""),
    ],
)
def test_a_target_where_nothing_may_go_is_refused_when_it_is_named(
    customer: Customer, api: Api, hosts: None, url: str, why: str
) -> None:
    headers = api.bearer(customer.name)
    answer = api.client.post("/v1/webhooks", json={"url": url}, headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "url")
    assert why in answer.json()["errors"][0]["detail"]
    assert api.client.get("/v1/webhooks", headers=headers).json() == {"webhooks": []}
    endpoint = customer.webhook("https://127.7.0.1:9443/")
    assert endpoint.ask("PATCH", f"/{endpoint.id}", json={"url": url}).status_code == 400
    assert endpoint.now()["url"] == "https://127.7.0.1:9443/"


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104  (nothing listens)
        *("0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
        *(
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
        ),
        *("192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
        *("255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a00:1"),
        *("64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "fc00::1", "fd00:ec2::254"),
        *("fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "4000::1"),
    ],
)
def test_an_address_that_is_not_everybody_s_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "93.184.215.14", "100.128.0.1", "2606:4700::1", "2a00:1450::1"]
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_without_the_setting_for_tests_loopback_and_clear_text_are_refused(
    platform: Platform, customer: Customer
) -> None:
    strict = Api(platform, 8118, ORDERS_WEBHOOK_NETWORKS="")
    try:
        strict.wait_until_ready()
        for url in ("https://127.7.0.1:9443/", "http://127.7.0.1:9080/", "http://93.184.215.14:9080/"):
            answer = strict.client.post("/v1/webhooks", json={"url": url}, headers=strict.bearer(customer.name))
            assert answer.status_code == 400, answer.text
    finally:
        strict.stop()


def test_a_name_that_leads_inside_later_is_refused_then(
    customer: Customer, worker: Workers, connection: psycopg.Connection, trap: Receiver, hosts: None
) -> None:
    endpoint = customer.webhook("http://fine.hooks.test:9080/")
    urls = ("http://127.0.0.5:9080/", "http://private.hooks.test:9080/", "https://mixed.hooks.test:9443/")
    for number, url in enumerate(urls, 1):
        connection.execute("UPDATE webhook_endpoint SET url = %s WHERE id = %s", (url, endpoint.id))
        customer.order()
        tried(endpoint, number)
        attempt = endpoint.log()[0]["attempts"][0]
        assert ("which is no address of the Internet" in attempt["error"], "status" in attempt) == (True, False)


def test_a_name_is_resolved_once_for_each_attempt_so_its_second_answer_leads_nowhere(
    customer: Customer, worker: Workers, plain_receiver: Receiver, trap: Receiver, name_server: NameServer
) -> None:
    endpoint = customer.webhook("http://changing.hooks.test:9080/")
    assert name_server.asked == 1
    order = customer.order()
    (got,) = arrived(plain_receiver, order)
    assert got.headers["host"] == "changing.hooks.test:9080"
    settled(endpoint, ["delivered"])
    assert name_server.asked == 2
    assert endpoint.ask("POST", f"/{endpoint.id}/deliveries/{got.headers['webhook-id']}/replay").status_code == 202
    wait_until(lambda: len(endpoint.log()[0]["attempts"]) > 1, "the refusal", LOOK_SECONDS + 3)
    assert "leads to 127.0.0.5" in endpoint.log()[0]["attempts"][1]["error"]
    assert len(plain_receiver.got) == 1


def test_a_redirect_is_a_failure_and_not_followed(
    customer: Customer, worker: Workers, receiver: Receiver, trap: Receiver
) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.statuses, receiver.location = [307], f"{trap.url}/"
    arrived(receiver, customer.order(), 2)
    settled(endpoint, ["delivered"])
    assert [attempt["status"] for attempt in endpoint.log()[0]["attempts"]] == [307, 200]


def test_the_certificate_must_be_the_name_s(
    platform: Platform, customer: Customer, worker: Workers, receiver: Receiver, hosts: None
) -> None:
    good = customer.webhook("https://fine.hooks.test:9443/named")
    order = customer.order()
    (got,) = arrived(receiver, order)
    assert (got.headers["host"], got.path) == ("fine.hooks.test:9443", "/named")
    settled(good, ["delivered"])
    good.change(enabled=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(platform.certificates.certificate, platform.certificates.key)
    nameless = Receiver("127.7.0.3", 9443, context)
    try:
        bad = customer.webhook("https://127.7.0.3:9443/")
        customer.order()
        tried(bad, 1)
        assert "CERTIFICATE_VERIFY_FAILED" in bad.log()[0]["attempts"][0]["error"]
        assert nameless.got == []
    finally:
        nameless.close()


def test_an_answer_without_end_is_not_read(customer: Customer, worker: Workers, receiver: Receiver) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.endless = True
    arrived(receiver, customer.order())
    settled(endpoint, ["delivered"], 5)
    assert endpoint.log()[0]["attempts"][0]["seconds"] < 2


def test_an_endpoint_that_hangs_holds_up_no_other(
    customer: Customer, worker: Workers, receiver: Receiver, plain_receiver: Receiver
) -> None:
    slow, quick = customer.webhook(receiver.url), customer.webhook(plain_receiver.url)
    receiver.hold.clear()
    orders = [customer.order() for _ in range(8)]
    for order in orders:
        arrived(plain_receiver, order, 1, 5)
    settled(quick, ["delivered"] * 8, 5)
    assert 1 <= len(receiver.got) <= 4
    wait_until(lambda: any(delivery["attempts"] for delivery in slow.log()), "the end of patience", 15)
    attempt = next(delivery["attempts"][0] for delivery in slow.log() if delivery["attempts"])
    assert ("no answer within 10 s" in attempt["error"], 9.5 < attempt["seconds"] < 12) == (True, True)
    receiver.hold.set()
    settled(slow, ["delivered"] * 8, 30)


def test_what_was_answered_is_written_down_once_the_database_is_back(
    platform: Platform, customer: Customer, worker: Workers, receiver: Receiver, connection: psycopg.Connection
) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.hold.clear()
    order = customer.order()
    arrived(receiver, order)
    with frozen(platform.postgres):
        receiver.hold.set()
        time.sleep(2.5)
    states = "SELECT state FROM webhook_delivery WHERE endpoint_id = %s"
    wait_until(lambda: connection.execute(states, (endpoint.id,)).fetchall() == [("delivered",)], "the note of it", 15)
    assert len(receiver.of(order)) == 1


def test_a_message_that_is_lost_costs_a_look_at_the_database_and_no_event(
    platform: Platform, customer: Customer, worker: Workers, workers: Workers, receiver: Receiver
) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.statuses = [500, 500, 500]
    order = customer.order()
    arrived(receiver, order, 3)
    wait_until(lambda: len(endpoint.log()[0]["attempts"]) == 3, "the third failure", 5)
    assert workers.stop() == 0
    wait_until(lambda: not platform.rabbitmq.depth(*RETRY_QUEUES), "the message's return", 10)
    platform.rabbitmq.take(DUE_QUEUE)
    workers.start()
    arrived(receiver, order, 4, LOOK_SECONDS)
    settled(endpoint, ["delivered"])


def test_a_worker_that_dies_while_it_sends_loses_nothing(
    customer: Customer, worker: Workers, second_worker: Workers, receiver: Receiver
) -> None:
    endpoint = customer.webhook(receiver.url)
    receiver.hold.clear()
    orders = [customer.order() for _ in range(3)]
    wait_until(lambda: receiver.got, "an attempt", 10)
    worker.stop(signal.SIGKILL)
    second_worker.stop(signal.SIGKILL)
    count = len(receiver.got)
    receiver.hold.set()
    worker.start()
    for order in orders:
        arrived(receiver, order, 1, LEASE_SECONDS + LOOK_SECONDS + 5)
    settled(endpoint, ["delivered"] * 3, LEASE_SECONDS + LOOK_SECONDS + 5)
    assert len(receiver.got) >= 3
    assert count <= 3


def test_what_happens_while_no_worker_runs_is_delivered_afterwards_and_once(
    customer: Customer, workers: Workers, worker: Workers, receiver: Receiver, connection: psycopg.Connection
) -> None:
    endpoint = customer.webhook(receiver.url)
    order = customer.order()
    arrived(receiver, order)
    assert workers.stop() == 0
    connection.execute("UPDATE orders SET state = 'shipped' WHERE id = %s", (order,))
    workers.start()
    arrived(receiver, order, 2)
    settled(endpoint, ["delivered"] * 2)
    assert [delivery["type"] for delivery in reversed(endpoint.log())] == ["order.settled", "order.shipped"]
    assert len(receiver.of(order)) == 2


def test_an_event_that_no_table_takes_goes_to_no_webhook_and_holds_nothing_up(
    customer: Customer, worker: Workers, receiver: Receiver, connection: psycopg.Connection
) -> None:
    endpoint = customer.webhook(receiver.url)
    (month,) = connection.execute(
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_class c JOIN pg_inherits i ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'webhook_delivery'::regclass AND c.relname = to_char(now(), '\"webhook_delivery_\"YYYY_MM')"
    ).fetchall()
    connection.execute(f"ALTER TABLE webhook_delivery DETACH PARTITION {month[0]}")
    try:
        customer.order()
        wait_until(lambda: waiting(connection) == 0, "the relay", 10)
        assert "goes to no webhook" in worker.process.tail()
    finally:
        connection.execute(f"ALTER TABLE webhook_delivery ATTACH PARTITION {month[0]} {month[1]}")
    arrived(receiver, customer.order())
    settled(endpoint, ["delivered"])
