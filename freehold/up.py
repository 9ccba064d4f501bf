"""`make up`: from whatever there is to a running system, one phase after the other.

Each phase looks first whether its work is done, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from freehold import playbooks, prerequisites, secrets
from freehold.lab import Lab, lab_name
from freehold.progress import Phase, console, phase

ROOT = Path(__file__).resolve().parent.parent
LAB_INVENTORY = "lab"
VAGRANT_INVENTORY = "vagrant"
ORDER_SERVICES = ("orders-api", "orders-worker")


@dataclass
class Run:
    """One run: what it works on, and what it tells afterwards."""

    inventory: str
    started: float
    lab: Lab = field(default_factory=lambda: Lab(lab_name()))
    from_cache: bool = True
    phases: list[dict[str, str | float]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    hosts: int = 0

    @property
    def is_lab(self) -> bool:
        """Return whether the hosts are ours to make; other inventories name hosts that exist."""
        return self.inventory == LAB_INVENTORY

    @property
    def is_made_here(self) -> bool:
        """Return whether secrets and images are made on this machine for this environment alone."""
        return secrets.file(self.inventory) is not None

    @cached_property
    def state(self) -> Path:
        """Return the folder of what this environment keeps on this machine.

        Raises InventoryError where the inventory names none.
        """
        if file := secrets.file(self.inventory):
            return file.parent
        found = next(iter(playbooks.variables(self.inventory, "all", "topology_state_dir").values()))
        if not found["topology_state_dir"]:
            raise playbooks.InventoryError(
                f"inventories/{self.inventory}: topology_state_dir names no folder. Set it in group_vars/all, as inventories/example does."
            )
        return Path(os.path.normpath(found["topology_state_dir"]))

    def log(self, name: str) -> Path:
        """Return where a phase's output goes."""
        return self.state / "log" / f"{name}.log"

    def phase(self, name: str, work: Callable[[Run, Phase], None]) -> None:
        """Do one phase and keep its time."""
        with phase(name) as current:
            work(self, current)
        self.phases.append({"name": name, "seconds": round(current.seconds, 1)})


def _prerequisites(run: Run, current: Phase) -> None:
    needed = prerequisites.LAB if run.is_lab else prerequisites.IMAGE
    if run.inventory == VAGRANT_INVENTORY:
        needed = {**needed, "vagrant": "vagrant"}
    installed = prerequisites.ensure(needed, current, run.log("prerequisites"))
    current.text = f"installed {', '.join(installed)}" if installed else "all there"


def _base_image(run: Run, current: Phase) -> None:
    if run.lab.prepare():
        run.from_cache = False
    current.text = f"network {run.lab.prefix}.0/24"


def _golden_images(run: Run, current: Phase) -> None:
    hosts = playbooks.run("image", run.inventory, current, run.log("golden-images"))
    built = sorted(host for host in hosts if host.startswith("build-"))
    if built:
        run.from_cache = False
    current.text = f"built {', '.join(host.removeprefix('build-') for host in built)}" if built else "all there"


def _hosts(run: Run, current: Phase) -> None:
    playbooks.run("lab", run.inventory, current, run.log("hosts"))


def _secrets(run: Run, current: Phase) -> None:
    made = secrets.generate(run.state / "secrets.yml")
    current.text = f"{len(made)} new" if made else "all there"


def _service_image(run: Run, current: Phase) -> None:
    if not run.is_made_here:
        services = next(iter(playbooks.variables(run.inventory, "app", "services").values()))["services"]
        if not {service["name"] for service in services} & set(ORDER_SERVICES):
            current.text = "the order service is none of the services"
            return
    command = [sys.executable, "-m", "freehold.app_image", "build", str(run.state)]
    current.run(command, run.log("service-image"), cwd=ROOT)
    current.text = run.log("service-image").read_text().strip().rpartition("\n")[2]


def _artifacts(run: Run, current: Phase) -> None:
    folder = run.state / "artifacts"
    current.run([sys.executable, "-m", "freehold.artifacts", str(folder)], run.log("artifacts"), cwd=ROOT)
    current.text = run.log("artifacts").read_text().strip().rpartition("\n")[2]
    skipped: dict[str, str] = json.loads((folder / "skipped.json").read_text())
    run.skipped += [{"name": name, "reason": reason} for name, reason in skipped.items()]


def _validate(run: Run, current: Phase) -> None:
    playbooks.run("validate", run.inventory, current, run.log("validate"))


def _machines(run: Run, current: Phase) -> None:
    current.run(["vagrant", "up"], run.log("hosts"), cwd=ROOT / "vagrant")


def _preflight(run: Run, current: Phase) -> None:
    playbooks.run("preflight", run.inventory, current, run.log("preflight"))


