"""The interface against its own OpenAPI document, by requests that nobody would think of."""

import os
import subprocess
import sys

from service import Api

SECONDS = 45


def test_no_request_breaks_the_interface_or_gets_an_undocumented_answer(api: Api) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/v1/schema/openapi.json"),
            *(f"--checks={checks}", "--phases=examples,coverage,fuzzing", "--max-examples=150", "--no-color"),
            *(
                "--request-timeout=5",
                "--exclude-path-regex=^/(livez|readyz)$",
                "--seed=1",
                "--generation-database=none",
            ),
            f"--header=Authorization: {api.bearer('c1')['Authorization']}",
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
    assert {"/v1/products", "/v1/products/{sku}", "/v1/orders/{order_id}", "/livez", "/readyz"} < set(document["paths"])
