"""The four tiers of tests: what each runs, two at a time where that is safe, and the summary at the end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import yaml

from freehold import playbooks, prerequisites, secrets
from freehold.lab import Lab, lab_name
from freehold.progress import CommandError, Phase, console, phase

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
LOGS = BUILD / "log"
COMPLAINT = 300  # characters of what a test that failed says
LAB_INVENTORY = "lab"


@dataclass
class Result:
    """What a tier, or a part of one, came to."""

    passed: int = 0
    failed: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    complaints: list[tuple[str, str]] = field(default_factory=list)  # of tests that failed

    def __iadd__(self, other: Result) -> Self:
        """Add the counts of another result."""
        self.passed, self.failed = self.passed + other.passed, self.failed + other.failed
        self.skipped += other.skipped
        self.complaints += other.complaints
        return self


@dataclass
class Check:
    """One command of a tier. A pytest run counts its tests, anything else one. A patient one lets others of its session go first."""

    name: str
    command: list[str]
    env: dict[str, str] | None = None
    is_pytest: bool = False
    cwd: str = "."
    is_patient: bool = False

    def run(self, current: Phase) -> Result:
        """Run it, and print the end of its output where it fails."""
        log = LOGS / f"{self.name.replace(' ', '-').replace('/', '-')}.log"
        report = log.with_suffix(".xml")
        report.unlink(missing_ok=True)
        command = [*self.command, f"--junitxml={report}"] if self.is_pytest else self.command
        command = ["nice", "-n", "19", *command] if self.is_patient else command
        failed = ""
        try:
            current.run(command, log, env=self.env, cwd=ROOT / self.cwd)
        except CommandError as error:
            failed = _cause(log.read_text(errors="replace")) or "It said nothing."
            console.print(f"--- {self.name}\n{error}", markup=False)
        current.step(self.name)
        if self.is_pytest and report.exists():
            return _read_junit(report, bool(failed))
        return Result(failed=1, complaints=[(self.name, failed)]) if failed else Result(passed=1)


def pytest(name: str, paths: Iterable[str], env: dict[str, str] | None = None) -> Check:
    """Return a check that runs pytest over some paths."""
    return Check(name, ["pytest", "--quiet", "-p", "no:cacheprovider", *paths], env, is_pytest=True)


def _cause(output: str) -> str:
    """Return what says why a command failed: of a playbook the task that did first, of anything else its last words."""
    fatal = output.find("\nfatal: ")
    return output[output.rfind("\nTASK [", 0, fatal) :] if fatal >= 0 else output[-COMPLAINT:]


def _read_junit(report: Path, failed: bool) -> Result:
    result = Result()
    for case in ET.parse(report).iter("testcase"):  # noqa: S314  (pytest has just written it)
        name = f"{case.get('classname')}.{case.get('name')}"
        complaint = next((found for found in map(case.find, ("failure", "error")) if found is not None), None)
        skip = case.find("skipped")
        if skip is not None:
            result.skipped.append((name, skip.get("message", "")))
        elif complaint is not None:
            result.failed += 1
            result.complaints.append((name, complaint.get("message", "")))
        else:
            result.passed += 1
    if failed and not result.failed:
        result.failed = 1
        result.complaints.append((report.stem, "pytest failed, and none of its tests did"))
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
    """Test what needs no host: linters, types, specs, playbook syntax, inventories, documents."""
    prerequisites.ensure(prerequisites.LINT, current, LOGS / "prerequisites.log")
    promtool = str(prerequisites.unpack("promtool", current, LOGS / "prerequisites.log"))
    python = tracked("*.py")
    shell = [
        name
        for name in tracked()
        if name.endswith(".sh") or (ROOT / name).open("rb").read(64).startswith((b"#!/bin/sh", b"#!/usr/bin/env bash"))
    ]
    suites = [
        path
        for path in ("tests/lint", "tests/inventory", "tests/vagrant", "tests/docs")
        if tracked(f"{path}/test_*.py")
    ]
    checks = [
        Check("ansible-lint", ["ansible-lint", "--offline", "--nocolor"]),
        Check("mypy", ["mypy", *python]),
        Check("ruff check", ["ruff", "check", *python]),
        Check("ruff format", ["ruff", "format", "--check", *python]),
        Check("yamllint", ["yamllint", "--strict", *tracked("*.yml", "*.yaml", ".yamllint", ".ansible-lint")]),
        Check("shellcheck", ["shellcheck", "--external-sources", *shell]),
    ]
    checks += [
        Check("alert rules", [promtool, "check", "rules", *tracked("roles/prometheus/files/rules/*.yml")]),
        Check("alert tests", [promtool, "test", "rules", *tracked("tests/alerts/*.yml")]),
    ]
    checks += [
        Check(f"syntax {name}", ["ansible-playbook", "--syntax-check", name])
        for name in tracked("ansible/*.yml")
        if "/" not in name.removeprefix("ansible/")
    ]
    if suites:
        checks.append(pytest("pytest lint", suites))
    return run_checks([replace(check, is_patient=True) for check in checks], current)


def app(current: Phase) -> Result:
    """Test the order service on its own Python beside real servers, in two containers of the lab's base image.

    Half of the tests each: they wait more than they work.
    """
    if not tracked("app/tests/**/test_*.py", "app/tests/test_*.py"):
        return Result()
    with lab("app", current) as env:
        halves = [
            Check(f"app {half}", ["app/tests/run", "--quiet", f"--half={half}"], env, is_pytest=True) for half in (1, 2)
        ]
        return run_checks(halves, current)


def roles(current: Phase, only: str = "") -> Result:
    """Run Molecule, one scenario a role, on one lab that all share; two at a time where they touch different hosts.

    That a second run changes nothing, each shows where it is asked for alone or all that there is; else the tier `system` shows it of all.
    """
    names = [Path(path).parts[1] for path in tracked("roles/*/molecule/default/verify.yml")]
    names = [name for name in sorted(names, key=_place_in_site) if name == only or not only]
    if not names:
        if only:
            raise ValueError(f"ROLE={only}: roles/{only}/molecule/default/verify.yml does not exist")
        return Result()
    with lab("roles", current) as env:
        fetch = [sys.executable, "-m", "freehold.artifacts", str(_lab(env).state / "artifacts")]
        current.run(fetch, LOGS / "roles-artifacts.log", env=env, cwd=ROOT)
        for playbook in ("image", "lab"):
            playbooks.run(playbook, LAB_INVENTORY, current, LOGS / f"roles-{playbook}.log", env=env)
        secrets.generate(_lab(env).state / "secrets.yml")
        image = [sys.executable, "-m", "freehold.app_image", "build"]
        current.run(image, LOGS / "roles-service-image.log", env=env, cwd=ROOT)
        groups = next(iter(playbooks.variables(LAB_INVENTORY, "edge", "groups").values()))["groups"]
        current.done, current.total = 0, len(names)
        again = only or os.environ.get("FREEHOLD_FULL")
        changes = {} if again else {"FREEHOLD_SEQUENCE": "[prepare, check, converge, verify]"}
        return _run_apart([_scenario(name, env | changes, groups) for name in names], current)


def _place_in_site(role: str) -> tuple[int, str]:
    order = re.findall(r"role: (\w+)", (ROOT / "ansible/site.yml").read_text())
    return (order.index(role) if role in order else -1, role)


def _scenario(role: str, env: dict[str, str], groups: dict[str, list[str]]) -> tuple[Check, set[str]]:
    """Return a role's scenario and the hosts that it works on."""
    kept = _lab(env).state / "molecule" / role
    if kept.exists():  # of a lab that was kept: it says that all is prepared
        shutil.rmtree(kept)
    folder = ROOT / f"roles/{role}/molecule/default"
    files = [file for name in ("prepare", "converge") if (file := folder / f"{name}.yml").exists()]
    plays = [play for file in files for play in yaml.safe_load(file.read_text())]
    patterns = {pattern for play in plays for pattern in re.split(r"[,:]", str(play.get("hosts", "all")))}
    hosts = {host for pattern in patterns for host in groups.get(pattern, [pattern])}
    changes = {
        "FREEHOLD_ROLE": role,
        "MOLECULE_EPHEMERAL_DIRECTORY": str(kept),
        "NO_COLOR": "1",
        "COLUMNS": "160",
    }
    return Check(f"role {role}", ["molecule", "test", "--no-command-borders"], {**env, **changes}, cwd="tests"), hosts


