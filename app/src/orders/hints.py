"""What Valkey helps with: answers that save a query. It is asked under a deadline, may forget, and is never needed."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from opentelemetry.trace import SpanKind
from valkey.asyncio.cluster import ClusterNode, ValkeyCluster

from orders import metrics
from orders.pipes import Command, Pipe
from orders.settings import Settings
from orders.tracing import Attributes, span

_LOG = logging.getLogger(__name__)
_ANSWERED, _FAILED, _SPARED = (metrics.HINTS.labels(outcome) for outcome in ("answered", "failed", "spared"))

DEADLINE_SECONDS = 0.1
REST_SECONDS = 1.0
CONNECT_SECONDS = 2.0
LIFETIME_SECONDS = 3600
# So many calls of a node at once: with one millisecond for each, tens of thousands a second.
MOST_CALLS = 64
PREFIX = "orders:"
VALKEY: Attributes = {"db.system.name": "valkey"}


# Also how long an order may be shown as it was before, where Valkey forgets by a failover that it changed since.
DECISION_SECONDS = 300
# In place of a decision: the order changed since, ask the primary.
OVERRULED = b""


def decision_hint(identifier: UUID) -> str:
    """Return the key under which Valkey may know an order as it was decided: whose it is, a line's end, and its JSON."""
    # Neither "order:" nor "decided:", where earlier versions, which may run beside this one, have something else.
    return f"decision:{identifier}"


def new_client(settings: Settings, nodes: str) -> ValkeyCluster:
    """Return a client of the cluster that a setting names; it is not connected yet."""
    tls = bool(settings.ca_file)
    return ValkeyCluster(
        startup_nodes=[ClusterNode(*node) for node in settings.addresses(nodes)],
        username=settings.valkey_user,
        password=settings.secret("orders_valkey_password"),
        ssl=tls,
        ssl_ca_certs=settings.ca_file if tls else None,
        ssl_check_hostname=tls,
        socket_connect_timeout=1.0,
        socket_timeout=1.0,
        require_full_coverage=False,
        cluster_error_retry_attempts=1,
        connection_error_retry_attempts=0,
    )


