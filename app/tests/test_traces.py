"""One trace from the request to the worker's SQL, for what is sampled and for every error; and nobody waits for the collector."""

import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from orders.tracecontext import below
from servers import QUEUES, Process, frozen, listens, wait_until
from service import Api, Platform, Workers
from test_failures import message

PORT = 8160
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}

Span = dict[str, Any]


class Collector(Process):
    """What takes spans, by HTTPS."""

    def __init__(self, platform: Platform, port: int) -> None:
        super().__init__(platform.folder, f"collector-{port}")
        self.port = port
        self._certificates = platform.certificates
        self.endpoint = f"https://localhost:{port}/v1/traces"

    def start(self) -> None:
        """Begin to listen."""
        program = Path(__file__).with_name("collector.py")
        certificates = (str(self._certificates.certificate), str(self._certificates.key))
        self.spawn([sys.executable, str(program), str(self.port), *certificates])
        wait_until(lambda: listens(self.port), "the collector")

    def spans(self, trace_id: str = "") -> list[Span]:
        """Return the spans that came, of one trace or of all."""
        written = self.log.read_text() if self.log.exists() else ""
        lines = written[: written.rfind("\n") + 1].splitlines()  # of the last one a part may be there
        return [found for found in map(json.loads, lines) if trace_id in {"", found["trace"]}]

    def wait_for(self, trace_id: str, *names: str) -> dict[str, Span]:
        """Return a trace's spans by name, once these are among them."""
        wait_until(lambda: set(names) <= {span["name"] for span in self.spans(trace_id)}, f"spans {names}", 15)
        return {span["name"]: span for span in self.spans(trace_id)}


@pytest.fixture(scope="module")
def collector(platform: Platform) -> Iterator[Collector]:
    collector = Collector(platform, 4318)
    collector.start()
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def traced(platform: Platform, api: Api, collector: Collector) -> Iterator[Api]:
    """Have an instance that samples nothing by itself."""
    traced = Api(platform, PORT, ORDERS_TRACES_ENDPOINT=collector.endpoint, ORDERS_TRACES_RATIO="0")
    traced.wait_until_ready()
    yield traced
    assert traced.stop() == 0


@pytest.fixture
def traced_worker(platform: Platform, no_worker: Workers, collector: Collector) -> Iterator[Workers]:
    workers = Workers(platform, PORT + 1, ORDERS_TRACES_ENDPOINT=collector.endpoint, ORDERS_TRACES_RATIO="0")
    workers.start()
    yield workers
    workers.close()


def place(sampled: bool = True) -> tuple[str, str, dict[str, str]]:
    """Return a new trace's identifier, that of a span in it, and the header that says so."""
    trace_id, span_id = f"{random.getrandbits(128):032x}", f"{random.getrandbits(64):016x}"
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"}


def order(api: Api, name: str, headers: Mapping[str, str], key: str = "1") -> httpx.Response:
    """Place an order within a trace."""
    body = {"lines": [{"sku": "P-00001", "quantity": 1}]}
    return api.client.post("/v1/orders", json=body, headers={"Idempotency-Key": key, **api.bearer(name), **headers})


def lines(process: Process, trace_id: str) -> list[dict[str, str]]:
    """Return what a process logged of a trace."""
    return [json.loads(line) for line in process.log.read_text().splitlines() if trace_id in line]