def _run_apart(checks: list[tuple[Check, set[str]]], current: Phase, at_once: int = 2) -> Result:
    """Run checks in their order, some at a time, never two that share a host."""
    total, waiting, under_way = Result(), list(checks), dict[Future[Result], set[str]]()
    with ThreadPoolExecutor(at_once) as pool:
        while waiting or under_way:
            busy = set().union(*under_way.values())
            free = next((item for item in waiting if not item[1] & busy), None)
            if free and len(under_way) < at_once:
                waiting.remove(free)
                under_way[pool.submit(free[0].run, current)] = free[1]
                continue
            for ended in wait(under_way, return_when=FIRST_COMPLETED).done:
                del under_way[ended]
                total += ended.result()
    return total


def system(current: Phase) -> Result:
    """Build the whole lab from nothing, then test what only a whole system can show."""
    wanted = ["tests/fleet", "tests/smoke", "tests/system", "tests/chaos", "tests/drills"]
    suites = [path for path in wanted if tracked(f"{path}/test_*")]
    if not suites:
        return Result()
    with lab("test", current) as env:
        total = run_checks([Check("up", [sys.executable, "-m", "freehold", "up"], env)], current)
        if not total.failed:
            total += run_checks([pytest("pytest system", suites, env)], current)
        return total


