"""Log-ins with a browser: by Keycloak's own page, to a session that lives in Valkey, until it ends everywhere."""

import hashlib
import json
import re
import signal
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import parse_qs, quote, unquote, urlsplit

import httpx
import pytest

from orders.access.schemas import Access
from servers import Keycloak, frozen, wait_until
from service import Api, Platform, Visitor, Workers
from test_access import BODIES, EITHER, ROUTES, opens, request

GRANTED = {"anna": Access.CUSTOMER, "olga": Access.OPERATOR, "otto": EITHER, "nora": Access(0)}
KNOWN_SECONDS = 1.0
END_SECONDS = 1.0


@contextmanager
def instance(platform: Platform, port: int, **environment: str) -> Iterator[Api]:
    """Have one more instance of the service."""
    api = Api(platform, port, **environment)
    try:
        api.wait_until_ready()
        yield api
    finally:
        api.stop()


@pytest.fixture(scope="module")
def signed_in(platform: Platform, api: Api) -> Iterator[dict[str, Visitor]]:
    """Have a browser for everybody, logged in."""
    visitors = {name: Visitor(platform, api) for name in GRANTED}
    for name, visitor in visitors.items():
        visitor.log_in(name)
    yield visitors
    for visitor in visitors.values():
        visitor.close()


@pytest.fixture(scope="module")
def order(signed_in: dict[str, Visitor]) -> str:
    """Return the identifier of an order of anna's."""
    body = {"lines": [{"sku": "NEVER-SOLD", "quantity": 1}]}  # so that its state allows no change
    answer = signed_in["anna"].ask("POST", "/v1/orders", json=body, headers={"Idempotency-Key": "anna's"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.fixture(autouse=True)
def profiles(request: pytest.FixtureRequest) -> None:
    """Have the profiles that a route is about; the route before may have erased them."""
    if "profile" in request.node.name:
        signed_in: dict[str, Visitor] = request.getfixturevalue("signed_in")
        api: Api = request.getfixturevalue("api")
        body, absent = BODIES["PUT", "/v1/me/profile"], {"If-None-Match": "*"}
        made = [signed_in[name].ask("PUT", "/v1/me/profile", json=body, headers=absent) for name in ("anna", "otto")]
        made.append(api.client.put("/v1/me/profile", json=body, headers={**absent, **api.bearer("c1")}))
        assert {answer.status_code for answer in made} <= {201, 412}, [answer.text for answer in made]


@contextmanager
def ended_at_provider(api: Api, log_ins: int) -> Iterator[None]:
    """Check that the identity provider has ended so many log-ins when what is done in here has been answered.

    A browser that opens Keycloak's page (26.7.3) in the same moment keeps its log-in there, though the end was confirmed.
    """
    name = 'orders_logouts_total{outcome="provider_ended"}'
    before = api.metric(name)
    yield
    assert api.metric(name) >= before + log_ins


def stored(platform: Platform, pattern: str = "orders:session:*") -> list[str]:
    """Return the keys of the sessions, on the nodes that take writes."""
    store = platform.valkey_sessions
    return [key for port in store.primaries() for key in store.cli(port, "keys", pattern).split()]


# ---- the matrix --------------------------------------------------------------------------------------------------------

PRIVATE = [route for route, row in ROUTES.items() if row.access is not Access.PUBLIC]
# What ends the session that asks has tests of its own.
LASTING = [route for route in ROUTES if not route[1].startswith("/logout")]


@pytest.mark.parametrize("route", LASTING, ids="".join)
@pytest.mark.parametrize("person", GRANTED)
def test_a_session_opens_the_routes_of_its_persons_roles_and_no_others(
    signed_in: dict[str, Visitor], order: str, route: tuple[str, str], person: str
) -> None:
    row = ROUTES[route]
    method, path, body, headers = request(route, order)
    answer = signed_in[person].ask(method, path, json=body, headers=headers)
    if opens(GRANTED[person], row.access):
        assert answer.status_code == row.status, answer.text
    else:
        assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")


@pytest.mark.parametrize("route", ROUTES, ids="".join)
@pytest.mark.parametrize("cookie", ["A" * 43, "A" * 42 + "!", "", "x"])
def test_a_cookie_of_no_session_opens_only_what_is_public(
    visitor: Visitor, order: str, route: tuple[str, str], cookie: str
) -> None:
    row = ROUTES[route]
    visitor.cookies["__Host-session"] = cookie
    method, path, body, headers = request(route, order)
    answer = visitor.ask(method, path, json=body, headers=headers)
    if row.access is Access.PUBLIC:
        assert answer.status_code == row.status
    else:
        assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("route", PRIVATE, ids="".join)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"{Keycloak.origin}.evil.example"},
        {"Origin": f"{Keycloak.origin}:8443"},
        {"Origin": Keycloak.origin.replace("https", "http")},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "", "Sec-Fetch-Site": "same-site"},
        {"Origin": "", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "", "Sec-Fetch-Site": "none"},
        {"Origin": ""},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_a_change_that_no_page_of_ours_sends_is_refused_whoevers_session_comes_with_it(
    signed_in: dict[str, Visitor], order: str, route: tuple[str, str], headers: dict[str, str]
) -> None:
    method, path, body, own = request(route, order)
    visitor = signed_in["otto"]
    answer = visitor.ask(method, path, json=body, headers={**own, **headers})
    if method == "GET":
        assert answer.status_code == ROUTES[route].status
        return
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
    assert "own pages" in answer.json()["detail"]
    assert visitor.status() == 200


