"""What the service costs on this machine, as ratios of one run: `app/tests/run tests/load/measure.py -s`.

The unit is an empty handler behind the same server at the same rate. A request's CPU time is that of every process that works
for it (replica, brokers, Valkey, pooler, database), less what they take at rest.
"""

import asyncio
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from servers import POSTGRES_BIN, QUEUES, Process, listens, wait_until
from service import Api, Platform, Visitor, Workers
from test_failures import message

EMPTY_PORT = 8199
RATE = 500
SECONDS = 10
CONNECTIONS = 16
BACKLOG = 10_000
PGBENCH_SECONDS = 10
EVENTS_SECONDS = 20  # in which the last of them are published
IDLE_SECONDS = 10
LAG_RATE = 200
LAG_SECONDS = 15
BUNDLE_MS = "10"
STANDBY_PORT = 5433
REST_SECONDS = 5
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_EMPTY = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})
"""


class Load(NamedTuple):
    """What a load came to: answers that were not as expected, and milliseconds from when each was to be sent."""

    errors: int
    p50_ms: float
    p99_ms: float


def trees(roots: Sequence[int]) -> set[int]:
    """Return processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, left = set[int](), list(roots)
    while left:
        each = left.pop()
        found.add(each)
        left += children.get(each, [])
    return found


def cpu_seconds(processes: Sequence[Process]) -> float:
    """Return the CPU time that processes have taken, with their children that live or have ended."""
    ticks = 0
    for pid in trees([process.process.pid for process in processes if process.process]):
        try:
            ticks += sum(int(n) for n in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
        except OSError:
            continue
    return ticks / _TICKS


def resident_mb(process: Process) -> float:
    """Return the memory of the largest process of a tree: Granian's worker, in which the service is."""
    assert process.process is not None
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in trees([process.process.pid])]
    return max(pages) * _PAGE / 1e6


