"""Profiles of customers: sealed on their way to the database, and opened for whoever may read them."""

import re

import msgspec

from orders.customers.repository import CustomerRepository, Sealed, Stored, places
from orders.customers.schemas import CUSTOMER_PATTERN, Address, NewProfile, Profile
from orders.database import Database
from orders.errors import BadRequestError, NotFoundError, OutdatedError
from orders.logs import AUDIT
from orders.sealing import Sealer
from orders.tags import Condition, tag

_CUSTOMER = re.compile(CUSTOMER_PATTERN)
_ENCODER = msgspec.json.Encoder()
_ADDRESS = msgspec.json.Decoder(Address)


async def seal(sealer: Sealer, new: dict[str, NewProfile]) -> dict[str, Sealed]:
    """Return profiles as they are stored, by customer."""
    fields = {}
    for customer_id, profile in new.items():
        name, address = places(customer_id)
        fields[name], fields[address] = profile.name.encode(), _ENCODER.encode(profile.address)
    sealed = await sealer.seal(fields)
    return {customer_id: Sealed(*(sealed[place] for place in places(customer_id))) for customer_id in new}


class Profiles:
    """Reads profiles and changes them. They are in the database and nowhere else: in no cache, no log, not in Valkey."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def own(self, customer_id: str) -> Profile:
        """Return a customer's own profile, as it is now.

        Raises:
            NotFoundError: there is none.
            SealingError: it cannot be opened.
        """
        stored = await self._read(customer_id)
        if stored is None:
            raise NotFoundError("There is no profile.")
        return await self._open(customer_id, stored)

    async def of(self, customer_id: str, operator: str) -> Profile:
        """Return anybody's profile to an operator, and note that in the log.

        Raises:
            BadRequestError: no customer can have this identifier.
            NotFoundError: the customer has no profile.
            SealingError: it cannot be opened.
        """
        if not _CUSTOMER.match(customer_id):
            raise BadRequestError("customer_id", "is not 1 to 64 of A-Z, a-z, 0-9, ., _ and -")
        stored = await self._read(customer_id)
        # Before it is answered, and also where there is none: that too is something to know of somebody.
        AUDIT.info(
            "operator %s reads the profile of customer %s%s", operator, customer_id, "" if stored else ", who has none"
        )
        if stored is None:
            raise NotFoundError(f"No profile is there of the customer {customer_id!r}.")
        return await self._open(customer_id, stored)

    async def put(self, customer_id: str, new: NewProfile, condition: Condition) -> Profile:
        """Create or change a profile and return it.

        Raises:
            OutdatedError: the condition does not hold.
        """
        sealed = (await seal(self._sealer, {customer_id: new}))[customer_id]
        if condition.absent:
            stored = await self._database.write(
                lambda connection: CustomerRepository(connection).create(customer_id, sealed)
            )
            otherwise = "There is a profile."
        else:
            stored = await self._database.write(
                lambda connection: CustomerRepository(connection).change(customer_id, sealed, condition.versions)
            )
            otherwise = "The profile has another tag, or is not there."
        if stored is None:
            raise OutdatedError(otherwise)
        return Profile(new.name, new.address, stored.changed_at, tag(stored.version))

    async def erase(self, customer_id: str) -> None:
        """Have no profile of a customer, whether there was one or not."""
        await self._database.write(lambda connection: CustomerRepository(connection).erase(customer_id))

    async def _read(self, customer_id: str) -> Stored | None:
        # Of the primary: whoever changed it wants to see that, and nobody wants to see what was erased.
        return await self._database.read(
            lambda connection: CustomerRepository(connection).get(customer_id), newest=True
        )

    async def _open(self, customer_id: str, stored: Stored) -> Profile:
        name, address = places(customer_id)
        opened = await self._sealer.open({name: stored.name, address: stored.address})
        return Profile(opened[name].decode(), _ADDRESS.decode(opened[address]), stored.changed_at, tag(stored.version))
