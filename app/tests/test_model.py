"""Orders, stocks and the ledger against a model of them, while workers are killed and requests race each other through two replicas.

Hypothesis makes up what happens. What the interface says must be what the model says, and `orders check` must find nothing in
the end. MODEL_RUNS=N makes N runs of other steps each time, in place of a few that are always the same.
"""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from itertools import permutations
from pathlib import Path
from typing import Any, ParamSpec

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from servers import DEAD_QUEUE, QUEUES, wait_until
from service import NUMBERS, Api, Platform, Workers

RUNS = int(os.environ.get("MODEL_RUNS") or 0)
FEW_RUNS = 4
STEPS = 40
PORTS = (8141, 8142)
WORKER_PORTS = (8143, 8144)
DECIDED_SECONDS = 40.0
PAGE = 4

P = ParamSpec("P")
Lines = Mapping[str, int]
# By the letter: three products in one currency, one in another; of E there is none.
LINES: st.SearchStrategy[Lines] = st.dictionaries(st.sampled_from("AABBCDE"), st.integers(1, 6), min_size=1, max_size=2)
CUSTOMER = st.sampled_from(("ada", "ben"))
REPLICA = st.integers(0, 1)
# Not a bundle of Hypothesis's: what it draws must not depend on what races come to.
WHICH = st.integers(0, 100)
LETTER = st.sampled_from("ABCD")
CURRENCIES = {"A": "EUR", "B": "EUR", "C": "EUR", "D": "USD"}
SOLD = ("settled", "shipped", "delivered")
# What each request brings an order to, and from where.
ACTIONS = {
    "shipment": ("shipped", "settled"),
    "delivery": ("delivered", "shipped"),
    "cancellation": ("cancelled", "settled"),
}
ACTION = st.sampled_from(tuple(ACTIONS))


class FoundError(BaseException):
    """Something is not as the model says. Hypothesis knows no such exception, and so does not try whether it comes again."""


def ends_the_test(act: Callable[P, None]) -> Callable[P, None]:
    """Have the first failure of an act be the last thing that happens. What was done is printed, which is shown then."""

    @wraps(act)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        if named:
            print(act.__name__, named)
        try:
            act(*arguments, **named)
        except Exception as error:
            raise FoundError from error

    return run