def test_a_sampled_order_is_one_trace_over_service_broker_and_worker_with_their_sql(
    traced: Api, traced_worker: Workers, collector: Collector, name: str
) -> None:
    trace_id, span_id, headers = place()
    placed = order(traced, name, headers)
    assert placed.status_code == 202, placed.text
    found = collector.wait_for(trace_id, "POST /v1/orders", "SET", "publish intake", "settle order", "WITH")
    request, publish, settle, sql = (
        found[name] for name in ("POST /v1/orders", "publish intake", "settle order", "WITH")
    )
    chain = [(each["service"], each["kind"], each["parent"]) for each in (request, publish, settle, sql)]
    assert chain == [
        ("orders-api", "SERVER", span_id),
        ("orders-api", "PRODUCER", request["id"]),
        ("orders-worker", "CONSUMER", publish["id"]),
        ("orders-worker", "CLIENT", settle["id"]),
    ]
    assert placed.headers["traceresponse"] == f"00-{trace_id}-{request['id']}-01"
    assert found["SET"]["parent"] == request["id"]
    assert found["SET"]["attributes"]["db.system.name"] == "valkey"
    assert request["attributes"]["http.route"] == "/v1/orders"
    assert request["attributes"]["http.response.status_code"] == 202
    assert request["attributes"]["http.request.header.x-request-id"] == [placed.headers["x-request-id"]]
    assert settle["attributes"]["messaging.system"] == "rabbitmq"
    assert settle["attributes"]["orders.outcome"] == "settled"
    assert sql["attributes"]["db.query.text"].startswith("WITH batch AS ( SELECT * FROM unnest(%(ids)s::uuid[]")
    identifier = placed.json()["id"]
    assert publish["attributes"]["messaging.message.id"] == settle["attributes"]["messaging.message.id"] == identifier
    # In the order in which it happened; the confirm's time is that of `publish intake`.
    assert request["start"] <= publish["start"] < publish["end"] <= request["end"]
    assert publish["start"] < settle["start"] <= sql["start"] < sql["end"] <= settle["end"]
    # No personal data, and no parameters: whose order it is stands nowhere.
    assert name not in json.dumps(collector.spans(trace_id))
    assert not any(span["failed"] for span in found.values())
    # And its log lines are found by the trace.
    assert [line["message"] for line in lines(traced.process, trace_id)] == [f"Order {identifier} is queued"]
    assert [line["message"] for line in lines(traced_worker.process, trace_id)] == [f"Order {identifier} is settled"]


def test_reads_show_the_wait_for_a_connection_and_the_statement_and_changes_their_transaction(
    traced: Api, worker: Workers, collector: Collector, name: str
) -> None:
    placed = traced.place({"P-00001": 1}, "1", name)
    traced.decided(placed)
    trace_id, _, headers = place()
    answer = traced.client.get("/v1/orders", headers={**traced.bearer(name), **headers})
    assert answer.status_code == 200, answer.text
    found = collector.wait_for(trace_id, "GET /v1/orders", "wait for a connection", "SELECT")
    request = found["GET /v1/orders"]
    assert found["wait for a connection"]["attributes"]["db.client.connection.pool.name"] == "replicas"
    assert {found[child]["parent"] for child in ("wait for a connection", "SELECT")} == {request["id"]}
    trace_id, _, headers = place()
    answer = traced.client.post(f"{placed}/cancellation", headers={**traced.bearer(name), **headers})
    assert answer.status_code == 200, answer.text
    found = collector.wait_for(trace_id, "POST /v1/orders/{order_id}/cancellation", "transaction", "UPDATE")
    assert found["UPDATE"]["parent"] == found["transaction"]["id"]
    assert found["wait for a connection"]["attributes"]["db.client.connection.pool.name"] == "primary"
    # The path names the order; whoever looks for it finds it by its trace.
    assert placed.rpartition("/")[2] not in json.dumps(collector.spans(trace_id))


def test_orders_of_one_batch_are_each_in_their_own_trace(
    traced: Api, no_worker: Workers, platform: Platform, collector: Collector, name: str
) -> None:
    sampled = [place() for _ in range(3)]
    unsampled = [place(sampled=False) for _ in range(3)]
    for number, (_, _, headers) in enumerate([*sampled, *unsampled]):
        assert order(traced, name, headers, str(number)).status_code == 202
    workers = Workers(platform, PORT + 1, ORDERS_TRACES_ENDPOINT=collector.endpoint)
    workers.start()
    try:
        for trace_id, _, _ in sampled:
            found = collector.wait_for(trace_id, "settle order", "WITH")
            assert found["WITH"]["parent"] == found["settle order"]["id"]
            assert found["settle order"]["parent"] == found["publish intake"]["id"]
            assert [span["name"] for span in collector.spans(trace_id)].count("settle order") == 1
        assert not [span for trace_id, _, _ in unsampled for span in collector.spans(trace_id)]
    finally:
        workers.close()


def test_the_trace_is_no_part_of_what_an_order_is(traced: Api, worker: Workers, name: str) -> None:
    first, second = (order(traced, name, place(sampled=sampled)[2]) for sampled in (True, False))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.headers["location"] == second.headers["location"]
    assert traced.decided(first.headers["location"])["state"] == "settled"


def test_an_order_that_is_sampled_is_queued_with_its_place_in_the_trace_and_others_too(
    platform: Platform, traced: Api, api: Api, no_worker: Workers, name: str
) -> None:
    platform.rabbitmq.take(QUEUES[0]), platform.rabbitmq.take(QUEUES[1]), platform.rabbitmq.take(QUEUES[2])
    told = {}
    for service, sampled in ((traced, True), (traced, False), (api, False)):
        trace_id, _, headers = place(sampled)
        assert order(service, name, headers, trace_id).status_code == 202
        told[trace_id] = "01" if sampled else "00"
    found = [json.loads(body) for queue in QUEUES for body in platform.rabbitmq.take(queue)]
    assert {each["traceparent"][3:35]: each["traceparent"][-2:] for each in found} == told


