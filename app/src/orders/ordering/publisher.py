"""Puts orders into the intake's queues: three lanes, each a queue led by another broker and a connection to that broker.

Orders that come closely one after the other go as one message (`ordering/bundles.py`), where a setting allows it: to publish
costs the service and the brokers by message. An order that comes alone is not kept.

A lane that does not confirm within the hedge is not waited for: the message goes to the next lane as well, and the first
confirm counts. That may leave it in two queues, which settlement makes harmless. Once every lane has it, it waits for any; an
order that comes again meanwhile, because the edge has lost patience, waits with it.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Collection, Sequence
from typing import Any

import pika

from orders import metrics
from orders.broker import Link
from orders.errors import UnavailableError
from orders.ordering.bundles import MOST_BYTES, MOST_ORDERS, TYPE, bundle
from orders.settings import Address, Settings

_LOG = logging.getLogger(__name__)

LANES = 3
HEDGE_SECONDS = 0.15
REST_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = 0.02

# Hedging makes an overload worse, so beside those for a lane that is silent altogether it has a budget: this many at
# once, and one more with every tenth message.
_HEDGES_AT_ONCE = 50.0
_HEDGES_A_MESSAGE = 0.1


# Orders are kept for others where two more are to be expected within the time for it, by the mean of the last gaps.
_GAP_WEIGHT = 0.25
_EXPECTED = 2


class Queued:
    """One order that is to be in a queue, and who waits for that."""

    __slots__ = ("body", "message_id", "started", "waiting")

    def __init__(self, body: bytes, message_id: str, started: float) -> None:
        self.body = body
        self.message_id = message_id
        self.started = started
        self.waiting: list[asyncio.Future[None]] = []


class Attempt:
    """One message on its way, with one order or more, over as many lanes as it takes."""

    __slots__ = (
        "body",
        "done",
        "give_up_at",
        "held",
        "lane",
        "message_id",
        "orders",
        "properties",
        "timer",
        "tried",
    )

    def __init__(self, orders: Sequence[Queued], *, give_up_at: float) -> None:
        self.orders = orders
        if len(orders) == 1:
            self.body, self.message_id, kind = orders[0].body, orders[0].message_id, None
        else:
            self.body = bundle([order.body for order in orders])
            self.message_id, kind = f"bundle-{orders[0].message_id}", TYPE
        self.properties = pika.BasicProperties(
            delivery_mode=2, message_id=self.message_id, content_type="application/json", type=kind
        )
        self.give_up_at = give_up_at
        self.done = False
        self.lane: Lane | None = None  # where it was sent last; an earlier lane's confirm counts just as well
        self.tried: set[Lane] = set()
        self.held: set[Lane] = set()  # those that may still confirm it
        self.timer: asyncio.TimerHandle | None = None

    def stop_timer(self) -> None:
        """Forget the next step: a better one is taken now."""
        if self.timer:
            self.timer.cancel()


class Lane(Link):
    """One queue, and a connection to the broker that leads it."""

    def __init__(self, settings: Settings, publisher: "Publisher", number: int, node: Address) -> None:
        super().__init__(settings, [node])
        self.name = f"lane {number}"
        self.queue = f"intake-{number}"
        self.resting_until = 0.0
        self._publisher = publisher
        self._pending: dict[int, tuple[Attempt, float]] = {}
        self._unroutable: set[str] = set()
        self._tag = 0
        self._timeouts = 0
        self._heard_at = 0.0
        self._ready = metrics.LANE_READY.labels(self.queue)
        self._count = {
            outcome: metrics.LANE_MESSAGES.labels(self.queue, outcome)
            for outcome in ("confirmed", "late", "refused", "unroutable", "timeout", "lost")
        }

    def opened(self) -> None:
        """Switch confirms on, and see that the queue is there."""
        self._tag = 0
        self._channel.add_on_return_callback(self._on_return)
        self._channel.confirm_delivery(self._on_confirm, callback=lambda _: self._look_for_queue())

    def _look_for_queue(self) -> None:
        if self._channel is not None:  # else it was lost meanwhile
            self._channel.queue_declare(self.queue, passive=True, callback=lambda _: self.become_ready())

    def become_ready(self) -> None:
        """Take messages."""
        super().become_ready()
        self._timeouts = 0
        self.resting_until = 0.0
        self._ready.set(1)

    def lost(self) -> None:
        """Hand what is not confirmed to other lanes, at once."""
        self._ready.set(0)
        pending, self._pending = self._pending, {}
        self._unroutable.clear()
        for attempt, _ in pending.values():
            self._count["lost"].inc()
            self._pass_on(attempt)

    def blocked(self) -> None:
        """Leave a broker that takes nothing to itself; pika closes the connection if it lasts."""
        self.ready = False
        _LOG.warning("%s: the broker is blocked", self.name)
        self.lost()

    def unblocked(self) -> None:
        """Come back."""
        if self._channel is not None:
            self.become_ready()

    def send(self, attempt: Attempt, now: float) -> None:
        """Publish the message, to be confirmed."""
        self._tag += 1
        self._pending[self._tag] = (attempt, now)
        attempt.lane = self
        attempt.tried.add(self)
        attempt.held.add(self)
        self._channel.basic_publish("", self.queue, attempt.body, attempt.properties, mandatory=True)

    def timed_out(self, attempt: Attempt, now: float) -> bool:
        """Note that a confirm is late; return whether the lane has been silent ever since the message was sent."""
        self._count["timeout"].inc()
        self._timeouts += 1
        if self._timeouts >= 2:
            self.resting_until = now + REST_SECONDS
        return self._heard_at < now - HEDGE_SECONDS

    def probe(self, now: float) -> None:
        """Let one message find out whether a lane that rested answers again; the others keep off meanwhile."""
        if self._timeouts >= 2:
            self.resting_until = now + REST_SECONDS

    def _pass_on(self, attempt: Attempt) -> None:
        attempt.held.discard(self)
        # An attempt that went on to another lane in the meantime is that lane's to answer for.
        if not attempt.done and attempt.lane is self:
            attempt.stop_timer()
            self._publisher.advance(attempt)

    def _on_return(self, _channel: Any, _method: Any, properties: Any, _body: bytes) -> None:  # noqa: ANN401
        # The confirm of a message that no queue took comes after this, and is an ack.
        self._unroutable.add(properties.message_id)

    def _on_confirm(self, frame: Any) -> None:  # noqa: ANN401
        tag, acked = frame.method.delivery_tag, frame.method.NAME == "Basic.Ack"
        if frame.method.multiple:
            tags = list(itertools.takewhile(lambda pending: pending <= tag, self._pending))
        else:
            tags = [tag]
        now = self._heard_at = asyncio.get_running_loop().time()
        for each in tags:
            attempt, sent_at = self._pending.pop(each, (None, 0.0))
            if attempt is None:
                continue
            if self._unroutable and attempt.message_id in self._unroutable:
                self._unroutable.discard(attempt.message_id)
                self._count["unroutable"].inc()
                self._timeouts, self.resting_until = 2, now + REST_SECONDS
                self._pass_on(attempt)
            elif not acked:
                self._count["refused"].inc()
                self._pass_on(attempt)
            else:
                in_time = now - sent_at < HEDGE_SECONDS
                self._count["confirmed" if in_time else "late"].inc()
                if in_time:
                    self._timeouts, self.resting_until = 0, 0.0
                self._publisher.confirmed(attempt, now)


class Publisher:
    """Chooses lanes, and moves messages on from those that do not answer."""

    def __init__(self, settings: Settings) -> None:
        nodes = settings.addresses("rabbitmq_nodes")
        self._lanes = [Lane(settings, self, n + 1, nodes[n % len(nodes)]) for n in range(LANES)]
        self._hedges = _HEDGES_AT_ONCE
        self._under_way: dict[str, Queued] = {}
        self._keep_seconds = settings.bundle_milliseconds / 1000
        self._kept: list[Queued] = []
        self._kept_bytes = 0
        self._kept_give_up_at = 0.0
        self._keeping: asyncio.TimerHandle | None = None
        self._gap = self._longest_gap = 4 * self._keep_seconds
        self._came_at = 0.0

    def start(self) -> None:
        """Begin to connect all lanes; return at once."""
        for lane in self._lanes:
            lane.start()

    async def stop(self) -> None:
        """Close all lanes."""
        await asyncio.gather(*(lane.stop() for lane in self._lanes))

    @property
    def ready(self) -> bool:
        """Whether any lane takes messages."""
        return any(lane.ready for lane in self._lanes)

    async def publish(self, body: bytes, message_id: str, *, give_up_at: float) -> None:
        """Return once a majority of a queue's brokers have the order; give up at that time of the loop's clock.

        Raises:
            UnavailableError: no lane confirmed in time. One may still have the order.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        order = self._under_way.get(message_id)
        if order is None:
            order = self._under_way[message_id] = Queued(body, message_id, loop.time())
            order.waiting.append(future)
            if self._keep_seconds and self._comes_closely(order.started):
                self._keep(order, give_up_at)
            else:
                self._send([order], give_up_at)
        else:
            order.waiting.append(future)
        await future

    def _comes_closely(self, now: float) -> bool:
        """Return whether orders come so closely now that some are worth one message."""
        gap, self._came_at = min(now - self._came_at, self._longest_gap), now
        self._gap += _GAP_WEIGHT * (gap - self._gap)
        return bool(self._kept) or self._gap * _EXPECTED <= self._keep_seconds

    def _keep(self, order: Queued, give_up_at: float) -> None:
        if self._kept and self._kept_bytes + len(order.body) > MOST_BYTES:
            self._send_kept()
        if not self._kept:
            self._kept_bytes, self._kept_give_up_at = 0, give_up_at
            self._keeping = asyncio.get_running_loop().call_later(self._keep_seconds, self._send_kept)
        self._kept.append(order)
        self._kept_bytes += len(order.body)
        if len(self._kept) >= MOST_ORDERS:
            self._send_kept()

    def _send_kept(self) -> None:
        if self._keeping:
            self._keeping.cancel()
        kept, self._kept = self._kept, []
        self._send(kept, self._kept_give_up_at)

    def _send(self, orders: Sequence[Queued], give_up_at: float) -> None:
        self._hedges = min(_HEDGES_AT_ONCE, self._hedges + _HEDGES_A_MESSAGE)
        metrics.INTAKE_MESSAGE_ORDERS.observe(len(orders))
        self.advance(Attempt(orders, give_up_at=give_up_at))

    def _finish(self, attempt: Attempt) -> None:
        attempt.done = True
        attempt.stop_timer()
        for order in attempt.orders:
            del self._under_way[order.message_id]

    def advance(self, attempt: Attempt) -> None:
        """Send the message over the next lane, or give up when its time is over."""
        if attempt.done:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= attempt.give_up_at:
            self._finish(attempt)
            for order in attempt.orders:
                metrics.INTAKE_FAILED.inc()
                for future in order.waiting:
                    if not future.done():  # nobody may be left to hear of it
                        future.set_exception(UnavailableError("The order could not be queued in time. Send it again."))
            return
        lane = self._choose(attempt.tried, now)
        if lane is None:
            # A second copy to a lane that has one would not come faster.
            attempt.tried = set(attempt.held)
            wait = HEDGE_SECONDS if attempt.held else _LOOK_AGAIN_SECONDS
            attempt.timer = loop.call_at(min(now + wait, attempt.give_up_at), self.advance, attempt)
            return
        lane.send(attempt, now)
        attempt.timer = loop.call_at(min(now + HEDGE_SECONDS, attempt.give_up_at), self._late, attempt, lane)

    def confirmed(self, attempt: Attempt, now: float) -> None:
        """Tell those who wait for the message's orders that a lane has them."""
        if attempt.done:
            return
        self._finish(attempt)
        for order in attempt.orders:
            metrics.INTAKE.observe(now - order.started)
            for future in order.waiting:
                if not future.done():
                    future.set_result(None)

    def _late(self, attempt: Attempt, lane: Lane) -> None:
        if attempt.done:
            return
        now = asyncio.get_running_loop().time()
        if not lane.timed_out(attempt, now) and now < attempt.give_up_at:
            if self._hedges < 1:
                attempt.timer = asyncio.get_running_loop().call_at(attempt.give_up_at, self.advance, attempt)
                return
            self._hedges -= 1
        self.advance(attempt)

    def _choose(self, tried: Collection[Lane], now: float) -> Lane | None:
        # At random among the healthy: taking turns would give the lane after a dead one twice its share.
        ready = [lane for lane in self._lanes if lane.ready and lane not in tried]
        awake = [lane for lane in ready if lane.resting_until <= now]
        if not awake:
            return random.choice(ready) if ready else None  # noqa: S311
        lane = random.choice(awake)  # noqa: S311
        lane.probe(now)
        return lane
