"""By what a golden image's name is made: by what is installed, and not by what happens to lie about."""

from __future__ import annotations

from freehold.lab import ROOT, golden_image_name

FOLDER = ROOT / "roles/autoscaler/files/__pycache__"


def test_a_compiled_module_makes_no_other_image() -> None:
    """A test that imports a role's program leaves one, and an image takes minutes."""
    before = golden_image_name("ops", ["autoscaler"])
    FOLDER.mkdir(exist_ok=True)
    compiled = FOLDER / "left-by-a-test.pyc"
    compiled.write_bytes(b"compiled")
    try:
        assert golden_image_name("ops", ["autoscaler"]) == before
    finally:
        compiled.unlink()
