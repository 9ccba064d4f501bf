"""HTTP interface of the catalogue: it parses, asks, and answers; it decides nothing else."""

from typing import Annotated, Any

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from orders.access.schemas import Access
from orders.catalogue.schemas import Product
from orders.catalogue.service import Catalogue
from orders.errors import NotFoundError
from orders.problems import problems

_HEADERS = {"Cache-Control": "public, max-age=1"}


class CatalogueController(Controller):
    """Products on sale."""

    path = "/v1/products"
    tags = ["Catalogue"]

    @get(
        access=Access.PUBLIC,
        operation_id="ListProducts",
        responses=problems(
            s400="A parameter is out of range; `errors` names it.", s503="The database does not answer."
        ),
    )
    async def list_products(
        self,
        catalogue: NamedDependency[Catalogue],
        after: Annotated[
            str,
            QueryParameter(pattern=r"^[A-Z0-9-]{0,64}$(?!\n)", description="SKU of the last product already seen."),
        ] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> Response[list[Product]]:
        """List products in SKU order."""
        content: Any = await catalogue.page(after=after, limit=limit)
        return Response(content, media_type="application/json", headers=_HEADERS)

    @get(
        "/{sku:str}",
        access=Access.PUBLIC,
        operation_id="GetProduct",
        responses=problems(s404="No product has this SKU.", s503="The database does not answer."),
    )
    async def get_product(self, catalogue: NamedDependency[Catalogue], sku: FromPath[str]) -> Response[Product]:
        """Return one product.

        Raises:
            NotFoundError: no product has this SKU; the client gets 404.
        """
        content: Any = await catalogue.product(sku) if len(sku) <= 64 and "\0" not in sku else None
        if content is None:
            raise NotFoundError(f"No product has the SKU {sku[:64]!r}.")
        return Response(content, media_type="application/json", headers=_HEADERS)
