"""The interface against its own OpenAPI document, by requests that nobody would think of."""

import os
import subprocess
import sys

import pytest

from service import Api

SECONDS = 45


@pytest.mark.parametrize(("role", "paths"), [("customer", "^/v1/orders"), ("operator", "^/v1/products")])
def test_no_request_breaks_the_interface_or_gets_an_undocumented_answer(api: Api, role: str, paths: str) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/v1/schema/openapi.json"),
            *(f"--checks={checks}", "--phases=examples,coverage,fuzzing", "--max-examples=150", "--no-color"),
            *(
                "--request-timeout=5",
                f"--include-path-regex={paths}",
                "--seed=1",
                "--generation-database=none",
            ),
            f"--header=Authorization: {api.bearer('c1', role)['Authorization']}",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "HOME": "/tmp"},  # noqa: S108
        cwd="/tmp",  # noqa: S108
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


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
    assert {"/v1/products", "/v1/products/{sku}", "/v1/orders/{order_id}", "/livez", "/readyz"} < set(document["paths"])