def test_what_is_not_sampled_has_no_spans_and_a_ratio_decides_of_what_begins_here(
    platform: Platform, collector: Collector, traced: Api, name: str
) -> None:
    every = Api(platform, PORT + 2, ORDERS_TRACES_ENDPOINT=collector.endpoint, ORDERS_TRACES_RATIO="1")
    try:
        every.wait_until_ready()
        asked = every.client.get("/v1/products")
        decided, _, headers = place(sampled=False)
        assert every.client.get("/v1/products", headers=headers).status_code == 200
        health = {every.client.get(path).headers["trace-id"] for path in ("/livez", "/readyz", "/metrics")}
        here = traced.client.get("/v1/products")
        later, _, headers = place()
        assert traced.client.get("/v1/products", headers=headers).status_code == 200
        collector.wait_for(asked.headers["trace-id"], "GET /v1/products")
        collector.wait_for(later, "GET /v1/products")
        without = {decided, here.headers["trace-id"], *health}
        assert without.isdisjoint(span["trace"] for span in collector.spans())
    finally:
        every.stop()
    assert asked.headers["traceresponse"].endswith("-01")
    assert here.headers["traceresponse"].endswith("-00")


def test_errors_have_a_span_whatever_is_sampled(platform: Platform, collector: Collector, name: str) -> None:
    nowhere = "host=127.0.0.1 port=1 user=orders dbname=orders"
    broken = Api(
        *(platform, PORT + 3),
        ORDERS_DATABASE_URL=nowhere,
        ORDERS_DATABASE_RO_URL="",
        ORDERS_VALKEY_CACHE_NODES="",
        ORDERS_TRACES_ENDPOINT=collector.endpoint,
        ORDERS_TRACES_RATIO="0",
    )

    def ask(headers: Mapping[str, str] = {}) -> httpx.Response:
        return broken.client.get("/v1/orders", headers={**broken.bearer(name), **headers})

    def refused() -> bool:
        return listens(PORT + 3) and "database" in ask().text

    try:
        wait_until(refused, "the keys", 30)
        before = time.time_ns()
        trace_id, span_id, headers = place(sampled=False)
        answer = ask(headers)
        assert (answer.status_code, answer.json()["trace_id"]) == (503, trace_id)
        span = collector.wait_for(trace_id, "GET /v1/orders")["GET /v1/orders"]
        assert (span["parent"], span["failed"]) == (span_id, True)
        assert answer.headers["traceresponse"] == f"00-{trace_id}-{span['id']}-00"
        assert span["attributes"]["error.type"] == "PoolTimeout"
        assert span["attributes"]["http.response.status_code"] == 503
        # Made afterwards, with the times that the request had: it waited 0.4 s for a connection.
        assert before <= span["start"] < span["end"] <= time.time_ns()
        assert span["end"] - span["start"] > 0.3e9
        # The platform asks twice a second whether it is ready, and knows the answer.
        asked = broken.client.get("/readyz")
        assert asked.status_code == 503
        last = ask()
        collector.wait_for(last.headers["trace-id"], "GET /v1/orders")
        assert not collector.spans(asked.headers["trace-id"])
    finally:
        broken.stop()


def test_a_message_that_dies_is_told_of_by_its_trace_though_it_was_not_sampled(
    platform: Platform, traced_worker: Workers, collector: Collector, name: str
) -> None:
    trace_id, span_id, headers = place(sampled=False)
    _, body = message(name, 1, [("P-00001", 1)])
    forged = {**json.loads(body), "customer_id": "another", **headers}
    platform.rabbitmq.publish(QUEUES[0], json.dumps(forged).encode(), b'{"traceparent": 1}', b"[")
    span = collector.wait_for(trace_id, "bury message")["bury message"]
    assert (span["service"], span["parent"], span["failed"]) == ("orders-worker", span_id, True)
    assert span["attributes"]["error.type"] == "DeadLetterError"
    found = lines(traced_worker.process, trace_id)
    assert [line["message"] for line in found] == [
        "A message goes to the dead letters: the identifier is not that of the content"
    ]
    assert found[0]["trace_id"] == trace_id
    platform.rabbitmq.take("intake-dead")


