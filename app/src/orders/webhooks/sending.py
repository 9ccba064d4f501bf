"""One attempt: a signed event, to an address that was looked at, with little time and no patience for what comes back."""

import asyncio
import math
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import certifi
import httpx

from orders import metrics
from orders.settings import Webhooks
from orders.webhooks.schemas import Attempt
from orders.webhooks.signing import signed_headers
from orders.webhooks.targets import RefusedTargetError, Target, Targets

ATTEMPT_SECONDS = 10.0
# Of an answer that are read, so that whoever answers in a few words can end it; nothing of it is kept.
_MOST_BYTES = 4096
_MOST_ADDRESSES = 3
_MOST_ERROR = 300


class Sender:
    """Sends events to endpoints."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._targets = Targets(webhooks)
        # A connection is for one request: of another name's at the same address the certificate was never looked at.
        # Nothing of the environment: a proxy would resolve the name again.
        self._client = httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=webhooks.ca_file or certifi.where()),
            timeout=ATTEMPT_SECONDS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,
        )

    async def send(self, url: str, identifier: str, body: bytes, keys: Sequence[bytes]) -> Attempt:
        """Send an event, and return what came of it; it raises nothing."""
        at, began = datetime.now(UTC), time.monotonic()
        status, retry_after, error, outcome = None, None, "", "delivered"
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                target = await self._targets.vet(url)
                status, headers = await self._post(target, identifier, body, keys)
            if not is_success(status):
                retry_after, outcome = _retry_after(headers, at), "answered with an error"
        except RefusedTargetError as refused:
            error, outcome = f"The address {refused}.", "refused"
        except (TimeoutError, httpx.TimeoutException):
            error, outcome = f"There was no answer within {ATTEMPT_SECONDS:.0f} s.", "timed out"
        except httpx.ConnectError as failed:
            error, outcome = f"No connection: {failed}"[:_MOST_ERROR], "not connected"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as failed:
            error, outcome = f"{type(failed).__name__}: {failed}"[:_MOST_ERROR], "failed"
        seconds = time.monotonic() - began
        metrics.WEBHOOK_ATTEMPTS.labels(outcome).inc()
        metrics.WEBHOOK_SECONDS.observe(seconds)
        return Attempt(at, round(seconds, 3), status, _printable(error), retry_after)

    async def close(self) -> None:
        """Give up what is under way."""
        await self._client.aclose()
        self._targets.close()

    async def _post(
        self, target: Target, identifier: str, body: bytes, keys: Sequence[bytes]
    ) -> tuple[int, httpx.Headers]:
        headers = {
            "Host": target.url.netloc.decode(),
            "Content-Type": "application/json",
            "User-Agent": "orders-webhooks/1",
            "Accept-Encoding": "identity",
            "Connection": "close",
            **signed_headers(keys, identifier, int(time.time()), body),
        }
        addresses = target.addresses[:_MOST_ADDRESSES]
        for address in addresses:
            # To this address and no other; the name is what the certificate must be for.
            request = self._client.build_request(
                "POST",
                target.url.copy_with(host=address),
                headers=headers,
                content=body,
                extensions={"sni_hostname": target.url.host},
            )
            try:
                response = await self._client.send(request, stream=True)
            except httpx.ConnectError:
                if address == addresses[-1]:
                    raise
                continue
            try:
                # The status says it all; whatever is wrong with the rest changes nothing.
                with suppress(httpx.HTTPError, TimeoutError):
                    await _read_a_little(response)
            finally:
                await response.aclose()
            return response.status_code, response.headers
        raise RefusedTargetError("has no address")


def is_success(status: int | None) -> bool:
    """Return whether an answer says that the event has arrived."""
    return status is not None and 200 <= status < 300


def _retry_after(headers: httpx.Headers, now: datetime) -> int | None:
    """Return for how many seconds an answer asks to be left alone (RFC 9110, 10.2.3), None where it does not or is not understood."""
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return int(text[:9])
    try:
        return max(0, math.ceil((parsedate_to_datetime(text).astimezone(UTC) - now).total_seconds()))
    except (ValueError, OverflowError):
        return None


async def _read_a_little(response: httpx.Response) -> None:
    taken = 0
    async with asyncio.timeout(1.0):
        async for chunk in response.aiter_raw():
            taken += len(chunk)
            if taken > _MOST_BYTES:
                break


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