def test_a_token_comes_before_a_cookie_and_from_wherever_it_is_sent(
    platform: Platform, signed_in: dict[str, Visitor]
) -> None:
    anna = signed_in["anna"]
    bearer = platform.keycloak.bearer("somebody", "operator")
    assert anna.ask("GET", "/v1/me", headers=bearer).json() == {"subject": "somebody", "roles": ["operator"]}
    answer = anna.ask("POST", "/logout", headers={"Origin": "https://evil.example", **bearer})
    assert answer.status_code == 204
    anna.log_in("anna")  # the answer took the cookie away, but the session had not ended
    wrong = anna.ask("GET", "/v1/me", headers={"Authorization": "Bearer x"})
    assert wrong.status_code == 401


# ---- the log-in --------------------------------------------------------------------------------------------------------


def test_whoever_logs_in_by_keycloaks_page_places_orders_of_their_own(
    visitor: Visitor, worker: Workers, name: str
) -> None:
    visitor.log_in("bert", "/?q=lamp")
    me = visitor.ask("GET", "/v1/me").json()
    assert (me["roles"], me["name"]) == (["customer"], "bert@example.com")
    body = {"lines": [{"sku": "P-00023", "quantity": 1}]}
    placed = visitor.ask("POST", "/v1/orders", json=body, headers={"Idempotency-Key": name})
    assert placed.status_code == 202, placed.text
    address = placed.headers["location"]
    wait_until(lambda: visitor.ask("GET", address).json()["state"] == "settled", "its settlement", 20)
    assert placed.json()["id"] in {order["id"] for order in visitor.ask("GET", "/v1/orders").json()["orders"]}


def test_the_cookie_is_for_this_host_alone_and_no_script_and_the_store_does_not_know_it(
    platform: Platform, visitor: Visitor
) -> None:
    visitor.log_in("anna")
    (cookie,) = (line for line in visitor.set if line.startswith("__Host-session="))
    value, *attributes = cookie.split("; ")
    assert re.fullmatch(r"__Host-session=[A-Za-z0-9_-]{43}", value)
    assert {attribute.lower() for attribute in attributes} == {"path=/", "secure", "httponly", "samesite=lax"}
    store = platform.valkey_sessions
    for port in store.ports:
        assert visitor.session not in store.cli(port, "--scan")
    contents = [store.cli(port, "-c", "get", key) for key in stored(platform) for port in store.ports[:1]]
    assert contents
    assert not any(visitor.session in content for content in contents)


def test_each_log_in_has_an_identifier_of_its_own_and_ends_the_one_before(visitor: Visitor) -> None:
    planted = visitor.cookies["__Host-session"] = "A" * 43
    visitor.log_in("anna")
    first = visitor.session
    assert first not in {"", planted}
    visitor.log_in("anna")
    second = visitor.session
    assert second not in {"", planted, first}
    for cookie, status in ((planted, 401), (first, 401), (second, 200)):
        visitor.cookies["__Host-session"] = cookie
        assert visitor.status() == status
    time.sleep(0.5)
    assert (
        not visitor.must_give_a_password()
    )  # the second is of the same log-in at Keycloak as the first, and has not ended


@pytest.mark.parametrize(
    "path",
    [
        *("https://evil.example/", "//evil.example/", "/\\evil.example", "\\/evil.example", "evil", "", "javascript:x"),
        *("/a\r\nSet-Cookie: a=b", "/\t/evil.example", "/ä", "/" + "a" * 512, "/a b"),
    ],
)
def test_a_log_in_leads_to_no_other_site(visitor: Visitor, path: str) -> None:
    answer = visitor.ask("GET", "/login", params={"next": path})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert [error["field"] for error in answer.json()["errors"]] == ["next"]


