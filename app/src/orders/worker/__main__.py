"""`python -m orders.worker` is `orders worker`."""

import sys

from orders.cli import main

sys.argv[1:] = ["worker"]
main()
