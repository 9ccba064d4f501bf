"""The interface against its own OpenAPI document, by requests that nobody would think of."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from servers import DEAD_QUEUE, QUEUES
from service import NUMBERS, Api, Platform, Workers

SECONDS = 400
CASES = 5000
EXAMPLES = 140  # for each operation, beside those that its schemas make
CONFIGURATION = """
[[operations]]
include-path-regex = "/events$"
parameters = { "query.wait" = false } # else they do not end

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "412", "428"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "412", "413", "415", "428"]
"""


class Apart(NamedTuple):
    """An instance, with a worker, whose products and orders are no other test's."""

    platform: Platform
    url: str
    api: Api

    def check(self) -> tuple[int, str]:
        """Run `orders check`."""
        return self.platform.finish("check", ORDERS_DATABASE_URL=self.url)


@pytest.fixture
def apart(platform: Platform, no_worker: Workers) -> Iterator[Apart]:
    for queue in (*QUEUES, DEAD_QUEUE):
        platform.rabbitmq.take(queue)
    database = f"apart_{next(NUMBERS)}"
    platform.postgres.make_database(database)
    url = platform.postgres.url(database=database)
    for arguments in (["migrate"], ["seed", "--products", "10", "--customers", "10"]):
        status, output = platform.finish(*arguments, ORDERS_DATABASE_URL=url)
        assert status == 0, output
    # Of the two clusters the one in which no other test has products.
    cache = {"ORDERS_VALKEY_CACHE_NODES": platform.valkey_sessions.addresses}
    environment = {"ORDERS_DATABASE_URL": url, "ORDERS_DATABASE_RO_URL": url, **cache}
    api = Api(platform, 8117, **environment)
    workers = Workers(platform, 8118, **environment)
    workers.start()
    api.wait_until_ready()
    yield Apart(platform, url, api)
    workers.close()
    api.stop()


def test_of_thousands_of_requests_none_breaks_the_interface_or_gets_an_undocumented_answer(
    apart: Apart, tmp_path: Path
) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", f"--config-file={tmp_path / 'schemathesis.toml'}"),
        *("run", f"{apart.api.url}/v1/schema/openapi.json", "--checks=all", f"--max-examples={EXAMPLES}"),
        *("--workers=2", "--request-timeout=60", "--max-response-time=60", "--continue-on-failure", "--no-shrink"),
        *("--seed=1", "--generation-database=none"),
        *("--report=json", f"--report-json-path={tmp_path / 'report.json'}"),
        f"--header=Authorization: {apart.api.bearer('c-00001', 'customer', 'operator')['Authorization']}",
    ]
    hooks = str(Path(__file__).parent / "fuzzing.py")
    environment = {**os.environ, "HOME": str(tmp_path), "SCHEMATHESIS_HOOKS": hooks}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment, cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    paths = apart.api.client.get("/v1/schema/openapi.json").json()["paths"]
    assert report["operations"]["tested"] == sum(len(operations) for operations in paths.values())
    assert report["test_cases"]["generated"] >= CASES, report["test_cases"]
    status, output = apart.check()
    assert status == 0, output


def test_the_document_is_openapi_31_and_names_every_error(api: Api) -> None:
    document = api.client.get("/v1/schema/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]["/v1/orders"]["post"]["responses"]) == {
        *("202", "400", "401", "403", "409", "413", "415", "503")
    }
    assert set(document["paths"]["/v1/products/{sku}"]["put"]["responses"]) == {
        *("200", "201", "400", "401", "403", "412", "413", "415", "428", "503")
    }
    assert set(document["paths"]["/v1/products/{sku}"]["get"]["responses"]) == {*("200", "304", "400", "404", "503")}
    assert set(document["paths"]["/v1/me/profile"]["put"]["responses"]) == {
        *("200", "201", "400", "401", "403", "412", "413", "415", "428", "503")
    }
    assert {"/v1/products", "/v1/products/{sku}", "/v1/orders/{order_id}", "/livez", "/readyz"} < set(document["paths"])
