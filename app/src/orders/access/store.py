"""Where sessions are kept: a Valkey cluster that writes to disk and forgets nothing before its time.

Unlike the hints this is needed: where it does not answer in time, nor does the service for whoever came with a cookie.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from opentelemetry.trace import SpanKind
from valkey.asyncio.cluster import ClusterNode, ValkeyCluster
from valkey.exceptions import ConnectionError, MovedError, ResponseError

from orders import metrics
from orders.errors import UnavailableError
from orders.hints import PREFIX, VALKEY, new_client
from orders.settings import Settings
from orders.tracing import span

_LOG = logging.getLogger(__name__)
_COPIED, _ALONE = (metrics.SESSION_WRITES.labels(copies) for copies in ("copied", "alone"))

DEADLINE_SECONDS = 0.25
WRITE_SECONDS = 1.0
WAIT_MS = 100
REST_SECONDS = 0.5
CONNECT_SECONDS = 2.0
MOST_CALLS = 32  # of a node at once

Command = tuple[str | bytes | int, ...]


class Store:
    """Calls of the cluster, each on one connection from its first command to its last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: ValkeyCluster | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._resting: dict[str, float] = {}
        self._calls: Counter[str] = Counter()

    def start(self) -> None:
        """Begin to connect; return at once."""
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())

    async def stop(self) -> None:
        """Close the connections."""
        if self._connecting:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError):
                await self._connecting
        if self._client:
            await self._client.aclose()

    async def _connect(self) -> None:
        while True:
            client = None
            try:
                client = new_client(self._settings, "valkey_session_nodes")
                async with asyncio.timeout(CONNECT_SECONDS):
                    await client.initialize()
                break
            except Exception as error:  # noqa: BLE001  (whatever is wrong with it, it is tried again)
                _LOG.warning("The store of sessions is away: %r", error)
                if client:
                    await client.aclose()
                await asyncio.sleep(REST_SECONDS)
        former, self._client = self._client, client
        self._resting.clear()
        # The former client's last calls end by themselves; also, this is how often the shape is asked for at most.
        await asyncio.sleep(2 * WRITE_SECONDS)
        if former:
            await former.aclose()

    async def read(self, key: str, *commands: Command) -> list[Any]:
        """Return what commands, each a name and what follows the key, say of it.

        Raises:
            UnavailableError: the store does not say in time.
        """
        return await self._ask(key, [(name, PREFIX + key, *rest) for name, *rest in commands], DEADLINE_SECONDS)

    async def write(self, key: str, *commands: Command) -> list[Any]:
        """Run commands, and return what they say once a replica has what they wrote.

        A replica that is away is not waited for long: what the primary alone has counts, and is counted.

        Raises:
            UnavailableError: the store does not say in time that it did. It may have.
        """
        asked = [(name, PREFIX + key, *rest) for name, *rest in commands]
        # WAIT goes by its connection: the cluster client's own would ask others than the one that wrote.
        *answers, copies = await self._ask(key, [*asked, ("WAIT", 1, WAIT_MS)], WRITE_SECONDS)
        (_COPIED if copies else _ALONE).inc()
        return answers

    async def _ask(self, key: str, commands: Sequence[Command], seconds: float) -> list[Any]:
        client, node = self._client, None
        try:
            if client is None:
                raise UnavailableError("The store of sessions is away.")
            node = client.get_node_from_key(PREFIX + key)
            if node is None or self._calls[node.name] >= MOST_CALLS or self._rests(node.name):
                raise UnavailableError("The store of sessions does not answer.")
            self._calls[node.name] += 1
            try:
                with span(str(commands[0][0]), SpanKind.CLIENT, VALKEY):
                    async with asyncio.timeout(seconds):
                        return await self._answers(client, node, commands)
            finally:
                self._calls[node.name] -= 1
        except UnavailableError:
            self.start()  # by now another node may serve this key
            raise
        except Exception as error:
            if node is not None and isinstance(error, TimeoutError):
                self._resting[node.name] = asyncio.get_running_loop().time() + REST_SECONDS
            self.start()
            raise UnavailableError("The store of sessions does not answer.") from error

    def _rests(self, node: str) -> bool:
        return asyncio.get_running_loop().time() < self._resting.get(node, 0.0)

    async def _answers(self, client: ValkeyCluster, node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
        try:
            answers = await _talk(node, commands)
        except (ConnectionError, OSError):
            answers = await _talk(node, commands)  # the connection may have been closed long ago: a new one
        if isinstance(answers[0], MovedError):
            self.start()
            other = client.nodes_manager.nodes_cache.get(f"{answers[0].host}:{answers[0].port}")
            if other is not None:
                answers = await _talk(other, commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


async def _talk(node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
    """Return the answers to commands that are sent at once over one connection; a command's refusal is its answer."""
    connection = node.acquire_connection()
    answers: list[Any] = []
    try:
        await connection.send_packed_command(connection.pack_commands(commands), False)
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except ResponseError as error:
                answers.append(error)
    except BaseException:
        # Whoever has it next must not read the answers of this call.
        await connection.disconnect(nowait=True)
        raise
    finally:
        node._free.append(connection)  # as its own methods do
    return answers
