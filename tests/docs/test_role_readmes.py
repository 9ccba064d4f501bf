"""The READMEs of the roles are those that their argument specs give."""

from freehold import docs


def test_readmes_are_built_from_the_specs() -> None:
    """`make docs` would change nothing."""
    assert [str(path) for path in docs.outdated()] == [], "run `make docs` and commit what it wrote"
