"""HTTP interface of the ledger."""

import re
from typing import Annotated

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.openapi.spec import Example
from litestar.params import FromPath, PathParameter, QueryParameter

from orders.access.guards import BEARER
from orders.access.schemas import Access, Caller
from orders.errors import BadRequestError, NotFoundError
from orders.ledger.schemas import ACCOUNT_PATTERN, CURSOR_PATTERN, Account, Statement
from orders.ledger.service import Ledger
from orders.problems import problems

_ACCOUNT = re.compile(ACCOUNT_PATTERN)
_NO_STORE = {"Cache-Control": "no-store"}
_ERRORS = problems(
    s400="The account or a parameter is malformed; `errors` names it.",
    s401="There is no access token, or it does not count.",
    s403="The token gives neither the role customer nor the role operator.",
    s404="There is no such account, or it is not the customer's own.",
    s503="The identity provider's keys are not known yet, or the database does not answer.",
)
Name = Annotated[
    FromPath[str],
    PathParameter(
        pattern=ACCOUNT_PATTERN,
        description="`me`, one's own; an operator may name any: `revenue`, or `customer:ID`.",
        examples=[Example(value="me")],
    ),
]


def _account(caller: Caller, name: str) -> str:
    own = f"customer:{caller.subject}"
    if name in {"me", own}:
        return own
    if not _ACCOUNT.match(name):
        raise BadRequestError("account", "is not me, revenue or customer:ID")
    if Access.OPERATOR not in caller.roles:
        raise NotFoundError(f"There is no account {name}.")
    return name


class LedgerController(Controller):
    """Accounts: what stands on them, and why."""

    path = "/v1/accounts"
    tags = ["Ledger"]

    @get(
        "/{account:str}",
        access=Access.CUSTOMER | Access.OPERATOR,
        security=BEARER,
        operation_id="GetAccount",
        responses=_ERRORS,
    )
    async def get_account(
        self, caller: NamedDependency[Caller], ledger: NamedDependency[Ledger], account: Name
    ) -> Response[Account]:
        """Return what stands on an account, in each currency."""
        return Response(await ledger.account(_account(caller, account)), headers=_NO_STORE)

    @get(
        "/{account:str}/statement",
        access=Access.CUSTOMER | Access.OPERATOR,
        security=BEARER,
        operation_id="GetStatement",
        responses=_ERRORS,
    )
    async def get_statement(
        self,
        caller: NamedDependency[Caller],
        ledger: NamedDependency[Ledger],
        account: Name,
        after: Annotated[
            str, QueryParameter(pattern=CURSOR_PATTERN, description="`next` of the page before; empty: the newest.")
        ] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> Response[Statement]:
        """List what was booked on an account, the newest first, each entry with the balance after it."""
        found = await ledger.statement(_account(caller, account), after=after, limit=limit)
        return Response(found, headers=_NO_STORE)
