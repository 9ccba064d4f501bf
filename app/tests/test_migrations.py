"""Migrations are applied once, in order, by one at a time."""

import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from orders.migrations import MigrationError, apply, connect_as_owner, load
from orders.seed import SEED
from orders.settings import Settings
from orders.worker.settlement import SETTLE
from servers import DEAD_QUEUE, QUEUES, Process, wait_until
from service import NUMBERS, Api, Former, Platform, Workers


@pytest.fixture
def settings(platform: Platform) -> Settings:
    return Settings.from_environment(platform.environment)


def handles_sigterm(process: Process) -> bool:
    """Return whether a process has a handler for SIGTERM."""
    assert process.process is not None
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return folder


def test_a_second_run_applies_nothing(platform: Platform) -> None:
    assert platform.finish("migrate") == (0, "")


def test_seeding_again_adds_only_what_is_new(platform: Platform) -> None:
    assert platform.finish("seed", "--products", "100") == (0, "made 0 products\n")


def test_sigterm_ends_it_also_where_it_is_ignored_by_default(platform: Platform) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited; so it is for a container's first process
    try:
        process = platform.run("migrate", ORDERS_DATABASE_URL="host=127.0.0.1 port=1 dbname=orders user=orders")
    finally:
        signal.signal(signal.SIGTERM, before)
    wait_until(lambda: handles_sigterm(process), "its start", 20)
    assert process.stop(seconds=2) == 128 + signal.SIGTERM


