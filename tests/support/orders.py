"""A client that places orders at a fixed rate, never sends one twice, and writes down what came of each."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from tests.support.site import Site

ANSWER_SECONDS = 10.0


@dataclass
class Attempt:
    """One order as the client saw it. Times are seconds of the monotonic clock."""

    key: str
    intended: float
    ended: float = 0.0
    status: int = 0
    order: str = ""
    error: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it was answered 202."""
        return self.status == httpx.codes.ACCEPTED

    @property
    def seconds(self) -> float:
        """How long it took from when it was to be sent, so that a wait before it counts."""
        return self.ended - self.intended


def open_client(site: Site) -> httpx.AsyncClient:
    """Return a client that trusts the site's authority only, and retries nothing."""
    context = ssl.create_default_context(cafile=str(site.authority))
    limits = httpx.Limits(max_connections=400, max_keepalive_connections=50, keepalive_expiry=20)
    transport = httpx.AsyncHTTPTransport(verify=context, limits=limits, retries=0)
    return httpx.AsyncClient(base_url=site.url, transport=transport, timeout=ANSWER_SECONDS, trust_env=False)


async def place(client: httpx.AsyncClient, customer: str, lines: object, attempt: Attempt) -> None:
    """Send one order once, and note the answer in its attempt."""
    headers = {"Idempotency-Key": attempt.key, "X-Customer-Id": customer}
    try:
        answer = await client.post("/v1/orders", json={"lines": lines}, headers=headers)
        attempt.status = answer.status_code
        if attempt.accepted:
            attempt.order = answer.json()["id"]
        else:
            attempt.error = answer.text[:200]
    except httpx.HTTPError as error:
        attempt.error = f"{type(error).__name__}: {error}"
    attempt.ended = time.monotonic()


class Load:
    """Orders at a fixed rate, whatever becomes of those before (open loop), for a limited time."""

    def __init__(self, site: Site, skus: Sequence[str], *, rate: float, most_seconds: float, name: str) -> None:
        """Say what will be ordered, how often, and for how long at most."""
        self.customer = f"{name}-{uuid.uuid4().hex[:12]}"
        self.attempts: list[Attempt] = []
        self._site, self._skus, self._rate, self._most = site, skus, rate, int(rate * most_seconds)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Send no more; those on their way are waited for."""
        self._stop.set()

    async def run(self) -> None:
        """Send until told to stop or the time is over, and wait for the last answers."""
        skus = itertools.cycle(self._skus)
        async with open_client(self._site) as client, asyncio.TaskGroup() as group:
            start = time.monotonic()
            for number in range(self._most):
                intended = start + number / self._rate
                await asyncio.sleep(max(0.0, intended - time.monotonic()))
                if self._stop.is_set():
                    break
                attempt = Attempt(key=f"{self.customer}-{number}", intended=intended)
                self.attempts.append(attempt)
                group.create_task(place(client, self.customer, [{"sku": next(skus), "quantity": 1}], attempt))

    async def during(self, work: Callable[[], None]) -> None:
        """Send while something that blocks is done in a thread; what it raises is raised here, after the last answer."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.run())
            try:
                await asyncio.to_thread(work)
            finally:
                self.stop()

    @property
    def accepted(self) -> set[str]:
        """Identifiers of the orders that were answered 202."""
        return {attempt.order for attempt in self.attempts if attempt.accepted}

    @property
    def failed(self) -> list[Attempt]:
        """Orders that were not answered 202."""
        return [attempt for attempt in self.attempts if not attempt.accepted]

    def quantile_ms(self, share: float) -> float:
        """Return the time within which this share of all orders was answered, in milliseconds."""
        times = sorted(attempt.seconds for attempt in self.attempts)
        return round(times[min(len(times) - 1, int(share * len(times)))] * 1000, 1)

    def gap_between(self) -> tuple[float, float]:
        """Return the answers of 202 between which there was none for longest, as times of the monotonic clock."""
        ends = sorted(attempt.ended for attempt in self.attempts if attempt.accepted)
        return max(itertools.pairwise(ends), key=lambda pair: pair[1] - pair[0], default=(0.0, 0.0))

    def gap(self) -> float:
        """Return the longest time without an answer of 202, in seconds."""
        gone, back = self.gap_between()
        return back - gone

    def save(self, file: Path) -> None:
        """Write down every attempt, a line of JSON each."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(asdict(attempt)) + "\n" for attempt in self.attempts), encoding="utf-8")
