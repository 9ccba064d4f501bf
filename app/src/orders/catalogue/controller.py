"""HTTP interface of the catalogue: it parses, asks, and answers; it decides nothing else."""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, get, patch, put
from litestar.di import NamedDependency
from litestar.enums import HttpMethod
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    Example,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
)
from litestar.params import FromPath, HeaderParameter, QueryParameter

from orders.access.guards import BEARER
from orders.access.schemas import Access, Caller
from orders.answers import Frequent, Ready
from orders.bodies import parse
from orders.catalogue.cache import Entry
from orders.catalogue.schemas import (
    AFTER_PATTERN,
    CURRENCY_PATTERN,
    MOST_CENTS,
    MOST_DESCRIPTION,
    MOST_NAME,
    MOST_SEARCH,
    MOST_STOCK,
    NAME_PATTERN,
    TEXT_PATTERN,
    Availability,
    Choice,
    Listed,
    NewProduct,
    Price,
    Product,
    Record,
    Stock,
    StockChange,
)
from orders.catalogue.service import Catalogue
from orders.problems import problems
from orders.tags import condition, matches

_UNKNOWN_CALLER = "There is no access token, or it does not count."
_NO_OPERATOR = "The token does not give the role operator."
_MALFORMED = "The request is malformed."
_NO_PRODUCT = "No product on sale has this SKU."
_AWAY = "The database does not answer, and nothing is known from before."
_AWAY_FOR_CHANGES = (
    "The identity provider's keys are not known yet, or the primary does not answer: ask whether the change was made."
)
_NO_STORE = {"Cache-Control": "no-store"}
_UNCHANGED = {304: ResponseSpec(None, description="What the client has, by its If-None-Match, is as it was.")}
_MOST_VERSION = 2**53 - 1  # what JSON's numbers hold exactly

_NEW_PRODUCT = msgspec.json.Decoder(NewProduct)
_STOCK = msgspec.json.Decoder(Stock)
_STOCK_CHANGE = msgspec.json.Decoder(StockChange)


# The handlers read If-None-Match and decode bodies by themselves, so the document is told of them here.
@dataclass
class ConditionalOperation(Operation):
    """An operation that knows If-None-Match."""

    def __post_init__(self) -> None:
        """Describe the header."""
        header = Parameter(
            name="If-None-Match",
            param_in="header",
            description="The `ETag` of what the client has.",
            required=False,
            schema=Schema(type=OpenAPIType.STRING, examples=['"1.7"']),
        )
        self.parameters = [*(self.parameters or []), header]


def _body(example: dict[str, object], **properties: Schema | Reference) -> RequestBody:
    schema = Schema(
        type=OpenAPIType.OBJECT,
        properties=properties,
        required=[*properties],
        additional_properties=False,
        examples=[example],
    )
    return RequestBody({"application/json": OpenAPIMediaType(schema)}, required=True)


@dataclass
class NewProductOperation(Operation):
    """An operation with the body of a product."""

    def __post_init__(self) -> None:
        """Describe the body."""
        self.request_body = _body(
            {
                "name": "Desk lamp",
                "description": "Bends wherever the light is wanted.",
                "price_cents": 3900,
                "currency": "EUR",
                "active": True,
            },
            name=Schema(type=OpenAPIType.STRING, pattern=NAME_PATTERN, max_length=MOST_NAME),
            description=Schema(type=OpenAPIType.STRING, pattern=TEXT_PATTERN, max_length=MOST_DESCRIPTION),
            price_cents=Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=MOST_CENTS),
            currency=Schema(type=OpenAPIType.STRING, pattern=CURRENCY_PATTERN),
            active=Schema(type=OpenAPIType.BOOLEAN, description="Whether it is on sale."),
        )


@dataclass
class StockOperation(Operation):
    """An operation with the body of a stock."""

    def __post_init__(self) -> None:
        """Describe the body."""
        quantity = Schema(type=OpenAPIType.INTEGER, minimum=0, maximum=MOST_STOCK)
        self.request_body = _body({"quantity": 40}, quantity=quantity)


@dataclass
class StockChangeOperation(Operation):
    """An operation with the body of a change of a stock."""

    def __post_init__(self) -> None:
        """Describe the body."""
        change = Schema(type=OpenAPIType.INTEGER, minimum=-MOST_STOCK, maximum=MOST_STOCK)
        self.request_body = _body({"change": -2}, change=change)


