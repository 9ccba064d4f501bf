"""Who may do what: every route against every kind of token; keys that come, go and cannot be read."""

import base64
import hashlib
import hmac
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from litestar import Litestar, get
from litestar.exceptions import ImproperlyConfiguredException
from litestar.routes import HTTPRoute

from orders.access.guards import require_declarations
from orders.access.keys import KeysError, parse_keys
from orders.access.schemas import Access
from orders.access.tokens import MOST_BYTES
from orders.asgi import create_app
from orders.settings import Settings
from servers import Certificates, Keycloak, SigningKey, frozen, wait_until
from service import Api, Platform, Workers

FOREIGN = SigningKey()
WEEK_SECONDS = 7 * 24 * 3600


class Row(NamedTuple):
    """What a route asks for, and what it answers to whoever has that."""

    access: Access
    status: int = 200


EITHER = Access.CUSTOMER | Access.OPERATOR
ROUTES = {
    ("GET", "/livez"): Row(Access.PUBLIC),
    ("GET", "/readyz"): Row(Access.PUBLIC),
    ("GET", "/metrics"): Row(Access.PUBLIC),
    ("GET", "/"): Row(Access.PUBLIC),
    ("GET", "/docs"): Row(Access.PUBLIC),
    ("GET", "/static/{name}"): Row(Access.PUBLIC, 404),
    ("GET", "/login"): Row(Access.PUBLIC, 302),
    ("GET", "/login/callback"): Row(Access.PUBLIC, 400),
    ("POST", "/logout"): Row(Access.SIGNED_IN, 204),
    ("POST", "/logout/everywhere"): Row(Access.SIGNED_IN, 204),
    ("GET", "/v1/me"): Row(Access.SIGNED_IN),
    ("GET", "/v1/schema"): Row(Access.PUBLIC),
    ("GET", "/v1/schema/openapi.json"): Row(Access.PUBLIC),
    ("GET", "/v1/schema/{path}"): Row(Access.PUBLIC, 404),
    ("GET", "/v1/products"): Row(Access.PUBLIC),
    ("GET", "/v1/products/{sku}"): Row(Access.PUBLIC),
    ("PUT", "/v1/products/{sku}"): Row(Access.OPERATOR),
    ("GET", "/v1/products/{sku}/prices"): Row(Access.PUBLIC),
    ("GET", "/v1/products/{sku}/record"): Row(Access.OPERATOR),
    ("GET", "/v1/products/{sku}/stock"): Row(Access.PUBLIC),
    ("PATCH", "/v1/products/{sku}/stock"): Row(Access.OPERATOR),
    ("PUT", "/v1/products/{sku}/stock"): Row(Access.OPERATOR),
    ("GET", "/v1/me/profile"): Row(Access.CUSTOMER),
    ("PUT", "/v1/me/profile"): Row(Access.CUSTOMER),
    ("DELETE", "/v1/me/profile"): Row(Access.CUSTOMER, 204),
    ("GET", "/v1/customers/{customer_id}/profile"): Row(Access.OPERATOR),
    ("POST", "/v1/orders"): Row(Access.CUSTOMER, 202),
    ("GET", "/v1/orders"): Row(Access.CUSTOMER),
    ("GET", "/v1/orders/{order_id}"): Row(EITHER),
    ("GET", "/v1/orders/search"): Row(Access.OPERATOR, 400),
    ("POST", "/v1/orders/{order_id}/cancellation"): Row(EITHER, 409),
    ("POST", "/v1/orders/{order_id}/shipment"): Row(Access.OPERATOR, 409),
    ("POST", "/v1/orders/{order_id}/delivery"): Row(Access.OPERATOR, 409),
    ("GET", "/v1/accounts/{account}"): Row(EITHER),
    ("GET", "/v1/accounts/{account}/statement"): Row(EITHER),
    ("GET", "/v1/orders/{order_id}/events"): Row(EITHER),
    ("GET", "/v1/events"): Row(EITHER),
    # None that is there: what one may do with one's own and with others', test_webhooks.py says.
    ("GET", "/v1/webhooks"): Row(EITHER),
    ("POST", "/v1/webhooks"): Row(EITHER, 400),
    ("GET", "/v1/webhooks/{webhook_id}"): Row(EITHER, 404),
    ("PATCH", "/v1/webhooks/{webhook_id}"): Row(EITHER, 404),
    ("DELETE", "/v1/webhooks/{webhook_id}"): Row(EITHER, 404),
    ("POST", "/v1/webhooks/{webhook_id}/secret"): Row(EITHER, 404),
    ("GET", "/v1/webhooks/{webhook_id}/deliveries"): Row(EITHER, 404),
    ("POST", "/v1/webhooks/{webhook_id}/deliveries/{event_id}/replay"): Row(EITHER, 404),
    ("POST", "/v1/webhooks/{webhook_id}/replay"): Row(EITHER, 404),
}
BODIES: dict[tuple[str, str], dict[str, object]] = {
    ("POST", "/v1/orders"): {"lines": [{"sku": "P-00023", "quantity": 1}]},
    ("PUT", "/v1/products/{sku}"): {
        "name": "Product 98",
        "description": "",
        "price_cents": 98,
        "currency": "EUR",
        "active": True,
    },
    ("PATCH", "/v1/products/{sku}/stock"): {"change": 1},
    ("PUT", "/v1/products/{sku}/stock"): {"quantity": 1_000_000},
    ("PUT", "/v1/me/profile"): {
        "name": "Ada Example",
        "address": {"lines": ["12 Example Street"], "city": "Exampleton", "postal_code": "", "country": "IE"},
    },
    ("POST", "/v1/webhooks"): {"url": "https://127.0.0.1/"},
    ("PATCH", "/v1/webhooks/{webhook_id}"): {"enabled": True},
    ("POST", "/v1/webhooks/{webhook_id}/replay"): {"since": "2026-01-01T00:00:00Z"},
}

