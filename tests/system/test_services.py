"""How services run on the app hosts."""

from __future__ import annotations

import json

from tests.support.site import Site

LAYERS = "/var/lib/containers/storage/overlay-layers/layers.json"


def test_no_container_has_a_copy_of_its_image(site: Site) -> None:
    """User namespaces shift owners as they are mounted; a copy costs as much as the image, for each deploy and replica."""
    for host in site.groups["app"]:
        layers = json.loads(site.ask(host, f"sudo cat {LAYERS}"))
        assert layers
        assert [layer["id"] for layer in layers if layer.get("uidmap")] == []
