"""A client that places orders at a fixed rate, never sends one twice, and writes down what came of each.

The load runs in a process of its own: what a test does meanwhile must not delay it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from freehold.token import TokenError
from freehold.token import request as request_token
from tests.support.site import MACHINE, HostError, Site

ROOT = Path(__file__).resolve().parent.parent.parent
ANSWER_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 20.0
RENEW_SECONDS = 120.0
SECRET_VARIABLE = "FREEHOLD_MACHINE_SECRET"  # noqa: S105  (its name)


@dataclass
class Attempt:
    """One order as the client saw it. Times are seconds of the monotonic clock, which all processes share."""

    key: str
    intended: float
    ended: float = 0.0
    status: int = 0
    order: str = ""
    error: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it was answered 202."""
        return self.status == HTTPStatus.ACCEPTED

    @property
    def seconds(self) -> float:
        """How long it took from when it was to be sent, so that a wait before it counts."""
        return self.ended - self.intended


def open_client(url: str, authority: Path, token: str, *, keep_alive: bool = True) -> aiohttp.ClientSession:
    """Return a client that shows a token, trusts the site's authority only, and retries nothing."""
    context = ssl.create_default_context(cafile=str(authority))
    kept: dict[str, Any] = {"keepalive_timeout": KEEP_ALIVE_SECONDS} if keep_alive else {"force_close": True}
    connector = aiohttp.TCPConnector(ssl=context, limit=0, **kept)
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    headers = {"Authorization": f"Bearer {token}"}
    return aiohttp.ClientSession(url, connector=connector, timeout=timeout, headers=headers)


async def place(client: aiohttp.ClientSession, lines: object, attempt: Attempt) -> None:
    """Send one order once, and note the answer in its attempt."""
    headers = {"Idempotency-Key": attempt.key}
    try:
        async with client.post("/v1/orders", json={"lines": lines}, headers=headers) as answer:
            body = await answer.text()
            attempt.status = answer.status
        if attempt.accepted:
            attempt.order = json.loads(body)["id"]
        else:
            attempt.error = body[:200]
    except (aiohttp.ClientError, TimeoutError) as error:
        attempt.error = f"{type(error).__name__}: {error}"
    attempt.ended = time.monotonic()


async def send(asked: argparse.Namespace) -> list[Attempt]:
    """Send orders until standard input ends or the last is sent, and return them when all are answered."""
    attempts: list[Attempt] = []
    items = itertools.cycle(asked.skus)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    async with (
        open_client(asked.url, asked.authority, log_in(asked), keep_alive=asked.keep_alive) as client,
        asyncio.TaskGroup() as group,
    ):
        renewing = asyncio.create_task(renew(client, asked))
        room = asyncio.Semaphore(asked.at_once or asked.most)
        start = time.monotonic()
        for number in range(asked.most):
            intended = start + number / asked.rate
            await asyncio.sleep(max(0.0, intended - time.monotonic()))
            await room.acquire()
            if stop.is_set():
                break
            attempt = Attempt(key=f"{asked.name}-{number}", intended=time.monotonic() if asked.at_once else intended)
            attempts.append(attempt)
            task = group.create_task(place(client, [{"sku": next(items), "quantity": 1}], attempt))
            task.add_done_callback(lambda _: room.release())
        renewing.cancel()
    return attempts


def log_in(asked: argparse.Namespace) -> str:
    """Return an access token of the machine whose secret the environment has."""
    return request_token(asked.issuer, asked.authority, MACHINE, os.environ[SECRET_VARIABLE])


async def renew(client: aiohttp.ClientSession, asked: argparse.Namespace) -> None:
    """Show a new token before the one in use expires; where none is to be had, the one in use, and ask again."""
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        with suppress(TokenError):
            client.headers["Authorization"] = f"Bearer {await asyncio.to_thread(log_in, asked)}"


