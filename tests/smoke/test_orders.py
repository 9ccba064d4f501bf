"""The main job, through the virtual address: orders are taken, settled exactly once, and refused in clear words."""

from __future__ import annotations

import asyncio
import ssl
import time
import uuid
from collections.abc import Iterator

import httpx
import pytest

from tests.support import ledger
from tests.support.orders import Attempt, open_client, place
from tests.support.site import Site

SKUS = ("SMOKE-1", "SMOKE-2", "SMOKE-3")
PRICE_CENTS = 250
ORDERS = 200
# More than two app hosts take at once wait at the edge, and on a slow machine longer than it lets them: it answers 503.
AT_ONCE = 50
SETTLE_SECONDS = 60


@pytest.fixture
def name() -> str:
    """Return what the keys of this test's orders begin with."""
    return f"smoke-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def token(site: Site) -> str:
    """Return the token of a customer."""
    return site.token()


@pytest.fixture(scope="module")
def shelves(site: Site) -> None:
    """Have plenty of each product."""
    ledger.stock_up(site, SKUS, price_cents=PRICE_CENTS)


@pytest.fixture
def client(site: Site, token: str) -> Iterator[httpx.Client]:
    """Return a client that is logged in and trusts the site's authority only."""
    context = ssl.create_default_context(cafile=str(site.authority))
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=site.url, headers=headers, verify=context, timeout=10, trust_env=False) as opened:
        yield opened


def headers(name: str, key: str = "") -> dict[str, str]:
    """Return what an order's request says beside its body."""
    return {"Idempotency-Key": f"{name}-{key or uuid.uuid4().hex}"}