def is_valid(text: str) -> bool:
    """Return whether a text is a traceparent of version 0."""
    return below(text) is not None


def test_every_answer_has_the_identifiers_of_request_and_trace(api: Api, traced: Api, name: str) -> None:
    customer = traced.bearer(name)
    cases: dict[int, tuple[str, str, dict[str, Any]]] = {
        200: ("GET", "/v1/products", {}),
        304: ("GET", "/v1/products/P-00001", {"headers": {"If-None-Match": "*"}}),
        400: ("GET", "/v1/products?limit=0", {}),
        401: ("GET", "/v1/orders", {"headers": {"Authorization": "Bearer nothing"}}),
        403: ("GET", "/v1/orders/search?customer=a", {"headers": customer}),
        404: ("GET", "/v2/nothing", {}),
        405: ("DELETE", "/v1/orders", {}),
        413: ("POST", "/v1/orders", {"content": b" " * 20_000, "headers": {"Idempotency-Key": "a", **customer}}),
        415: ("POST", "/v1/orders", {"content": b"{}", "headers": {"Idempotency-Key": "a", **customer}}),
        428: ("PUT", "/v1/products/P-00001", {"json": {}}),
    }
    for service in (api, traced):
        for status, (method, path, arguments) in cases.items():
            trace_id, span_id, headers = place(sampled=status % 2 == 0)
            headers |= {"X-Request-Id": f"request-{status}", **arguments.get("headers", {})}
            answer = service.client.request(method, path, **{**arguments, "headers": headers})
            assert answer.status_code == status, answer.text
            assert answer.headers["x-request-id"] == f"request-{status}", status
            assert answer.headers["trace-id"] == trace_id, status
            assert answer.headers["traceresponse"].startswith(f"00-{trace_id}-"), status
            assert span_id not in answer.headers["traceresponse"], status
            if status >= 400:
                problem = answer.json()
                assert answer.headers["content-type"] == "application/problem+json"
                assert (problem["request_id"], problem["trace_id"]) == (f"request-{status}", trace_id)


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "forged",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01, 00",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" * 50,
    ],
)
def test_what_is_no_traceparent_begins_another_trace(traced: Api, given: str | None) -> None:
    answer = traced.client.get("/livez", headers={} if given is None else {"traceparent": given})
    assert answer.status_code == 200
    assert is_valid(answer.headers["traceresponse"])
    assert answer.headers["trace-id"] != "0af7651916cd43dd8448eb211c80319c"
    assert answer.headers["traceresponse"].endswith("-00")


def test_a_traceparent_of_a_later_version_is_understood(traced: Api) -> None:
    given = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more"
    answer = traced.client.get("/livez", headers={"traceparent": given})
    assert answer.headers["trace-id"] == "0af7651916cd43dd8448eb211c80319c"


def test_requests_at_the_same_time_keep_their_identifiers_apart(traced: Api) -> None:
    def ask(number: int) -> int:
        trace_id, _, headers = place(sampled=number % 2 == 0)
        answer = httpx.get(
            f"{traced.url}/v1/customers/apart-{number}/profile",
            headers={**headers, "X-Request-Id": f"apart-{number}", **traced.bearer("staff", "operator")},
            timeout=10,
        )
        problem = answer.json()
        assert (problem["request_id"], problem["trace_id"]) == (f"apart-{number}", trace_id)
        if answer.status_code == 404:  # else the machine is so busy that there was no connection for it in time
            told[f"operator staff reads the profile of customer apart-{number}, who has none"] = trace_id
        return answer.status_code

    told: dict[str, str] = {}
    with ThreadPoolExecutor(16) as pool:
        assert {*pool.map(ask, range(200))} <= {404, 503}
    assert len(told) > 50
    log = [json.loads(line) for line in traced.process.log.read_text().splitlines() if '"orders.audit"' in line]
    assert {line["message"]: line["trace_id"] for line in log if "apart-" in line["message"]} == told


def test_slow_requests_of_the_metrics_name_a_trace_to_whoever_takes_openmetrics(
    traced: Api, traced_worker: Workers, name: str
) -> None:
    trace_id, _, headers = place()
    placed = order(traced, name, headers)
    traced.decided(placed.headers["location"])
    mark = f'# {{trace_id="{trace_id}"}}'
    for client, metric in (
        (traced.client, "orders_http_request_seconds_bucket"),
        (traced_worker.client, "orders_settlement_lag_seconds_bucket"),
    ):
        told = client.get("/metrics", headers=OPENMETRICS)
        assert told.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert told.text.endswith("# EOF\n")
        assert [line for line in told.text.splitlines() if line.startswith(metric) and mark in line]
        plain = client.get("/metrics", headers={"Accept": "text/plain"})
        assert plain.headers["content-type"].startswith("text/plain")
        assert f"{metric}{{" in plain.text
        assert "trace_id" not in plain.text