async def _send(port: int, requests: Iterator[bytes], expected: bytes, started: float, step: float) -> list[float]:
    """Send at fixed times over one connection, one at a time; return seconds, infinite where the answer was another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took: list[float] = []
    for number, request in enumerate(requests):
        at = started + number * step
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        took.append(time.perf_counter() - at if head.split(b" ", 2)[1] == expected else math.inf)
    writer.close()
    return took


def load(port: int, make: Callable[[int], bytes], expected: int, *, rate: int = RATE, seconds: int = SECONDS) -> Load:
    """Send so many requests a second for some seconds."""
    numbers = itertools.count()
    each = rate * seconds // CONNECTIONS

    async def run() -> list[list[float]]:
        started = time.perf_counter() + 0.1
        step = CONNECTIONS / rate
        return await asyncio.gather(
            *(
                _send(
                    port,
                    (make(next(numbers)) for _ in range(each)),
                    str(expected).encode(),
                    started + step * lane / CONNECTIONS,
                    step,
                )
                for lane in range(CONNECTIONS)
            )
        )

    took = sorted(itertools.chain.from_iterable(asyncio.run(run())))
    good = [seconds * 1000 for seconds in took if seconds < math.inf]
    return Load(len(took) - len(good), round(good[len(good) // 2], 2), round(good[len(good) * 99 // 100], 2))


def request(method: str, path: str, headers: Mapping[str, str] = {}, body: bytes = b"") -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: orders", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def milliseconds(parts: Mapping[str, Sequence[Process]], work: Callable[[], Load]) -> tuple[dict[str, float], Load]:
    """Return the CPU time of each part for a request of a load, less what it takes at rest, and the load."""

    def spent() -> dict[str, float]:
        return {name: cpu_seconds(processes) for name, processes in parts.items()}

    before = spent()
    time.sleep(REST_SECONDS)
    between, started = spent(), time.monotonic()
    found = work()
    rests = (time.monotonic() - started) / REST_SECONDS
    return {
        name: round((after - between[name] - (between[name] - before[name]) * rests) * 1000 / (RATE * SECONDS), 3)
        for name, after in spent().items()
    }, found


def pgbench(platform: Platform) -> float:
    """Return how many single-row inserts a second pgbench makes through the pooler."""
    with platform.postgres.admin() as connection:
        connection.execute("CREATE TABLE measure (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
        connection.execute("GRANT INSERT ON measure TO orders")
    script = platform.folder / "insert.sql"
    script.write_text("INSERT INTO measure (body) VALUES ('an order of a customer with some lines of text in it');\n")
    script.chmod(0o644)
    result = subprocess.run(
        [
            *(str(POSTGRES_BIN / "pgbench"), "-n", "-c", "16", "-j", "2", "-T", str(PGBENCH_SECONDS)),
            *("-f", str(script), platform.postgres.url()),
        ],
        env={**os.environ, "PGPASSWORD": (platform.secrets / "orders_database_password").read_text()},
        capture_output=True,
        text=True,
        check=True,
    )
    with platform.postgres.admin() as connection:
        connection.execute("DROP TABLE measure")
    return float(next(line for line in result.stdout.splitlines() if line.startswith("tps")).split()[2])


def settled_a_second(platform: Platform, workers: Workers, customer: str) -> float:
    """Return how many orders of a backlog a worker settles a second, each of two lines."""
    bodies = [
        message(customer, n, [(f"P-{1 + n % 97:05}", 1), (f"P-{1 + (n + 31) % 97:05}", 2)])[1] for n in range(BACKLOG)
    ]
    for number, queue in enumerate(QUEUES):
        platform.rabbitmq.publish(queue, *bodies[number :: len(QUEUES)])
    query = "SELECT count(*) FROM orders WHERE customer_id = %s"
    with platform.postgres.admin() as connection:

        def settled() -> int:
            row = connection.execute(query, (customer,)).fetchone()
            return int(row[0]) if row else 0

        workers.start(wait=False)
        wait_until(settled, "the first batch", 60)
        first, started = settled(), time.monotonic()
        wait_until(lambda: settled() == BACKLOG, "the backlog", 120)
        took = time.monotonic() - started
    workers.stop()
    return (BACKLOG - first) / took


@contextmanager
def standby(platform: Platform) -> Iterator[Process]:
    """Have a second PostgreSQL, without whose word nothing is committed, as a platform has it."""
    folder = platform.postgres.folder
    data = folder / "standby"
    with platform.postgres.admin() as connection:
        path = Path(str(connection.execute("SHOW hba_file").fetchone()[0]))  # type: ignore[index]
        path.write_text(f"local replication postgres trust\n{path.read_text()}")
        connection.execute("SELECT pg_reload_conf()")
    subprocess.run(
        [
            *(
                str(POSTGRES_BIN / "pg_basebackup"),
                "-D",
                str(data),
                "-h",
                str(folder),
                "-p",
                str(platform.postgres.port),
            ),
            *("-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync"),
        ],
        check=True,
        capture_output=True,
        user="postgres",
        group="postgres",
        extra_groups=[],
    )
    process = Process(folder, "standby")
    process.spawn([str(POSTGRES_BIN / "postgres"), "-D", str(data), "-p", str(STANDBY_PORT)], user="postgres")
    with platform.postgres.admin() as connection:
        for setting in ("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"):
            connection.execute(setting)
        state = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
        wait_until(lambda: connection.execute(state).fetchone() is not None, "the standby")
        try:
            yield process
        finally:
            for setting in ("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"):
                connection.execute(setting)
            process.stop(signal.SIGINT)


def settlement(platform: Platform, workers: Workers, customer: str) -> dict[str, float]:
    """Return how a worker's settlement compares with pgbench, in this order on the same cluster."""
    inserts = pgbench(platform)
    settled = settled_a_second(platform, workers, customer)
    return {"settled_a_second": round(settled), "pgbench": round(inserts), "ratio": round(settled / inserts, 2)}


def settled_within_a_second(workers: Workers, place: Callable[[], Load]) -> dict[str, object]:
    """Return of which share of orders no more than a second passed from acceptance to settlement."""

    def figure(name: str) -> float:
        lines = workers.client.get("/metrics").text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    workers.start()
    found = place()
    orders = LAG_RATE * LAG_SECONDS // CONNECTIONS * CONNECTIONS
    wait_until(lambda: figure("orders_settlement_lag_seconds_count") >= orders, "the orders", 60)
    share = figure('orders_settlement_lag_seconds_bucket{le="1.0"}') / figure("orders_settlement_lag_seconds_count")
    workers.stop()
    return {"percent": round(100 * share, 2), **found._asdict()}


