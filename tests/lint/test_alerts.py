"""Each alert says what it saw and where to read on, and was seen to fire and not to fire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = sorted(ROOT.glob("roles/prometheus/files/rules/*.yml"))
RUNBOOKS = ROOT / "docs/runbooks"
SEVERITIES = {"critical", "warning"}
SECTIONS = ("## What it means", "## Look here", "## Do this")


def _alerts() -> dict[str, dict[str, Any]]:
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def _tests() -> list[dict[str, Any]]:
    files = sorted(ROOT.glob("tests/alerts/*.yml"))
    cases = [case for file in files for case in yaml.safe_load(file.read_text())["tests"]]
    return [test for case in cases for test in case["alert_rule_test"]]


ALERTS = _alerts()
TESTS = _tests()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_severity_and_a_summary_with_the_value(name: str) -> None:
    """The one that always fires is the only one without a severity that people hear of."""
    rule = ALERTS[name]
    allowed = {"none"} if name == "DeadMansSwitch" else SEVERITIES
    assert rule["labels"]["severity"] in allowed
    assert "$value" in rule["annotations"]["summary"]


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_leads_to_a_runbook(name: str) -> None:
    """The page names the alert, says what it means, where to look and what to do."""
    page = (ROOT / ALERTS[name]["annotations"]["runbook"]).read_text(encoding="utf-8")
    assert f"`{name}`" in page
    assert [section for section in SECTIONS if section not in page] == []


def test_no_runbook_is_left_of_an_alert_that_is_gone() -> None:
    """Each page is some alert's."""
    used = {rule["annotations"]["runbook"].rpartition("/")[2] for rule in ALERTS.values()}
    assert {path.name for path in RUNBOOKS.glob("*.md")} == used


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_was_seen_to_fire_and_not_to_fire(name: str) -> None:
    """What promtool tests (`make test-lint` runs it); the dead man's switch cannot be quiet."""
    outcomes = {bool(test["exp_alerts"]) for test in TESTS if test["alertname"] == name}
    assert outcomes == ({True} if name == "DeadMansSwitch" else {True, False})


def test_every_rule_file_is_rolled_out() -> None:
    """A file that the role does not name would be tested and never run."""
    named = yaml.safe_load((ROOT / "roles/prometheus/vars/main.yml").read_text())["__prometheus_rule_files"]
    assert sorted(named) == [path.stem for path in RULES]