def _site(run: Run, current: Phase) -> None:
    deployed = run.state / "deployed.json"
    if run.is_made_here and not deployed.exists():
        # Noted before the services get their first image: a run that is interrupted after that must not forget which it was.
        shutil.copyfile(run.state / "images.json", deployed)
    # Until the deploy: an image may not know the settings of the next one.
    deploying = list(ORDER_SERVICES) if run.is_made_here and _images(run, "images") != _images(run, "deployed") else []
    more = ("-e", json.dumps({"service_deploying": deploying})) if deploying else ()
    run.hosts = len(playbooks.run("site", run.inventory, current, run.log("site"), *more))


def _images(run: Run, name: str) -> dict[str, str]:
    """Return the newest images (`images`), or those that were deployed last (`deployed`)."""
    images: dict[str, str] = json.loads((run.state / f"{name}.json").read_text())
    return images


def _deploy(run: Run, current: Phase) -> None:
    """Roll out what was built since the last time: site.yml gives a service its first image only, and leaves it alone then."""
    deployed = run.state / "deployed.json"
    built = _images(run, "images")
    if _images(run, "deployed") == built:
        current.text = "nothing new"
        return
    services = {"service": ",".join(ORDER_SERVICES), "image": built["orders"]}
    services["archive"] = str(run.state / "artifacts" / "orders.tar")
    playbooks.run("deploy", run.inventory, current, run.log("deploy"), "-e", json.dumps(services))
    deployed.write_text(json.dumps(built) + "\n")


def _smoke(run: Run, current: Phase) -> None:
    env = {**os.environ, "FREEHOLD_INVENTORY": run.inventory}
    current.run(["pytest", "--quiet", "-p", "no:cacheprovider", "tests/smoke"], run.log("smoke"), env=env, cwd=ROOT)


def _prepare(run: Run) -> None:
    run.phase("prerequisites", _prerequisites)
    if run.is_lab:
        run.phase("base image", _base_image)
    if run.is_made_here:
        run.phase("secrets", _secrets)
    run.phase("service image", _service_image)
    run.phase("validate", _validate)
    run.phase("artifacts", _artifacts)


def prepare(inventory: str) -> None:
    """Have all that the hosts get from this machine, and the inventory checked; no host has to exist."""
    _prepare(Run(inventory, time.time()))


def up(inventory: str) -> None:
    """Build or finish what the inventory describes, prove it, and say how to use it."""
    started = float(os.environ.get("FREEHOLD_STARTED") or time.time())
    run = Run(inventory, started)
    # The environment was made before this program could run.
    run.phases.append({"name": "environment", "seconds": round(time.time() - started, 1)})
    _prepare(run)
    if run.is_lab:
        run.phase("golden images", _golden_images)
        run.phase("hosts", _hosts)
    else:
        if inventory == VAGRANT_INVENTORY:
            run.phase("hosts", _machines)
        run.phase("preflight", _preflight)
    run.phase("site", _site)
    if run.is_made_here:
        run.phase("deploy", _deploy)
    run.phase("smoke", _smoke)
    seconds = round(time.time() - started, 1)
    _report(run, seconds)
    _card(run, seconds)


def _report(run: Run, seconds: float) -> None:
    report = {
        "from_cache": run.from_cache,
        "seconds": seconds,
        "phases": run.phases,
        "hosts": run.hosts,
        "skipped": run.skipped,
    }
    file = ROOT / "build" / "up.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n")


def order_command(inventory: str, authority: Path) -> str:
    """Return the line that sends an order to the system."""
    address = next(iter(playbooks.variables(inventory, "edge", "topology_vip").values()))["topology_vip"]
    token = "make -s token" + ("" if inventory == LAB_INVENTORY else f" INVENTORY={inventory}")
    return (
        f"curl --cacert {_short(authority)} https://{address}/v1/orders"
        ' -H "Idempotency-Key: $(cat /proc/sys/kernel/random/uuid)" -H "Authorization: Bearer '
        f'$({token})"'
        """ -H "Content-Type: application/json" -d '{"lines": [{"sku": "SMOKE-1", "quantity": 1}]}'"""
    )


def _short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _card(run: Run, seconds: float) -> None:
    state = _short(run.state)
    option = "" if run.is_lab else f" INVENTORY={run.inventory}"
    last = "make down" if run.is_lab else f"make converge{option}"
    lines = [
        "",
        f"Freehold runs: {run.hosts} hosts, {seconds:.0f} s.",
        "",
        "Send an order:",
        f"  {order_command(run.inventory, run.state / 'pki' / 'ca.crt')}",
    ]
    lines += ["", f"Its authority:       {state}/pki/ca.crt"]
    lines += [f"Its secrets:         {state}/secrets.yml"] if run.is_made_here else []
    lines += [f"Skipped:             {skip['name']}: {skip['reason']}" for skip in run.skipped]
    lines += ["", f"Next: make status{option}   make test   make ssh HOST=data1{option}   {last}"]
    console.print("\n".join(lines), markup=False)