# Makes a token for a role that is right but for one thing.
Forgery = Callable[[Keycloak, str], str]


def unsigned(keycloak: Keycloak, role: str) -> str:
    """Return a token that claims to need no signature."""
    return jwt.encode(keycloak.claims("c1", role), "", "none", headers={"kid": keycloak.key.kid})


def signed_with_the_public_key(keycloak: Keycloak, role: str) -> str:
    """Return a token whose secret, for HS256, is what everybody knows."""
    head = {"alg": "HS256", "typ": "JWT", "kid": keycloak.key.kid}
    parts = [json.dumps(part).encode() for part in (head, keycloak.claims("c1", role))]
    content = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    mac = base64.urlsafe_b64encode(hmac.digest(keycloak.key.public_pem, content, hashlib.sha256)).rstrip(b"=")
    return (content + b"." + mac).decode()


def signed_by_a_foreign_key(keycloak: Keycloak, role: str) -> str:
    """Return a token that names the realm's key, signed by another."""
    return jwt.encode(keycloak.claims("c1", role), FOREIGN.private, "RS256", headers={"kid": keycloak.key.kid})


def changed(keycloak: Keycloak, role: str) -> str:
    """Return another customer's token with the subject changed."""
    head, _, signature = keycloak.token("c2", role).split(".")
    claims = base64.urlsafe_b64encode(json.dumps(keycloak.claims("c1", role)).encode()).rstrip(b"=").decode()
    return f"{head}.{claims}.{signature}"


def without_a_key(keycloak: Keycloak, role: str) -> str:
    """Return a token that names no key."""
    return jwt.encode(keycloak.claims("c1", role), keycloak.key.private, "RS256")


def another_algorithm(keycloak: Keycloak, role: str) -> str:
    """Return a token signed by the realm's key, as the realm does not sign."""
    return jwt.encode(keycloak.claims("c1", role), keycloak.key.private, "PS256", headers={"kid": keycloak.key.kid})


def claiming(**claims: object) -> Forgery:
    """Make tokens with some claims changed; those that are None are left out."""
    return lambda keycloak, role: keycloak.token("c1", role, **claims)


def from_now(seconds: int) -> int:
    """Return a time from now."""
    return int(time.time()) + seconds


