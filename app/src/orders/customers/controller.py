"""HTTP interface of profiles: it parses, asks, and answers; it decides nothing else."""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, delete, get, put
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example, OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromPath, HeaderParameter

from orders.access.guards import BEARER
from orders.access.schemas import Access, Caller
from orders.bodies import parse
from orders.customers.schemas import (
    COUNTRIES,
    MOST_CITY,
    MOST_LINE,
    MOST_LINES,
    MOST_NAME,
    MOST_POSTAL_CODE,
    POSTAL_CODE_PATTERN,
    TEXT_PATTERN,
    NewProfile,
    Profile,
)
from orders.customers.service import Profiles
from orders.errors import BadRequestError
from orders.problems import problems
from orders.tags import condition

_UNKNOWN_CALLER = "There is no access token, or it does not count."
_NO_CUSTOMER = "The token does not give the role customer."
_AWAY = "The identity provider's keys are not known yet, or the primary does not answer."
_AWAY_FOR_CHANGES = (
    "The identity provider's keys are not known yet, or the primary does not answer: ask whether the change was made."
)
_NO_STORE = {"Cache-Control": "no-store"}

_DECODER = msgspec.json.Decoder(NewProfile)


def _text(most: int) -> Schema:
    return Schema(type=OpenAPIType.STRING, pattern=TEXT_PATTERN, max_length=most)


# The handler decodes the body by itself, so the document is told of it here.
_ADDRESS_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "lines": Schema(type=OpenAPIType.ARRAY, items=_text(MOST_LINE), min_items=1, max_items=MOST_LINES),
        "city": _text(MOST_CITY),
        "postal_code": Schema(
            type=OpenAPIType.STRING,
            pattern=POSTAL_CODE_PATTERN,
            max_length=MOST_POSTAL_CODE,
            description="Empty where the country has none.",
        ),
        "country": Schema(type=OpenAPIType.STRING, enum=COUNTRIES, description="ISO 3166-1, two letters."),
    },
    required=["lines", "city", "postal_code", "country"],
    additional_properties=False,
)
_PROFILE_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    properties={"name": _text(MOST_NAME), "address": _ADDRESS_SCHEMA},
    required=["name", "address"],
    additional_properties=False,
    examples=[
        {
            "name": "Ada Example",
            "address": {"lines": ["12 Example Street"], "city": "Exampleton", "postal_code": "12345", "country": "DE"},
        }
    ],
)


@dataclass
class NewProfileOperation(Operation):
    """An operation with the body of a profile."""

    def __post_init__(self) -> None:
        """Describe the body."""
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(_PROFILE_SCHEMA)}, required=True)


def parse_profile(content_type: str, body: bytes) -> NewProfile:
    """Return the profile that a body holds.

    Raises:
        MediaTypeError: the body is not declared as JSON.
        BadRequestError: naming the field that is wrong, and nothing that is in it.
    """
    profile = parse(_DECODER, content_type, body)
    if profile.address.country not in COUNTRIES:
        raise BadRequestError("address.country", "is no country of ISO 3166-1")
    return profile


class ProfileController(Controller):
    """A customer's own profile."""

    path = "/v1/me/profile"
    tags = ["Customers"]

    @get(
        access=Access.CUSTOMER,
        security=BEARER,
        operation_id="GetProfile",
        responses=problems(s401=_UNKNOWN_CALLER, s403=_NO_CUSTOMER, s404="There is no profile.", s503=_AWAY),
    )
    async def get_profile(
        self, caller: NamedDependency[Caller], profiles: NamedDependency[Profiles]
    ) -> Response[Profile]:
        """Return what the token's subject said of itself, with its tag for If-Match."""
        profile = await profiles.own(caller.subject)
        return Response(profile, headers={"ETag": profile.etag, **_NO_STORE})

    @put(
        access=Access.CUSTOMER,
        security=BEARER,
        operation_id="PutProfile",
        operation_class=NewProfileOperation,
        responses={201: ResponseSpec(Profile, description="The profile was created.", generate_examples=False)}
        | problems(
            s400="A field or a header is malformed or missing; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403=_NO_CUSTOMER,
            s412="The profile has another tag, is not there, or, where it is to be created, is there.",
            s413="The body is too large.",
            s415="The body is not application/json.",
            s428="There is neither If-Match nor If-None-Match.",
            s503=_AWAY_FOR_CHANGES,
        ),
    )
    async def put_profile(
        self,
        *,
        request: Request[Caller, Any, Any],
        caller: NamedDependency[Caller],
        profiles: NamedDependency[Profiles],
        if_match: Annotated[
            str | None,
            HeaderParameter(
                name="If-Match",
                description="To change the profile: its `ETag`, or * whichever it has.",
                examples=[Example(value='"1.7"')],
            ),
        ] = None,
        if_none_match: Annotated[
            str | None,
            HeaderParameter(
                name="If-None-Match", description="To create the profile: *", examples=[Example(value="*")]
            ),
        ] = None,
    ) -> Response[Profile]:
        """Create or change the profile of the token's subject, all of it."""
        held = condition(if_match, if_none_match)
        new = parse_profile(request.headers.get("content-type", ""), await request.body())
        profile = await profiles.put(caller.subject, new, held)
        return Response(profile, status_code=201 if held.absent else 200, headers={"ETag": profile.etag, **_NO_STORE})

    @delete(
        access=Access.CUSTOMER,
        security=BEARER,
        operation_id="EraseProfile",
        responses=problems(s401=_UNKNOWN_CALLER, s403=_NO_CUSTOMER, s503=_AWAY_FOR_CHANGES),
    )
    async def erase_profile(self, caller: NamedDependency[Caller], profiles: NamedDependency[Profiles]) -> None:
        """Erase the profile of the token's subject. It may be sent again."""
        await profiles.erase(caller.subject)


class CustomerController(Controller):
    """Customers, for operators."""

    path = "/v1/customers"
    tags = ["Customers"]

    @get(
        "/{customer_id:str}/profile",
        access=Access.OPERATOR,
        security=BEARER,
        operation_id="GetProfileOfCustomer",
        responses=problems(
            s400="No customer can have this identifier.",
            s401=_UNKNOWN_CALLER,
            s403="The token does not give the role operator.",
            s404="The customer has no profile.",
            s503=_AWAY,
        ),
    )
    async def get_profile_of_customer(
        self, caller: NamedDependency[Caller], profiles: NamedDependency[Profiles], customer_id: FromPath[str]
    ) -> Response[Profile]:
        """Return a customer's profile. Who read whose is in the log."""
        profile = await profiles.of(customer_id, caller.subject)
        return Response(profile, headers={"ETag": profile.etag, **_NO_STORE})
