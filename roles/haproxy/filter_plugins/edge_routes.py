"""The edge's routes, most specific first, from the platform's services."""

from __future__ import annotations

from typing import Any

DEFAULT_TIMEOUT_MS = 2000
DEFAULT_RETRIES = 1


def edge_routes(services: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a route for each entry of `services[].routes`: what it matches and the backend that it leads to.

    A route that names a host comes before one that does not, then the longer path, then the one that is this path alone, then the
    one that names an end, then the one that names a method: so the first that matches is the most specific.
    """
    routes = [
        {
            "service": str(service["name"]),
            "host": str(route.get("host") or "").lower(),
            "path": str(route["path"]),
            "exact": bool(route.get("exact")),
            "end": str(route.get("end") or ""),
            "method": str(route.get("method") or "").upper(),
            "backend": _backend(service, route),
        }
        for service in services
        for route in service.get("routes") or []
    ]
    return sorted(
        routes,
        key=lambda route: (
            *(not route["host"], -len(route["path"]), not route["exact"], -len(route["end"]), not route["method"]),
            *(route["host"], route["path"], route["end"]),
        ),
    )


def edge_backends(services: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one backend for each service, time-out and way to retry; the first of a service checks the hosts for the others."""
    backends: dict[str, dict[str, Any]] = {}
    for service in services:
        checked_by = ""
        for route in service.get("routes") or []:
            name = _backend(service, route)
            if name not in backends:
                backends[name] = {
                    "name": name,
                    "service": str(service["name"]),
                    "group": str(service.get("hosts") or "app"),
                    "health": str(service["health"]),
                    "timeout_ms": _timeout(route),
                    "retries": _retries(route),
                    "retry_posts": bool(route.get("retry_posts")),
                    "sticky": bool(service.get("sticky")),
                    "canary": service.get("kind") == "web",
                    "checked_by": checked_by,
                }
                checked_by = checked_by or name
    return list(backends.values())


def _backend(service: dict[str, Any], route: dict[str, Any]) -> str:
    return f"{service['name']}_{_timeout(route)}_{_retries(route)}" + (
        "_retry_posts" if route.get("retry_posts") else ""
    )


def _retries(route: dict[str, Any]) -> int:
    return int(route.get("retries", DEFAULT_RETRIES))


def _timeout(route: dict[str, Any]) -> int:
    return int(route.get("timeout_ms", DEFAULT_TIMEOUT_MS))


class FilterModule:
    """Names under which templates and variables use these functions."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"edge_routes": edge_routes, "edge_backends": edge_backends}