def step(**drawn: st.SearchStrategy[Any]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Have an act be one that Hypothesis chooses."""
    choose: Any = rule  # whose overloads know no names that are given like this
    return lambda act: choose(**drawn)(ends_the_test(act))


class Shop:
    """Two replicas of the service and two workers, on a database of their own."""

    def __init__(self, platform: Platform, accepted: Path) -> None:
        self._database = f"modelled_{next(NUMBERS)}"
        platform.postgres.make_database(self._database)
        self._platform = platform
        self._url = platform.postgres.url(database=self._database)
        self._accepted = accepted
        environment = {"ORDERS_DATABASE_URL": self._url, "ORDERS_DATABASE_RO_URL": self._url}
        assert platform.finish("migrate", **environment)[0] == 0
        self.replicas = [Api(platform, port, **environment) for port in PORTS]
        self.workers = [Workers(platform, port, **environment) for port in WORKER_PORTS]
        self.pool = ThreadPoolExecutor(8)
        # One looks at what the other holds up.
        self.holder, self._observer = (platform.postgres.admin(self._database) for _ in range(2))
        for worker in self.workers:
            worker.start(wait=False)
        for replica in self.replicas:
            replica.wait_until_ready()

    def ask(
        self,
        replica: int,
        method: str,
        path: str,
        caller: str = "",
        *,
        again: bool = True,
        **arguments: Any,  # noqa: ANN401
    ) -> httpx.Response:
        """Ask a replica as a customer, or else as an operator; again, as clients do, while a stalled machine makes it a 503."""
        api = self.replicas[replica]
        headers = {**arguments.pop("headers", {}), **(api.bearer(caller) if caller else {})}
        until = time.monotonic() + 20
        while True:
            answer = api.client.request(method, path, headers=headers, **arguments)
            if not again or answer.status_code != 503 or time.monotonic() > until:
                return answer

    def pages(self, path: str, caller: str, what: str) -> list[dict[str, Any]]:
        """Return all of a list that comes in pages, which alternate between the replicas."""
        found: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None:
            answer = self.ask(len(found) % 2, "GET", path, caller, params={"after": after, "limit": PAGE})
            assert answer.status_code == 200, answer.text
            found += answer.json()[what]
            after = answer.json().get("next")
        return found

    def balances(self, account: str, caller: str = "") -> dict[str, int]:
        """Return what stands on an account."""
        answer = self.ask(0, "GET", f"/v1/accounts/{account}", caller)
        assert answer.status_code == 200, answer.text
        return {balance["currency"]: balance["amount_cents"] for balance in answer.json()["balances"]}

    def kill(self, which: Sequence[int]) -> None:
        """Kill workers as the machine's end does, and have others in their place, which come while all goes on."""
        for number in which:
            self.workers[number].stop(signal.SIGKILL)
        for number in which:
            self.workers[number].start(wait=False)

    def is_held_up(self) -> bool:
        """Return whether the settlement of a batch waits for a lock."""
        found = "SELECT FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock' AND strpos(query, 'shelf') > 0"
        return self._observer.execute(found, (self._database,)).fetchone() is not None

    def stocked(self, sku: str) -> int:
        """Return how many pieces of a product came, less those that went, by what is written down."""
        found = "SELECT coalesce(sum(change), 0)::bigint FROM stock_change WHERE sku = %s"
        row = self._observer.execute(found, (sku,)).fetchone()
        assert row is not None
        return int(row[0])

    def check(self, addresses: Sequence[str]) -> None:
        """See that the command finds nothing, and that all events are published."""
        waiting = "SELECT count(*) FROM event WHERE (xid, id) > (SELECT xid, id FROM relay WHERE name = 'events')"
        wait_until(lambda: self._observer.execute(waiting).fetchone() == (0,), "the relay", 20)
        with self._accepted.open("a") as file:
            file.writelines(address.rpartition("/")[2] + "\n" for address in addresses)
        options = (f"--accepted={self._accepted}", "--outbox-seconds=0", "--no-dead-letters")
        status, output = self._platform.finish("check", *options, ORDERS_DATABASE_URL=self._url)
        assert (status, "FAIL" in output, "warn" in output) == (0, False, False), output

    def forget_keys(self) -> None:
        """Have Valkey forget which order came under which key, as it may whenever it likes."""
        valkey = self._platform.valkey
        for port in valkey.ports:
            for key in valkey.cli(port, "keys", "orders:key:*").split():
                valkey.cli(port, "del", key)

    def close(self) -> None:
        """End all of it."""
        self.pool.shutdown()
        for worker in self.workers:
            worker.close()
        for replica in self.replicas:
            replica.stop()
        self.holder.close()
        self._observer.close()


@pytest.fixture
def shop(platform: Platform, no_worker: Workers, tmp_path: Path) -> Iterator[Shop]:
    for queue in (*QUEUES, DEAD_QUEUE):
        platform.rabbitmq.take(queue)
    shop = Shop(platform, tmp_path / "accepted")
    yield shop
    shop.close()


@dataclass(eq=False)
class Product:
    """What an operator knows of a product."""

    sku: str
    currency: str
    price: int
    stocked: int
    tag: str = ""
    active: bool = True

    @property
    def offer(self) -> int | None:
        """The price; none: it is not on sale."""
        return self.price if self.active else None


@dataclass(eq=False)
class Placed:
    """An order that was accepted, and what may become of it."""

    customer: str
    key: str
    lines: Lines  # by letter
    is_late: bool  # one under its key was decided before
    most: dict[str, int]  # pieces that there may have been, by letter
    offers: dict[str, set[int | None]]  # since it was placed
    came: Counter[str] = field(default_factory=Counter)  # pieces that came since
    address: str = ""
    told: dict[str, Any] | None = None

    @property
    def state(self) -> str:
        """What it is known to be."""
        return str(self.told["state"]) if self.told else "accepted"

    @property
    def booked(self) -> list[tuple[str, int]]:
        """What it brings its customer's account."""
        total = self.told["total_cents"] if self.told and self.state != "refused" else 0
        sale, reversal = [("sale", total)], [("reversal", -total)]
        return sale if self.state in SOLD else sale + reversal if self.state == "cancelled" else []


class Model(RuleBasedStateMachine):
    """What can be done to a shop, and what must come of it."""

    shop: Shop

    def __init__(self) -> None:
        super().__init__()
        self.number = next(NUMBERS)
        self.orders: list[Placed] = []
        self.judged: set[Placed] = set()
        self.revenue = Counter(self.shop.balances("revenue"))
        self.products = {
            letter: Product(f"MODEL-{self.number}-{letter}", currency, 100 + 37 * place, 3 + 5 * place)
            for place, (letter, currency) in enumerate(CURRENCIES.items())
        }
        for product in self.products.values():
            answer = self.put(0, product, product.price, {"If-None-Match": "*"})
            assert answer.status_code in (201, 412), answer.text
            product.tag = self.record(product)["etag"]
            stock = f"/v1/products/{product.sku}/stock"
            assert self.shop.ask(0, "PUT", stock, json={"quantity": product.stocked}).status_code == 200

    # What the model says.

    @property
    def waiting(self) -> list[Placed]:
        """Orders that are not known to be decided."""
        return [order for order in self.orders if order.told is None]

    def pieces(self, letter: str) -> int:
        """Return how many there are; fewer, if orders were settled that nobody asked for yet."""
        sold = sum(order.lines.get(letter, 0) for order in self.orders if order.state in SOLD)
        return (self.products[letter].stocked if letter in self.products else 0) - sold

    def wanted(self, letter: str) -> int:
        """Return how many orders may have taken that nobody asked for yet."""
        return sum(order.lines.get(letter, 0) for order in self.waiting)

    def came(self, lines: Lines) -> None:
        """Note that pieces came, for all orders that may be decided only now."""
        for order in self.unjudged():
            order.came.update(lines)

    def unjudged(self) -> list[Placed]:
        """Return orders of which it is not known yet whether there were too few pieces."""
        return [order for order in self.orders if order not in self.judged]

    def rivals(self, customer: str, key: str) -> list[Placed]:
        """Return the orders under a key."""
        return [order for order in self.orders if (order.customer, order.key) == (customer, key)]

    def expected(self, order: Placed) -> set[str | None]:
        """Return as what it may have been refused, and nothing if it may have been settled."""
        if order.is_late:
            return {"key_reused"}
        found: set[str | None] = {"key_reused"} if len(self.rivals(order.customer, order.key)) > 1 else set()
        if any(None in offers for offers in order.offers.values()):
            found.add("unknown_product")
        if any(offers == {None} for offers in order.offers.values()):
            return found
        if len({CURRENCIES[letter] for letter in order.lines}) > 1:
            return found | {"mixed_currencies"}
        if all(order.most[letter] + order.came[letter] >= n for letter, n in order.lines.items()):
            found.add(None)
        return found | {"too_little_stock"}  # judged when all is decided

    def any(self, which: int) -> Placed | None:
        """Return one of the orders, the last for 0; none where there is none yet."""
        return self.orders[-1 - which % len(self.orders)] if self.orders else None

    # How it learns.

    def see(self, order: Placed, told: dict[str, Any]) -> None:
        """Compare what is told of an order with what is known; learn how it was decided."""
        if order.told is not None:
            assert told == order.told
        elif told["state"] == "accepted":
            assert told == {"id": order.address.rpartition("/")[2], "state": "accepted"}
        else:
            self.learn(order, told)

    def learn(self, order: Placed, told: dict[str, Any]) -> None:
        """Check how an order was decided."""
        assert told.get("refusal") in self.expected(order), (told, order)
        assert (told["state"] == "refused") == ("refusal" in told)
        letters = {self.sku(letter): letter for letter in order.lines}
        assert {letters[line["sku"]]: line["quantity"] for line in told["lines"]} == order.lines
        prices = {letters[line["sku"]]: line["unit_price_cents"] for line in told["lines"]}
        assert all(price in order.offers[letter] for letter, price in prices.items()), (told, order)
        if told["state"] != "refused":
            assert told["total_cents"] == sum(prices[letter] * n for letter, n in order.lines.items())
            assert {told["currency"]} == {CURRENCIES[letter] for letter in order.lines}
        order.told = told

    def look(self, order: Placed, replica: int = 0) -> None:
        """Ask for an order."""
        answer = self.shop.ask(replica, "GET", order.address, order.customer)
        assert answer.status_code == 200, answer.text
        self.see(order, answer.json())

    # Orders come.

    def sku(self, letter: str) -> str:
        return f"MODEL-{self.number}-{letter}"

    def prepare(self, customer: str, key: str, lines: Lines) -> Placed:
        """Return an order as it is before it is sent."""
        return Placed(
            customer=customer,
            key=key,
            lines=lines,
            is_late=any(rival.told is not None for rival in self.rivals(customer, key)),
            most={letter: self.pieces(letter) for letter in lines},
            offers={letter: {p.offer if (p := self.products.get(letter)) else None} for letter in lines},
        )

    def send(self, order: Placed, replica: int) -> httpx.Response:
        """Place an order, its lines in any order."""
        lines = [*order.lines.items()][:: -1 if replica else 1]
        body = {"lines": [{"sku": self.sku(letter), "quantity": n} for letter, n in lines]}
        return self.shop.ask(
            replica, "POST", "/v1/orders", order.customer, json=body, headers={"Idempotency-Key": order.key}
        )

    def accept(self, order: Placed, answer: httpx.Response) -> Placed:
        """Note what an order's acceptance says."""
        assert answer.status_code == 202, answer.text
        order.address = answer.headers["location"]
        for known in self.rivals(order.customer, order.key):
            assert (known.address == order.address) == (known.lines == order.lines)
            if known.lines == order.lines:
                return known
        self.orders.append(order)
        return order

    def new_key(self) -> str:
        return f"{self.number}-{next(NUMBERS)}"

    def who(self, name: str) -> str:
        return f"{name}-{self.number}"

    @step(name=CUSTOMER, lines=LINES, replica=REPLICA)
    def a_customer_orders(self, name: str, lines: Lines, replica: int) -> None:
        order = self.prepare(self.who(name), self.new_key(), lines)
        self.accept(order, self.send(order, replica))

    @step(name=CUSTOMER, orders=st.lists(LINES, min_size=3, max_size=12))
    def many_orders_come_at_once(self, name: str, orders: list[Lines]) -> None:
        self.burst(name, orders)

    def burst(self, name: str, orders: Sequence[Lines]) -> None:
        sent = [self.prepare(self.who(name), self.new_key(), lines) for lines in orders]
        answers = self.shop.pool.map(self.send, sent, [number % 2 for number in range(len(sent))])
        for order, answer in zip(sent, answers, strict=True):
            self.accept(order, answer)

    @step(which=WHICH, replica=REPLICA)
    def the_same_order_comes_again(self, which: int, replica: int) -> None:
        if (order := self.any(which)) is None:
            return
        answer = self.send(order, replica)
        if answer.status_code != 409 or len(self.rivals(order.customer, order.key)) == 1:
            assert self.accept(order, answer) is order

    @step(which=WHICH, lines=LINES, replica=REPLICA, forget=st.booleans())
    def another_order_comes_under_its_key(self, which: int, lines: Lines, replica: int, forget: bool) -> None:
        if (order := self.any(which)) is None:
            return
        for rival in self.rivals(order.customer, order.key):
            self.look(rival, replica)
        other = self.prepare(order.customer, order.key, lines)
        if forget:
            self.shop.forget_keys()
        answer = self.send(other, replica)
        if answer.status_code == 409:
            assert lines != order.lines or len(self.rivals(order.customer, order.key)) > 1
        else:
            self.accept(other, answer)

    @step(name=CUSTOMER, one=LINES, other=LINES)
    def two_orders_come_under_one_key_at_once(self, name: str, one: Lines, other: Lines) -> None:
        key = self.new_key()
        sent = [self.prepare(self.who(name), key, lines) for lines in (one, other)]
        answers = [*self.shop.pool.map(self.send, sent, (0, 1))]
        assert {answer.status_code for answer in answers} in ({202}, {202, 409}), answers
        assert one != other or {answer.status_code for answer in answers} == {202}
        for order, answer in zip(sent, answers, strict=True):
            if answer.status_code == 202:
                self.accept(order, answer)

    # Workers end.

    @step(name=CUSTOMER, orders=st.lists(LINES, min_size=2, max_size=12), ms=st.integers(0, 60), both=st.booleans())
    def workers_are_killed_while_orders_come(self, name: str, orders: list[Lines], ms: int, both: bool) -> None:
        self.burst(name, orders)
        time.sleep(ms / 1000)
        self.shop.kill((0, 1) if both else (0,))

    @step(name=CUSTOMER, orders=st.lists(LINES, min_size=1, max_size=6))
    def workers_are_killed_while_the_database_decides(self, name: str, orders: list[Lines]) -> None:
        """Have the database go on by itself, so that messages come again of orders that it decided."""
        with self.shop.holder.transaction():
            self.shop.holder.execute("SELECT FROM stock WHERE sku = %s FOR UPDATE", (self.sku("A"),))
            self.burst(name, [*orders, {"A": 1}])
            wait_until(self.shop.is_held_up, "a batch at the lock", DECIDED_SECONDS)
            self.shop.kill((0, 1))

    # Orders go on.

    def outcome(self, state: str, action: str) -> tuple[int, str]:
        """Return what a request is answered in a state, and the state after it."""
        after, before = ACTIONS[action]
        return (200, after) if state in (before, after) else (409, state)

    def ask_for(self, action: str, order: Placed, replica: int, caller: str = "") -> httpx.Response:
        return self.shop.ask(replica, "POST", f"{order.address}/{action}", caller)

    def move(self, order: Placed, told: dict[str, Any], state: str) -> None:
        """Note that an order went on, and that nothing else of it changed."""
        assert order.told is not None
        assert told["state"] == state
        if order.state == state:
            assert told == order.told
            return
        assert datetime.fromisoformat(told["changed_at"]) >= datetime.fromisoformat(told["decided_at"])
        assert {**told, "state": "", "changed_at": ""} == {**order.told, "state": "", "changed_at": ""}
        order.told = told
        if state == "cancelled":
            self.came(order.lines)

    @step(which=WHICH, action=ACTION, replica=REPLICA)
    def an_order_is_to_go_on(self, which: int, action: str, replica: int) -> None:
        if (order := self.any(which)) is None:
            return
        self.look(order, replica)
        answer = self.ask_for(action, order, replica)
        if order.told is None:
            if answer.status_code == 409 and "not settled yet" in answer.json()["detail"]:
                return
            # It was decided just then: what it was between, nobody saw.
            now = self.shop.ask(replica, "GET", order.address, order.customer).json()
            self.learn(order, {k: v for k, v in now.items() if k != "changed_at"} | {"state": self.before(now)})
        status, state = self.outcome(order.state, action)
        assert answer.status_code == status, (answer.text, order)
        self.move(order, self.shop.ask(1 - replica, "GET", order.address).json(), state)

    @staticmethod
    def before(told: dict[str, Any]) -> str:
        return "refused" if "refusal" in told else "settled"

    @step(which=WHICH, actions=st.lists(ACTION, min_size=2, max_size=5))
    def requests_for_an_order_race(self, which: int, actions: list[str]) -> None:
        if (order := self.any(which)) is None:
            return
        self.look(order)
        if order.told is None:
            return
        answers = [*self.shop.pool.map(self.ask_for, actions, [order] * len(actions), (0, 1, 0, 1, 0))]
        now = self.shop.ask(0, "GET", order.address).json()
        possible = []
        for turn in permutations(range(len(actions))):
            state, statuses = order.state, [0] * len(actions)
            for number in turn:
                statuses[number], state = self.outcome(state, actions[number])
            possible.append((statuses, state))
        assert ([answer.status_code for answer in answers], now["state"]) in possible, (now, order)
        self.move(order, now, now["state"])

    @step(which=WHICH, name=CUSTOMER, replica=REPLICA)
    def a_customer_cancels(self, which: int, name: str, replica: int) -> None:
        if (order := self.any(which)) is None:
            return
        self.look(order, replica)
        if order.told is None:
            return
        own = order.customer == self.who(name)
        status, state = self.outcome(order.state, "cancellation") if own else (404, order.state)
        answer = self.ask_for("cancellation", order, replica, self.who(name))
        assert answer.status_code == status, (answer.text, order)
        self.move(order, self.shop.ask(1 - replica, "GET", order.address).json(), state)

    # Products change.

    def put(
        self, replica: int, product: Product, price: int, headers: Mapping[str, str], *, again: bool = True
    ) -> httpx.Response:
        body = {"name": "A thing", "description": "", "price_cents": price, "currency": product.currency}
        body |= {"active": product.active}
        return self.shop.ask(replica, "PUT", f"/v1/products/{product.sku}", json=body, headers=headers, again=again)

    def record(self, product: Product) -> dict[str, Any]:
        answer = self.shop.ask(1, "GET", f"/v1/products/{product.sku}/record")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def offer(self, letter: str) -> None:
        """Note what a product costs from now on."""
        for order in self.waiting:
            if letter in order.lines:
                order.offers[letter].add(self.products[letter].offer)

    @step(letter=LETTER, price=st.integers(1, 500), active=st.sampled_from((True, True, False)), replica=REPLICA)
    def a_product_changes(self, letter: str, price: int, active: bool, replica: int) -> None:
        product = self.products[letter]
        product.price, product.active = price, active
        self.offer(letter)
        answer = self.put(replica, product, price, {"If-Match": "*"})
        assert answer.status_code == 200, answer.text
        product.tag = answer.headers["etag"]

    @step(letter=LETTER, prices=st.tuples(st.integers(1, 500), st.integers(1, 500)))
    def two_operators_change_a_price_at_once(self, letter: str, prices: tuple[int, int]) -> None:
        product = self.products[letter]
        before = product.tag

        def change(replica: int) -> int:
            headers = {"If-Match": before}
            return self.put(replica, product, prices[replica], headers, again=False).status_code

        statuses = [*self.shop.pool.map(change, (0, 1))]
        record = self.record(product)
        # Whether it was made, a 503 leaves open.
        assert 503 in statuses or sorted(statuses) == [200, 412], statuses
        assert 200 not in statuses or record["price_cents"] == prices[statuses.index(200)]
        assert record["price_cents"] in (prices if record["etag"] != before else (product.price,))
        product.tag, product.price = record["etag"], record["price_cents"]
        self.offer(letter)

    def change_stock(self, letter: str, change: int, replica: int) -> httpx.Response:
        path = f"/v1/products/{self.sku(letter)}/stock"
        return self.shop.ask(replica, "PATCH", path, json={"change": change}, again=False)

    @step(letter=LETTER, changes=st.lists(st.integers(1, 8), min_size=1, max_size=4))
    def pieces_come(self, letter: str, changes: list[int]) -> None:
        self.came({letter: sum(changes)})
        answers = [*self.shop.pool.map(self.change_stock, [letter] * len(changes), changes, (0, 1, 0, 1))]
        self.note_stocked(letter, sum(changes), answers)

    @step(letter=LETTER, some=st.integers(1, 8), replica=REPLICA)
    def pieces_go(self, letter: str, some: int, replica: int) -> None:
        most, least = self.pieces(letter), self.pieces(letter) - self.wanted(letter)
        answer = self.change_stock(letter, -some, replica)
        if answer.status_code == 409:
            assert least < some, answer.text
            return
        if answer.status_code == 200:
            assert max(0, least - some) <= answer.json()["quantity"] <= most - some
        self.note_stocked(letter, -some, [answer])

    def note_stocked(self, letter: str, change: int, answers: Sequence[httpx.Response]) -> None:
        """Note what came or went; where a stalled machine made a 503, which leaves that open, as much as is written down."""
        statuses = {answer.status_code for answer in answers}
        assert statuses <= {200, 503}, [answer.text for answer in answers]
        if 503 in statuses:
            self.products[letter].stocked = self.shop.stocked(self.sku(letter))
        else:
            self.products[letter].stocked += change

    @step(letter=LETTER, quantity=st.integers(0, 20), replica=REPLICA)
    def pieces_are_counted(self, letter: str, quantity: int, replica: int) -> None:
        self.time_passes_until_all_is_decided()
        answer = self.shop.ask(replica, "PUT", f"/v1/products/{self.sku(letter)}/stock", json={"quantity": quantity})
        assert (answer.status_code, answer.json()) == (200, {"quantity": quantity})
        self.products[letter].stocked += quantity - self.pieces(letter)

    # All of it is looked at.

    @step(which=WHICH, replica=REPLICA)
    def somebody_asks_for_an_order(self, which: int, replica: int) -> None:
        if (order := self.any(which)) is None:
            return
        self.look(order, replica)
        answer = self.shop.ask(replica, "GET", order.address, self.who("eve"))
        if order.told is not None:
            assert answer.status_code == 404, answer.text

    @step()
    def time_passes_until_all_is_decided(self) -> None:
        until = time.monotonic() + DECIDED_SECONDS
        while waiting := self.waiting:
            for number, order in enumerate(waiting):
                self.look(order, number % 2)
            assert time.monotonic() < until, f"not decided within {DECIDED_SECONDS} s: {waiting}"
            time.sleep(0.02)
        self.judge()

    def judge(self) -> None:
        """See, once all is decided, that pieces were missing where they are said to have been, and which order has its key."""
        for order in self.unjudged():
            assert order.told is not None
            if order.told.get("refusal") == "too_little_stock":
                there = {letter: self.pieces(letter) - order.came[letter] for letter in order.lines}
                assert any(there[letter] < n for letter, n in order.lines.items()), (order, there)
            rivals = self.rivals(order.customer, order.key)
            assert [r.told is not None and r.told.get("refusal") != "key_reused" for r in rivals].count(True) == 1
            self.judged.add(order)

    @invariant()
    @ends_the_test
    def what_is_told_is_what_is_known(self) -> None:
        if not self.waiting:
            self.judge()
            for letter, product in self.products.items():
                record = self.record(product)
                told = (record["quantity"], record["price_cents"], record["active"], record["etag"])
                assert told == (self.pieces(letter), product.price, product.active, product.tag)
            for name in ("ada", "ben"):
                assert self.shop.balances("me", self.who(name)) == self.balances(self.who(name))

    def balances(self, customer: str) -> dict[str, int]:
        """Return what a customer owes, in the currencies in which anything was booked."""
        found: Counter[str] = Counter()
        for order in self.orders:
            if order.told is not None and order.customer == customer and order.booked:
                found[order.told["currency"]] += sum(amount for _, amount in order.booked)
        return dict(found)

    def audit(self) -> None:
        """Compare all lists and accounts."""
        revenue = Counter(self.revenue)
        for name in ("ada", "ben"):
            customer = self.who(name)
            mine = {order.address.rpartition("/")[2]: order for order in self.orders if order.customer == customer}
            listed = self.shop.pages("/v1/orders", customer, "orders")
            assert [order["id"] for order in listed] == [
                order["id"]
                for order in sorted(listed, key=lambda o: (datetime.fromisoformat(o["accepted_at"]), o["id"]))[::-1]
            ]
            assert {order["id"]: order for order in listed} == {key: order.told for key, order in mine.items()}
            assert len(listed) == len(mine)
            entries = self.shop.pages("/v1/accounts/me/statement", customer, "entries")
            assert Counter((e["order_id"], e["kind"], e["amount_cents"]) for e in entries) == Counter(
                (key, *entry) for key, order in mine.items() for entry in order.booked
            )
            running: Counter[str] = Counter()
            for entry in entries[::-1]:
                running[entry["currency"]] += entry["amount_cents"]
                assert entry["balance_cents"] == running[entry["currency"]]
            assert running == self.balances(customer) == self.shop.balances(f"customer:{customer}")
            revenue.subtract(running)
        assert self.shop.balances("revenue") == revenue

    def teardown(self) -> None:
        if not isinstance(sys.exc_info()[1], FoundError):
            self.end()

    @ends_the_test
    def end(self) -> None:
        self.time_passes_until_all_is_decided()
        for number, order in enumerate(self.orders):
            self.look(order, number % 2)
        self.audit()
        self.shop.check([order.address for order in self.orders])


def test_what_the_interface_says_is_what_a_model_says_whoever_is_killed(shop: Shop) -> None:
    class OfThisShop(Model):
        def __init__(self) -> None:
            self.shop = shop
            super().__init__()

    run_state_machine_as_test(
        OfThisShop,
        settings=settings(
            max_examples=RUNS or FEW_RUNS,
            stateful_step_count=STEPS,
            derandomize=not RUNS,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
