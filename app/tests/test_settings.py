"""Settings and secrets are refused by name."""

from pathlib import Path

import pytest

from orders.settings import Settings, SettingsError
from service import Platform

GOOD = {"ORDERS_DATABASE_URL": "host=nowhere", "ORDERS_RABBITMQ_NODES": "10.0.0.1:5671"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ORDERS_DATABASE_URL": None}, "database_url"),
        ({"ORDERS_DATABSE_URL": "x"}, "databse_url"),
        ({"ORDERS_DATABASE_POOL_SIZE": "many"}, "database_pool_size"),
        ({"ORDERS_RABBITMQ_NODES": "10.0.0.1"}, "ORDERS_RABBITMQ_NODES: '10.0.0.1' is not host:port"),
        ({"ORDERS_RABBITMQ_NODES": ""}, "ORDERS_RABBITMQ_NODES is empty"),
        ({"ORDERS_VALKEY_CACHE_NODES": "a:b"}, "ORDERS_VALKEY_CACHE_NODES"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, str | None], named: str) -> None:
    environment = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(SettingsError, match=named):
        Settings.from_environment(environment)


def test_a_missing_empty_or_short_secret_is_named(tmp_path: Path) -> None:
    settings = Settings.from_environment({**GOOD, "ORDERS_SECRETS_DIR": str(tmp_path)})
    with pytest.raises(SettingsError, match="orders_hmac_key cannot be read"):
        settings.hmac_keys()
    (tmp_path / "orders_hmac_key").write_text("\n")
    with pytest.raises(SettingsError, match=r"orders_hmac_key in .* is empty"):
        settings.hmac_keys()
    (tmp_path / "orders_hmac_key").write_text("short")
    with pytest.raises(SettingsError, match="orders_hmac_key has 5 bytes"):
        settings.hmac_keys()


def test_the_commands_end_with_a_line_that_names_what_is_wrong(platform: Platform) -> None:
    status, output = platform.finish("serve", ORDERS_SECRETS_DIR="/nowhere")
    assert (status, output.count("\n")) == (2, 1)
    assert "orders_hmac_key" in output
