"""The service's own processes, started as in production, and what they need."""

import html
import itertools
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from orders.ordering.schemas import State
from servers import PASSWORD, Certificates, Keycloak, Postgres, Process, RabbitMQ, Valkey, wait_until

HMAC_KEY = "the key of the tests, which is long enough"
FIELD_KEY = "the field key of the tests, which is long enough"
NUMBERS = itertools.count(1)


def same_order(one: str, other: str) -> bool:
    """Return whether two identifiers are of one order, whatever key they were made with."""
    return one.replace("-", "")[:22] == other.replace("-", "")[:22]


class Platform:
    """All that the service needs, and the environment that tells it so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.certificates = Certificates(folder / "certificates")
        self.postgres = Postgres(folder / "postgres", self.certificates)
        self.valkey = Valkey(folder / "valkey", self.certificates, 7100)
        self.valkey_sessions = Valkey(folder / "valkey-sessions", self.certificates, 7000, replicas=1)
        self.rabbitmq = RabbitMQ(folder / "rabbitmq", self.certificates)
        self.keycloak = Keycloak(folder / "keycloak", self.certificates)
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        for name in ("database", "owner_database", "rabbitmq", "valkey"):
            (self.secrets / f"orders_{name}_password").write_text(PASSWORD)
        (self.secrets / "orders_hmac_key").write_text(HMAC_KEY)
        (self.secrets / "orders_field_key").write_text(FIELD_KEY)
        (self.secrets / "orders_oidc_client_secret").write_text(self.keycloak.client_secret)

    @property
    def environment(self) -> dict[str, str]:
        """What the platform sets for the service."""
        return {
            "ORDERS_DATABASE_URL": self.postgres.url(),
            "ORDERS_DATABASE_RO_URL": self.postgres.url(),
            "ORDERS_RABBITMQ_NODES": self.rabbitmq.addresses,
            "ORDERS_VALKEY_CACHE_NODES": self.valkey.addresses,
            "ORDERS_OIDC_ISSUER": self.keycloak.issuer,
            "ORDERS_OIDC_JWKS_URL": self.keycloak.url + self.keycloak.jwks_path,
            "ORDERS_OIDC_TOKEN_URL": self.keycloak.url + self.keycloak.jwks_path.replace("certs", "token"),
            "ORDERS_PUBLIC_URL": self.keycloak.origin,
            "ORDERS_VALKEY_SESSION_NODES": self.valkey_sessions.addresses,
            "ORDERS_SECRETS_DIR": str(self.secrets),
            "ORDERS_CA_FILE": str(self.certificates.ca),
            # Where tests listen. Nothing of this is set in production.
            "ORDERS_WEBHOOK_NETWORKS": "127.7.0.0/16",
            "ORDERS_WEBHOOK_PORTS": "443,9443,9080",
            "ORDERS_WEBHOOK_CA_FILE": str(self.certificates.ca),
            "ORDERS_WEBHOOK_RETRY_SECONDS": "0.5,1,1.5,2,2.5",
        }

    def run(self, *arguments: str, **environment: str) -> Process:
        """Start the command `orders`."""
        process = Process(self.folder, f"orders-{arguments[0]}-{next(NUMBERS)}")
        command = [sys.executable, "-W", "error::ResourceWarning", "-m", "orders", *arguments]
        process.spawn(command, {**self.environment, **environment})
        return process

    def finish(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run the command `orders` to its end, and return its status and what it said."""
        process = self.run(*arguments, **environment)
        assert process.process is not None
        return process.process.wait(60), process.tail()


class Former(Platform):
    """The same servers, for the service as it was two migrations ago, which knows fewer settings."""

    folder_of_it = Path("/former")
    known = ("DATABASE_URL", "DATABASE_RO_URL", "RABBITMQ_NODES", "VALKEY_CACHE_NODES", "OIDC_ISSUER", "OIDC_JWKS_URL")

    def __init__(self, platform: Platform) -> None:
        self.__dict__.update(platform.__dict__)

    @property
    def environment(self) -> dict[str, str]:
        """What the platform set then, and where that service is."""
        names = (*self.known, "SECRETS_DIR", "CA_FILE")
        former = {f"ORDERS_{name}": super(Former, self).environment[f"ORDERS_{name}"] for name in names}
        return {**former, "PYTHONPATH": f"/opt/wheels:{self.folder_of_it / 'src'}"}