def test_the_identity_provider_is_asked_for_a_code_with_a_challenge_that_nobody_can_guess(visitor: Visitor) -> None:
    seen = [parse_qs(urlsplit(visitor.ask("GET", "/login").headers["location"]).query) for _ in range(2)]
    for query in seen:
        assert (query["response_type"], query["code_challenge_method"]) == (["code"], ["S256"])
        assert query["redirect_uri"] == [f"{Keycloak.origin}/login/callback"]
        assert all(len(query[field][0]) == 43 for field in ("state", "nonce", "code_challenge"))
    assert all(seen[0][field] != seen[1][field] for field in ("state", "nonce", "code_challenge"))


def test_a_log_in_counts_once_and_in_the_browser_where_it_began(platform: Platform, api: Api, visitor: Visitor) -> None:
    address = visitor.come_back("anna")
    elsewhere = Visitor(platform, api)
    assert elsewhere.ask("GET", address).status_code == 400  # without the cookie of its beginning
    elsewhere.ask("GET", "/login")
    assert elsewhere.ask("GET", address).status_code == 400  # with that of another
    assert not elsewhere.session
    begun = dict(visitor.cookies)
    assert visitor.ask("GET", address).status_code == 302
    assert "__Host-login" not in visitor.cookies
    visitor.cookies = begun
    again = visitor.ask("GET", address)
    assert (again.status_code, again.headers["content-type"]) == (400, "application/problem+json")
    elsewhere.close()


@pytest.mark.parametrize("part", [1, 2])
def test_a_code_that_was_issued_for_another_log_in_is_refused(visitor: Visitor, part: int) -> None:
    """Part 1 of what the browser keeps is the nonce, 2 the verifier of PKCE: each alone refuses."""
    address = visitor.come_back("anna")
    begun = json.loads(unquote(visitor.cookies["__Host-login"]))
    begun[part] = urlsafe_b64encode(bytes(32)).rstrip(b"=").decode()
    visitor.cookies["__Host-login"] = quote(json.dumps(begun), safe="")
    assert visitor.ask("GET", address).status_code in {400, 401}
    assert not visitor.session


@pytest.mark.parametrize("cookie", ["", "x", "%00", "[]", "%5B1%2C2%2C3%2C4%5D", "%ff"])
def test_a_log_in_that_never_began_is_refused(visitor: Visitor, cookie: str) -> None:
    visitor.cookies["__Host-login"] = cookie
    answer = visitor.ask("GET", "/login/callback?state=&code=x")
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")


def test_a_log_in_that_was_cancelled_leads_back_without_a_session(visitor: Visitor) -> None:
    location = visitor.ask("GET", "/login", params={"next": "/basket"}).headers["location"]
    state = parse_qs(urlsplit(location).query)["state"][0]
    answer = visitor.ask("GET", "/login/callback", params={"error": "access_denied", "state": state})
    assert (answer.status_code, answer.headers["location"], visitor.session) == (302, "/basket", "")


# ---- the log-out -------------------------------------------------------------------------------------------------------


def test_a_log_out_counts_on_every_replica_within_a_second_and_at_the_identity_provider(
    platform: Platform, api: Api, visitor: Visitor
) -> None:
    with instance(platform, 8120) as replica:
        visitor.log_in("anna")
        other = visitor.at(replica)
        assert (visitor.status(), other.status()) == (200, 200)
        kept = dict(visitor.cookies)
        with ended_at_provider(api, 1):
            assert visitor.ask("POST", "/logout").status_code == 204
        assert not visitor.session
        until = time.monotonic() + KNOWN_SECONDS + 0.2
        visitor.cookies = kept
        assert visitor.status() == 401  # where it ended, at once
        wait_until(lambda: other.status() == 401, "the log-out", max(0.0, until - time.monotonic()))
        assert visitor.must_give_a_password()


def test_a_log_out_everywhere_ends_all_sessions_of_that_person_and_nobody_elses(
    platform: Platform, api: Api, visitor: Visitor
) -> None:
    others = [Visitor(platform, api) for _ in range(3)]
    for browser, person in zip((visitor, *others), ("bert", "bert", "bert", "olga"), strict=True):
        browser.log_in(person)
        assert browser.status() == 200
    with ended_at_provider(api, 3):
        assert visitor.ask("POST", "/logout/everywhere").status_code == 204
    assert [browser.status() for browser in others] == [401, 401, 200]
    assert [browser.must_give_a_password() for browser in (visitor, *others)] == [True, True, True, False]
    for browser in others:
        browser.close()


