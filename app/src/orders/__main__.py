"""`python -m orders` is the command `orders`."""

from orders.cli import main

main()