class Load:
    """Orders at a fixed rate, whatever becomes of those before (open loop), for a limited time.

    With `at_once` those before count: no more are under way than that, so that as many come as the machine takes.
    """

    def __init__(
        self,
        site: Site,
        skus: Sequence[str],
        *,
        rate: float,
        most_seconds: float,
        name: str,
        keep_alive: bool = True,
        at_once: int = 0,
    ) -> None:
        """Say what will be ordered where, how often, for how long at most, and whether orders share connections."""
        self.name = f"{name}-{uuid.uuid4().hex[:12]}"
        self.rate = rate
        self.attempts: list[Attempt] = []
        self._site = site
        self._file = ROOT / "build" / "log" / f"load-{name}.jsonl"
        self._command = [
            *(sys.executable, "-m", "tests.support.orders", site.url, str(site.authority), site.issuer),
            *(self.name, str(self._file)),
            *(
                f"--rate={rate}",
                f"--most={int(rate * most_seconds)}",
                *(() if keep_alive else ("--no-keep-alive",)),
                f"--at-once={at_once}",
                *skus,
            ),
        ]
        self._environment = {**os.environ, SECRET_VARIABLE: site.machine_secret()}
        self._most_seconds = most_seconds

    def during(self, work: Callable[[], None]) -> None:
        """Send while something is done; what it raises is raised here, after the last answer."""
        with self.running():
            work()

    def whole(self, seconds: float) -> None:
        """Send all of it, within that time, and return after the last answer."""
        with self.running() as sender:
            sender.wait(seconds)

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Send until the block ends, and go on after the last answer; the dashboard Tests shows when that was."""
        self._mark("begins")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)
        with subprocess.Popen(self._command, stdin=subprocess.PIPE, cwd=ROOT, env=self._environment) as sender:
            try:
                yield sender
            finally:
                sender.communicate(timeout=self._most_seconds + 2 * ANSWER_SECONDS)
                if self._file.exists():
                    lines = self._file.read_text(encoding="utf-8").splitlines()
                    self.attempts = [Attempt(**json.loads(line)) for line in lines]
        self._mark("ends")
        assert sender.returncode == 0, f"the load ended with status {sender.returncode}"
        assert self.attempts

    def _mark(self, phase: str) -> None:
        """Write a line into the journal of an ops host that answers; raises HostError where none does."""
        line = f"sudo logger --tag freehold-run freehold-run {self.name} {phase}"
        *others, last = self._site.groups["ops"]
        for host in others:
            with suppress(HostError):
                self._site.ask(host, line)
                return
        self._site.ask(last, line)

    @property
    def accepted(self) -> set[str]:
        """Identifiers of the orders that were answered 202."""
        return {attempt.order for attempt in self.attempts if attempt.accepted}

    @property
    def failed(self) -> list[Attempt]:
        """Orders that were not answered 202."""
        return [attempt for attempt in self.attempts if not attempt.accepted]

    def complaint(self) -> str:
        """Return which orders were not answered 202, by answer and when, in seconds since the load began; empty if all were."""
        start = self.attempts[0].intended
        answers: dict[int | str, list[float]] = {}
        for attempt in self.failed:
            answers.setdefault(attempt.status or attempt.error, []).append(attempt.intended - start)
        return "; ".join(
            f"{len(times)} of {len(self.attempts)} orders got {answer}, sent from {min(times):.1f} to {max(times):.1f} s"
            f" of {self.attempts[-1].intended - start:.0f}, 99 in 100 took {self.quantile_ms(0.99):.0f} ms"
            for answer, times in answers.items()
        )

    def quantile_ms(self, share: float) -> float:
        """Return the time within which this share of all orders was answered, in milliseconds."""
        times = sorted(attempt.seconds for attempt in self.attempts)
        return round(times[min(len(times) - 1, int(share * len(times)))] * 1000, 1)

    def gap_between(self, since: float = 0.0, until: float = math.inf) -> tuple[float, float]:
        """Return the answers of 202 between which there was none for longest, as times of the monotonic clock.

        The gap ends after `since`, and not after `until`.
        """
        ends = sorted(attempt.ended for attempt in self.attempts if attempt.accepted)
        gaps = (pair for pair in itertools.pairwise(ends) if since < pair[1] <= until)
        return max(gaps, key=lambda pair: pair[1] - pair[0], default=(0.0, 0.0))

    def gap(self) -> float:
        """Return the longest time without an answer of 202, in seconds."""
        gone, back = self.gap_between()
        return back - gone


def main() -> None:
    """Place orders until standard input ends, and write down every attempt, a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("authority", type=Path)
    parser.add_argument("issuer")
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("skus", nargs="+")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--most", type=int, required=True)
    parser.add_argument("--keep-alive", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--at-once", type=int, default=0)
    asked = parser.parse_args()
    # Users have processors of their own: beside nine hosts on two, what was measured was how long this process waited for one. Being
    # nice or not counts within a session only, where the kernel groups processes by session (autogroups).
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    attempts = asyncio.run(send(asked))
    asked.file.write_text("".join(json.dumps(asdict(attempt)) + "\n" for attempt in attempts), encoding="utf-8")


if __name__ == "__main__":
    main()
