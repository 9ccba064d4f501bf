"""The servers, for the whole run, and the service beside them."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest

from servers import DEAD_QUEUE, QUEUES
from service import NUMBERS, Api, Platform, Products, Visitor, Workers

# The same examples in every run; and no deadline, since the machine is shared.
hypothesis.settings.register_profile("tests", database=None, deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    with tempfile.TemporaryDirectory(prefix="orders-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103  (PostgreSQL runs as another user)
        platform = Platform(Path(folder))
        try:
            platform.rabbitmq.start()
            platform.postgres.create()
            platform.keycloak.start()
            platform.valkey.create()
            platform.valkey_sessions.create()
            platform.rabbitmq.create()
            for arguments in (["migrate"], ["seed", "--products", "100"]):
                status, output = platform.finish(*arguments)
                assert status == 0, output
            platform.keycloak.wait()
            yield platform
        finally:
            stores = (platform.valkey, platform.valkey_sessions)
            for server in (platform.keycloak, platform.postgres, *stores, platform.rabbitmq):
                server.remove()


@pytest.fixture(scope="session")
def api(platform: Platform) -> Iterator[Api]:
    api = Api(platform, 8100)
    api.wait_until_ready()
    yield api
    assert api.stop() == 0
    # What happens in tests is foreseen: none of it is a defect's log line.
    defects = [line for line in api.process.log.read_text().splitlines() if '"ERROR","logger":"orders' in line]
    assert not defects
    assert "eyJ" not in api.process.log.read_text()  # with which every token begins


@pytest.fixture(scope="session")
def workers(platform: Platform) -> Iterator[Workers]:
    workers = Workers(platform)
    yield workers
    workers.close()


@pytest.fixture
def second_worker(platform: Platform) -> Iterator[Workers]:
    """Have one more worker that runs."""
    workers = Workers(platform, 8102)
    workers.start()
    yield workers
    workers.close()


@pytest.fixture
def worker(workers: Workers) -> Workers:
    """Have a worker that runs."""
    workers.start()
    return workers


@pytest.fixture
def no_worker(workers: Workers) -> Workers:
    """No worker, and empty queues to begin with."""
    workers.stop()
    return workers


@pytest.fixture
def no_messages(platform: Platform, no_worker: Workers) -> Iterator[None]:
    """Have no message anywhere, before and after."""
    for queue in (*QUEUES, DEAD_QUEUE):
        platform.rabbitmq.take(queue)
    yield
    for queue in (*QUEUES, DEAD_QUEUE):
        platform.rabbitmq.take(queue)


@pytest.fixture
def connection(platform: Platform) -> Iterator[psycopg.Connection]:
    with platform.postgres.admin() as connection:
        yield connection


@pytest.fixture
def visitor(platform: Platform, api: Api) -> Iterator[Visitor]:
    """Have a browser in which nobody has logged in."""
    visitor = Visitor(platform, api)
    yield visitor
    visitor.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return a text of this test's own, for keys and customers."""
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[-40:].strip("-") + f"-{next(NUMBERS)}"


@pytest.fixture
def products(api: Api, name: str) -> Products:
    """Have products of this test's own."""
    return Products(api, name)
