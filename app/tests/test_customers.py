"""Profiles of customers: theirs alone, sealed by keys that change, and readable nowhere but in the answer."""

import asyncio
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from orders.sealing import LocalSealer, Place, SealingError
from orders.seed import made_up
from orders.settings import Settings, SettingsError
from servers import POSTGRES_BIN
from service import FIELD_KEY, Api, Platform

NAME, STREET, CITY = "Zora Zetterqvist", "77 Rue Inoubliable", "Ouagadougou"
SECRET_WORDS = ("Zetterqvist", "Inoubliable", "Ouagadougou")
PORTS = itertools.count(8120)


def body(**address: object) -> dict[str, object]:
    """Return what a profile is to be."""
    known = {"lines": [STREET, "3rd floor"], "city": CITY, "postal_code": "01 BP 12", "country": "BF"}
    return {"name": NAME, "address": {**known, **address}}


class Customer:
    """One customer, by an instance of the service."""

    def __init__(self, api: Api, name: str) -> None:
        self.name = name
        self._client = api.client
        self._bearer = api.bearer(name)

    def put(self, content: object, **headers: str) -> httpx.Response:
        """Put the profile under a condition, if_match or if_none_match."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._client.put("/v1/me/profile", json=content, headers={**named, **self._bearer})

    def create(self) -> str:
        """Have a profile, and return its tag."""
        answer = self.put(body(), if_none_match="*")
        assert answer.status_code == 201, answer.text
        return answer.headers["etag"]

    def get(self) -> httpx.Response:
        """Ask for the profile."""
        return self._client.get("/v1/me/profile", headers=self._bearer)

    def erase(self) -> httpx.Response:
        """Have it erased."""
        return self._client.delete("/v1/me/profile", headers=self._bearer)


@pytest.fixture
def customer(api: Api, name: str) -> Customer:
    return Customer(api, name)


class Keys:
    """Folders of secrets with other field keys, and instances of the service that have them."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self._platform = platform
        self._folder = folder
        self._apis: list[Api] = []

    def serve(self, *keys: str) -> Api:
        """Have an instance that seals by the first key and opens by all."""
        port = next(PORTS)
        secrets = self._folder / str(port)
        shutil.copytree(self._platform.secrets, secrets)
        (secrets / "orders_field_key").write_text(keys[0])
        if keys[1:]:
            (secrets / "orders_field_keys_other").write_text("\n".join(keys[1:]))
        api = Api(self._platform, port, ORDERS_SECRETS_DIR=str(secrets))
        self._apis.append(api)
        api.wait_until_ready()
        return api

    def close(self) -> None:
        """End them."""
        for api in self._apis:
            api.stop()


@pytest.fixture
def keys(platform: Platform, tmp_path: Path) -> Iterator[Keys]:
    keys = Keys(platform, tmp_path)
    yield keys
    keys.close()


def test_a_profile_is_created_once_changed_by_its_tag_and_erased(customer: Customer) -> None:
    assert (customer.get().status_code, customer.put(body()).status_code) == (404, 428)
    assert customer.put(body(), if_match="*").status_code == 412
    created = customer.put(body(), if_none_match="*")
    first = created.headers["etag"]
    assert (created.status_code, created.headers["cache-control"]) == (201, "no-store")
    assert {**created.json(), "changed_at": ""} == {**body(), "changed_at": "", "etag": first}
    assert customer.put(body(), if_none_match="*").status_code == 412
    found = customer.get()
    assert (found.json(), found.headers["etag"]) == (created.json(), first)
    assert found.headers["cache-control"] == "no-store"
    changed = customer.put(body(postal_code="", country="IE"), if_match=first)
    second = changed.headers["etag"]
    assert (changed.status_code, changed.json()["address"]["country"], second == first) == (200, "IE", False)
    assert customer.put(body(), if_match=first).status_code == 412
    assert customer.get().json() == changed.json()
    assert [customer.erase().status_code for _ in range(2)] == [204, 204]
    assert customer.get().status_code == 404
    # A tag of what was erased never fits what was made anew.
    third = customer.create()
    assert third not in {first, second}
    assert {customer.put(body(), if_match=tag).status_code for tag in (first, second)} == {412}


