"""HTTP interface of orders: it parses, asks, and answers; it decides nothing else."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromPath, HeaderParameter, QueryParameter

from orders.access.guards import BEARER
from orders.access.schemas import Access, Caller
from orders.answers import Frequent, Ready
from orders.bodies import parse
from orders.errors import BadRequestError
from orders.ordering.schemas import (
    CURSOR_PATTERN,
    CUSTOMER_PATTERN,
    KEY_PATTERN,
    MOST_LINES,
    MOST_PIECES,
    SKU_PATTERN,
    Accepted,
    FoundPage,
    NewOrder,
    Order,
    OrderPage,
    State,
)
from orders.ordering.service import Orders
from orders.problems import problems

MOST_BYTES = 16384
_NO_STORE = {"Cache-Control": "no-store"}
_NO_OPERATOR = "The token does not give the role operator."
_UNKNOWN_CALLER = "There is no access token, or it does not count."
_KEYS_UNKNOWN = "The identity provider's keys are not known yet"

Decided = Literal["settled", "refused", "shipped", "delivered", "cancelled"]

_DECODER = msgspec.json.Decoder(NewOrder)
_ENCODER = msgspec.json.Encoder()


# The handler decodes the body by itself, so the document is told of it here; the interface's tests hold both together.
_LINE_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "sku": Schema(type=OpenAPIType.STRING, pattern=SKU_PATTERN),
        "quantity": Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=MOST_PIECES),
    },
    required=["sku", "quantity"],
    additional_properties=False,
)
_NEW_ORDER_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "lines": Schema(
            type=OpenAPIType.ARRAY,
            items=_LINE_SCHEMA,
            min_items=1,
            max_items=MOST_LINES,
            description="What is ordered, each product once.",
        )
    },
    required=["lines"],
    additional_properties=False,
    examples=[{"lines": [{"sku": "P-00001", "quantity": 2}]}],
)


@dataclass
class NewOrderOperation(Operation):
    """An operation with the body of a new order."""

    def __post_init__(self) -> None:
        """Describe the body."""
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(_NEW_ORDER_SCHEMA)}, required=True)


def parse_order(content_type: str, body: bytes) -> NewOrder:
    """Return the order that a body holds.

    Raises:
        MediaTypeError: the body is not declared as JSON.
        BadRequestError: naming the field that is wrong.
    """
    order = parse(_DECODER, content_type, body)
    seen: set[str] = set()
    for number, line in enumerate(order.lines):
        if line.sku in seen:
            raise BadRequestError(f"lines[{number}].sku", f"{line.sku} is in the order already")
        seen.add(line.sku)
    return order


def _changes(s403: str, before: str) -> dict[int, ResponseSpec]:
    """Describe the errors of a route that brings an order from one state to the next."""
    return problems(
        s401=_UNKNOWN_CALLER,
        s403=s403,
        s404="No order has this id, or it is another customer's.",
        s409=f"The order is not {before}; `detail` says what it is.",
        s503=f"{_KEYS_UNKNOWN}, or the primary does not answer, and whether the order was changed is not known.",
    )


def _changed(content: Any) -> Response[Order]:  # noqa: ANN401
    return Response(content, media_type="application/json", headers=_NO_STORE)


class OrderController(Controller):
    """Orders: placed and looked up."""

    path = "/v1/orders"
    tags = ["Orders"]

    @Frequent(
        http_method="POST",
        access=Access.CUSTOMER,
        security=BEARER,
        operation_id="PlaceOrder",
        operation_class=NewOrderOperation,
        status_code=202,
        request_max_body_size=MOST_BYTES,
        responses=problems(
            s400="A field or a header is malformed or missing; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403="The token does not give the role customer.",
            s409="The Idempotency-Key was used with another body.",
            s413="The body is too large.",
            s415="The body is not application/json.",
            s503=f"{_KEYS_UNKNOWN}, or the order could not be queued. Send it again with the same Idempotency-Key.",
        ),
    )
    async def place_order(
        self,
        request: Request[
            Caller, Any, Any
        ],  # who it is of as well: to be given a second thing costs Litestar a group of tasks
        orders: NamedDependency[Orders],
        idempotency_key: Annotated[
            str,
            HeaderParameter(
                name="Idempotency-Key", pattern=KEY_PATTERN, description="Of the client's making, one an order."
            ),
        ],
    ) -> Ready[Accepted]:
        """Place an order of the token's subject: it is queued, and settled or refused soon after.

        The same order again is the same order.
        """
        order = parse_order(request.headers.get("content-type", ""), await request.body())
        identifier = await orders.place(request.user.subject, idempotency_key, order)
        headers = {"Location": f"/v1/orders/{identifier}", **_NO_STORE, "Content-Type": "application/json"}
        return Ready(_ENCODER.encode(Accepted(identifier)), status_code=202, headers=headers)

    @get(
        access=Access.CUSTOMER,
        security=BEARER,
        operation_id="ListOrders",
        responses=problems(
            s400="A parameter is malformed; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403="The token does not give the role customer.",
            s503=f"{_KEYS_UNKNOWN}, or the database does not answer.",
        ),
    )
    async def list_orders(
        self,
        caller: NamedDependency[Caller],
        orders: NamedDependency[Orders],
        after: Annotated[
            str, QueryParameter(pattern=CURSOR_PATTERN, description="`next` of the page before; empty: the newest.")
        ] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> Response[OrderPage]:
        """List the orders of the token's subject that are settled or refused, the newest first."""
        content: Any = await orders.page(caller.subject, after=after, limit=limit)
        return Response(content, media_type="application/json", headers=_NO_STORE)

    @get(
        "/search",
        access=Access.OPERATOR,
        security=BEARER,
        operation_id="SearchOrders",
        responses=problems(
            s400="A parameter is malformed, or neither `customer` nor `state` is there; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403=_NO_OPERATOR,
            s503=f"{_KEYS_UNKNOWN}, or the database does not answer.",
        ),
    )
    async def search_orders(
        self,
        *,
        orders: NamedDependency[Orders],
        customer: Annotated[str | None, QueryParameter(pattern=CUSTOMER_PATTERN, description="Whose.")] = None,
        decided: Annotated[Decided | None, QueryParameter(name="state", description="What became of them.")] = None,
        since: Annotated[datetime | None, QueryParameter(description="Accepted then or later, with a zone.")] = None,
        after: Annotated[
            str, QueryParameter(pattern=CURSOR_PATTERN, description="`next` of the page before; empty: the newest.")
        ] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> Response[FoundPage]:
        """Search the decided orders of everybody: a customer's, or those in a state; the newest first."""
        state = State(decided) if decided else None
        content: Any = await orders.search(customer_id=customer, state=state, since=since, after=after, limit=limit)
        return Response(content, media_type="application/json", headers=_NO_STORE)

    @get(
        "/{order_id:str}",
        access=Access.CUSTOMER | Access.OPERATOR,
        security=BEARER,
        operation_id="GetOrder",
        responses=problems(
            s401=_UNKNOWN_CALLER,
            s403="The token gives neither the role customer nor the role operator.",
            s404="No order has this id, or it is another customer's.",
            s503=f"{_KEYS_UNKNOWN}, or the database does not answer.",
        ),
    )
    async def get_order(
        self, caller: NamedDependency[Caller], orders: NamedDependency[Orders], order_id: FromPath[str]
    ) -> Response[Order]:
        """Return an order and its state, refused with the reason; a customer's own, and any to an operator.

        An order that no store knows yet is accepted for whoever holds its id, which nobody can guess.
        """
        content: Any = await orders.find(order_id, None if Access.OPERATOR in caller.roles else caller.subject)
        return Response(content, media_type="application/json", headers=_NO_STORE)

    @post(
        "/{order_id:str}/cancellation",
        access=Access.CUSTOMER | Access.OPERATOR,
        security=BEARER,
        operation_id="CancelOrder",
        status_code=200,
        responses=_changes("The token gives neither the role customer nor the role operator.", "settled"),
    )
    async def cancel_order(
        self, caller: NamedDependency[Caller], orders: NamedDependency[Orders], order_id: FromPath[str]
    ) -> Response[Order]:
        """Cancel a settled order, one's own, or for an operator any: its pieces and its money go back. Again is the same."""
        customer = None if Access.OPERATOR in caller.roles else caller.subject
        return _changed(await orders.change(order_id, State.CANCELLED, caller=caller.subject, customer_id=customer))

    @post(
        "/{order_id:str}/shipment",
        access=Access.OPERATOR,
        security=BEARER,
        operation_id="ShipOrder",
        status_code=200,
        responses=_changes(_NO_OPERATOR, "settled"),
    )
    async def ship_order(
        self, caller: NamedDependency[Caller], orders: NamedDependency[Orders], order_id: FromPath[str]
    ) -> Response[Order]:
        """Note that a settled order has left the house. Again is the same."""
        return _changed(await orders.change(order_id, State.SHIPPED, caller=caller.subject, customer_id=None))

    @post(
        "/{order_id:str}/delivery",
        access=Access.OPERATOR,
        security=BEARER,
        operation_id="DeliverOrder",
        status_code=200,
        responses=_changes(_NO_OPERATOR, "shipped"),
    )
    async def deliver_order(
        self, caller: NamedDependency[Caller], orders: NamedDependency[Orders], order_id: FromPath[str]
    ) -> Response[Order]:
        """Note that a shipped order has arrived. Again is the same."""
        return _changed(await orders.change(order_id, State.DELIVERED, caller=caller.subject, customer_id=None))
