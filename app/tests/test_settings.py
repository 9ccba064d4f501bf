"""Settings and secrets are refused by name."""

import re
from pathlib import Path

import pytest

from orders.asgi import create_app
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


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ORDERS_WEBHOOK_PORTS": ""}, "ORDERS_WEBHOOK_PORTS"),
        ({"ORDERS_WEBHOOK_PORTS": "443,https"}, "ORDERS_WEBHOOK_PORTS: '443,https' is not"),
        ({"ORDERS_WEBHOOK_PORTS": "443,65536"}, "ORDERS_WEBHOOK_PORTS"),
        ({"ORDERS_WEBHOOK_PORTS": "inf"}, "ORDERS_WEBHOOK_PORTS"),
        ({"ORDERS_WEBHOOK_NETWORKS": "10.0.0.1/8"}, "ORDERS_WEBHOOK_NETWORKS: '10.0.0.1/8' is no network"),
        ({"ORDERS_WEBHOOK_RETRY_SECONDS": "5,60"}, "ORDERS_WEBHOOK_RETRY_SECONDS: '5,60' is not 5 numbers"),
        ({"ORDERS_WEBHOOK_RETRY_SECONDS": "5,60,600,3600,nan"}, "ORDERS_WEBHOOK_RETRY_SECONDS"),
        ({"ORDERS_WEBHOOK_FAILURE_SECONDS": "0"}, "ORDERS_WEBHOOK_FAILURE_SECONDS is 0"),
    ],
)
def test_no_webhook_is_sent_by_settings_that_mean_nothing(change: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(named)):
        Settings.from_environment({**GOOD, **change}).webhooks()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ORDERS_OIDC_ISSUER": ""}, "ORDERS_OIDC_ISSUER is empty"),
        ({"ORDERS_OIDC_JWKS_URL": ""}, "ORDERS_OIDC_JWKS_URL is empty"),
        ({"ORDERS_OIDC_AUDIENCE": ""}, "ORDERS_OIDC_AUDIENCE is empty"),
        ({"ORDERS_OIDC_JWKS_URL": "identity:8080/certs"}, "ORDERS_OIDC_JWKS_URL: 'identity:8080/certs' is not http"),
        ({"ORDERS_OIDC_JWKS_URL": "http://"}, "ORDERS_OIDC_JWKS_URL: 'http://' is not http"),
        ({"ORDERS_OIDC_JWKS_URL": "http://[::1"}, "ORDERS_OIDC_JWKS_URL"),
        ({"ORDERS_OIDC_JWKS_URL": "http://identity:port/"}, "ORDERS_OIDC_JWKS_URL"),
    ],
)
def test_nothing_is_served_by_settings_that_check_no_tokens(
    platform: Platform, change: dict[str, str], named: str
) -> None:
    settings = Settings.from_environment({**platform.environment, **change})
    with pytest.raises(SettingsError, match=re.escape(named)):
        create_app(settings)


def test_only_serve_needs_to_know_whose_tokens_count(platform: Platform) -> None:
    unknown = {"ORDERS_OIDC_ISSUER": "", "ORDERS_OIDC_JWKS_URL": ""}
    assert platform.finish("migrate", **unknown) == (0, "")
    assert platform.finish("serve", **unknown) == (
        2,
        "orders: ORDERS_OIDC_ISSUER is empty; nothing is served unchecked.\n",
    )


def test_a_missing_empty_or_short_secret_is_named(tmp_path: Path) -> None:
    settings = Settings.from_environment({**GOOD, "ORDERS_SECRETS_DIR": str(tmp_path)})
    with pytest.raises(SettingsError, match="orders_hmac_key cannot be read"):
        settings.hmac_keys()
    (tmp_path / "orders_hmac_key").write_text("\n")
    with pytest.raises(SettingsError, match=r"orders_hmac_key in .* is empty"):
        settings.hmac_keys()
    (tmp_path / "orders_hmac_key").write_text("short")
    with pytest.raises(SettingsError, match="orders_hmac_key has a key of 5 bytes"):
        settings.hmac_keys()


def test_a_field_key_that_is_missing_short_or_twice_there_is_named(tmp_path: Path) -> None:
    settings = Settings.from_environment({**GOOD, "ORDERS_SECRETS_DIR": str(tmp_path)})
    with pytest.raises(SettingsError, match="orders_field_key cannot be read"):
        settings.field_keys()
    (tmp_path / "orders_field_key").write_text("k" * 31)
    with pytest.raises(SettingsError, match="orders_field_key has a key of 31 bytes"):
        settings.field_keys()
    (tmp_path / "orders_field_key").write_text("k" * 32)
    assert settings.field_keys() == (b"k" * 32,)
    (tmp_path / "orders_field_keys_other").write_text("\n")
    with pytest.raises(SettingsError, match=r"orders_field_keys_other in .* is empty"):
        settings.field_keys()
    (tmp_path / "orders_field_keys_other").write_text(f"{'l' * 32}\nshort\n")
    with pytest.raises(SettingsError, match="orders_field_keys_other has a key of 5 bytes"):
        settings.field_keys()
    (tmp_path / "orders_field_keys_other").write_text(f"{'l' * 32}\n\n  {'m' * 40}\n")
    assert settings.field_keys() == (b"k" * 32, b"l" * 32, b"m" * 40)
    (tmp_path / "orders_field_keys_other").write_text(f"{'l' * 32}\n{'k' * 32}\n")
    with pytest.raises(SettingsError, match="orders_field_key and orders_field_keys_other hold a key twice"):
        settings.field_keys()


def test_the_commands_end_with_a_line_that_names_what_is_wrong(platform: Platform) -> None:
    status, output = platform.finish("serve", ORDERS_SECRETS_DIR="/nowhere")
    assert (status, output.count("\n")) == (2, 1)
    assert "orders_hmac_key" in output