REFUSED: dict[str, tuple[Forgery, str]] = {
    "malformed": (lambda *_: "a.b", "malformed"),
    "no JSON": (lambda *_: "e30.e30.e30!", "malformed"),
    "changed": (changed, "signature is wrong"),
    "too long": (lambda keycloak, role: keycloak.token("c1", role, padding="x" * MOST_BYTES), "too long"),
    "expired": (claiming(exp=from_now(-10)), "has expired"),
    "not yet valid": (lambda keycloak, role: keycloak.token("c1", role, nbf=from_now(60)), "not valid yet"),
    "issued later": (lambda keycloak, role: keycloak.token("c1", role, iat=from_now(60)), "not valid yet"),
    "wrong audience": (claiming(aud=["account", "orders2"]), "another audience"),
    "wrong issuer": (claiming(iss=Keycloak.issuer + "/"), "another issuer"),
    "ID token": (claiming(typ="ID"), "not an access token"),
    "refresh token": (claiming(typ="Refresh"), "not an access token"),
    "no type": (claiming(typ=None), "not an access token"),
    "no customer": (claiming(sub="a b"), "not an access token"),
    "two lines of a customer": (claiming(sub="a\n"), "not an access token"),
    "roles of another shape": (claiming(realm_access=["customer", "operator"]), "not an access token"),
    "alg none": (unsigned, "not signed as"),
    "HS256 signed with the public key": (signed_with_the_public_key, "not signed as"),
    "PS256": (another_algorithm, "not signed as"),
    "no key named": (without_a_key, "not signed as"),
    "foreign key with the same name": (signed_by_a_foreign_key, "signature is wrong"),
    "foreign key": (lambda keycloak, role: keycloak.sign(keycloak.claims("c1", role), FOREIGN), "key is not"),
    **{f"no {claim}": (claiming(**{claim: None}), "lacks a claim") for claim in ("iss", "aud", "exp", "iat", "sub")},
}


def expected_role(access: Access) -> str:
    """Return a role that a route is content with."""
    return "operator" if Access.OPERATOR in access else "customer"


def opens(granted: Access, access: Access) -> bool:
    """Return whether roles open a route that asks for these."""
    return access is Access.PUBLIC or bool((granted | Access.SIGNED_IN) & access)


