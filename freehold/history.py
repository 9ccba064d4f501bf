"""`make history`: what each service ran when, who changed it, and how to go back."""

from __future__ import annotations

from typing import Any

from freehold import playbooks
from freehold.progress import console

HOSTS = "app"


def show(inventory: str, service: str) -> bool:
    """Print the changes of a service's image, or of all services', the newest last; return whether they could be read."""
    said = playbooks.answers(inventory, HOSTS, "history")
    told = next((answer for answer in said.values() if "histories" in answer), None)
    if told is None:
        for host, answer in said.items():
            console.print(f"{host}: {answer.get('msg', 'does not answer')}", markup=False)
        return False
    images: dict[str, str] = told["images"]
    if service and service not in images:
        raise playbooks.InventoryError(f"SERVICE={service}: what ran are {', '.join(sorted(images)) or 'no services'}.")
    console.print(f"{'since (UTC)':<19}  {'by':<10} {'service':<16} image", markup=False)
    for entry in sorted(_entries(told, service), key=lambda entry: entry["at"]):
        at, by = entry["at"][:19].replace("T", " "), entry.get("by") or "unknown"
        console.print(f"{at:<19}  {by:<10} {entry['service']:<16} {entry['image']}", markup=False, soft_wrap=True)
    for name in [service] if service else sorted(images):
        former = [entry["image"] for entry in told["histories"][name] if entry["image"] != images[name]]
        console.print(f"{name} runs {images[name] or 'nothing yet'}", markup=False, soft_wrap=True)
        if former:
            back = f"ansible-playbook -i inventories/{inventory} ansible/deploy.yml -e service={name} -e image={former[-1]}"
            console.print(f"  back to the one before: {back}", markup=False, soft_wrap=True)
    return True


def _entries(told: dict[str, Any], service: str) -> list[dict[str, str]]:
    """Return all changes, each with its service. What ran before histories were kept has no time."""
    found = []
    for name, history in told["histories"].items():
        if service in {"", name}:
            first = history[0]["before"] if history else told["images"][name]
            unknown = [{"service": name, "at": "", "image": first, "by": ""}] if first else []
            found += unknown + [{"service": name, **entry} for entry in history]
    return found
