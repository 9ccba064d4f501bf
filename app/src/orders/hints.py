"""What Valkey helps with: answers that save a query. It is asked under a deadline, may forget, and is never needed."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

from opentelemetry.trace import SpanKind
from valkey.asyncio.cluster import ClusterNode, ValkeyCluster

from orders import metrics
from orders.settings import Settings
from orders.tracing import Attributes, span

_LOG = logging.getLogger(__name__)
_ANSWERED, _FAILED, _SPARED = (metrics.HINTS.labels(outcome) for outcome in ("answered", "failed", "spared"))

DEADLINE_SECONDS = 0.1
REST_SECONDS = 1.0
CONNECT_SECONDS = 2.0
LIFETIME_SECONDS = 3600
# So many calls of a node at once, each on a connection of its own; with one millisecond for each, thousands a second.
MOST_CALLS = 4
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

    A node that is slow is not called more and more: connections over TLS would make it, and this host, slower still.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: ValkeyCluster | None = None
        self._resting: dict[str, float] = {}
        self._calls: Counter[str] = Counter()
        self._connecting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect; return at once. Without nodes in the settings there are no hints."""
        if self._settings.valkey_cache_nodes and (self._connecting is None or self._connecting.done()):
            self._connecting = asyncio.create_task(self._connect())

    async def stop(self) -> None:
        """Close the connections."""
        if self._connecting:
            self._connecting.cancel()
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
        former, self._client = self._client, client
        self._resting.clear()
        # The former client's last calls end by themselves; also, this is how often the shape is asked for at most.
        await asyncio.sleep(REST_SECONDS)
        if former:
            await former.aclose()

    async def get(self, key: str, lifetime: int | None = None) -> bytes | None:
        """Return what is remembered under a key, none where nothing is or where Valkey does not say so in time.

        With a lifetime, in seconds, it is remembered for so long from now on.
        """
        if lifetime is None:
            answer: bytes | None = await self._ask("GET", key, lambda client: client.get(PREFIX + key))
        else:
            answer = await self._ask("GETEX", key, lambda client: client.getex(PREFIX + key, ex=lifetime))
        return answer

    async def claim(self, key: str, value: bytes, lifetime: int = LIFETIME_SECONDS) -> bytes | None:
        """Remember the value for some seconds unless the key has one; return the one that it had."""
        answer: bytes | None = await self._ask(
            "SET", key, lambda client: client.set(PREFIX + key, value, ex=lifetime, nx=True, get=True)
        )
        return answer

    async def raise_to(self, key: str, version: int, value: bytes, lifetime: int) -> None:
        """Remember the value of a version unless the key has one of a higher, or of this one that sorts after it.

        In a sorted set, since that is so in whatever order such values come; it lasts some seconds from its first value on.
        """

        def replace(client: ValkeyCluster) -> Awaitable[Any]:
            pipeline = client.pipeline()
            pipeline.zadd(PREFIX + key, {value: version})
            pipeline.zremrangebyrank(PREFIX + key, 0, -2)
            pipeline.expire(PREFIX + key, lifetime, nx=True)
            return pipeline.execute()

        await self._ask("ZADD", key, replace)

    async def highest(self, key: str) -> tuple[bytes, int] | None:
        """Return the value of the highest version that is remembered under a key, and that version."""
        answer = await self._ask("ZRANGE", key, lambda client: client.zrange(PREFIX + key, -1, -1, withscores=True))
        return (answer[0][0], int(answer[0][1])) if answer else None

    async def remember(
        self, values: Mapping[str, bytes], lifetime: int = LIFETIME_SECONDS, *, if_absent: bool = False
    ) -> bool:
        """Remember values, each under its key, for some seconds, all or only where there is none yet.

        Return whether Valkey took them in time.
        """
        client = self._client
        if client is None or not values or self._spares("pipeline"):
            return False
        pipeline = client.pipeline()
        for key, value in values.items():
            pipeline.set(PREFIX + key, value, ex=lifetime, nx=if_absent)
        return await self._under_deadline("SET", "pipeline", pipeline.execute()) is not None

    async def _ask(self, operation: str, key: str, command: Callable[[ValkeyCluster], Awaitable[Any]]) -> Any:  # noqa: ANN401
        client = self._client
        if client is None:
            return None
        try:
            node = client.get_node_from_key(PREFIX + key)
        except Exception:  # noqa: BLE001  (as below; no node has this key now)
            node = None
        name = node.name if node else ""
        return None if self._spares(name) else await self._under_deadline(operation, name, command(client))

    def _spares(self, node: str) -> bool:
        spares = self._calls[node] >= MOST_CALLS or asyncio.get_running_loop().time() < self._resting.get(node, 0.0)
        if spares:
            _SPARED.inc()
        return spares

    async def _under_deadline(self, operation: str, node: str, command: Awaitable[Any]) -> Any:  # noqa: ANN401
        self._calls[node] += 1
        try:
            with span(operation, SpanKind.CLIENT, VALKEY):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    answer = await command
        except Exception:  # noqa: BLE001  (whatever is wrong with a helper, no order fails for it; the figures tell)
            self._resting[node] = asyncio.get_running_loop().time() + REST_SECONDS
            _FAILED.inc()
            self.start()  # by now another node may serve these keys
            return None
        finally:
            self._calls[node] -= 1
        _ANSWERED.inc()
        return answer