def test_figures(platform: Platform, api: Api, visitor: Visitor, no_worker: Workers) -> None:
    with platform.postgres.admin() as connection:  # the tests go without, a platform does not
        connection.execute("ALTER SYSTEM SET fsync = on")
        connection.execute("SELECT pg_reload_conf()")
    (platform.folder / "empty.py").write_text(_EMPTY)
    empty = Process(platform.folder, "empty")
    empty.spawn(
        [
            *(sys.executable, "-m", "granian", "--interface", "asgi", "--port", str(EMPTY_PORT), "--no-ws"),
            *("--working-dir", str(platform.folder), "empty:app"),
        ]
    )
    wait_until(lambda: listens(EMPTY_PORT), "the empty handler")
    bundling = Api(platform, 8170, ORDERS_BUNDLE_MILLISECONDS=BUNDLE_MS)
    bundling.wait_until_ready()
    token = platform.keycloak.bearer("load")
    visitor.log_in("anna")
    session = {"Cookie": f"__Host-session={visitor.session}"}
    body = json.dumps({"lines": [{"sku": "P-00001", "quantity": 1}, {"sku": "P-00002", "quantity": 2}]}).encode()

    def order(name: str, number: int) -> bytes:
        return request("POST", "/v1/orders", {**token, "Idempotency-Key": f"{name}-{number}"}, body)

    others = {
        "rabbitmq": platform.rabbitmq.brokers,
        "valkey": [*platform.valkey.nodes, *platform.valkey_sessions.nodes],
        "postgresql": [platform.postgres, platform.postgres.pooler],
    }
    figures: dict[str, object] = {}
    cases: dict[str, tuple[Api, Callable[[int], bytes], int]] = {
        "cached product": (api, lambda _: request("GET", "/v1/products/P-00001"), 200),
        "who one is, with a token": (api, lambda _: request("GET", "/v1/me", token), 200),
        "who one is, with a session": (api, lambda _: request("GET", "/v1/me", session), 200),
        "own orders, with a token": (api, lambda _: request("GET", "/v1/orders?limit=1", token), 200),
        "order, each a message": (api, partial(order, "single"), 202),
        "order, in bundles": (bundling, partial(order, "bundle"), 202),
    }
    for name, (service, make, status) in cases.items():
        # Each beside its own unit: the machine is not the same for long.
        taken, _ = milliseconds({"service": [empty]}, lambda: load(EMPTY_PORT, lambda _: request("GET", "/"), 200))
        unit = taken["service"]
        port = int(service.url.rpartition(":")[2])
        taken, found = milliseconds({"service": [service.process], **others}, partial(load, port, make, status))
        ratio = round(sum(taken.values()) / unit, 2)
        figures[name] = {"cpu_ms": taken, "empty_cpu_ms": unit, "ratio": ratio, **found._asdict()}
        print(f"\n{name}: {json.dumps(figures[name])}", flush=True)
    bundles = bundling.metric("orders_intake_message_orders_count")
    figures["orders_a_message"] = round(bundling.metric("orders_intake_message_orders_sum") / bundles, 2)
    figures["replica_mb"] = round(resident_mb(bundling.process))
    no_worker.start()
    wait_until(lambda: platform.rabbitmq.depth(*QUEUES) == 0, "the load's orders", 120)
    time.sleep(EVENTS_SECONDS)
    before = cpu_seconds([no_worker.process])
    time.sleep(IDLE_SECONDS)
    figures["idle_worker_percent_of_a_core"] = round(
        (cpu_seconds([no_worker.process]) - before) / IDLE_SECONDS * 100, 2
    )
    no_worker.stop()
    figures["settled_within_a_second"] = settled_within_a_second(
        no_worker, lambda: load(8170, partial(order, "lag"), 202, rate=LAG_RATE, seconds=LAG_SECONDS)
    )
    figures["settlement, alone"] = settlement(platform, no_worker, "backlog-alone")
    with standby(platform):
        figures["settlement, with a synchronous standby"] = settlement(platform, no_worker, "backlog-standby")
    bundling.stop()
    empty.stop()
    print("\n" + json.dumps(figures, indent=2))