def test_many_at_once_apply_each_file_once(settings: Settings, tmp_path: Path) -> None:
    folder = write(
        tmp_path, **{"9001_once": "CREATE TABLE once (x int); SELECT pg_sleep(0.2)", "9002_then": "SELECT 1"}
    )
    applied: list[str] = []

    def run() -> None:
        with connect_as_owner(settings) as connection:
            applied.extend(apply(connection, load(folder)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert applied == ["9001_once.sql", "9002_then.sql"]


def test_a_failing_file_leaves_nothing_of_its_run(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path, **{"9011_good": "CREATE TABLE good (x int)", "9012_bad": "SELECT nothing"})
    with connect_as_owner(settings) as connection:
        with pytest.raises(psycopg.errors.UndefinedColumn):
            apply(connection, load(folder))
        row = connection.execute(
            "SELECT to_regclass('good'), count(*) FROM schema_migration WHERE version > 9010"
        ).fetchone()
    assert row == (None, 0)


def test_a_file_that_was_changed_after_it_was_applied_is_refused(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path, **{"9021_changed": "SELECT 1"})
    with connect_as_owner(settings) as connection:
        apply(connection, load(folder))
        write(tmp_path, **{"9021_changed": "SELECT 2"})
        with pytest.raises(MigrationError, match=r"9021_changed\.sql was changed"):
            apply(connection, load(folder))


@pytest.mark.parametrize("names", [["1_short"], ["0001_a", "0001_b"], []])
def test_names_that_have_no_order_are_refused(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, **dict.fromkeys(names, "SELECT 1"))
    with pytest.raises(MigrationError):
        load(tmp_path)


def test_what_ran_before_a_migration_runs_after_it(platform: Platform, name: str) -> None:
    platform.postgres.make_database("former")
    url = platform.postgres.url(database="former")
    settings = Settings.from_environment({**platform.environment, "ORDERS_DATABASE_URL": url})
    with connect_as_owner(settings) as owner:
        apply(owner, load()[:2])
        owner.execute(
            "INSERT INTO product (sku, name, price_cents, currency)"
            " SELECT 'P-0000' || n, 'Product ' || n, 100 + n * 37, 'EUR' FROM generate_series(1, 3) n"
        )
        owner.execute("INSERT INTO stock (sku, quantity) SELECT sku, 5 FROM product")
        apply(owner, load())
        history = owner.execute("SELECT sku, version, price_cents, currency FROM product_price ORDER BY sku").fetchall()
        assert owner.execute(SEED, (4, 5)).rowcount == 1
    assert history == [(f"P-0000{number}", 1, 100 + number * 37, "EUR") for number in (1, 2, 3)]
    former_settle = SETTLE.replace(" AND p.active", "")
    assert former_settle != SETTLE
    identifier = "00000000-0000-8000-8000-000000000000"
    order = {
        "ids": [identifier],
        "customers": ["c1"],
        "keys": [name],
        "accepted": [datetime.now(UTC)],
        "orders": [identifier],
        "positions": [0],
        "skus": ["P-00001"],
        "quantities": [2],
        "products": ["P-00001"],
    }
    with psycopg.connect(settings.conninfo(url), autocommit=True, prepare_threshold=None) as service:
        listed = service.execute(
            "SELECT sku, name, price_cents, currency FROM product WHERE sku > %s ORDER BY sku LIMIT %s", ("P-00003", 9)
        ).fetchall()
        assert listed == [("P-00004", "Product 4", 248, "EUR")]
        for statement in (former_settle, SETTLE):  # once
            service.execute(statement, order)
        assert service.execute("SELECT state, total_cents FROM orders").fetchall() == [("settled", 274)]
        assert service.execute("SELECT quantity FROM stock WHERE sku = 'P-00001'").fetchone() == (3,)


class Versions:
    """The service as it is and as it was two migrations ago, each with a replica and a worker, on a database of their own."""

    def __init__(self, platform: Platform, former: Former, accepted: Path) -> None:
        database = f"versions_{next(NUMBERS)}"
        platform.postgres.make_database(database)
        url = platform.postgres.url(database=database)
        # Of the two clusters the one in which no other test has products.
        cache = {"ORDERS_VALKEY_CACHE_NODES": platform.valkey_sessions.addresses}
        self._environment = {"ORDERS_DATABASE_URL": url, "ORDERS_DATABASE_RO_URL": url, **cache}
        self._platform = platform
        self._accepted = accepted
        for arguments in (["migrate"], ["seed", "--products", "10"]):
            self.run(former, *arguments)
        self.old = Api(former, 8151, **self._environment)
        self.old_worker = Workers(former, 8152, **self._environment)
        self.new_worker = Workers(platform, 8154, **self._environment)
        self.old_worker.start()
        self.old.wait_until_ready()

    def run(self, platform: Platform, *arguments: str) -> str:
        """Run a command of a version; return what it said."""
        status, output = platform.finish(*arguments, **self._environment)
        assert status == 0, output
        return output

    def start_new(self) -> Api:
        """Have the new replica as well."""
        self.new = Api(self._platform, 8153, **self._environment)
        self.new.wait_until_ready()
        return self.new

    def place(self, api: Api, name: str, count: int) -> list[str]:
        """Place orders, and return their addresses."""
        with ThreadPoolExecutor(4) as pool:
            found = [*pool.map(lambda n: api.place({"P-00001": 1, "P-00002": 2}, f"{name}-{n}", name), range(count))]
        with self._accepted.open("a") as file:
            file.writelines(address.rpartition("/")[2] + "\n" for address in found)
        return found

    def are_settled(self, addresses: Sequence[str]) -> None:
        """See that orders are settled, and that either version tells the same of each."""
        for address in addresses:
            told = self.new.decided(address)
            assert (told["state"], told["total_cents"]) == ("settled", 137 + 2 * 174)
            assert self.old.client.get(address).json() == told

    def check(self) -> tuple[int, str]:
        """Run `orders check` of the new version."""
        options = (f"--accepted={self._accepted}", "--no-dead-letters")
        return self._platform.finish("check", *options, **self._environment)

    def stop(self) -> None:
        """End all of them."""
        for worker in (self.old_worker, self.new_worker):
            worker.close()
        self.old.stop()
        if hasattr(self, "new"):
            self.new.stop()


@pytest.fixture
def versions(platform: Platform, no_worker: Workers, tmp_path: Path) -> Iterator[Versions]:
    if not (Former.folder_of_it / "src").exists():
        pytest.skip("a shallow clone has no service of two migrations ago")  # nowhere else: see `run`
    for queue in (*QUEUES, DEAD_QUEUE):
        platform.rabbitmq.take(queue)
    versions = Versions(platform, Former(platform), tmp_path / "accepted")
    yield versions
    versions.stop()


def test_the_service_of_two_migrations_ago_is_two_migrations_behind() -> None:
    former = [migration.version for migration in load(Former.folder_of_it / "migrations")]
    now = [migration.version for migration in load()]
    assert former == now[: len(former)]
    assert len(now) - len(former) >= 2


def test_two_migrations_apart_old_and_new_replicas_and_workers_serve_side_by_side(
    platform: Platform, versions: Versions, name: str
) -> None:
    before = versions.place(versions.old, f"{name}-before", 20)
    # The deploy: the database first, while the old version takes and settles orders.
    with ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(versions.place, versions.old, f"{name}-meanwhile", 150)
        assert versions.run(platform, "migrate").count("applied") >= 2
        new = versions.start_new()
        meanwhile_placed = meanwhile.result()
    versions.are_settled([*before, *meanwhile_placed])
    # Orders of the new replica are settled by the old worker ...
    versions.are_settled(versions.place(new, f"{name}-new-old", 20))
    # ... those of the old replica by the new worker ...
    versions.old_worker.stop()
    waiting = versions.place(versions.old, f"{name}-old-new", 20)
    assert versions.old.client.get(waiting[0]).json() == new.client.get(waiting[0]).json()
    versions.new_worker.start()
    versions.are_settled(waiting)
    # ... and those of both by both, whichever gets them, once each.
    versions.old_worker.start()
    with ThreadPoolExecutor(2) as pool:
        both = [*pool.map(lambda api: versions.place(api, f"{name}-both", 100), (versions.old, new))]
    assert both[0] == both[1]
    versions.are_settled(both[0])
    # A key is one order's in both versions.
    for one, other in ((versions.old, new), (new, versions.old)):
        key = f"{name}-{one.url[-4:]}"
        placed = one.place({"P-00003": 1}, key, name)
        again = other.order({"P-00003": 2}, key, name)
        assert again.status_code == 409 or other.decided(again.headers["location"])["refusal"] == "key_reused"
        assert other.decided(placed)["state"] == "settled"
    for api in (versions.old, new):
        listed = api.client.get("/v1/orders", params={"limit": 200}, headers=api.bearer(f"{name}-both")).json()
        assert {f"/v1/orders/{order['id']}" for order in listed["orders"]} == {*both[0]}
    # The old version leaves, and orders that it took and settled go on: it would not know their states.
    versions.old_worker.stop()
    assert versions.old.process.stop() == 0
    for action in ("shipment", "delivery"):
        assert new.client.post(f"{before[0]}/{action}").status_code == 200
    assert new.client.post(f"{before[1]}/cancellation").status_code == 200
    status, output = versions.check()
    assert (status, "warn" in output) == (0, False), output


def test_the_service_may_sell_and_keep_the_catalogue_and_no_more(platform: Platform) -> None:
    conninfo = Settings.from_environment(platform.environment).conninfo(platform.postgres.url())
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
        for statement in (
            "UPDATE product SET version = 1",
            "UPDATE product SET sku = sku",
            "INSERT INTO product (sku, name, price_cents, currency, version) VALUES ('X', 'x', 1, 'EUR', 9)",
            "DELETE FROM product",
            "UPDATE product_price SET price_cents = 1",
            "INSERT INTO product_price VALUES ('P-00001', 9, 1, 'EUR', now())",
            "DELETE FROM product_price",
            "TRUNCATE product_price",
            "ALTER TABLE product DISABLE TRIGGER ALL",
            "SET session_replication_role = replica",
            "DELETE FROM stock",
            "SELECT FROM schema_migration",
            "DELETE FROM orders",
            "UPDATE orders SET total_cents = 1",
            "INSERT INTO orders (changed_at) VALUES (now())",
            "INSERT INTO ledger_entry (account, kind, amount_cents, currency) VALUES ('revenue', 'sale', 1, 'EUR')",
            "UPDATE ledger_entry SET amount_cents = 1",
            "DELETE FROM ledger_entry",
            "INSERT INTO event (type, body) VALUES ('order.settled', '{}')",
            "DELETE FROM event",
            f"SELECT FROM event_{datetime.now(UTC):%Y_%m}",
            "DELETE FROM relay",
            "UPDATE stock_change SET change = 1",
            "DELETE FROM order_transition",
            "DELETE FROM order_line",
            "CREATE TABLE mine (x int)",
            "TRUNCATE stock",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