def _answer(request: Request[Any, Any, Any], entry: Entry) -> Ready[Any]:
    for name, value in request.scope["headers"]:
        if name == b"if-none-match" and matches(value, entry.etag):
            return entry.unchanged
    return entry.full


class CatalogueController(Controller):
    """Products: looked up by anybody, kept by operators."""

    path = "/v1/products"
    tags = ["Catalogue"]

    @Frequent(
        http_method=HttpMethod.GET,
        access=Access.PUBLIC,
        operation_id="ListProducts",
        operation_class=ConditionalOperation,
        responses=_UNCHANGED | problems(s400="A parameter is out of range; `errors` names it.", s503=_AWAY),
    )
    async def list_products(
        self,
        *,
        request: Request[Any, Any, Any],
        catalogue: NamedDependency[Catalogue],
        after: Annotated[
            str,
            QueryParameter(pattern=AFTER_PATTERN, description="SKU of the last product already seen."),
        ] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        q: Annotated[
            str | None,
            QueryParameter(
                pattern=TEXT_PATTERN,
                max_length=MOST_SEARCH,
                description="Words; each is to begin one of the product's name or description.",
                examples=[Example(value="desk la")],
            ),
        ] = None,
        currency: Annotated[
            str | None, QueryParameter(pattern=CURRENCY_PATTERN, examples=[Example(value="EUR")])
        ] = None,
        min_price_cents: Annotated[int | None, QueryParameter(ge=1, le=MOST_CENTS)] = None,
        max_price_cents: Annotated[int | None, QueryParameter(ge=1, le=MOST_CENTS)] = None,
        in_stock: Annotated[
            bool | None, QueryParameter(description="Only what is in stock, or only what is not.")
        ] = None,
    ) -> Ready[list[Listed]]:
        """List the products on sale that all of the parameters fit, in SKU order."""
        choice = Choice(q, currency, min_price_cents, max_price_cents, in_stock)
        return _answer(request, await catalogue.page(choice, after=after, limit=limit))

    @Frequent(
        "/{sku:str}",
        http_method=HttpMethod.GET,
        access=Access.PUBLIC,
        operation_id="GetProduct",
        operation_class=ConditionalOperation,
        responses=_UNCHANGED | problems(s400=_MALFORMED, s404=_NO_PRODUCT, s503=_AWAY),
    )
    async def get_product(
        self, request: Request[Any, Any, Any], catalogue: NamedDependency[Catalogue], sku: FromPath[str]
    ) -> Ready[Product]:
        """Return one product on sale. Its stock is apart from it, since that changes with every order."""
        return _answer(request, await catalogue.product(sku))

    @Frequent(
        "/{sku:str}/prices",
        http_method=HttpMethod.GET,
        access=Access.PUBLIC,
        operation_id="ListPrices",
        operation_class=ConditionalOperation,
        responses=_UNCHANGED
        | problems(s400="A parameter is out of range; `errors` names it.", s404=_NO_PRODUCT, s503=_AWAY),
    )
    async def list_prices(
        self,
        request: Request[Any, Any, Any],
        catalogue: NamedDependency[Catalogue],
        sku: FromPath[str],
        before: Annotated[
            int, QueryParameter(ge=1, le=_MOST_VERSION, description="Version of the last price already seen.")
        ] = _MOST_VERSION,
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> Ready[list[Price]]:
        """List what a product cost and costs, the newest price first."""
        return _answer(request, await catalogue.prices(sku, before=before, limit=limit))

    @Frequent(
        "/{sku:str}/stock",
        http_method=HttpMethod.GET,
        access=Access.PUBLIC,
        operation_id="GetAvailability",
        operation_class=ConditionalOperation,
        responses=_UNCHANGED | problems(s400=_MALFORMED, s404=_NO_PRODUCT, s503=_AWAY),
    )
    async def get_availability(
        self, request: Request[Any, Any, Any], catalogue: NamedDependency[Catalogue], sku: FromPath[str]
    ) -> Ready[Availability]:
        """Return whether there is any of a product."""
        return _answer(request, await catalogue.availability(sku))

    @get(
        "/{sku:str}/record",
        access=Access.OPERATOR,
        security=BEARER,
        operation_id="GetRecord",
        responses=problems(
            s400="No product can have this SKU.",
            s401=_UNKNOWN_CALLER,
            s403=_NO_OPERATOR,
            s404="No product has this SKU.",
            s503="The identity provider's keys are not known yet, or the primary does not answer.",
        ),
    )
    async def get_record(self, catalogue: NamedDependency[Catalogue], sku: FromPath[str]) -> Response[Record]:
        """Return all that is known of a product now, on sale or not, with its quantity and its tag for If-Match."""
        return Response(await catalogue.record(sku), headers=_NO_STORE)

    @put(
        "/{sku:str}",
        access=Access.OPERATOR,
        security=BEARER,
        operation_id="PutProduct",
        operation_class=NewProductOperation,
        responses={201: ResponseSpec(Record, description="The product was created.", generate_examples=False)}
        | problems(
            s400="The SKU, a field or a header is malformed or missing; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403=_NO_OPERATOR,
            s412="The product has another tag, is not there, or, where it is to be created, is there.",
            s413="The body is too large.",
            s415="The body is not application/json.",
            s428="There is neither If-Match nor If-None-Match.",
            s503=_AWAY_FOR_CHANGES,
        ),
    )
    async def put_product(
        self,
        *,
        request: Request[Caller, Any, Any],
        caller: NamedDependency[Caller],
        catalogue: NamedDependency[Catalogue],
        sku: FromPath[str],
        if_match: Annotated[
            str | None,
            HeaderParameter(
                name="If-Match",
                description="To change a product: its `ETag`, or * whichever it has.",
                examples=[Example(value='"1.7"')],
            ),
        ] = None,
        if_none_match: Annotated[
            str | None,
            HeaderParameter(name="If-None-Match", description="To create a product: *", examples=[Example(value="*")]),
        ] = None,
    ) -> Response[Record]:
        """Create or change a product, all of it. It is seen everywhere within two seconds, and its former price is kept."""
        held = condition(if_match, if_none_match)
        new = parse(_NEW_PRODUCT, request.headers.get("content-type", ""), await request.body())
        record = await catalogue.put(sku, new, held, caller.subject)
        headers = {"ETag": record.etag, **_NO_STORE}
        if held.absent:
            headers["Location"] = f"/v1/products/{sku}"
        return Response(record, status_code=201 if held.absent else 200, headers=headers)

    @put(
        "/{sku:str}/stock",
        access=Access.OPERATOR,
        security=BEARER,
        operation_id="PutStock",
        operation_class=StockOperation,
        responses=problems(
            s400="The SKU or a field is malformed or missing; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403=_NO_OPERATOR,
            s404="No product has this SKU.",
            s413="The body is too large.",
            s415="The body is not application/json.",
            s503=_AWAY_FOR_CHANGES,
        ),
    )
    async def put_stock(
        self,
        request: Request[Caller, Any, Any],
        caller: NamedDependency[Caller],
        catalogue: NamedDependency[Catalogue],
        sku: FromPath[str],
    ) -> Response[Stock]:
        """Set how many pieces of a product there are, as they were counted."""
        stock = parse(_STOCK, request.headers.get("content-type", ""), await request.body())
        return Response(await catalogue.set_stock(sku, stock.quantity, caller.subject), headers=_NO_STORE)

    @patch(
        "/{sku:str}/stock",
        access=Access.OPERATOR,
        security=BEARER,
        operation_id="ChangeStock",
        operation_class=StockChangeOperation,
        responses=problems(
            s400="The SKU or a field is malformed or missing; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403=_NO_OPERATOR,
            s404="No product has this SKU.",
            s409="There are not so many pieces to be taken away, or there would be more than can be kept.",
            s413="The body is too large.",
            s415="The body is not application/json.",
            s503=_AWAY_FOR_CHANGES,
        ),
    )
    async def change_stock(
        self,
        request: Request[Caller, Any, Any],
        caller: NamedDependency[Caller],
        catalogue: NamedDependency[Catalogue],
        sku: FromPath[str],
    ) -> Response[Stock]:
        """Add pieces to the stock, or take them away, however many are sold meanwhile. Sent twice, it counts twice."""
        change = parse(_STOCK_CHANGE, request.headers.get("content-type", ""), await request.body()).change
        return Response(await catalogue.change_stock(sku, change, caller.subject), headers=_NO_STORE)
