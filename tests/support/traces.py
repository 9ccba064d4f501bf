"""An order whose client wants its trace, and what Jaeger has of it."""

from __future__ import annotations

import json
import ssl
import uuid
from collections.abc import Iterable

import httpx

from tests.support.site import Site


def place_order(site: Site, sku: str) -> str:
    """Place an order of a product that is in stock, and return the trace under which it went."""
    trace = uuid.uuid4().hex
    context = ssl.create_default_context(cafile=str(site.authority))
    headers = {
        "Authorization": f"Bearer {site.token()}",
        "Idempotency-Key": trace,
        "traceparent": f"00-{trace}-{trace[:16]}-01",
    }
    with httpx.Client(base_url=site.url, headers=headers, verify=context, timeout=10, trust_env=False) as client:
        answer = client.post("/v1/orders", json={"lines": [{"sku": sku, "quantity": 1}]})
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    assert answer.headers["Trace-Id"] == trace
    return trace


def unseen(site: Site, trace: str, hosts: Iterable[str]) -> list[str]:
    """Return a complaint for each part of an order's way that these hosts' Jaeger together do not have."""
    asked = f"curl -sS -m 5 127.0.0.1:16686/api/traces/{trace}"
    traces = [one for host in hosts for one in json.loads(site.ask(host, asked))["data"] or []]
    services = {process["serviceName"] for one in traces for process in one["processes"].values()}
    tags = {tag["key"] for one in traces for span in one["spans"] for tag in span["tags"]}
    missing = [f"no span of {service}" for service in {"orders-api", "orders-worker"} - services]
    return missing + [f"no span has {tag}" for tag in {"db.query.text", "messaging.message.id"} - tags]
