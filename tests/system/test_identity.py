"""Identity: only what is meant for users is open, and its loss stops log-ins and nothing else."""

from __future__ import annotations

import html
import re
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from freehold.token import TokenError
from tests.support import ledger
from tests.support.site import Site

SKU = "IDENTITY-1"
START_SECONDS = 120
LOSS_SECONDS = 10  # within which the edges see that a host's Keycloak is gone
PASSWORD = "correct horse battery staple"  # noqa: S105  (of a user that the test makes)
READY_SECONDS = 60


@contextmanager
def browser(site: Site) -> Iterator[httpx.Client]:
    """Have a client without cookies that trusts the site's authority only."""
    context = ssl.create_default_context(cafile=str(site.authority))
    with httpx.Client(base_url=site.url, verify=context, timeout=10, trust_env=False) as opened:
        yield opened


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    """Return a client that trusts the site's authority only."""
    with browser(site) as opened:
        yield opened


@contextmanager
def without_keycloak(site: Site, hosts: list[str]) -> Iterator[None]:
    """Have no Keycloak on some hosts; afterwards return when each has one that answers."""
    for host in hosts:
        site.ask(host, "sudo systemctl stop keycloak")
    try:
        yield
    finally:
        site.ask_all(hosts, "sudo systemctl start keycloak")
        ready = "curl -fs -o /dev/null http://127.0.0.1:9000/auth/health/ready"
        until = time.monotonic() + START_SECONDS
        while any(isinstance(answer, Exception) for answer in site.ask_all(hosts, ready).values()):
            assert time.monotonic() < until
            time.sleep(1)


@pytest.fixture
def no_identity(site: Site) -> Iterator[None]:
    """Have no identity provider."""
    with without_keycloak(site, site.groups["identity"]):
        yield
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            site.token()
        except TokenError:
            assert time.monotonic() < until
            time.sleep(1)
        else:
            return


def enter(client: httpx.Client, user: str, page: Callable[[httpx.Client], httpx.Response], **fields: str) -> str:
    """Fill in a page of the provider that a log-in led to, follow it back, and return whose session it is; empty: none."""
    shown = page(client)
    action = re.search(r'action="([^"]+)"', shown.text)
    if action is None:
        return ""
    answer = client.post(html.unescape(action[1]), data={"username": user, "password": PASSWORD, **fields})
    if answer.status_code != httpx.codes.FOUND:
        return ""
    client.get(answer.headers["location"])
    return str(client.get("/v1/me").json().get("subject", ""))


def log_in_page(client: httpx.Client) -> httpx.Response:
    """Return the page that asks for a password."""
    answer = client.get("/login", params={"next": "/"})
    return client.get(answer.headers["location"]) if answer.status_code == httpx.codes.FOUND else answer


def sign_up_page(client: httpx.Client) -> httpx.Response:
    """Return the page that makes a user."""
    link = re.search(r'href="([^"]+/registration\?[^"]+)"', log_in_page(client).text)
    assert link
    return client.get(html.unescape(link[1]))


def place(client: httpx.Client, token: str) -> str:
    """Place an order and return its address."""
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": f"identity-{uuid.uuid4().hex}"}
    answer = client.post("/v1/orders", json={"lines": [{"sku": SKU, "quantity": 1}]}, headers=headers)
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    return answer.headers["Location"]


@pytest.mark.parametrize(
    "path",
    [
        "/auth/",
        "/auth/admin/",
        "/auth/admin/realms",
        "/auth/realms/master/protocol/openid-connect/token",
        "/auth/metrics",
    ],
)
def test_the_administration_is_closed_from_outside(client: httpx.Client, path: str) -> None:
    """As if it were not there."""
    assert client.get(path).status_code == httpx.codes.NOT_FOUND


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/docs", 200), ("/v1/me", 401)])
def test_browsers_find_the_storefront(client: httpx.Client, path: str, status: int) -> None:
    """The root leads to the service."""
    assert client.get(path).status_code == status


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/rootless", "/.git"])
def test_what_is_for_the_platform_stays_closed_beside_it(client: httpx.Client, path: str) -> None:
    """The root is a route of its own, and opens nothing below it."""
    assert client.get(path).status_code == httpx.codes.NOT_FOUND


def test_a_log_in_leads_to_the_realms_page(site: Site, client: httpx.Client) -> None:
    """Keycloak knows the service as a client, and where it may lead back to."""
    answer = client.get("/login", params={"next": "/"})
    assert answer.status_code == httpx.codes.FOUND, answer.text
    assert answer.headers["location"].startswith(f"{site.issuer}/protocol/openid-connect/auth?")
    page = client.get(answer.headers["location"])
    assert page.status_code == httpx.codes.OK, page.text
    assert 'name="password"' in page.text


def test_a_token_says_who_signed_it_and_where_its_keys_are(site: Site, client: httpx.Client) -> None:
    """What a client library asks first leads to addresses that users reach."""
    found = client.get(f"{site.issuer}/.well-known/openid-configuration").json()
    assert found["issuer"] == site.issuer
    assert found["jwks_uri"].startswith(f"{site.issuer}/")
    assert client.get(found["jwks_uri"]).json()["keys"]


def test_without_the_identity_provider_those_with_a_token_notice_nothing(
    site: Site, client: httpx.Client, request: pytest.FixtureRequest
) -> None:
    """They order, also from replicas that started meanwhile; log-ins are refused in clear words until it is back."""
    ledger.stock_up(site, [SKU])
    token = site.token()
    request.getfixturevalue("no_identity")
    with pytest.raises(TokenError, match="503"):
        site.token()
    place(client, token)
    host = site.groups["app"][0]
    site.ask(host, "sudo systemctl restart svc-orders-api@1", seconds=READY_SECONDS)
    until = time.monotonic() + READY_SECONDS
    ready = "sudo podman exec orders-api-1 python3 -c " + (
        "'import urllib.request; urllib.request.urlopen(\"http://127.0.0.1:8000/readyz\")'"
    )
    while isinstance(answer := site.ask_all([host], ready)[host], Exception):
        assert time.monotonic() < until, answer
        time.sleep(0.5)
    orders = [place(client, token) for _ in range(20)]  # some by each replica
    headers = {"Authorization": f"Bearer {token}"}
    until = time.monotonic() + READY_SECONDS
    while any(client.get(order, headers=headers).json()["state"] != "settled" for order in orders):
        assert time.monotonic() < until
        time.sleep(0.5)


def test_people_log_in_while_the_provider_of_either_host_is_lost(site: Site) -> None:
    """And sign up; requests of one log-in may go to both hosts, which know of each other's."""
    user = f"{uuid.uuid4().hex}@example.org"
    more = {"email": user, "password-confirm": PASSWORD, "firstName": "Ada", "lastName": "Byron"}
    with browser(site) as client:
        known = enter(client, user, sign_up_page, **more)
    assert known
    hosts = site.groups["identity"]
    assert len(hosts) > 1
    for host in hosts:
        with without_keycloak(site, [host]):
            until = time.monotonic() + LOSS_SECONDS
            found = ""
            while not found:
                assert time.monotonic() < until, host
                with browser(site) as client:
                    found = enter(client, user, log_in_page)
        assert found == known