@pytest.fixture(scope="module")
def bare(api: Api) -> Iterator[httpx.Client]:
    """Have a client without a token."""
    with httpx.Client(base_url=api.url, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def order(api: Api) -> str:
    """Return the identifier of an order of the customer c1's that is never settled, since nothing is sold by that name."""
    return api.place({"NEVER-SOLD": 1}, "access", "c1").removeprefix("/v1/orders/")


@pytest.fixture(autouse=True)
def profile(request: pytest.FixtureRequest) -> None:
    """Have a profile of the customer c1 where a route is about that; the route before may have erased it."""
    if "profile" in request.node.name:
        api: Api = request.getfixturevalue("api")
        headers = {"If-None-Match": "*", **api.bearer("c1")}
        answer = api.client.put("/v1/me/profile", json=BODIES["PUT", "/v1/me/profile"], headers=headers)
        assert answer.status_code in {201, 412}, answer.text


@pytest.fixture
def without_valkey(platform: Platform) -> Iterator[Api]:
    """Have an instance that asks the database only."""
    api = Api(platform, 8112, ORDERS_VALKEY_CACHE_NODES="")
    api.wait_until_ready()
    yield api
    api.stop()


def request(route: tuple[str, str], order: str) -> tuple[str, str, dict[str, object] | None, dict[str, str]]:
    """Return what asks a route for something that is there: method, address, body and headers."""
    method, path = route
    body = BODIES.get(route)
    sku = "P-00001" if body is None else "P-00098"
    places = {"order_id": order, "customer_id": "c1", "path": "nothing", "name": "nothing", "account": "me"}
    places |= {"webhook_id": "01980000-0000-7000-8000-000000000000", "event_id": "1"}
    path = path.format(sku=sku, **places)
    if path.endswith("/events"):
        path += "?wait=false"  # a stream that ends
    return method, path, body, {"Idempotency-Key": "matrix", "If-Match": "*"} if body else {}


def call(client: httpx.Client, route: tuple[str, str], order: str, authorization: str | None) -> httpx.Response:
    """Ask a route for something that is there, with an Authorization header if there is one."""
    method, path, body, headers = request(route, order)
    if authorization is not None:
        headers["Authorization"] = authorization
    return client.request(method, path, json=body, headers=headers)


def reads(api: Api) -> float:
    """Return how often an instance asked for the keys."""
    return sum(api.metric(f'orders_jwks_reads_total{{outcome="{outcome}"}}') for outcome in ("read", "failed"))


def test_every_route_has_its_row_here_and_says_the_same_in_the_document(platform: Platform) -> None:
    app = create_app(Settings.from_environment(platform.environment)).app
    declared = {
        (method, route.path_format): handler.opt["access"]
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in handler.http_methods
        if method != "OPTIONS"
    }
    assert declared == {route: row.access for route, row in ROUTES.items()}
    assert len(app.routes) == len({path for _, path in ROUTES})
    document = app.openapi_schema.to_schema()
    assert document["components"]["securitySchemes"] == {
        "bearerAuth": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": "__Host-session",
            "description": "A browser's, from `/login`. Changes count from our own pages only (`Origin`, `Sec-Fetch-Site`).",
        },
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            access = ROUTES[method.upper(), path].access
            private = access is not Access.PUBLIC
            # Who asks for no role is forbidden nothing, but for changes that another site sends.
            forbidden = {"403"} if private and (access is not Access.SIGNED_IN or method != "get") else set()
            assert (operation.get("security") == [{"bearerAuth": []}, {"session": []}]) == private
            assert (({"401", "503"} | forbidden) <= set(operation["responses"])) == (
                private or path == "/login/callback"
            )


def test_a_route_that_does_not_say_who_may_call_it_stops_the_start() -> None:
    @get("/open", sync_to_thread=False)
    def undeclared() -> None: ...

    @get("/wrong", access="customer", sync_to_thread=False)
    def misdeclared() -> None: ...

    for handler, path in ((undeclared, "/open"), (misdeclared, "/wrong")):
        with pytest.raises(ImproperlyConfiguredException, match=f"{path}: .* does not say `access=`"):
            require_declarations(Litestar([handler], openapi_config=None))


@pytest.mark.parametrize("route", ROUTES, ids="".join)
@pytest.mark.parametrize("forgery", REFUSED)
def test_a_token_that_does_not_count_opens_no_route(
    platform: Platform, bare: httpx.Client, order: str, route: tuple[str, str], forgery: str
) -> None:
    row = ROUTES[route]
    make, reason = REFUSED[forgery]
    answer = call(bare, route, order, f"Bearer {make(platform.keycloak, expected_role(row.access))}")
    if row.access is Access.PUBLIC:
        assert answer.status_code == row.status
        return
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert reason in answer.json()["detail"]
    description = answer.json()["detail"]
    assert answer.headers["www-authenticate"] == f'Bearer error="invalid_token", error_description="{description}"'


@pytest.mark.parametrize("route", ROUTES, ids="".join)
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Basic YTpi", "Token x"])
def test_without_a_token_only_public_routes_answer(
    bare: httpx.Client, order: str, route: tuple[str, str], authorization: str | None
) -> None:
    answer = call(bare, route, order, authorization)
    if ROUTES[route].access is Access.PUBLIC:
        assert answer.status_code == ROUTES[route].status
        return
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    if authorization != "Bearer":
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("route", ROUTES, ids="".join)
@pytest.mark.parametrize(
    ("roles", "granted"),
    [
        ((), Access(0)),
        (("customer",), Access.CUSTOMER),
        (("operator", "offline_access"), Access.OPERATOR),
        (("customer", "operator"), EITHER),
        (("Customer", "public", "admin"), Access(0)),
    ],
)
def test_a_route_opens_to_its_roles_and_to_no_others(
    platform: Platform, bare: httpx.Client, order: str, route: tuple[str, str], roles: tuple[str, ...], granted: Access
) -> None:
    row = ROUTES[route]
    answer = call(bare, route, order, f"bearer {platform.keycloak.token('c1', *roles)}")
    if opens(granted, row.access):
        assert answer.status_code == row.status, answer.text
        return
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'


@given(st.one_of(st.binary(max_size=200), st.lists(st.binary(max_size=60), min_size=2, max_size=4).map(b".".join)))
@example(base64.urlsafe_b64encode(b"[" * 6000))
@example(base64.urlsafe_b64encode(b"[" * 6000) + b".e30.e30")
@example(base64.urlsafe_b64encode(b'{"alg": "RS256", "kid": 5}') + b".e30.e30")
@example(base64.urlsafe_b64encode(b'{"alg": ["RS256"], "kid": {}}') + b".e30.e30")
@example(base64.urlsafe_b64encode(b'{"alg": "RS256", "kid": "k", "b64": false, "crit": ["b64"]}') + b"..e30")
@example(base64.urlsafe_b64encode(b'{"alg": "RS256", "kid": "k", "n": ' + b"9" * 5000 + b"}") + b".e30.e30")
def test_nothing_that_is_no_token_is_more_than_refused(api: Api, bare: httpx.Client, text: bytes) -> None:
    token = bytes(byte for byte in text if byte >= 0x21 and byte != 0x7F)
    answer = bare.get("/v1/orders", headers=[(b"Authorization", (b"Bearer " + token).strip())])
    assert answer.status_code == 401


def test_a_token_that_keycloak_issued_places_an_order_of_its_subject(
    platform: Platform, bare: httpx.Client, worker: Workers, name: str
) -> None:
    token = platform.keycloak.issue()
    subject = jwt.decode(token, options={"verify_signature": False})["sub"]
    headers = {"Authorization": f"Bearer {token}"}
    body = {"lines": [{"sku": "P-00023", "quantity": 1}]}
    placed = bare.post("/v1/orders", json=body, headers={"Idempotency-Key": name, **headers})
    assert placed.status_code == 202, placed.text

    def state() -> str:
        return str(bare.get(placed.headers["location"], headers=headers).json()["state"])

    wait_until(lambda: state() == "settled", "its settlement", 20)
    listed = bare.get("/v1/orders", headers=platform.keycloak.bearer(subject)).json()["orders"]
    assert placed.json()["id"] in {order["id"] for order in listed}


@pytest.mark.parametrize("source", ["valkey", "database"])
def test_another_customers_order_is_not_found_like_one_that_never_was(
    platform: Platform, api: Api, without_valkey: Api, worker: Workers, name: str, source: str
) -> None:
    asked = api if source == "valkey" else without_valkey
    address = api.place({"P-00023": 1}, name, name)
    decided = api.decided(address)
    if source == "valkey":
        wait_until(lambda: platform.valkey.keys(f"orders:decision:{decided['id']}"), "Valkey's copy", 10)

    def get(path: str, customer: str, *roles: str) -> httpx.Response:
        return asked.client.get(path, headers=asked.bearer(customer, *roles))

    own, operators = get(address, name), get(address, f"{name}-staff", "operator")
    assert (own.status_code, own.json(), operators.json()) == (200, decided, decided)
    unknown = f"/v1/orders/{'0' * 8}-0000-4000-8000-{'0' * 12}"
    others, nobodys = get(address, f"{name}-other"), get(unknown, f"{name}-other")
    for answer, path in ((others, address), (nobodys, unknown)):
        problem = answer.json()
        del problem["request_id"], problem["trace_id"]
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        detail = f"No order has the id '{path.removeprefix('/v1/orders/')}'."
        assert problem == {"status": 404, "title": "Not Found", "detail": detail}


def test_an_order_that_no_store_knows_yet_is_accepted_for_whoever_has_its_address(
    api: Api, no_worker: Workers, name: str
) -> None:
    address = api.place({"P-00023": 1}, name, name)
    for customer in (name, f"{name}-other"):
        assert api.client.get(address, headers=api.bearer(customer)).json()["state"] == "accepted"


def test_what_replicas_of_another_version_leave_in_valkey_is_not_misread(
    platform: Platform, api: Api, workers: Workers, name: str
) -> None:
    workers.stop()
    address = api.place({"P-00023": 1}, name, name)
    identifier = address.removeprefix("/v1/orders/")
    former = json.dumps({"id": identifier, "state": "settled", "lines": []})
    platform.valkey.cli(platform.valkey.ports[0], "-c", "set", f"orders:order:{identifier}", former)
    assert api.client.get(address).json() == {"id": identifier, "state": "accepted"}
    workers.start()
    assert api.decided(address)["lines"]
    # And those of an earlier one, which ask for the JSON alone, do not find it with its customer.
    kept = platform.valkey.cli(platform.valkey.ports[0], "-c", "get", f"orders:order:{identifier}")
    assert kept.strip() == former


def test_a_token_is_verified_once_and_known_again_until_it_expires(api: Api, platform: Platform, name: str) -> None:
    def outcomes() -> list[float]:
        return [api.metric(f'orders_tokens_total{{outcome="{o}"}}') for o in ("verified", "cached", "refused")]

    def ask() -> int:
        return api.client.get("/v1/orders", headers={"Authorization": f"Bearer {token}"}).status_code

    before = outcomes()
    token = platform.keycloak.token(name, "customer", exp=from_now(-2))  # within the leeway of 5 s
    assert [ask(), ask(), ask()] == [200, 200, 200]
    assert [after - former for after, former in zip(outcomes(), before, strict=True)] == [1, 2, 0]
    wait_until(lambda: ask() == 401, "its expiry", 10)
    assert outcomes()[2] > before[2]


def test_a_new_key_counts_within_a_second_and_one_that_is_gone_no_more(platform: Platform, name: str) -> None:
    keycloak, key = platform.keycloak, SigningKey()
    api = Api(platform, 8110)
    try:
        api.wait_until_ready()

        def status(key: SigningKey) -> int:
            headers = {"Authorization": f"Bearer {keycloak.sign(keycloak.claims(name, 'customer'), key)}"}
            return api.client.get("/v1/orders", headers=headers).status_code

        place = keycloak.add(key)
        before, started = reads(api), time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: status(key), range(16))) == {200}
        assert time.monotonic() - started < 1
        assert reads(api) - before == 1
        # Whoever makes keys up has them read no more often than every five seconds.
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: status(FOREIGN), range(16))) == {401}
        assert reads(api) - before == 1
        keycloak.admin("DELETE", place)
        wait_until(lambda: status(FOREIGN) == 401 and reads(api) - before == 2, "the keys' being read", 10)
        assert status(key) == 401
        assert status(keycloak.key) == 200
    finally:
        api.stop()


