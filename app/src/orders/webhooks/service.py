"""Endpoints of webhooks, as their owners keep them. Whoever is an operator acts for the operators, who share theirs."""

import os
import time
from datetime import datetime
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.access.schemas import Access, Caller
from orders.database import Database
from orders.errors import BadRequestError, NotFoundError, WebhookError
from orders.logs import AUDIT
from orders.pages import LAST, cursor, read_cursor
from orders.sealing import Sealer
from orders.webhooks.repository import WebhookRepository, places
from orders.webhooks.schemas import (
    CreatedWebhook,
    Deliveries,
    NewWebhook,
    Replayed,
    Secret,
    Webhook,
    WebhookChange,
)
from orders.webhooks.signing import new_secret, written
from orders.webhooks.targets import RefusedTargetError, Targets

MOST_OF_ONE = 20
MOST_REPLAYED = 1000


def new_id() -> UUID:
    """Return a UUID of version 7, the time of now in front."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return UUID(int=number & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def owner_of(caller: Caller) -> str | None:
    """Return for whom somebody acts: an operator for the operators, who are none."""
    return None if Access.OPERATOR in caller.roles else caller.subject


class Webhooks:
    """Reads endpoints and changes them. None is anybody's but its owner's."""

    def __init__(self, database: Database, sealer: Sealer, targets: Targets) -> None:
        self._database = database
        self._sealer = sealer
        self._targets = targets

    async def all(self, caller: Caller) -> list[Webhook]:
        """Return all endpoints of the caller's.

        Raises:
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer.
        """
        return await self._database.read(lambda c: WebhookRepository(c).of(owner_of(caller)), newest=True)

    async def get(self, caller: Caller, identifier: str) -> Webhook:
        """Return an endpoint of the caller's.

        Raises:
            NotFoundError: there is none like that.
        """
        endpoint_id = _parse(identifier)
        found = await self._database.read(
            lambda c: WebhookRepository(c).get(endpoint_id, owner_of(caller)), newest=True
        )
        return _known(found, identifier)

    async def create(self, caller: Caller, new: NewWebhook) -> CreatedWebhook:
        """Make an endpoint, and return it with its secret, which nobody will tell again.

        Raises:
            BadRequestError: nothing may be sent there.
            WebhookError: the owner has as many as anybody may have.
        """
        await self._vet(new.url)
        endpoint_id, owner, secret = new_id(), owner_of(caller), new_secret()
        place, _ = places(endpoint_id)
        sealed = (await self._sealer.seal({place: secret}))[place]

        async def create(connection: AsyncConnection) -> Webhook:
            repository = WebhookRepository(connection)
            if await repository.count(owner) >= MOST_OF_ONE:
                raise WebhookError(f"There are {MOST_OF_ONE} webhooks, which is the most: delete one.")
            return await repository.create(endpoint_id, owner, new, sealed)

        made = await self._database.write(create)
        if owner is None:
            AUDIT.info("operator %s has events of all orders sent to webhook %s", caller.subject, endpoint_id)
        return CreatedWebhook(secret=written(secret), **msgspec.structs.asdict(made))

    async def change(self, caller: Caller, identifier: str, change: WebhookChange) -> Webhook:
        """Change an endpoint of the caller's, and return it.

        Raises:
            NotFoundError: there is none like that.
            BadRequestError: nothing may be sent there.
        """
        endpoint_id = _parse(identifier)
        if change.url is not msgspec.UNSET:
            await self._vet(change.url)
        given = msgspec.structs.asdict(change)
        values = {name: None if value is msgspec.UNSET else value for name, value in given.items()}
        changed = await self._database.write(
            lambda c: WebhookRepository(c).change(endpoint_id, owner_of(caller), **values)
        )
        return _known(changed, identifier)

    async def delete(self, caller: Caller, identifier: str) -> None:
        """Have no such endpoint of the caller's: nothing is sent to it any more.

        Raises:
            NotFoundError: there is none like that.
        """
        endpoint_id = _parse(identifier)
        if not await self._database.write(lambda c: WebhookRepository(c).delete(endpoint_id, owner_of(caller))):
            raise _unknown(identifier)

    async def rotate(self, caller: Caller, identifier: str, seconds: int) -> Secret:
        """Give an endpoint a new secret, and return it; the one before it signs too for some seconds.

        Raises:
            NotFoundError: there is none like that.
        """
        endpoint_id, secret = _parse(identifier), new_secret()
        place, former_place = places(endpoint_id)

        async def rotate(connection: AsyncConnection) -> datetime:
            repository = WebhookRepository(connection)
            stored = await repository.secret(endpoint_id, owner_of(caller))
            if stored is None:
                raise _unknown(identifier)
            former = (await self._sealer.open({place: stored}))[place]
            sealed = await self._sealer.seal({place: secret, former_place: former})
            return await repository.rotate(endpoint_id, sealed[place], sealed[former_place], seconds)

        return Secret(written(secret), await self._database.write(rotate))

    async def deliveries(
        self, caller: Caller, identifier: str, *, state: str | None, after: str, limit: int
    ) -> Deliveries:
        """Return up to `limit` deliveries of an endpoint of the caller's, the newest event first, from where a page ended.

        Raises:
            NotFoundError: there is no endpoint like that.
            BadRequestError: `after` is not from a page of ours.
        """
        endpoint_id = _parse(identifier)
        _, number = read_cursor(after)
        before = min(int.from_bytes(number), LAST)

        async def read(connection: AsyncConnection) -> Deliveries:
            repository = WebhookRepository(connection)
            _known(await repository.get(endpoint_id, owner_of(caller)), identifier)
            found = await repository.page(endpoint_id, before=before, state=state, limit=limit + 1)
            if len(found) <= limit:
                return Deliveries(found)
            last = found[limit - 1]
            return Deliveries(found[:limit], cursor(last.occurred_at, int(last.event_id).to_bytes(10)))

        return await self._database.read(read, newest=True)

    async def replay(self, caller: Caller, identifier: str, event_id: str) -> Replayed:
        """Have a delivery made again, whatever came of it.

        Raises:
            NotFoundError: there is no endpoint or no delivery like that.
            WebhookError: the endpoint is off.
        """
        endpoint_id = _parse(identifier)
        number = int(event_id) if event_id.isascii() and event_id.isdecimal() and len(event_id) < 19 else -1

        async def replay(connection: AsyncConnection) -> None:
            repository = WebhookRepository(connection)
            _switched_on(_known(await repository.get(endpoint_id, owner_of(caller)), identifier))
            if not await repository.replay(endpoint_id, number):
                raise NotFoundError(f"The webhook has no delivery of the event {event_id[:64]!r}.")

        await self._database.write(replay)
        return Replayed(1, more=False)

    async def replay_since(self, caller: Caller, identifier: str, since: datetime) -> Replayed:
        """Have deliveries made again that failed, of events from a time on.

        Raises:
            NotFoundError: there is no endpoint like that.
            WebhookError: the endpoint is off.
        """
        endpoint_id = _parse(identifier)

        async def replay(connection: AsyncConnection) -> int:
            repository = WebhookRepository(connection)
            _switched_on(_known(await repository.get(endpoint_id, owner_of(caller)), identifier))
            return await repository.replay_since(endpoint_id, since, MOST_REPLAYED)

        count = await self._database.write(replay)
        return Replayed(count, more=count == MOST_REPLAYED)

    async def _vet(self, url: str) -> None:
        try:
            await self._targets.vet(url)
        except RefusedTargetError as error:
            raise BadRequestError("url", str(error)) from error


def _parse(identifier: str) -> UUID:
    try:
        return UUID(identifier)
    except ValueError:
        raise _unknown(identifier) from None


def _unknown(identifier: str) -> NotFoundError:
    return NotFoundError(f"There is no webhook {identifier[:64]!r}.")


def _known(webhook: Webhook | None, identifier: str) -> Webhook:
    if webhook is None:
        raise _unknown(identifier)
    return webhook


def _switched_on(webhook: Webhook) -> None:
    if not webhook.enabled:
        raise WebhookError("The webhook is off: enable it first.")
