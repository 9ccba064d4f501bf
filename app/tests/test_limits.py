"""What is too large, too much or too deep is refused early, on every route, and the service goes on."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from service import Api

HOSTILE: dict[str, bytes] = {
    "deep": b"[" * 10_000,
    "deep and closed": b"[" * 8_000 + b"]" * 8_000,
    "deep in objects": b'{"a":' * 3_000,
    "a long number": b'{"quantity": ' + b"9" * 16_000 + b"}",
    "a number of no end": b'{"quantity": 1e999999}',
    "no number": b'{"quantity": NaN}',
    "many names": b"{" + b",".join(b'"%d":0' % number for number in range(1_500)) + b"}",
    "a name twice": b'{"quantity": 1, "quantity": 2, "lines": 1, "lines": []}',
    "half a character": b'{"name": "\\ud800"}',
    "no UTF-8": b'{"name": "\xff"}',
    "a byte order mark": b'\xef\xbb\xbf{"quantity": 1}',
    "nothing": b"",
    "white space": b" " * 16_000,
}


@pytest.fixture(scope="module")
def headers(api: Api) -> dict[str, str]:
    """Return the headers of one who may do everything."""
    return {
        "Content-Type": "application/json",
        "Idempotency-Key": "limits",
        "If-Match": '"1.0"',  # which nothing has: were a body taken, nothing would change
        **api.bearer("limits", "customer", "operator"),
    }


def operations(api: Api) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Return every operation of the document: method, path for something, and the operation."""
    for path, found in api.client.get("/v1/schema/openapi.json").json()["paths"].items():
        for method, operation in found.items():
            yield method.upper(), path.replace("{sku}", "P-00001").replace("{", "").replace("}", ""), operation


def with_bodies(api: Api) -> list[tuple[str, str]]:
    """Return every operation that takes a body."""
    found = [(method, path) for method, path, operation in operations(api) if "requestBody" in operation]
    assert len(found) >= 5
    return found


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_body_is_a_400_on_every_route(api: Api, headers: dict[str, str], kind: str) -> None:
    for method, path in with_bodies(api):
        answer = api.client.request(method, path, content=HOSTILE[kind], headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), path
        assert len(answer.content) < 1000, path  # it is not told back


@pytest.mark.parametrize("told", [True, False], ids=["with its length", "in chunks"])
def test_a_body_that_is_too_large_is_a_413_on_every_route(api: Api, headers: dict[str, str], told: bool) -> None:
    for method, path in with_bodies(api):
        content = b" " * 20_000 if told else iter([b" " * 1_000] * 20)
        # Each by a connection of its own: it is closed over what is not read any more.
        answer = httpx.request(method, f"{api.url}{path}", content=content, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json"), path


def test_every_list_has_a_limit(api: Api, headers: dict[str, str]) -> None:
    lists = 0
    for method, path, operation in operations(api):
        parameters = operation.get("parameters", [])
        assert isinstance(parameters, list)
        for parameter in parameters:
            if parameter["name"] == "limit":
                lists += 1
                assert parameter["schema"]["maximum"] <= 200
                over = parameter["schema"]["maximum"] + 1
                for limit in (0, -1, over, 10**30):
                    answer = api.client.request(method, path, params={"limit": limit}, headers=headers)
                    assert answer.status_code == 400, (path, limit)
    assert lists >= 3


def head(port: int, *lines: bytes) -> bytes:
    """Send a request's head and return the answer's first line."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"\r\n".join([b"GET /livez HTTP/1.1", b"Host: x", *lines, b"", b""]))
        return client.recv(1000).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"X: " + b"x" * 12_000], b"200"),
        ([b"X: " + b"x" * 60_000], b"431"),
        ([b"X-%d: %s" % (number, b"x" * 1_000) for number in range(60)], b"431"),
        ([b"X-%d: x" % number for number in range(60)], b"200"),
        ([b"X-%d: x" % number for number in range(200)], b"431"),
        ([b"X y: x"], b"400"),
        ([b"Content-Length: 1", b"Content-Length: 2"], b"400"),
    ],
    ids=["large", "too large", "too large together", "many", "too many", "malformed", "unequal lengths"],
)
def test_headers_that_are_too_large_too_many_or_ambiguous_are_refused(
    api: Api, lines: list[bytes], status: bytes
) -> None:
    assert head(8100, *lines).split(b" ")[1] == status
    assert api.ready()


def test_http_2_is_not_spoken(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", 8100), timeout=10) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        answer = client.recv(1000)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert api.ready()
