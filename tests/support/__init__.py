"""What the tests of the whole system share: the site, its orders, its health."""