def test_a_token_ends_its_subjects_sessions_too(platform: Platform, visitor: Visitor) -> None:
    visitor.log_in("bert")
    subject = visitor.ask("GET", "/v1/me").json()["subject"]
    bearer = platform.keycloak.bearer(subject, "customer")
    assert visitor.ask("POST", "/logout", headers=bearer).status_code == 204
    visitor.log_in("bert")
    kept = dict(visitor.cookies)
    assert visitor.ask("POST", "/logout/everywhere", headers=bearer).status_code == 204
    visitor.cookies = kept
    assert visitor.status() == 401


# ---- time --------------------------------------------------------------------------------------------------------------


def test_a_session_lasts_while_it_is_used_and_not_for_ever(platform: Platform, visitor: Visitor) -> None:
    limits = {"ORDERS_SESSION_IDLE_SECONDS": "3", "ORDERS_SESSION_SECONDS": "8"}
    with instance(platform, 8120, **limits) as api:
        unused, used = (visitor.at(api) for _ in range(2))
        unused.log_in("anna")
        began = time.monotonic()
        used.log_in("anna")
        until = time.monotonic() + 6
        while time.monotonic() < until:
            assert used.status() == 200
            time.sleep(0.2)
        assert unused.status() == 401
        wait_until(lambda: used.status() == 401, "its end", 4)
        assert time.monotonic() - began > 6.9  # a session's times are whole seconds


def test_a_session_in_use_costs_no_writes_and_one_read_a_second(api: Api, visitor: Visitor) -> None:
    def count(outcome: str) -> float:
        return api.metric(f'orders_sessions_total{{outcome="{outcome}"}}')

    visitor.log_in("anna")
    visitor.status()
    before = (api.metric("orders_session_writes_total"), count("loaded"), count("cached"))
    started = time.monotonic()
    for _ in range(200):
        assert visitor.status() == 200
    seconds = time.monotonic() - started
    assert api.metric("orders_session_writes_total") == before[0]
    assert count("loaded") - before[1] <= seconds + 1
    assert count("cached") - before[2] >= 200 - (seconds + 1)


# ---- what is away ------------------------------------------------------------------------------------------------------


def test_without_the_store_of_sessions_cookies_wait_and_tokens_do_not(
    platform: Platform, api: Api, visitor: Visitor, name: str
) -> None:
    visitor.log_in("anna")
    with frozen(*platform.valkey_sessions.nodes):
        time.sleep(KNOWN_SECONDS + 0.1)
        for method, path in (("GET", "/v1/me"), ("POST", "/logout")):
            started = time.monotonic()
            answer = visitor.ask(method, path)
            assert time.monotonic() - started < 1
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert answer.headers["retry-after"] == "1"
        assert visitor.session
        api.place({"P-00023": 1}, name)
        assert api.ready()
    wait_until(lambda: visitor.status() == 200, "the session", 20)
    platform.valkey_sessions.wait()


def test_a_session_outlives_the_node_that_has_it(platform: Platform, api: Api, visitor: Visitor) -> None:
    store = platform.valkey_sessions
    visitor.log_in("anna")
    (primary,) = (
        port
        for port in store.primaries()
        for key in store.cli(port, "keys", "orders:session:*").split()
        if key.endswith(_hash(visitor.session))
    )
    node = store.nodes[primary - store.ports[0]]
    node.stop(signal.SIGKILL)
    try:
        wait_until(lambda: visitor.status() == 200, "its replica", 20)
        # And is kept by one node, rather than by none.
        alone = api.metric('orders_session_writes_total{copies="alone"}')
        wait_until(lambda: _logs_in(visitor, "anna"), "a log-in", 20)
        assert api.metric('orders_session_writes_total{copies="alone"}') >= alone
    finally:
        store.restart(primary)