def wait_for_state(client: httpx.Client, order: str) -> dict[str, object]:
    """Return the order once it is decided."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        answer = client.get(f"/v1/orders/{order}")
        assert answer.status_code == httpx.codes.OK, answer.text
        found: dict[str, object] = answer.json()
        if found["state"] != "accepted":
            return found
        assert time.monotonic() < until, f"still not decided: {found}"
        time.sleep(0.2)


@pytest.mark.usefixtures("shelves")
def test_orders_placed_at_once_all_settle_once(site: Site, token: str, name: str) -> None:
    """Every order counts once: in the ledger, in the stock and in the totals."""
    attempts = [Attempt(key=f"{name}-{number}", intended=time.monotonic()) for number in range(ORDERS)]

    async def place_all() -> None:
        waiting = iter(enumerate(attempts))
        async with open_client(site.url, site.authority, token) as client, asyncio.TaskGroup() as group:

            async def place_one_by_one() -> None:
                for number, attempt in waiting:
                    lines = [{"sku": SKUS[number % 3], "quantity": 1 + number % 2}]
                    await place(client, lines, attempt)

            for _ in range(AT_ONCE):
                group.create_task(place_one_by_one())

    asyncio.run(place_all())
    assert [(attempt.status, attempt.error) for attempt in attempts if not attempt.accepted] == []
    accepted = {attempt.order for attempt in attempts}
    assert len(accepted) == ORDERS

    assert ledger.check(site, accepted, SETTLE_SECONDS).faults == []
    found = ledger.outcome(site, name)
    assert found.settled == accepted
    assert found.refused == {}
    ordered = {sku: sum(1 + n % 2 for n in range(ORDERS) if SKUS[n % 3] == sku) for sku in SKUS}
    assert found.sold == ordered
    assert found.total_cents == sum(ordered.values()) * PRICE_CENTS


@pytest.mark.usefixtures("shelves")
def test_a_repeated_key_is_the_same_order(site: Site, client: httpx.Client, name: str) -> None:
    """The same body under the same key is answered with the same order, which settles once."""
    body = {"lines": [{"sku": SKUS[0], "quantity": 1}]}
    answers = [client.post("/v1/orders", json=body, headers=headers(name, "again")) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {httpx.codes.ACCEPTED}
    orders = {answer.json()["id"] for answer in answers}
    assert {answer.headers["Location"] for answer in answers} == {f"/v1/orders/{order}" for order in orders}
    assert len(orders) == 1
    assert wait_for_state(client, orders.pop())["state"] == "settled"
    assert ledger.outcome(site, name).sold == {SKUS[0]: 1}


@pytest.mark.usefixtures("shelves")
def test_a_key_with_another_body_is_refused(site: Site, client: httpx.Client, name: str) -> None:
    """The second order under a key is refused, at once or when it is settled, and takes nothing from the stock."""
    first = client.post("/v1/orders", json={"lines": [{"sku": SKUS[0], "quantity": 1}]}, headers=headers(name, "k"))
    assert wait_for_state(client, first.json()["id"])["state"] == "settled"
    second = client.post("/v1/orders", json={"lines": [{"sku": SKUS[0], "quantity": 2}]}, headers=headers(name, "k"))
    if second.status_code == httpx.codes.ACCEPTED:
        decided = wait_for_state(client, second.json()["id"])
        assert (decided["state"], decided["refusal"]) == ("refused", "key_reused")
    else:
        assert second.status_code == httpx.codes.CONFLICT
        assert second.headers["Content-Type"] == "application/problem+json"
    assert ledger.outcome(site, name).sold == {SKUS[0]: 1}


@pytest.mark.usefixtures("shelves")
def test_a_customer_finds_the_orders_again(client: httpx.Client, name: str) -> None:
    """Page by page, the newest first; a replica that answers may be a moment behind."""
    body = {"lines": [{"sku": SKUS[0], "quantity": 1}]}
    placed = [client.post("/v1/orders", json=body, headers=headers(name)).json()["id"] for _ in range(3)]
    for order in placed:
        wait_for_state(client, order)
    until = time.monotonic() + SETTLE_SECONDS
    found: list[str] = []
    while found != placed[::-1]:
        assert time.monotonic() < until, found
        first = client.get("/v1/orders", params={"limit": 2}).json()
        second = client.get("/v1/orders", params={"limit": 1, "after": first["next"]}).json() if "next" in first else {}
        found = [order["id"] for page in (first, second) for order in page.get("orders", [])]


def test_nobody_orders_without_a_token(site: Site, client: httpx.Client, name: str) -> None:
    """The edge passes it on, the service refuses it, and takes no other header for it."""
    body = {"lines": [{"sku": SKUS[0], "quantity": 1}]}
    del client.headers["Authorization"]
    answer = client.post("/v1/orders", json=body, headers={**headers(name), "X-Customer-Id": "somebody"})
    assert answer.status_code == httpx.codes.UNAUTHORIZED
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert ledger.outcome(site, name).sold == {}


def test_an_unknown_product_is_a_refused_order(client: httpx.Client, name: str) -> None:
    """An order that nobody can fill is a state of the order, not an error of the service."""
    body = {"lines": [{"sku": "NO-SUCH-PRODUCT", "quantity": 1}]}
    answer = client.post("/v1/orders", json=body, headers=headers(name))
    decided = wait_for_state(client, answer.json()["id"])
    assert (decided["state"], decided["refusal"]) == ("refused", "unknown_product")


@pytest.mark.parametrize(
    ("body", "missing", "field"),
    [
        ({"lines": [{"sku": SKUS[0], "quantity": 0}]}, "", "quantity"),
        ({"lines": [{"sku": "no sku", "quantity": 1}]}, "", "sku"),
        ({"lines": []}, "", "lines"),
        ({"lines": [{"sku": SKUS[0], "quantity": 1}]}, "Idempotency-Key", "Idempotency-Key"),
    ],
)
def test_a_bad_request_names_the_field(client: httpx.Client, name: str, body: object, missing: str, field: str) -> None:
    """A client reads in the answer what to mend."""
    sent = {name: value for name, value in headers(name).items() if name != missing}
    answer = client.post("/v1/orders", json=body, headers=sent)
    assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert field.lower() in str(answer.json()["errors"]).lower()


@pytest.mark.usefixtures("shelves")
def test_products_are_listed(client: httpx.Client) -> None:
    """What can be ordered can be seen."""
    answer = client.get(f"/v1/products/{SKUS[0]}")
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["sku"] == SKUS[0]
    assert client.get("/v1/products").status_code == httpx.codes.OK


def test_an_order_that_never_was_is_not_found(client: httpx.Client) -> None:
    """An identifier that nobody gave out is told from one that is not settled yet."""
    answer = client.get(f"/v1/orders/{uuid.uuid4()}")
    assert answer.status_code == httpx.codes.NOT_FOUND
    assert answer.headers["Content-Type"].startswith("application/problem+json")
