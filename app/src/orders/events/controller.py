"""HTTP interface of events, as server-sent events."""

from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, QueryParameter
from litestar.response import Stream

from orders.access.guards import BEARER
from orders.access.schemas import Access, Caller
from orders.events.service import Beginning, Events
from orders.problems import problems

MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_MOST_OFFSET = 2**53 - 1
_UNKNOWN_CALLER = "There is no access token, or it does not count."
_UNAVAILABLE = "The identity provider's keys are not known yet, events cannot be read now, or too many listen."

LastEventId = Annotated[
    int | None,
    HeaderParameter(
        name="Last-Event-ID", ge=0, le=_MOST_OFFSET, description="`id` of the last event that was seen: begin after it."
    ),
]
LastEventIdQuery = Annotated[
    int | None,
    QueryParameter(
        ge=0, le=_MOST_OFFSET, description="The same for a client that cannot set the header, which counts first."
    ),
]
Wait = Annotated[
    bool, QueryParameter(description="Whether to go on with what happens; else what there is, and the end.")
]


class EventController(Controller):
    """Events: what happens to orders."""

    path = "/v1"
    tags = ["Events"]

    @get(
        "/events",
        access=Access.CUSTOMER | Access.OPERATOR,
        security=BEARER,
        operation_id="ListenToEvents",
        media_type=MEDIA_TYPE,
        responses=problems(
            s400="A parameter is malformed; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403="The token gives neither the role customer nor the role operator.",
            s503=_UNAVAILABLE,
        ),
    )
    async def listen_to_events(
        self,
        caller: NamedDependency[Caller],
        events: NamedDependency[Events],
        *,
        header: LastEventId = None,
        last_event_id: LastEventIdQuery = None,
        wait: Wait = True,
    ) -> Stream:
        """Tell what happens to the orders of the token's subject, to an operator to all, as server-sent events.

        It ends when the replica stops, or the client is too slow: come again with `Last-Event-ID`, which is kept for seven days.
        """
        beginning = await events.of_all(caller, last_event_id if header is None else header)
        return _stream(events, beginning, wait)

    @get(
        "/orders/{order_id:str}/events",
        access=Access.CUSTOMER | Access.OPERATOR,
        security=BEARER,
        operation_id="ListenToOrder",
        media_type=MEDIA_TYPE,
        responses=problems(
            s400="A parameter is malformed; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403="The token gives neither the role customer nor the role operator.",
            s404="No order has this id, or it is another customer's.",
            s503=f"{_UNAVAILABLE} Or the database does not answer.",
        ),
    )
    async def listen_to_order(
        self,
        caller: NamedDependency[Caller],
        events: NamedDependency[Events],
        order_id: FromPath[str],
        *,
        header: LastEventId = None,
        last_event_id: LastEventIdQuery = None,
        wait: Wait = True,
    ) -> Stream:
        """Tell what happened to an order and what happens, as server-sent events.

        Without `Last-Event-ID` it begins with all that happened, or with `order.accepted`.
        """
        beginning = await events.of_order(order_id, caller, last_event_id if header is None else header)
        return _stream(events, beginning, wait)


def _stream(events: Events, beginning: Beginning, wait: bool) -> Stream:
    return Stream(events.tell(beginning, wait=wait), media_type=MEDIA_TYPE, headers=_HEADERS)
