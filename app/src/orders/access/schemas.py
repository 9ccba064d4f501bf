"""What a route asks for, and what a token says."""

from collections.abc import Mapping
from enum import Flag, auto

import msgspec


class Access(Flag):
    """What a route asks for: nothing, or a token that gives one of the roles."""

    PUBLIC = auto()
    CUSTOMER = auto()
    OPERATOR = auto()


# By their names in the identity provider's realm. What else a realm has gives nothing here.
ROLES: Mapping[str, Access] = {"customer": Access.CUSTOMER, "operator": Access.OPERATOR}


class Caller(msgspec.Struct, frozen=True):
    """Whose request it is."""

    subject: str
    roles: Access
