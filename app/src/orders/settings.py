"""Settings of one process, read once from the environment, and its secrets, read from files (the container's contract)."""

import os
import re
import ssl
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from math import isfinite
from pathlib import Path
from typing import Annotated, NamedTuple, Self
from urllib.parse import urlsplit

import msgspec
from psycopg.conninfo import make_conninfo

KEY_LENGTH = 32
RETRY_STEPS = 5  # of webhooks: queues webhook-retry-1 and so on
DATABASE_SECRET = "orders_database_password"  # noqa: S105  (its name)
OTHER_FIELD_KEYS = "orders_field_keys_other"
CLIENT_SECRET = "orders_oidc_client_secret"  # noqa: S105  (its name)
# As browsers write an Origin: no path, no upper case, no port that is https's own.
_ORIGIN = re.compile(r"https://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?!:443$)(?::[1-9][0-9]{0,4})?")


Network = IPv4Network | IPv6Network


class SettingsError(Exception):
    """A variable or a secret is missing or malformed; the message names it."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class IdentityProvider(NamedTuple):
    """Whose access tokens count, where its keys are read, and for whom the tokens must be made."""

    issuer: str
    jwks_url: str
    audience: str


class Browsers(NamedTuple):
    """How people log in with a browser: where they find us, as what we are known, and how long a session lasts."""

    url: str  # the origin, as browsers have it
    issuer: str
    token_url: str
    client_id: str
    idle_seconds: int
    session_seconds: int
    check_seconds: int


class Traces(NamedTuple):
    """Where spans go, and what share of the traces that begin here has any."""

    endpoint: str
    ratio: float


class Webhooks(NamedTuple):
    """Where webhooks may go, and how often they are tried."""

    ports: frozenset[int]
    networks: tuple[Network, ...]  # that are not public and may be reached nevertheless, without TLS too
    ca_file: str  # empty: the public authorities
    # To wait after the first failure, the second, ...; after the last of them as after that.
    retry_seconds: tuple[float, ...]
    failure_seconds: int  # of nothing but failure, after which an endpoint is switched off


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One field a variable: `database_url` is read from ORDERS_DATABASE_URL."""

    database_url: str  # libpq connection string or URL of the primary's pooler, with the user, without a password
    rabbitmq_nodes: str  # host:port,...; the first three are the intake's lanes
    secrets_dir: str = "/run/secrets"
    ca_file: str = "/run/secrets/ca.crt"
    database_ro_url: str = ""  # replicas; empty: there are none, reads go to the primary
    database_pool_size: int = 8
    rabbitmq_vhost: str = "orders"
    rabbitmq_user: str = "orders"
    # So long an order may be kept for others to share its message; 0: never, as long as workers run that know no bundles.
    bundle_milliseconds: Annotated[int, msgspec.Meta(ge=0, le=50)] = 0
    # Partitions of events and deliveries are detached so many months after their end; 0: none are.
    keep_months: Annotated[int, msgspec.Meta(ge=0, le=1200)] = 0
    valkey_cache_nodes: str = ""  # host:port,...; empty: the service goes without
    valkey_user: str = "orders"
    oidc_issuer: str = ""  # the claim `iss` of every token, to the letter; this and the next only `serve` needs
    oidc_jwks_url: str = ""  # http://... or https://...
    oidc_audience: str = "orders"
    valkey_session_nodes: str = (
        ""  # host:port,...; empty: nobody logs in with a browser, and the next ones are not needed
    )
    public_url: str = ""  # https://NAME[:PORT], where browsers find the service
    oidc_token_url: str = ""  # http://... or https://...; the end of log-ins is beside it, at `logout`
    oidc_client_id: str = "orders-web"
    session_idle_seconds: int = 1500
    session_seconds: int = 36000
    session_check_seconds: int = 240
    webhook_ports: str = "443"  # N,...
    webhook_networks: str = ""  # a.b.c.d/n,...; empty: none, as it is to be where strangers name the targets
    webhook_ca_file: str = ""  # empty: the public authorities
    webhook_retry_seconds: str = "5,60,600,3600,21600"  # one a queue; no longer than the queue's own time
    webhook_failure_seconds: int = 432000
    port: int = 8000
    worker_port: int = 8001
    traces_endpoint: str = ""  # http://... or https://..., the whole path of a collector for OTLP; empty: no spans
    traces_ratio: float = 0.01  # of the traces that begin here; what comes with a traceparent brings its own decision
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read and check every ORDERS_ variable.

        Raises:
            SettingsError: naming the variable and what is wrong with it; an unknown name is refused too.
        """
        raw = {
            name.removeprefix("ORDERS_").lower(): value
            for name, value in environment.items()
            if name.startswith("ORDERS_")
        }
        try:
            settings = msgspec.convert(raw, cls, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"ORDERS_ variables: {error}") from error
        for name in ("rabbitmq_nodes", "valkey_cache_nodes", "valkey_session_nodes"):
            settings.addresses(name)
        if not settings.rabbitmq_nodes:
            raise SettingsError("ORDERS_RABBITMQ_NODES is empty. Name at least one broker: host:port,...")
        return settings

    def addresses(self, name: str) -> tuple[Address, ...]:
        """Split the setting `name`, host:port,..., into addresses.

        Raises:
            SettingsError: an item is not host:port.
        """
        found = []
        for item in filter(None, getattr(self, name).split(",")):
            host, _, port = item.strip().rpartition(":")
            if not host or not port.isdecimal():
                raise SettingsError(f"ORDERS_{name.upper()}: {item!r} is not host:port.")
            found.append(Address(host, int(port)))
        return tuple(found)

    def secret(self, name: str) -> str:
        """Read the secret's file, now: a secret that was rotated counts from the next connection on.

        Raises:
            SettingsError: the file is missing, unreadable or empty.
        """
        path = Path(self.secrets_dir, name)
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"The secret {name} cannot be read from {path}: {error}") from error
        if not value:
            raise SettingsError(f"The secret {name} in {path} is empty.")
        return value

    def hmac_keys(self) -> tuple[bytes, ...]:
        """Return the keys of orders' identifiers: the one that signs first, then the one before it, if there is one.

        Raises:
            SettingsError: a key is missing or too short.
        """
        names = ["orders_hmac_key"]
        if Path(self.secrets_dir, "orders_hmac_key_previous").exists():
            names.append("orders_hmac_key_previous")
        return tuple(_key(name, self.secret(name)) for name in names)

    def field_keys(self) -> tuple[bytes, ...]:
        """Return the secrets that personal data is sealed by: the one that seals first, then all others that open.

        Raises:
            SettingsError: a key is missing or too short, or stands twice.
        """
        keys = [_key("orders_field_key", self.secret("orders_field_key"))]
        if Path(self.secrets_dir, OTHER_FIELD_KEYS).exists():
            lines = filter(None, map(str.strip, self.secret(OTHER_FIELD_KEYS).splitlines()))
            keys += [_key(OTHER_FIELD_KEYS, line) for line in lines]
        if len({*keys}) < len(keys):
            raise SettingsError(f"The secrets orders_field_key and {OTHER_FIELD_KEYS} hold a key twice.")
        return tuple(keys)

    def identity_provider(self) -> IdentityProvider:
        """Return whose access tokens count. There is no way to serve without.

        Raises:
            SettingsError: a variable is missing or malformed.
        """
        for name in ("oidc_issuer", "oidc_jwks_url", "oidc_audience"):
            if not getattr(self, name):
                raise SettingsError(f"ORDERS_{name.upper()} is empty; nothing is served unchecked.")
        self._need_address("oidc_jwks_url")
        return IdentityProvider(self.oidc_issuer, self.oidc_jwks_url, self.oidc_audience)

    def _need_address(self, name: str) -> None:
        value = getattr(self, name)
        try:
            url = urlsplit(value)
            is_address = url.scheme in {"http", "https"} and url.hostname and url.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            raise SettingsError(f"ORDERS_{name.upper()}: {value!r} is not http://... or https://...")

    def browsers(self) -> Browsers | None:
        """Return how people log in with a browser; none where there is no store for their sessions.

        Raises:
            SettingsError: a variable or the client's secret is missing or malformed.
        """
        if not self.valkey_session_nodes:
            return None
        self._need_address("oidc_token_url")
        if not _ORIGIN.fullmatch(self.public_url):
            raise SettingsError(f"ORDERS_PUBLIC_URL: {self.public_url!r} is not https://NAME or https://NAME:PORT.")
        if not self.oidc_client_id:
            raise SettingsError("ORDERS_OIDC_CLIENT_ID is empty; the identity provider is to know whose log-in it is.")
        for name in ("session_idle_seconds", "session_seconds", "session_check_seconds"):
            if getattr(self, name) < 1:
                raise SettingsError(f"ORDERS_{name.upper()} is {getattr(self, name)}; 1 is the least.")
        self.secret(CLIENT_SECRET)
        return Browsers(
            self.public_url,
            self.oidc_issuer,
            self.oidc_token_url,
            self.oidc_client_id,
            self.session_idle_seconds,
            self.session_seconds,
            self.session_check_seconds,
        )

    def traces(self) -> Traces | None:
        """Return where spans go; none where nothing collects them.

        Raises:
            SettingsError: a variable is malformed.
        """
        if not 0 <= self.traces_ratio <= 1:
            raise SettingsError(f"ORDERS_TRACES_RATIO is {self.traces_ratio}; it is a share, from 0 to 1.")
        if not self.traces_endpoint:
            return None
        self._need_address("traces_endpoint")
        return Traces(self.traces_endpoint, self.traces_ratio)

    def webhooks(self) -> Webhooks:
        """Return where webhooks may go, and how often they are tried.

        Raises:
            SettingsError: a variable is malformed.
        """
        ports = _numbers("webhook_ports", self.webhook_ports)
        if not ports or not all(port in range(1, 65536) and port == int(port) for port in ports):
            raise SettingsError(f"ORDERS_WEBHOOK_PORTS: {self.webhook_ports!r} is not 1 to 65535, one or more: N,...")
        retries = _numbers("webhook_retry_seconds", self.webhook_retry_seconds)
        if len(retries) != RETRY_STEPS or min(retries) <= 0:
            raise SettingsError(
                f"ORDERS_WEBHOOK_RETRY_SECONDS: {self.webhook_retry_seconds!r} is not {RETRY_STEPS} numbers above 0: N,..."
            )
        if self.webhook_failure_seconds < 1:
            raise SettingsError(f"ORDERS_WEBHOOK_FAILURE_SECONDS is {self.webhook_failure_seconds}; 1 is the least.")
        networks = []
        for item in filter(None, map(str.strip, self.webhook_networks.split(","))):
            try:
                networks.append(ip_network(item))
            except ValueError as error:
                raise SettingsError(f"ORDERS_WEBHOOK_NETWORKS: {item!r} is no network: {error}") from error
        return Webhooks(
            frozenset(map(int, ports)),
            tuple(networks),
            self.webhook_ca_file,
            tuple(retries),
            self.webhook_failure_seconds,
        )

    def conninfo(self, url: str, *, user: str = "", secret: str = DATABASE_SECRET) -> str:
        """Return the connection string for libpq, with the password of now and with the deadlines of a failover.

        Raises:
            SettingsError: the secret cannot be read.
        """
        changed: dict[str, str | int | None] = {"user": user} if user else {}
        return make_conninfo(
            url,
            password=self.secret(secret),
            application_name="orders",
            connect_timeout=2,
            tcp_user_timeout=3000,
            keepalives_idle=2,
            keepalives_interval=1,
            keepalives_count=2,
            **changed,
        )

    def tls(self) -> ssl.SSLContext | None:
        """Return the context of a client that trusts the internal CA only; none where there is no CA file."""
        return ssl.create_default_context(cafile=self.ca_file) if self.ca_file else None


def _numbers(name: str, value: str) -> list[float]:
    try:
        found = [float(item) for item in value.split(",") if item.strip()]
    except ValueError as error:
        raise SettingsError(f"ORDERS_{name.upper()}: {value!r} is not numbers: N,...") from error
    if not all(map(isfinite, found)):
        raise SettingsError(f"ORDERS_{name.upper()}: {value!r} is not numbers: N,...")
    return found


def _key(name: str, value: str) -> bytes:
    key = value.encode()
    if len(key) < KEY_LENGTH:
        raise SettingsError(f"The secret {name} has a key of {len(key)} bytes; {KEY_LENGTH} are the least.")
    return key