def times(api: Api, name: str, count: int) -> list[float]:
    """Return how many seconds each of so many orders took, all of which must be accepted."""
    took = []
    for number in range(count):
        started = time.perf_counter()
        answer = order(api, name, {}, f"{started}-{number}")
        took.append(time.perf_counter() - started)
        assert answer.status_code == 202, answer.text
    return took


def test_a_collector_that_hangs_or_is_away_costs_no_request_anything(platform: Platform, api: Api, name: str) -> None:
    collector = Collector(platform, 4328)
    collector.start()
    asked = Api(platform, PORT + 4, ORDERS_TRACES_ENDPOINT=collector.endpoint, ORDERS_TRACES_RATIO="1")
    try:
        asked.wait_until_ready()
        times(asked, name, 50)
        well = times(asked, name, 150)
        wait_until(lambda: asked.metric("orders_spans_total") >= 2 * 200, "spans")  # a busy Valkey is not asked
        with frozen(collector):
            hangs = times(asked, name, 900)
            wait_until(lambda: failed(asked) > 0, "a batch that was given up", 15)
            # The queue is bounded: what is too much is dropped and counted.
            wait_until(lambda: times(asked, name, 50) and dropped(asked) > 0, "dropped spans", 60)
            assert asked.ready()
        collector.stop()
        away = times(asked, name, 150)
        # All took what they take; the slowest may be the machine's doing, and is far from the collector's 2 s.
        assert statistics.median(hangs) < 2 * statistics.median(well)
        assert statistics.median(away) < 2 * statistics.median(well)
        assert max(hangs + away) < 1.0
        complaints = [line for line in asked.process.log.read_text().splitlines() if '"orders.exporting"' in line]
        assert len(complaints) == 1, complaints
        assert "takes no spans" in complaints[0]
        log = asked.process.log.read_text()
        assert "Traceback" not in log
        assert "opentelemetry" not in log
        # One that comes back gets what is told from then on.
        collector.start()
        trace_id, _, headers = place()
        assert order(asked, name, headers, trace_id).status_code == 202
        wait_until(lambda: collector.spans(trace_id), "the collector's spans", 60)
    finally:
        started = time.monotonic()
        assert asked.stop() == 0
        assert time.monotonic() - started < 8
        collector.stop()


def failed(api: Api) -> float:
    """Return how many spans the collector did not take."""
    return api.metric('orders_spans_total{outcome="failed"}')


def dropped(api: Api) -> float:
    """Return how many spans were too many."""
    return api.metric('orders_spans_total{outcome="dropped"}')


def test_a_service_stops_in_time_while_its_collector_hangs_and_sends_what_is_left_where_it_does_not(
    platform: Platform, name: str
) -> None:
    collector = Collector(platform, 4338)
    collector.start()
    try:
        for hangs in (True, False):
            asked = Api(platform, PORT + 5, ORDERS_TRACES_ENDPOINT=collector.endpoint, ORDERS_TRACES_RATIO="1")
            asked.wait_until_ready()
            trace_id, _, headers = place()
            if hangs:
                with frozen(collector):
                    assert asked.client.get("/v1/products", headers=headers).status_code == 200
                    time.sleep(1.5)
                    started = time.monotonic()
                    assert asked.stop() == 0
                    assert time.monotonic() - started < 8
            else:
                assert asked.client.get("/v1/products", headers=headers).status_code == 200
                assert asked.stop() == 0
                assert collector.spans(trace_id)
    finally:
        collector.stop()


def test_a_wrong_setting_is_refused_by_name(platform: Platform) -> None:
    for change, named in (
        ({"ORDERS_TRACES_RATIO": "2"}, "ORDERS_TRACES_RATIO is 2.0"),
        ({"ORDERS_TRACES_RATIO": "nan"}, "ORDERS_TRACES_RATIO"),
        ({"ORDERS_TRACES_RATIO": "often"}, "traces_ratio"),
        ({"ORDERS_TRACES_ENDPOINT": "jaeger:4318"}, "ORDERS_TRACES_ENDPOINT: 'jaeger:4318' is not http"),
    ):
        for command in ("serve", "worker"):
            status, output = platform.finish(command, **change)
            assert (status, output.count("\n")) == (2, 1), output
            assert named in output