def test_an_identity_provider_that_knows_the_realm_no_more_takes_no_key_away(platform: Platform, name: str) -> None:
    keycloak = platform.keycloak
    api = Api(platform, 8110)
    try:
        api.wait_until_ready()
        keycloak.rename("freehold", "another")
        assert not keycloak.kids()
        before = api.metric('orders_jwks_reads_total{outcome="failed"}')
        forged = {"Authorization": f"Bearer {keycloak.sign(keycloak.claims(name, 'customer'), FOREIGN)}"}
        assert api.client.get("/v1/orders", headers=forged).status_code == 401
        assert api.metric('orders_jwks_reads_total{outcome="failed"}') == before + 1
        api.place({"P-00023": 1}, name, name)
        assert api.ready()
    finally:
        keycloak.rename("another", "freehold")
        api.stop()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_without_keycloak_tokens_go_on_and_a_replica_starts_by_valkeys_copy(
    platform: Platform, api: Api, name: str, number: signal.Signals
) -> None:
    keycloak, valkey = platform.keycloak, platform.valkey
    wait_until(lambda: platform.valkey.keys("orders:jwks:*"), "Valkey's copy", 10)
    (copy,) = platform.valkey.keys("orders:jwks:*")
    valkey.cli(valkey.ports[0], "-c", "expire", copy, "600")
    keycloak.send(number)
    try:
        api.place({"P-00023": 1}, f"{name}-0", name)
        started = Api(platform, 8111)
        try:
            started.wait_until_ready()
            started.place({"P-00023": 1}, f"{name}-1", name)
            assert started.metric('orders_jwks_reads_total{outcome="recalled"}') == 1
            assert started.metric("orders_jwks_read_timestamp_seconds") == 0
            assert int(valkey.cli(valkey.ports[0], "-c", "ttl", copy)) > WEEK_SECONDS - 600
            for client in (api, started):
                forged = {"Authorization": f"Bearer {keycloak.sign(keycloak.claims(name, 'customer'), FOREIGN)}"}
                asked_at = time.monotonic()
                assert client.client.get("/v1/orders", headers=forged).status_code == 401
                assert time.monotonic() - asked_at < 0.8
            assert started.process.log.read_text().count("keys cannot be read") == 1
            if number == signal.SIGSTOP:
                keycloak.send(signal.SIGCONT)
                wait_until(lambda: started.metric("orders_jwks_read_timestamp_seconds") > 0, "Keycloak's answer", 20)
        finally:
            assert started.stop() == 0
    finally:
        keycloak.send(signal.SIGCONT)
        if number == signal.SIGKILL:
            keycloak.stop(signal.SIGKILL)
            keycloak.start()
            keycloak.wait()