def _hash(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()


def _logs_in(visitor: Visitor, person: str) -> bool:
    return visitor.ask("GET", visitor.come_back(person)).status_code == 302


def test_what_only_the_primary_has_counts_and_is_counted(platform: Platform, api: Api, visitor: Visitor) -> None:
    store = platform.valkey_sessions
    store.wait()
    primaries = store.primaries()
    copied, alone = (f'orders_session_writes_total{{copies="{copies}"}}' for copies in ("copied", "alone"))

    def both_are_copied() -> bool:
        before = api.metric(copied)
        visitor.log_in("anna")
        return api.metric(copied) >= before + 2

    # A replica that a busy machine holds up for longer than a write waits has it later: that is what `alone` counts.
    wait_until(both_are_copied, "a log-in that a replica has")
    before = api.metric(alone)
    with frozen(*(node for port, node in zip(store.ports, store.nodes, strict=True) if port not in primaries)):
        visitor.log_in("anna")
        assert visitor.status() == 200
    assert api.metric(alone) >= before + 2


def test_while_the_identity_provider_is_away_who_is_logged_in_notices_nothing(
    platform: Platform, visitor: Visitor, name: str
) -> None:
    with instance(platform, 8120, ORDERS_SESSION_CHECK_SECONDS="1") as api:
        browser = visitor.at(api)
        browser.log_in("anna")
        failed = 'orders_session_checks_total{outcome="failed"}'
        with frozen(platform.keycloak):
            until = time.monotonic() + 8
            while time.monotonic() < until or not api.metric(failed):
                started = time.monotonic()
                body = {"lines": [{"sku": "P-00023", "quantity": 1}]}
                key = {"Idempotency-Key": f"{name}-{started}"}
                assert browser.ask("POST", "/v1/orders", json=body, headers=key).status_code == 202
                assert time.monotonic() - started < 1
                time.sleep(0.1)
                assert time.monotonic() < until + 10
            begun = browser.ask("GET", "/login", params={"next": "/"})
            assert begun.status_code == 302
            kept = dict(browser.cookies)
            started = time.monotonic()
            assert browser.ask("POST", "/logout").status_code == 204
            assert time.monotonic() - started < END_SECONDS + 1
            browser.cookies = kept
            assert browser.status() == 401


def test_a_code_waits_for_the_identity_provider_no_longer_than_a_browser_would(
    platform: Platform, visitor: Visitor
) -> None:
    address = visitor.come_back("anna")
    with frozen(platform.keycloak):
        answer = visitor.ask("GET", address)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.headers["retry-after"] == "1"
    wait_until(lambda: bool(platform.keycloak.kids()), "Keycloak", 20)


# ---- what the identity provider says later -----------------------------------------------------------------------------


def test_roles_that_change_and_sessions_that_end_at_the_identity_provider_do_so_here(
    platform: Platform, visitor: Visitor
) -> None:
    keycloak = platform.keycloak
    with instance(platform, 8120, ORDERS_SESSION_CHECK_SECONDS="1") as api:
        browser = visitor.at(api)
        browser.log_in("nora")
        me = browser.ask("GET", "/v1/me").json()
        assert me["roles"] == []
        role = keycloak.admin("GET", "freehold/roles/operator").json()
        path = f"freehold/users/{me['subject']}/role-mappings/realm"
        keycloak.admin("POST", path, [role])
        try:
            wait_until(lambda: browser.ask("GET", "/v1/me").json()["roles"] == ["operator"], "the new role", 10)
        finally:
            keycloak.admin("DELETE", path, [role])
        keycloak.admin("POST", f"freehold/users/{me['subject']}/logout")
        wait_until(lambda: browser.status() == 401, "the session's end", 10)


def test_replicas_that_check_one_session_at_once_do_not_end_it(platform: Platform, visitor: Visitor) -> None:
    settings = {"ORDERS_SESSION_CHECK_SECONDS": "1"}
    with instance(platform, 8120, **settings) as one, instance(platform, 8121, **settings) as other:
        browsers = [visitor.at(one)]
        browsers[0].log_in("anna")
        browsers.append(browsers[0].at(other))

        def use(browser: Visitor) -> set[int]:
            until = time.monotonic() + 5
            seen = set()
            while time.monotonic() < until:
                seen.add(browser.status())
                time.sleep(0.02)
            return seen

        with ThreadPoolExecutor(2) as pool:
            assert set().union(*pool.map(use, browsers)) == {200}
        checks = [api.metric('orders_session_checks_total{outcome="checked"}') for api in (one, other)]
        assert sum(checks) >= 1


def test_nobody_logs_in_where_there_is_no_store_and_tokens_count(platform: Platform, name: str) -> None:
    with instance(platform, 8120, ORDERS_VALKEY_SESSION_NODES="") as api:
        for path in ("/login", "/login/callback"):
            answer = api.client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        cookie = {"Cookie": f"__Host-session={'A' * 43}"}
        assert httpx.get(f"{api.url}/v1/me", headers=cookie).status_code == 401
        api.place({"P-00023": 1}, name)


def test_no_log_line_has_a_session_or_a_code(api: Api, visitor: Visitor) -> None:
    address = visitor.come_back("anna")
    assert visitor.ask("GET", address).status_code == 302
    log = api.process.log.read_text()
    code = parse_qs(urlsplit(address).query)["code"][0]
    assert not [secret for secret in (visitor.session, code, "anna@example.com") if secret in log]
