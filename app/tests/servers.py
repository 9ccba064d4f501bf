"""The real servers, started for a run of the tests: PostgreSQL behind PgBouncer, a Valkey cluster, three RabbitMQ brokers, Keycloak.

All of them speak TLS, with accounts that may do no more than in production; Keycloak is asked for its keys without TLS as well.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import httpx
import jwt
import pika
import psycopg
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

POSTGRES_BIN = Path("/usr/lib/postgresql/17/bin")
KEYCLOAK = Path("/opt/keycloak")
RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"
PASSWORD = "a password of the tests"
# As the role patroni gives them: what a service may not do, its migrations say.
DEFAULT_PRIVILEGES = (
    "ALTER DEFAULT PRIVILEGES FOR ROLE orders_owner GRANT DELETE, INSERT, SELECT, UPDATE ON TABLES TO orders;"
    "ALTER DEFAULT PRIVILEGES FOR ROLE orders_owner GRANT SELECT, USAGE ON SEQUENCES TO orders"
)
START_SECONDS = 90.0
QUEUES = ("intake-1", "intake-2", "intake-3")
DEAD_QUEUE = "intake-dead"
DUE_QUEUE = "webhook-due"
RETRY_QUEUES = tuple(f"webhook-retry-{step}" for step in range(1, 6))
QUEUE_ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-quorum-initial-group-size": 3,
    "x-queue-leader-locator": "client-local",
    "x-delivery-limit": -1,
    "x-dead-letter-exchange": "dead-letters",
}

STREAM_LIMITS = {"max-age": "7D", "max-length-bytes": 536870912, "stream-max-segment-size-bytes": 33554432}

# What has waited long enough in one of the queues for it.
WAITS = {"dead-letter-exchange": "", "dead-letter-routing-key": DUE_QUEUE}


def wait_until(condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Return once the condition holds; fail after some seconds, naming what did not come."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Return whether something takes connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A program that runs until it is stopped, its output in a file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self, command: Sequence[str], environment: Mapping[str, str] = {}, user: str = "") -> None:
        """Start the program."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                user=user or None,
                group=user or None,
                extra_groups=[] if user else None,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the program runs."""
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program and its children."""
        if self.process is not None and self.running:
            os.killpg(self.process.pid, number)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> int:
        """End the program, and return its exit status."""
        if self.process is None:
            return 0
        self.send(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.wait()
            raise

    def tail(self) -> str:
        """Return the end of the output."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


def waiting(connection: psycopg.Connection) -> int:
    """Return how many events are not published."""
    row = connection.execute(
        "SELECT count(*) FROM event e, relay r WHERE (e.xid, e.id) > (r.xid, r.id) AND r.name = 'events'"
    ).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def frozen(*processes: Process) -> Iterator[None]:
    """Stop processes as a power cut does to those who talk to them: no answer, no end of the connection."""
    for process in processes:
        process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send(signal.SIGCONT)


class Certificates:
    """A CA and one certificate, for all servers."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.ca, self.key, self.certificate = folder / "ca.crt", folder / "server.key", folder / "server.crt"
        names = folder / "names"
        names.write_text(
            "subjectAltName=DNS:postgres.freehold.internal,DNS:localhost,DNS:*.hooks.test,IP:127.0.0.1,IP:127.7.0.1\n"
            "authorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n"
        )
        usage = "keyUsage=critical,keyCertSign,cRLSign"
        ca_key, request = folder / "ca.key", folder / "server.csr"
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        for command in (
            (
                *("req", "-x509", *key, "-keyout", str(ca_key), "-out", str(self.ca), "-subj", "/CN=Test CA"),
                *("-days", "2", "-addext", usage),
            ),
            ("req", *key, "-keyout", str(self.key), "-out", str(request), "-subj", "/CN=server"),
            (
                *("x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(ca_key), "-days", "2"),
                *("-CAcreateserial", "-extfile", str(names), "-out", str(self.certificate)),
            ),
        ):
            subprocess.run(["openssl", *command], check=True, capture_output=True)
        for path in (self.key, self.certificate, self.ca):
            path.chmod(0o644)

    def context(self) -> ssl.SSLContext:
        """Return the context of a client that trusts this CA only."""
        return ssl.create_default_context(cafile=str(self.ca))


class Postgres(Process):
    """PostgreSQL on 5432 with a PgBouncer in transaction mode before it on 6432."""

    port, pooler_port = 5432, 6432

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        folder.mkdir()
        shutil.chown(folder, "postgres", "postgres")
        super().__init__(folder, "postgres")
        self._data = folder / "data"
        self._certificates = certificates
        self.pooler = Process(folder, "pgbouncer")

    def create(self) -> None:
        """Make the cluster, start both, and make roles and database as the platform does."""
        initdb = [str(POSTGRES_BIN / "initdb"), "-D", str(self._data), "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, user="postgres", group="postgres", extra_groups=[])
        key = self.folder / "server.key"
        shutil.copy(self._certificates.key, key)
        shutil.chown(key, "postgres", "postgres")
        key.chmod(0o600)
        (self._data / "postgresql.auto.conf").write_text(
            f"listen_addresses = '127.0.0.1'\nunix_socket_directories = '{self.folder}'\nssl = on\n"
            f"ssl_key_file = '{key}'\nssl_cert_file = '{self._certificates.certificate}'\nfsync = off\n"
        )
        self.start()
        with self.admin("postgres") as connection:
            for role in ("orders_owner", "orders", "keycloak"):
                connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
            connection.execute("CREATE DATABASE keycloak OWNER keycloak")
        self.make_database("orders")
        (self._data / "pg_hba.conf").write_text(
            "local all postgres trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
        )
        with self.admin("postgres") as connection:
            connection.execute("SELECT pg_reload_conf()")
        users = self.folder / "userlist.txt"
        users.write_text("".join(f'"{role}" "{PASSWORD}"\n' for role in ("orders_owner", "orders", "keycloak")))
        configuration = self.folder / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n* = host=127.0.0.1 port={self.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.pooler_port}\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\n"
            f"client_tls_sslmode = require\nclient_tls_key_file = {key}\nserver_tls_sslmode = require\n"
            f"client_tls_cert_file = {self._certificates.certificate}\nserver_login_retry = 1\nmax_client_conn = 300\n"
            f"server_connect_timeout = 2\nunix_socket_dir =\nlog_connections = 0\nlog_disconnections = 0\n"
            "ignore_startup_parameters = extra_float_digits,options\n"
        )
        self.pooler.spawn(["/usr/sbin/pgbouncer", str(configuration)], user="postgres")
        wait_until(lambda: listens(self.pooler_port), "PgBouncer")

    def start(self) -> None:
        """Start PostgreSQL and wait until it answers."""
        self.spawn([str(POSTGRES_BIN / "postgres"), "-D", str(self._data)], user="postgres")
        wait_until(self._answers, "PostgreSQL")

    def _answers(self) -> bool:
        try:
            self.admin("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def admin(self, database: str = "orders") -> psycopg.Connection:
        """Connect as the superuser, past the pooler."""
        conninfo = f"host={self.folder} port={self.port} user=postgres dbname={database}"
        return psycopg.connect(conninfo, autocommit=True)

    def make_database(self, name: str) -> None:
        """Make an empty database for the service, as the platform does."""
        with self.admin("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER orders_owner")
        with self.admin(name) as connection:
            connection.execute(DEFAULT_PRIVILEGES)

    def url(self, port: int = pooler_port, database: str = "orders") -> str:
        """Return what a service gets: by name and by address, verified."""
        return (
            f"postgresql://orders@postgres.freehold.internal:{port}/{database}?hostaddr=127.0.0.1"
            f"&sslmode=verify-full&sslrootcert={self._certificates.ca}"
        )

    def remove(self) -> None:
        """Stop both."""
        self.pooler.stop(signal.SIGKILL)
        self.stop(signal.SIGKILL)


class Valkey:
    """A cluster of three primaries, or of three with a replica each, with the account of the service."""

    def __init__(self, folder: Path, certificates: Certificates, port: int, replicas: int = 0) -> None:
        folder.mkdir()
        self.ports = range(port, port + 3 * (1 + replicas))
        self._replicas = replicas
        self.nodes = [Process(folder, f"valkey-{port}") for port in self.ports]
        self._folder = folder
        self._certificates = certificates

    @property
    def addresses(self) -> str:
        """The setting of the service."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def start(self) -> None:
        """Start the nodes."""
        c = self._certificates
        for node, port in zip(self.nodes, self.ports, strict=True):
            data = self._folder / str(port)
            data.mkdir(exist_ok=True)
            configuration = self._folder / f"{port}.conf"
            configuration.write_text(
                f"port 0\ntls-port {port}\nbind 127.0.0.1\ndir {data}\ncluster-enabled yes\ntls-cluster yes\n"
                f"tls-replication yes\ntls-cert-file {c.certificate}\ntls-key-file {c.key}\ntls-ca-cert-file {c.ca}\n"
                f'tls-auth-clients no\ncluster-node-timeout 2000\nsave ""\ncluster-require-full-coverage no\n'
                f'user orders on ">{PASSWORD}" ~orders:* resetchannels -@all +@read +@write +@connection +@transaction'
                " -@dangerous -@admin -scan -randomkey +wait +command +cluster|slots +cluster|shards\n"
            )
            node.spawn(["/usr/bin/valkey-server", str(configuration)])

    def restart(self, port: int) -> None:
        """Have a node back that has ended, with nothing in it."""
        self.nodes[port - self.ports[0]].spawn(["/usr/bin/valkey-server", str(self._folder / f"{port}.conf")])
        wait_until(partial(listens, port), f"Valkey on {port}")
        self.wait()

    def create(self) -> None:
        """Start the nodes and form the cluster."""
        self.start()
        for port in self.ports:
            wait_until(partial(listens, port), f"Valkey on {port}")
        nodes = [f"127.0.0.1:{port}" for port in self.ports]
        replicas = ["--cluster-replicas", str(self._replicas)]
        self.cli(self.ports[0], "--cluster", "create", *nodes, *replicas, "--cluster-yes")
        self.wait()

    def wait(self) -> None:
        """Return once all nodes are there, and each primary has its replica."""
        for port in self.ports:
            wait_until(partial(self._is_whole, port), "the Valkey cluster")

    def _is_whole(self, port: int) -> bool:
        info = self.cli(port, "info", "replication")
        # A replica that is still sent what there is counts as connected, and confirms nothing.
        linked = (
            info.count("state=online") == self._replicas if "role:master" in info else "master_link_status:up" in info
        )
        return linked and "cluster_state:ok" in self.cli(port, "cluster", "info")

    def primaries(self) -> list[int]:
        """Return the ports of the nodes that take writes now."""
        return [port for port in self.ports if "role:master" in self.cli(port, "info", "replication")]

    def cli(self, port: int, *arguments: str) -> str:
        """Return what valkey-cli says."""
        command = ["valkey-cli", "-p", str(port), "--tls", "--cacert", str(self._certificates.ca), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def keys(self, pattern: str) -> list[str]:
        """Return the keys that a pattern fits."""
        return [key for port in self.ports for key in self.cli(port, "keys", pattern).splitlines() if key]

    def connections(self) -> int:
        """Return how many connections of clients the nodes have, those too that a node has not taken or closed yet."""
        ended = "06"  # TIME_WAIT
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(int(line[2].rpartition(":")[2], 16) in self.ports for line in lines if line[3] != ended)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every node."""
        for node in self.nodes:
            node.send(number)

    def remove(self) -> None:
        """Stop every node."""
        for node in self.nodes:
            node.stop(signal.SIGKILL)


class RabbitMQ:
    """Three brokers in one cluster; each leads one of the intake's queues."""

    ports = (5671, 5672, 5673)

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        folder.mkdir()
        self.brokers = [Process(folder, f"rabbit{number}") for number in (1, 2, 3)]
        self._folder = folder
        self._certificates = certificates

    @property
    def addresses(self) -> str:
        """The setting of the service."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def _start(self, number: int) -> None:
        c = self._certificates
        data = self._folder / str(number)
        data.mkdir(exist_ok=True)
        nodes = "".join(f"cluster_formation.classic_config.nodes.{n} = rabbit{n}@localhost\n" for n in (1, 2, 3))
        configuration = self._folder / f"{number}.conf"
        configuration.write_text(
            f"listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{self.ports[number - 1]}\n"
            f"ssl_options.cacertfile = {c.ca}\nssl_options.certfile = {c.certificate}\nssl_options.keyfile = {c.key}\n"
            f"ssl_options.verify = verify_none\ncluster_formation.peer_discovery_backend = classic_config\n{nodes}"
            "cluster_partition_handling = pause_minority\nnet_ticktime = 10\nlog.console = true\nlog.file = false\n"
            "log.console.level = info\ndisk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 512MB\n"
        )
        self.brokers[number - 1].spawn(
            [RABBITMQ],
            {
                "HOME": str(self._folder),
                "RABBITMQ_NODENAME": f"rabbit{number}@localhost",
                "RABBITMQ_CONFIG_FILE": str(configuration),
                "RABBITMQ_MNESIA_BASE": str(data),
                "RABBITMQ_LOG_BASE": str(data),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
                "RABBITMQ_DIST_PORT": str(25671 + number),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            },
        )

    def start(self) -> None:
        """Start the brokers; return at once."""
        (self._folder / "plugins").write_text("[].\n")
        cookie = self._folder / ".erlang.cookie"
        cookie.write_text("cookieofthetests")
        cookie.chmod(0o400)
        for number in (1, 2, 3):
            self._start(number)

    def create(self) -> None:
        """Wait for the brokers, and make account, queues and dead letters as the platform does."""
        for broker in self.brokers:
            wait_until(partial(self._is_up, broker), broker.name)
            assert broker.running, broker.tail()
        self.ctl(
            "eval",
            'rabbit_vhost:add(<<"orders">>, <<"tests">>),'
            f'rabbit_auth_backend_internal:add_user(<<"orders">>, <<"{PASSWORD}">>, <<"tests">>),'
            "P = fun(User, Configure, Write, Read) -> rabbit_auth_backend_internal:set_permissions("
            'User, <<"orders">>, Configure, Write, Read, <<"tests">>) end,'
            'P(<<"orders">>, <<"^$">>, <<"^(amq\\.default|events)$">>, <<"^(intake-([123]|dead)|events|webhook-due)$">>),'
            'P(<<"guest">>, <<".*">>, <<".*">>, <<".*">>).',
        )
        self.ctl("set_policy", "-p", "orders", "events", "^events$", json.dumps(STREAM_LIMITS), "--apply-to", "streams")
        policies: dict[str, tuple[str, dict[str, object]]] = {
            "webhook": (f"^{DUE_QUEUE}$", {"delivery-limit": -1}),
            **{queue: (f"^{queue}$", {**WAITS, "message-ttl": 60000}) for queue in RETRY_QUEUES},
        }
        for name, (pattern, definition) in policies.items():
            self.ctl("set_policy", "-p", "orders", name, pattern, json.dumps(definition), "--apply-to", "quorum_queues")
        for port, queue in zip(self.ports, QUEUES, strict=True):
            with self.connect(port) as connection:
                channel = connection.channel()
                if queue == QUEUES[0]:
                    channel.exchange_declare("dead-letters", "fanout", durable=True)
                    arguments = {"x-queue-type": "quorum", "x-delivery-limit": -1}
                    channel.queue_declare(DEAD_QUEUE, durable=True, arguments=arguments)
                    channel.queue_bind(DEAD_QUEUE, "dead-letters")
                    channel.exchange_declare("events", "topic", durable=True)
                    channel.queue_declare("events", durable=True, arguments={"x-queue-type": "stream"})
                    channel.queue_bind("events", "events", "#")
                    for each in (DUE_QUEUE, *RETRY_QUEUES):
                        channel.queue_declare(each, durable=True, arguments={"x-queue-type": "quorum"})
                channel.queue_declare(queue, durable=True, arguments=QUEUE_ARGUMENTS)

    @staticmethod
    def _is_up(broker: Process) -> bool:
        return b"Server startup complete" in broker.log.read_bytes() or not broker.running

    def heal(self) -> None:
        """Restart brokers that keep apart: what was frozen for longer than the tick stays so, as docs/rabbitmq.md says."""
        for number in (1, 2, 3):
            if self.ctl("eval", "rabbit_node_monitor:partitions().", broker=number).strip() != "[]":
                self.ctl("stop_app", broker=number)
                self.ctl("start_app", broker=number)

    def ctl(self, *arguments: str, broker: int = 1) -> str:
        """Return what rabbitmqctl says."""
        environment = {**os.environ, "HOME": str(self._folder)}
        command = ["/usr/lib/rabbitmq/bin/rabbitmqctl", "--quiet", "-n", f"rabbit{broker}@localhost", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    def connect(self, port: int = 0) -> pika.BlockingConnection:
        """Connect as an operator."""
        return pika.BlockingConnection(
            pika.ConnectionParameters(
                "127.0.0.1",
                port or self.ports[0],
                "orders",
                pika.PlainCredentials("guest", "guest"),
                ssl_options=pika.SSLOptions(self._certificates.context(), "127.0.0.1"),
            )
        )

    def depth(self, *queues: str) -> int:
        """Return how many messages wait in queues, not counting those that a worker has now."""
        with self.connect() as connection:
            channel = connection.channel()
            return sum(channel.queue_declare(queue, passive=True).method.message_count for queue in queues)

    def publish(self, queue: str, *bodies: bytes, kind: str | None = None) -> None:
        """Put messages into a queue, confirmed."""
        with self.connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for body in bodies:
                channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2, type=kind), mandatory=True)

    def take(self, queue: str) -> list[bytes]:
        """Take every message out of a queue."""
        found = []
        with self.connect() as connection:
            channel = connection.channel()
            while (message := channel.basic_get(queue, auto_ack=True))[0] is not None:
                found.append(message[2])
        return found

    def remove(self) -> None:
        """End every broker."""
        for broker in self.brokers:
            broker.send(signal.SIGCONT)
            broker.stop(signal.SIGKILL)


def _settled(broker: Process) -> bool:
    """Return whether a starting broker is up, or has given up."""
    return b"Server startup complete" in broker.log.read_bytes() or not broker.running


class SigningKey:
    """A key pair that tokens can be signed with."""

    def __init__(self) -> None:
        self.private = generate_private_key(65537, 2048)
        public = self.private.public_key()
        self.public_pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        # As Keycloak names keys.
        digest = hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        self.kid = urlsafe_b64encode(digest).rstrip(b"=").decode()

    def provider(self, priority: int) -> dict[str, object]:
        """Return Keycloak's key provider for this key; the one of highest priority signs."""
        pem = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        config = {"privateKey": [pem], "priority": [str(priority)], "algorithm": ["RS256"]}
        return {"name": self.kid, "providerId": "rsa", "config": config}


class Keycloak(Process):
    """Keycloak with the realm of the service. Tokens are signed here by the realm's key, except those that it issues itself."""

    port, tls_port, management_port = 8180, 8543, 8190
    url = f"http://127.0.0.1:{port}/auth"
    origin = "https://identity.test"  # of Keycloak and the service, as the edge has both
    issuer = f"{origin}/auth/realms/freehold"
    jwks_path = "/realms/freehold/protocol/openid-connect/certs"
    client_secret = "a secret of the tests"
    browser_client = "orders-web"
    # Who can log in, with their roles; the passwords are all the same.
    people: Mapping[str, Sequence[str]] = {
        "anna": ["customer"],
        "bert": ["customer"],
        "olga": ["operator"],
        "otto": ["customer", "operator"],
        "nora": [],
    }

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        folder.mkdir()
        super().__init__(folder, "keycloak")
        self._certificates = certificates
        self.key = SigningKey()
        self.bearer = cache(self._bearer)

    def start(self) -> None:
        """Start it, and import the realm where there is none; return at once."""
        realms = KEYCLOAK / "data" / "import"
        realms.mkdir(parents=True, exist_ok=True)
        (realms / "freehold-realm.json").write_text(json.dumps(self._realm()))
        c = self._certificates
        self.spawn(
            [
                *(str(KEYCLOAK / "bin" / "kc.sh"), "start", "--optimized", "--import-realm"),
                *(f"--hostname={self.origin}/auth", "--http-enabled=true", "--http-host=127.0.0.1"),
                *(f"--http-port={self.port}", f"--https-port={self.tls_port}"),
                *(f"--https-certificate-file={c.certificate}", f"--https-certificate-key-file={c.key}"),
                f"--http-management-port={self.management_port}",
                f"--db-url=jdbc:postgresql://127.0.0.1:{Postgres.pooler_port}/keycloak?sslmode=verify-full&sslrootcert={c.ca}",
                *("--db-username=keycloak", "--db-pool-max-size=5", "--cache=local"),
            ],
            {
                "KC_DB_PASSWORD": PASSWORD,
                "KC_BOOTSTRAP_ADMIN_USERNAME": "admin",
                "KC_BOOTSTRAP_ADMIN_PASSWORD": PASSWORD,
                "JAVA_OPTS_KC_HEAP": "-Xms64m -Xmx384m",
                "JAVA_OPTS_APPEND": "-XX:TieredStopAtLevel=1",
            },
        )

    def _realm(self) -> dict[str, object]:
        audience = {
            "name": "audience",
            "protocol": "openid-connect",
            "protocolMapper": "oidc-audience-mapper",
            "config": {"included.custom.audience": "orders", "access.token.claim": "true"},
        }
        return {
            "realm": "freehold",
            "enabled": True,
            "sslRequired": "all",
            "roles": {"realm": [{"name": "customer"}, {"name": "operator"}]},
            "clients": [
                {
                    "clientId": "shop",
                    "secret": self.client_secret,
                    "standardFlowEnabled": False,
                    "serviceAccountsEnabled": True,
                    "protocolMappers": [audience],
                },
                {
                    "clientId": self.browser_client,
                    "secret": self.client_secret,
                    "standardFlowEnabled": True,
                    "directAccessGrantsEnabled": False,
                    "redirectUris": [f"{self.origin}/login/callback"],
                    "attributes": {"pkce.code.challenge.method": "S256"},
                    "protocolMappers": [audience],
                },
            ],
            "revokeRefreshToken": True,
            "refreshTokenMaxReuse": 0,
            "users": [
                {
                    "username": "service-account-shop",
                    "enabled": True,
                    "serviceAccountClientId": "shop",
                    "realmRoles": ["customer"],
                },
                *(
                    {
                        "username": name,
                        "email": f"{name}@example.com",
                        "emailVerified": True,
                        "firstName": name.title(),
                        "lastName": "Tester",
                        "enabled": True,
                        "credentials": [{"type": "password", "value": PASSWORD}],
                        "realmRoles": roles,
                    }
                    for name, roles in self.people.items()
                ),
            ],
            "components": {"org.keycloak.keys.KeyProvider": [self.key.provider(100)]},
        }

    def wait(self) -> None:
        """Return once it gives out its keys. The first start makes its tables: some 30 s where nothing else runs."""
        wait_until(lambda: self.key.kid in self.kids() or not self.running, "Keycloak", 3 * START_SECONDS)
        assert self.running, self.tail()

    def kids(self) -> list[str]:
        """Return the names of the keys that it gives out now; none where it does not answer."""
        try:
            answer = httpx.get(self.url + self.jwks_path, timeout=5)
        except httpx.TransportError:
            return []
        return [key["kid"] for key in answer.json()["keys"]] if answer.is_success else []

    def issue(self) -> str:
        """Return an access token that Keycloak issues to a machine, a customer."""
        form = {"grant_type": "client_credentials", "client_id": "shop", "client_secret": self.client_secret}
        answer = httpx.post(f"{self.url}/realms/freehold/protocol/openid-connect/token", data=form, timeout=10)
        return str(answer.raise_for_status().json()["access_token"])

    def token(self, subject: str, *roles: str, **claims: object) -> str:
        """Return an access token as Keycloak would issue it."""
        return self.sign(self.claims(subject, *roles, **claims), self.key)

    @staticmethod
    def sign(claims: dict[str, object], key: SigningKey) -> str:
        """Return claims as a token by any key."""
        return jwt.encode(claims, key.private, "RS256", headers={"kid": key.kid})

    def claims(self, subject: str, *roles: str, **claims: object) -> dict[str, object]:
        """Return what an access token says, with some claims changed; those that are None are left out."""
        now = int(time.time())
        found = {
            "iss": self.issuer,
            "aud": "orders",
            "azp": "shop",
            "exp": now + 3600,
            "iat": now,
            "realm_access": {"roles": roles},
            "sub": subject,
            "typ": "Bearer",
            **claims,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _bearer(self, subject: str, *roles: str) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.token(subject, *(roles or ('customer',)))}"}

    def admin(self, method: str, path: str, content: object = None) -> httpx.Response:
        """Do something to realms as their administrator."""
        form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": PASSWORD}
        with httpx.Client(base_url=self.url, timeout=20) as client:
            answer = client.post("/realms/master/protocol/openid-connect/token", data=form).raise_for_status()
            headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
            return client.request(method, f"/admin/realms/{path}", json=content, headers=headers).raise_for_status()

    def rename(self, realm: str, name: str) -> None:
        """Have a realm at another address: nothing is at the former then."""
        self.admin("PUT", realm, {"realm": name})

    def add(self, key: SigningKey) -> str:
        """Have it give out one more key, and return where that can be removed."""
        kind = {"providerType": "org.keycloak.keys.KeyProvider", "parentId": self.admin("GET", "freehold").json()["id"]}
        answer = self.admin("POST", "freehold/components", {**key.provider(1), **kind})
        return f"freehold/components/{answer.headers['location'].rpartition('/')[2]}"

    def remove(self) -> None:
        """End it."""
        self.send(signal.SIGCONT)
        self.stop(signal.SIGKILL)