def test_without_any_keys_a_replica_is_not_ready_and_serves_what_needs_none(platform: Platform, name: str) -> None:
    api = None
    try:
        with frozen(platform.keycloak):
            api = Api(platform, 8112, ORDERS_VALKEY_CACHE_NODES="")
            wait_until(lambda: listening(api), "the service", 20)
            wait_until(lambda: api.metric("orders_lane_ready") == 3, "the lanes", 20)
            problem = api.client.get("/readyz")
            assert (problem.status_code, problem.json()["detail"]) == (
                503,
                "The identity provider's keys were not read since the start.",
            )
            refused = api.order({"P-00023": 1}, name, name)
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
            assert refused.headers["retry-after"] == "1"
            assert httpx.get(f"{api.url}/v1/orders").status_code == 401
            assert api.client.get("/v1/products/P-00001").status_code == 200
            wait_until(lambda: "not ready until they are known" in api.process.log.read_text(), "the log's line", 10)
        api.wait_until_ready()
        api.place({"P-00023": 1}, name, name)
    finally:
        if api:
            api.stop()


def listening(api: Api) -> bool:
    """Return whether an instance answers."""
    try:
        return api.client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_keys_are_read_over_tls_from_whom_the_ca_vouches_for_and_from_nobody_else(platform: Platform) -> None:
    keycloak = platform.keycloak
    url = f"https://localhost:{keycloak.tls_port}/auth{keycloak.jwks_path}"
    alone = {"ORDERS_OIDC_JWKS_URL": url, "ORDERS_VALKEY_CACHE_NODES": ""}
    other = Certificates(platform.folder / "certificates-of-another")
    trusting = Api(platform, 8113, **alone)
    distrusting = Api(platform, 8114, **alone, ORDERS_CA_FILE=str(other.ca))
    try:
        trusting.wait_until_ready()
        wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in distrusting.process.log.read_text(), "the refusal", 20)
        wait_until(lambda: listening(distrusting), "the service", 20)
        assert "keys were not read" in distrusting.client.get("/readyz").json()["detail"]
    finally:
        trusting.stop()
        distrusting.stop()


