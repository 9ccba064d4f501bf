"""The four tiers of tests: what each runs, two at a time where that is safe, and the summary at the end."""

from __future__ import annotations

import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from freehold import prerequisites
from freehold.progress import CommandError, Phase, console, phase

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
LOGS = BUILD / "log"


@dataclass
class Result:
    """What a tier, or a part of one, came to."""

    passed: int = 0
    failed: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __iadd__(self, other: Result) -> Self:
        """Add the counts of another result."""
        self.passed, self.failed = self.passed + other.passed, self.failed + other.failed
        self.skipped += other.skipped
        return self


@dataclass
class Check:
    """One command of a tier. A pytest run counts its tests, anything else counts one."""

    name: str
    command: list[str]
    env: dict[str, str] | None = None
    is_pytest: bool = False

    def run(self, current: Phase) -> Result:
        """Run it, and print the end of its output where it fails."""
        log = LOGS / f"{self.name.replace(' ', '-').replace('/', '-')}.log"
        report = log.with_suffix(".xml")
        report.unlink(missing_ok=True)
        command = [*self.command, f"--junitxml={report}"] if self.is_pytest else self.command
        try:
            current.run(command, log, env=self.env, cwd=ROOT)
            failed = False
        except CommandError as error:
            failed = True
            console.print(f"--- {self.name}\n{error}", markup=False)
        current.step(self.name)
        if self.is_pytest and report.exists():
            return _read_junit(report, failed)
        return Result(failed=1) if failed else Result(passed=1)


def pytest(name: str, paths: Iterable[str], env: dict[str, str] | None = None) -> Check:
    """Return a check that runs pytest over some paths."""
    return Check(name, ["pytest", "--quiet", "-p", "no:cacheprovider", *paths], env, is_pytest=True)


def _read_junit(report: Path, failed: bool) -> Result:
    result = Result()
    for case in ET.parse(report).iter("testcase"):  # noqa: S314  (pytest has just written it)
        skip = case.find("skipped")
        if skip is not None:
            result.skipped.append((f"{case.get('classname')}.{case.get('name')}", skip.get("message", "")))
        elif case.find("failure") is not None or case.find("error") is not None:
            result.failed += 1
        else:
            result.passed += 1
    if failed and not result.failed:
        result.failed = 1
    return result


def tracked(*patterns: str) -> list[str]:
    """Return the files that git knows, by pattern."""
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], capture_output=True, text=True, check=True, cwd=ROOT)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def run_checks(checks: list[Check], current: Phase, at_once: int = 2) -> Result:
    """Run checks, some at a time, and return their sum."""
    current.total = len(checks)
    total = Result()
    with ThreadPoolExecutor(at_once) as pool:
        for result in pool.map(lambda check: check.run(current), checks):
            total += result
    return total


def lint(current: Phase) -> Result:
    """Everything that needs no host: linters, types, specs, playbook syntax, inventories, documents."""
    prerequisites.ensure(prerequisites.LINT, current, LOGS / "prerequisites.log")
    python = tracked("*.py")
    shell = [
        name
        for name in tracked()
        if name.endswith(".sh") or (ROOT / name).open("rb").read(64).startswith((b"#!/bin/sh", b"#!/usr/bin/env bash"))
    ]
    suites = [path for path in ("tests/lint", "tests/inventory", "tests/docs") if tracked(f"{path}/test_*.py")]
    checks = [
        Check("ansible-lint", ["ansible-lint", "--offline", "--nocolor"]),
        Check("mypy", ["mypy", *python]),
        Check("ruff check", ["ruff", "check", *python]),
        Check("ruff format", ["ruff", "format", "--check", *python]),
        Check("yamllint", ["yamllint", "--strict", *tracked("*.yml", "*.yaml", ".yamllint", ".ansible-lint")]),
        Check("shellcheck", ["shellcheck", "--external-sources", *shell]),
    ]
    checks += [
        Check(f"syntax {name}", ["ansible-playbook", "--syntax-check", name])
        for name in tracked("ansible/*.yml")
        if "/" not in name.removeprefix("ansible/")
    ]
    if suites:
        checks.append(pytest("pytest lint", suites))
    return run_checks(checks, current)


TIERS: dict[str, Callable[[Phase], Result]] = {"lint": lint}


def run(names: Iterable[str]) -> bool:
    """Run tiers, print the summary, and return whether nothing failed."""
    total = Result()
    lines = []
    for name in names:
        started = time.monotonic()
        result = Result()
        try:
            with phase(f"test-{name}") as current:
                result = TIERS[name](current)
        except Exception as error:  # noqa: BLE001  (a tier that breaks is a failure; the next ones still run)
            console.print(f"--- test-{name}: {type(error).__name__}: {error}", markup=False)
            result.failed += 1
        counts = f"{result.passed} passed, {result.failed} failed, {len(result.skipped)} skipped"
        lines.append(f"test-{name:<8} {counts:<40} {time.monotonic() - started:6.0f} s")
        total += result
    console.print("\n".join(["", *lines]), markup=False)
    for name, reason in total.skipped:
        console.print(f"skipped: {name}: {reason}", markup=False)
    console.print(f"{total.passed} passed, {total.failed} failed, {len(total.skipped)} skipped", markup=False)
    return not total.failed