class Hints:
    """A Valkey cluster whose silence costs at most the deadline, and then a second's rest of the silent node.

    Each node is called over one connection (`pipes.py`): a node that is slow gets no more of them, which over TLS would make it,
    and this host, slower still.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tls = settings.tls()
        self._client: ValkeyCluster | None = None  # knows the cluster's shape, and is asked for nothing else
        self._pipes: dict[str, asyncio.Task[Pipe]] = {}
        self._resting: dict[str, float] = {}
        self._connecting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect; return at once. Without nodes in the settings there are no hints."""
        if self._settings.valkey_cache_nodes and (self._connecting is None or self._connecting.done()):
            self._connecting = asyncio.create_task(self._connect())

    async def stop(self) -> None:
        """Close the connections."""
        if self._connecting:
            self._connecting.cancel()
        for name in [*self._pipes]:
            self._forget(name)
        if self._client:
            await self._client.aclose()

    async def _connect(self) -> None:
        # Apart from any request, since to learn a cluster's shape takes longer than a request may wait.
        while True:
            client = None
            try:
                client = new_client(self._settings, "valkey_cache_nodes")
                async with asyncio.timeout(CONNECT_SECONDS):
                    await client.initialize()
                break
            except Exception as error:  # noqa: BLE001  (as below)
                _LOG.warning("Valkey is away: %r", error)
                if client:
                    await client.aclose()
                await asyncio.sleep(REST_SECONDS)
        await asyncio.wait([self._pipe(node) for node in client.get_primaries()])
        former, self._client = self._client, client
        self._resting.clear()
        # This is how often the shape is asked for at most.
        await asyncio.sleep(REST_SECONDS)
        if former:
            await former.aclose()

    def _pipe(self, node: ClusterNode) -> asyncio.Task[Pipe]:
        """Return what has, or soon will have, the connection to a node."""
        known = self._pipes.get(node.name)
        if known is None or (known.done() and (known.cancelled() or known.exception() or not known.result().is_open)):
            known = self._pipes[node.name] = asyncio.create_task(self._open(node))
        return known

    async def _open(self, node: ClusterNode) -> Pipe:
        return await Pipe.connect(
            node.host,
            int(node.port),
            tls=self._tls,
            user=self._settings.valkey_user,
            password=self._settings.secret("orders_valkey_password"),
            seconds=CONNECT_SECONDS,
        )

    def _forget(self, name: str) -> None:
        pipe = self._pipes.pop(name)
        if not pipe.done():
            pipe.cancel()
        elif not pipe.cancelled() and not pipe.exception():
            pipe.result().close()

    async def get(self, key: str, lifetime: int | None = None) -> bytes | None:
        """Return what is remembered under a key, none where nothing is or where Valkey does not say so in time.

        With a lifetime, in seconds, it is remembered for so long from now on.
        """
        name = PREFIX + key
        answers = await self._ask(key, ("GET", name) if lifetime is None else ("GETEX", name, "EX", lifetime))
        return answers[0] if answers else None

    async def claim(self, key: str, value: bytes, lifetime: int = LIFETIME_SECONDS) -> bytes | None:
        """Remember the value for some seconds unless the key has one; return the one that it had."""
        answers = await self._ask(key, ("SET", PREFIX + key, value, "EX", lifetime, "NX", "GET"))
        return answers[0] if answers else None

    async def raise_to(self, key: str, version: int, value: bytes, lifetime: int) -> None:
        """Remember the value of a version unless the key has one of a higher, or of this one that sorts after it.

        In a sorted set, since that is so in whatever order such values come; it lasts some seconds from its first value on.
        """
        name = PREFIX + key
        await self._ask(
            key,
            ("ZADD", name, version, value),
            ("ZREMRANGEBYRANK", name, 0, -2),
            ("EXPIRE", name, lifetime, "NX"),
        )

    async def highest(self, key: str) -> tuple[bytes, int] | None:
        """Return the value of the highest version that is remembered under a key, and that version."""
        answers = await self._ask(key, ("ZRANGE", PREFIX + key, -1, -1, "WITHSCORES"))
        return (answers[0][0], int(answers[0][1])) if answers and answers[0] else None

    async def remember(
        self, values: Mapping[str, bytes], lifetime: int = LIFETIME_SECONDS, *, if_absent: bool = False
    ) -> bool:
        """Remember values, each under its key, for some seconds, all or only where there is none yet.

        Return whether Valkey took them in time.
        """
        nodes: dict[str, tuple[ClusterNode, list[Command]]] = {}
        for key, value in values.items():
            node = self._node(key)
            if node is None:
                return False
            command: Command = ("SET", PREFIX + key, value, "EX", lifetime, *(("NX",) if if_absent else ()))
            nodes.setdefault(node.name, (node, []))[1].append(command)
        taken = await asyncio.gather(*(self._call(node, commands) for node, commands in nodes.values()))
        return bool(taken) and all(answers is not None for answers in taken)

    async def _ask(self, key: str, *commands: Command) -> list[Any] | None:
        node = self._node(key)
        return await self._call(node, commands) if node else None

    def _node(self, key: str) -> ClusterNode | None:
        """Return the node that has a key now, none where there is none that is known."""
        if self._client is None:
            return None
        try:
            return self._client.get_node_from_key(PREFIX + key)
        except Exception:  # noqa: BLE001  (as below)
            self.start()
            return None

    async def _call(self, node: ClusterNode, commands: Sequence[Command]) -> list[Any] | None:
        """Return the answers of a node; none where it does not give them in time."""
        if asyncio.get_running_loop().time() < self._resting.get(node.name, 0.0):
            _SPARED.inc()
            return None
        try:
            connecting = self._pipe(node)
            if not connecting.done():
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await asyncio.shield(connecting)
            pipe = connecting.result()
            if pipe.calls >= MOST_CALLS:
                _SPARED.inc()
                return None
            with span(str(commands[0][0]), SpanKind.CLIENT, VALKEY):
                answers = await pipe.ask(commands, DEADLINE_SECONDS)
        except Exception:  # noqa: BLE001  (whatever is wrong with a helper, no order fails for it; the figures tell)
            self._resting[node.name] = asyncio.get_running_loop().time() + REST_SECONDS
            _FAILED.inc()
            self.start()  # by now another node may serve these keys
            return None
        _ANSWERED.inc()
        return answers