def jwk(key: SigningKey, **members: object) -> dict[str, object]:
    """Return a public key as a key set has it; members that are None are left out."""
    numbers = key.private.public_key().public_numbers()

    def number(value: int) -> str:
        return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8)).rstrip(b"=").decode()

    found = {"kid": key.kid, "kty": "RSA", "use": "sig", "alg": "RS256", "n": number(numbers.n), "e": number(numbers.e)}
    return {name: value for name, value in {**found, **members}.items() if value is not None}


def test_only_keys_for_signatures_of_the_one_algorithm_are_taken() -> None:
    passed_over: list[object] = [
        *(5, None, [], {}, "key"),
        jwk(FOREIGN, kid="encrypts", use="enc", alg="RSA-OAEP"),
        jwk(FOREIGN, kid="PS256", alg="PS256"),
        jwk(FOREIGN, kid="number", n="!"),
        jwk(FOREIGN, kid="none", n=""),
        jwk(FOREIGN, kid="short", n=base64.urlsafe_b64encode(b"\xff" * 128).decode().rstrip("=")),
        jwk(FOREIGN, kid=None),
        jwk(FOREIGN, kid=7),
        {"kid": "secret", "kty": "oct", "k": "c2VjcmV0"},
        {"kid": "curve", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
    ]
    taken = [jwk(FOREIGN, kid="full", x5c=["MII"]), jwk(FOREIGN, kid="bare", use=None, alg=None)]
    assert [*parse_keys(json.dumps({"keys": [*passed_over, *taken]}).encode())] == ["full", "bare"]
    with pytest.raises(KeysError):
        parse_keys(json.dumps({"keys": passed_over}).encode())


@given(st.binary(max_size=100))
@example(b"")
@example(b"{}")
@example(b"[]")
@example(b'{"keys": {}}')
@example(b'{"keys": []}')
@example(b'{"keys": ' + b"[" * 100000)
@example(b"<html>")
def test_an_answer_that_is_no_key_set_is_told_as_that(content: bytes) -> None:
    with pytest.raises(KeysError):
        parse_keys(content)
