"""`python -m freehold` is the command line of freehold.cli."""

import sys

from freehold.cli import main

sys.exit(main())