class Api:
    """One instance of the service. Orders are placed as the customer that is named, everything else is asked as an operator."""

    def __init__(self, platform: Platform, port: int, **environment: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = platform.run("serve", ORDERS_PORT=str(port), **environment)
        self.bearer = platform.keycloak.bearer
        self.client = httpx.Client(base_url=self.url, timeout=10, headers=self.bearer("staff", "operator"))

    def wait_until_ready(self) -> None:
        """Return once it wants requests."""
        wait_until(lambda: self.ready() or not self.process.running, "the service", 30)
        assert self.process.running, self.process.tail()

    def ready(self) -> bool:
        """Return what /readyz says."""
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def order(self, lines: dict[str, int], key: str, customer: str = "c1") -> httpx.Response:
        """Place an order."""
        body = {"lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines.items()]}
        return self.client.post("/v1/orders", json=body, headers={"Idempotency-Key": key, **self.bearer(customer)})

    def place(self, lines: dict[str, int], key: str, customer: str = "c1") -> str:
        """Place an order that must be accepted, at the latest when it is sent again, as the edge does; return its address."""
        response = self.order(lines, key, customer)
        until = time.monotonic() + 20
        while response.status_code == 503 and time.monotonic() < until:
            response = self.order(lines, key, customer)
        assert response.status_code == 202, response.text + self.process.tail()
        return response.headers["location"]

    def decided(self, address: str) -> dict[str, object]:
        """Return the order once it is settled or refused."""
        found: dict[str, object] = {}

        def look() -> bool:
            found.update(self.client.get(address).json())
            return found.get("state", State.ACCEPTED) != State.ACCEPTED  # none: the database is away

        wait_until(look, address, 20)
        return found

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def stop(self) -> int:
        """Stop it as the platform does."""
        self.client.close()
        return self.process.stop()


class Visitor:
    """A browser without a screen, which goes by way of Keycloak's own page, and keeps the cookies of both."""

    def __init__(self, platform: Platform, api: Api) -> None:
        self.api = api
        self.cookies: dict[str, str] = {}
        self.set: list[str] = []  # what the last answer would have it keep, word by word
        self._platform = platform
        self._keycloak = platform.keycloak
        self._others: list[Visitor] = []
        self._pages = httpx.Client(
            base_url=f"https://localhost:{platform.keycloak.tls_port}",
            verify=platform.certificates.context(),
            timeout=20,
        )
        self._service = httpx.Client(base_url=api.url, timeout=10)

    @property
    def session(self) -> str:
        """The session's identifier; empty: there is none."""
        return self.cookies.get("__Host-session", "")

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:  # noqa: ANN401
        """Ask the service, as one of its own pages does unless headers say otherwise."""
        headers = {"Origin": self._keycloak.origin, "Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())}
        headers |= arguments.pop("headers", {})
        answer = self._service.request(method, path, headers={k: v for k, v in headers.items() if v}, **arguments)
        self.set = answer.headers.get_list("set-cookie")
        for cookie in self.set:
            key, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[key] = value.strip('"')
        self.cookies = {key: value for key, value in self.cookies.items() if value}
        return answer

    def come_back(self, user: str, path: str = "/") -> str:
        """Begin a log-in and go through Keycloak's page; return where that sends the browser."""
        answer = self.ask("GET", "/login", params={"next": path})
        assert answer.status_code == 302, answer.text
        page = self._pages.get(self._page(answer.headers["location"]))
        if page.status_code == 200:  # else it knows the browser still
            action = re.search(r'action="([^"]+)"', page.text)
            assert action, page.text
            form = {"username": user, "password": PASSWORD, "credentialId": ""}
            page = self._pages.post(self._page(html.unescape(action[1])), data=form)
        assert page.status_code == 302, page.text
        location = str(page.headers["location"])
        assert location.startswith(f"{self._keycloak.origin}/login/callback?"), location
        return location.removeprefix(self._keycloak.origin)

    def must_give_a_password(self) -> bool:
        """Return whether Keycloak's page would ask for one."""
        answer = self.ask("GET", "/login")
        return self._pages.get(self._page(answer.headers["location"])).status_code == 200

    def log_in(self, user: str, path: str = "/") -> httpx.Response:
        """Log in, and return the service's last answer."""
        answer = self.ask("GET", self.come_back(user, path))
        assert (answer.status_code, answer.headers.get("location")) == (302, path), (
            answer.text + self.api.process.tail()
        )
        return answer

    def status(self) -> int:
        """Return what the service answers to the question who one is."""
        return self.ask("GET", "/v1/me").status_code

    def at(self, api: Api) -> "Visitor":
        """Return the same browser, with the same cookies, as another instance sees it."""
        other = Visitor(self._platform, api)
        other.cookies = dict(self.cookies)
        self._others.append(other)
        return other

    def _page(self, address: str) -> str:
        assert address.startswith(f"{self._keycloak.origin}/auth/"), address
        return address.removeprefix(self._keycloak.origin)

    def close(self) -> None:
        """Close the connections."""
        self._pages.close()
        self._service.close()
        for other in self._others:
            other.close()


class Products:
    """Products of one test, all of whose SKUs begin alike, kept by an operator."""

    def __init__(self, api: Api, name: str) -> None:
        self.prefix = re.sub(r"[^A-Z0-9-]", "", name.upper())[-40:] + "-"
        self._api = api
        self._bodies: dict[str, dict[str, object]] = {}

    @staticmethod
    def body(**changes: object) -> dict[str, object]:
        """Return what a product is to be."""
        return {"name": "A thing", "description": "", "price_cents": 100, "currency": "EUR", "active": True, **changes}

    def put(self, sku: str, headers: Mapping[str, str], **changes: object) -> httpx.Response:
        """Put a product."""
        return self._api.client.put(f"/v1/products/{sku}", json=self.body(**changes), headers=headers)

    def create(self, suffix: str, **changes: object) -> str:
        """Create a product and return its SKU."""
        self._bodies[suffix] = changes
        answer = self.put(self.prefix + suffix, {"If-None-Match": "*"}, **changes)
        assert answer.status_code == 201, answer.text
        return self.prefix + suffix

    def change(self, suffix: str, **changes: object) -> str:
        """Change a product, whatever it is now, and return its tag."""
        self._bodies[suffix] |= changes
        answer = self.put(self.prefix + suffix, {"If-Match": "*"}, **self._bodies[suffix])
        assert answer.status_code == 200, answer.text
        return answer.headers["etag"]

    def stock(self, suffix: str, quantity: int) -> None:
        """Set how many there are."""
        address = f"/v1/products/{self.prefix}{suffix}/stock"
        assert self._api.client.put(address, json={"quantity": quantity}).json() == {"quantity": quantity}


def skus(api: Api, **parameters: object) -> list[str]:
    """Return the SKUs of a list of products."""
    answer = api.client.get(
        "/v1/products", params={k: str(v).lower() if v is True or v is False else str(v) for k, v in parameters.items()}
    )
    assert answer.status_code == 200, answer.text
    return [product["sku"] for product in answer.json()]


class Workers:
    """The worker, when a test wants it."""

    def __init__(self, platform: Platform, port: int = 8101, **environment: str) -> None:
        self.port = port
        self._platform = platform
        self._environment = environment
        self._process: Process | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=5)

    @property
    def process(self) -> Process:
        """The one that runs."""
        assert self._process is not None
        return self._process

    def start(self, *, wait: bool = True) -> None:
        """Have one, and wait until it is ready."""
        if self._process is None or not self._process.running:
            self._process = self._platform.run("worker", ORDERS_WORKER_PORT=str(self.port), **self._environment)
        if wait:
            wait_until(lambda: self.ready() or not self.process.running, "the worker", 30)
            assert self.process.running, self.process.tail()

    def ready(self) -> bool:
        """Return what /readyz says."""
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it."""
        return self._process.stop(number) if self._process else 0

    def close(self) -> None:
        """End it, for good."""
        self.stop()
        self.client.close()
