"""What metrics, logs, traces and alerts cost, at rest and at 500 requests/s: `PATH=.venv/bin:$PATH pytest -s tests/load/observability.py`.

Asks a running lab for products by the edge, each request by itself (open loop).
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from http import HTTPStatus

import aiohttp

from tests.support import health, units
from tests.support.site import Site

RATE = 500
SECONDS = 60
SETTLE_SECONDS = 10
ASKED = RATE * (SECONDS + SETTLE_SECONDS)
WHOLE_SECONDS = 60
OURS = ("prometheus", "loki", "jaeger", "syslog-ng", "systemd-journald", "host-figures")
MOST_BYTES = 1.5e9


async def read(site: Site, failed: list[str]) -> int:
    """Ask for products at a rate, whatever becomes of those before; return how many answers there were."""
    context = ssl.create_default_context(cafile=str(site.authority))
    connector = aiohttp.TCPConnector(ssl=context, limit=0)

    async def one(client: aiohttp.ClientSession) -> None:
        try:
            async with client.get("/v1/products?limit=1") as answer:
                await answer.read()
            if answer.status != HTTPStatus.OK:
                failed.append(str(answer.status))
        except (aiohttp.ClientError, TimeoutError) as error:
            failed.append(type(error).__name__)

    async with (
        aiohttp.ClientSession(site.url, connector=connector, timeout=aiohttp.ClientTimeout(total=10)) as client,
        asyncio.TaskGroup() as group,
    ):
        start = time.monotonic()
        for number in range(ASKED):
            await asyncio.sleep(max(0.0, start + number / RATE - time.monotonic()))
            group.create_task(one(client))
    return ASKED - len(failed)


def cores(site: Site) -> dict[str, float]:
    """Return the cores that each unit uses, of all hosts together, over a minute."""
    before, began = units.processor_seconds(site), time.monotonic()
    time.sleep(SECONDS - 2)
    after, ended = units.processor_seconds(site), time.monotonic()
    return {unit: (after[unit] - before.get(unit, 0)) / (ended - began) for unit in after}


def ours(used: dict[str, float]) -> dict[str, float]:
    """Return those of them that observe, the largest first."""
    found = {unit: round(used[unit], 3) for unit in used if unit.startswith(OURS)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


async def load(site: Site) -> tuple[dict[str, float], int, list[str]]:
    """Return the cores of each unit while products are asked for, how many answers there were, and what failed."""
    failed: list[str] = []
    reading = asyncio.create_task(read(site, failed))
    await asyncio.sleep(SETTLE_SECONDS)
    used = await asyncio.to_thread(cores, site)
    return used, await reading, failed


def test_observability(site: Site) -> None:
    """Print cores and memory, each unit's and together; memory is within the goal, and nothing failed meanwhile."""
    health.wait_until_whole(site, WHOLE_SECONDS)
    rest = cores(site)
    busy, answers, failed = asyncio.run(load(site))
    memory, own = (ours({unit: size / 1e6 for unit, size in found.items()}) for found in units.memory_bytes(site))
    for name, used in (("at rest", rest), (f"at {RATE} requests/s", busy)):
        print(f"{name}: {sum(ours(used).values()):.2f} of {sum(used.values()):.2f} cores", json.dumps(ours(used)))
    print(f"memory: {sum(memory.values()):.0f} MB, {sum(own.values()):.0f} of them anonymous", json.dumps(memory))
    print(f"answers: {answers}, {len(failed)} failed")
    assert not failed
    assert sum(memory.values()) * 1e6 <= MOST_BYTES