def vm(current: Phase) -> Result:
    """Test the edge's roles on a machine with a kernel of its own, whose processors are emulated: it takes nine minutes."""
    prerequisites.ensure(prerequisites.VM, current, LOGS / "prerequisites.log")
    return run_checks([pytest("pytest vm", ["tests/vm"])], current)


# What `make test` runs.
TIERS: dict[str, Callable[[Phase], Result]] = {"lint": lint, "app": app, "roles": roles, "system": system}
# What is run only where it is named.
SLOW: dict[str, Callable[[Phase], Result]] = {"vm": vm}


@contextmanager
def lab(suffix: str, current: Phase) -> Iterator[dict[str, str]]:
    """Give an environment that names a lab of its own, and take that lab away afterwards, come what may.

    FREEHOLD_KEEP=1 keeps it, to look at what failed. Its logs are kept in build/log in any case.
    """
    prerequisites.ensure(prerequisites.LAB, current, LOGS / "prerequisites.log")
    name = f"{lab_name()[:24]}-{suffix}"
    env = {**os.environ, "FREEHOLD_LAB": name, "FREEHOLD_ROOT": str(ROOT), "FREEHOLD_INVENTORY": LAB_INVENTORY}
    ours = Lab(name)
    try:
        yield env
    finally:
        if (ours.state / "log").exists():
            shutil.copytree(ours.state / "log", LOGS / name, dirs_exist_ok=True)
        if not os.environ.get("FREEHOLD_KEEP"):
            ours.destroy()


def _lab(env: dict[str, str]) -> Lab:
    return Lab(env["FREEHOLD_LAB"])


def _tier(name: str, role: str) -> tuple[Result, str]:
    """Run a tier, and return what it came to and its line of the summary."""
    started = time.monotonic()
    result = Result()
    try:
        with phase(f"test-{name}") as current:
            result = partial(roles, only=role)(current) if name == "roles" else (TIERS | SLOW)[name](current)
    except Exception as error:  # noqa: BLE001  (a tier that breaks is a failure; the next ones still run)
        console.print(f"--- test-{name}: {type(error).__name__}: {error}", markup=False)
        result += Result(failed=1, complaints=[(f"test-{name}", str(error))])
    counts = f"{result.passed} passed, {result.failed} failed, {len(result.skipped)} skipped"
    return result, f"test-{name:<8} {counts:<40} {time.monotonic() - started:6.0f} s"


def _together(names: list[str]) -> list[list[str]]:
    """Return which tiers run beside one another, in their order; the first of each takes its lab away when it is interrupted."""
    if console.is_terminal or not {"app", "lint"} <= set(names):
        return [[name] for name in names]
    return [["app", "lint"], *([name] for name in names if name not in {"app", "lint"})]


def run(names: Iterable[str], role: str = "") -> bool:
    """Run tiers, of the roles' one only the named role where one is named, print the summary, and return whether nothing failed.

    Linters work while the order service is tested, which waits for almost half of the time, and let all others go first. On a terminal,
    which shows one tier at a time, each comes alone.
    """
    total = Result()
    lines = []
    for main, *others in _together(list(names)):
        with ThreadPoolExecutor(1) as pool:
            beside = [pool.submit(_tier, name, role) for name in others]
            for result, line in (_tier(main, role), *(one.result() for one in beside)):
                total += result
                lines.append(line)
    console.print("\n".join(["", *lines]), markup=False)
    for name, reason in total.skipped:
        console.print(f"skipped: {name}: {reason}", markup=False)
    # The last that is printed, and each in a line: of a long output people are shown the end.
    for name, complaint in total.complaints:
        console.print(f"failed: {name}: {' '.join(complaint.split())[:COMPLAINT]}", markup=False, soft_wrap=True)
    console.print(f"{total.passed} passed, {total.failed} failed, {len(total.skipped)} skipped", markup=False)
    return not total.failed