def test_everybody_has_a_profile_of_their_own(api: Api, customer: Customer) -> None:
    other = Customer(api, f"{customer.name}-other")
    customer.create()
    assert other.get().status_code == 404
    assert other.erase().status_code == 204
    assert customer.get().json()["name"] == NAME


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"name": NAME}, "body"),
        ({**body(), "born": "1970-01-01"}, "body"),
        ({**body(), "name": " "}, "name"),
        ({**body(), "name": "a\nb"}, "name"),
        ({**body(), "name": "x" * 201}, "name"),
        (body(lines=[]), "address.lines"),
        (body(lines=[STREET] * 5), "address.lines"),
        (body(lines=["x" * 101]), "address.lines[0]"),
        (body(lines=["a\x00"]), "address.lines[0]"),
        (body(city=""), "address.city"),
        (body(postal_code="12345\n"), "address.postal_code"),
        (body(postal_code="1" * 17), "address.postal_code"),
        (body(country="de"), "address.country"),
        (body(country="XX"), "address.country"),
        (body(planet="Earth"), "address"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_kept(customer: Customer, content: object, field: str) -> None:
    answer = customer.put(content, if_none_match="*")
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert customer.get().status_code == 404


def test_an_operator_reads_a_profile_and_the_log_says_who_read_whose(api: Api, customer: Customer) -> None:
    customer.create()
    found = api.client.get(f"/v1/customers/{customer.name}/profile", headers={"X-Request-Id": f"read-{customer.name}"})
    assert (found.status_code, found.json(), found.headers["cache-control"]) == (200, customer.get().json(), "no-store")
    assert api.client.get(f"/v1/customers/{customer.name}-none/profile").status_code == 404
    assert api.client.get("/v1/customers/a%20b/profile").status_code == 400
    lines = [json.loads(line) for line in api.process.log.read_text().splitlines() if '"orders.audit"' in line]
    told = {line["message"]: line.get("request_id") for line in lines}
    assert told[f"operator staff reads the profile of customer {customer.name}"] == f"read-{customer.name}"
    assert f"operator staff reads the profile of customer {customer.name}-none, who has none" in told


def test_who_read_whose_is_told_whatever_the_log_level(platform: Platform, api: Api, customer: Customer) -> None:
    customer.create()
    quiet = Api(platform, next(PORTS), ORDERS_LOG_LEVEL="ERROR")
    try:
        quiet.wait_until_ready()
        assert quiet.client.get(f"/v1/customers/{customer.name}/profile").status_code == 200
        assert f"reads the profile of customer {customer.name}" in quiet.process.log.read_text()
    finally:
        quiet.stop()


def test_name_and_address_are_in_no_row_no_dump_no_log_and_not_in_valkey(
    platform: Platform, api: Api, customer: Customer, connection: psycopg.Connection
) -> None:
    tag = customer.create()
    for content in (body(), {**body(), "name": f"{NAME}\n"}, body(country="XX"), body(city=f"{CITY}\x00")):
        customer.put(content, if_match=tag)
    assert customer.get().status_code == 200
    assert api.client.get(f"/v1/customers/{customer.name}/profile").status_code == 200
    row = connection.execute("SELECT name, address FROM customer WHERE id = %s", (customer.name,)).fetchone()
    assert row is not None
    assert [field[:1] for field in row] == [b"\x01", b"\x01"]
    dump = subprocess.run(
        [str(POSTGRES_BIN / "pg_dump"), "-h", str(platform.postgres.folder), "-U", "postgres", "orders"],
        check=True,
        capture_output=True,
    ).stdout.decode()
    assert customer.name in dump
    logs = "".join(log.read_text(errors="replace") for log in platform.folder.rglob("*.log"))
    assert "reads the profile of customer" in logs
    kept = "\n".join(platform.valkey.keys("*"))
    for word in SECRET_WORDS:
        assert word not in dump
        assert word.encode().hex() not in dump  # as bytes are dumped
        assert word not in logs
    assert customer.name not in kept


def test_keys_change_without_a_row_being_written_again(
    api: Api, keys: Keys, name: str, connection: psycopg.Connection
) -> None:
    def row(customer: str) -> tuple[object, ...] | None:
        return connection.execute("SELECT * FROM customer WHERE id = %s", (customer,)).fetchone()

    second, third = "a second key, as long as it has to be", "and a third one, as long as it has to be"
    Customer(api, f"{name}-1").create()
    first_row = row(f"{name}-1")
    newer = keys.serve(second, FIELD_KEY)
    Customer(newer, f"{name}-2").create()
    newest = keys.serve(third, second, FIELD_KEY)
    Customer(newest, f"{name}-3").create()
    assert [Customer(newest, f"{name}-{n}").get().status_code for n in (1, 2, 3)] == [200, 200, 200]
    assert row(f"{name}-1") == first_row
    by_key = "SELECT encode(substring(name FROM 2 FOR 4), 'hex') AS key, count(*), max(changed_at) FROM customer GROUP BY key"
    assert len(connection.execute(by_key).fetchall()) >= 3
    # A change seals by the key of now, so that an old key is needed no more in the end.
    changed = Customer(newest, f"{name}-1")
    assert changed.put(body(), if_match="*").status_code == 200
    alone = keys.serve(third)
    assert [Customer(alone, f"{name}-{n}").get().status_code for n in (1, 2, 3)] == [200, 500, 200]


def test_a_key_that_is_not_there_is_named_in_the_log_and_the_service_goes_on(
    api: Api, keys: Keys, customer: Customer, connection: psycopg.Connection
) -> None:
    tag = customer.create()
    sealed = connection.execute("SELECT name FROM customer WHERE id = %s", (customer.name,)).fetchone()
    assert sealed is not None
    other = keys.serve("another key, as long as it has to be, or more")
    answer = Customer(other, customer.name).get()
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert set(answer.json()) == {"status", "title", "request_id", "trace_id"}
    log = other.process.log.read_text()
    assert f"customer.name of {customer.name} is sealed by the key {sealed[0][1:5].hex()}, which is not here" in log
    assert other.ready()
    # And the customer can say it anew.
    assert Customer(other, customer.name).put(body(), if_match=tag).status_code == 200
    assert Customer(other, customer.name).get().status_code == 200


@pytest.mark.parametrize(
    "damage",
    [
        "name = (SELECT name FROM customer WHERE id = %(other)s)",
        "name = address",
        "name = set_byte(name, octet_length(name) - 1, get_byte(name, octet_length(name) - 1) # 1)",
        "name = set_byte(name, 0, 2)",
        "name = substring(name FOR 34)",
    ],
)
def test_a_field_that_was_moved_or_changed_does_not_open(
    keys: Keys, name: str, connection: psycopg.Connection, damage: str
) -> None:
    api = keys.serve(FIELD_KEY)
    Customer(api, name).create()
    Customer(api, f"{name}-other").create()
    changed = f"UPDATE customer SET {damage} WHERE id = %(id)s"  # noqa: S608  (ours)
    connection.execute(changed, {"id": name, "other": f"{name}-other"})
    answer = Customer(api, name).get()
    assert (answer.status_code, answer.json()["title"]) == (500, "Internal Server Error")
    assert f"SealingError: customer.name of {name}" in api.process.log.read_text()
    assert Customer(api, f"{name}-other").get().status_code == 200


def test_no_two_seals_of_one_thing_are_alike_and_any_bit_counts() -> None:
    async def run() -> None:
        sealer, place = LocalSealer([FIELD_KEY.encode()]), Place("t", "c", "r")
        sealed = [(await sealer.seal({place: b"content"}))[place] for _ in range(2)]
        assert sealed[0] != sealed[1]
        assert await sealer.open({place: sealed[0]}) == {place: b"content"}
        for bit in range(8 * len(sealed[0])):
            damaged = bytearray(sealed[0])
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(SealingError):
                await sealer.open({place: bytes(damaged)})
        for length in range(len(sealed[0])):
            with pytest.raises(SealingError):
                await sealer.open({place: sealed[0][:length]})
        for other in (Place("x", "c", "r"), Place("t", "x", "r"), Place("t", "c", "x"), Place("t", "cr", "")):
            with pytest.raises(SealingError, match="sealed for another place"):
                await sealer.open({other: sealed[0]})

    asyncio.run(run())
    with pytest.raises(SettingsError, match="have the identifier"):
        LocalSealer([FIELD_KEY.encode()] * 2)


def test_the_service_may_keep_profiles_and_count_no_versions(platform: Platform, api: Api, name: str) -> None:
    Customer(api, name).create()
    conninfo = Settings.from_environment(platform.environment).conninfo(platform.postgres.url())
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
        for statement in (
            "UPDATE customer SET version = 1",
            "UPDATE customer SET id = 'another'",
            "INSERT INTO customer (id, version, name, address) VALUES ('x', 1, '', '')",
            "SELECT nextval('customer_version')",
            "TRUNCATE customer",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_seeding_makes_customers_whose_profiles_can_be_read(platform: Platform, api: Api) -> None:
    assert platform.finish("seed", "--customers", "1200") == (0, "made 1200 customers\n")
    assert platform.finish("seed", "--products", "3", "--customers", "1201") == (
        0,
        "made 0 products\nmade 1 customers\n",
    )
    for number in (1, 1000, 1001, 1201):
        found = Customer(api, f"c-{number:05}").get().json()
        assert found["name"] == made_up(number).name
        assert found["address"]["lines"] == [f"{number} Example Street"]
