"""The command line behind the Makefile: one subcommand a target."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from freehold import testing
from freehold.prerequisites import MissingPrerequisitesError
from freehold.progress import CommandError, console

ROOT = Path(__file__).resolve().parent.parent


def _test(arguments: argparse.Namespace) -> int:
    return 0 if testing.run(arguments.tier or testing.TIERS) else 1


def main() -> int:
    """Run one subcommand and return the process's exit status."""
    parser = argparse.ArgumentParser(prog="freehold", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    test = commands.add_parser("test", help="run tiers of tests, all by default")
    test.add_argument("tier", nargs="*", choices=list(testing.TIERS))
    test.set_defaults(run=_test)

    arguments = parser.parse_args()
    os.chdir(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        status: int = arguments.run(arguments)
    except (CommandError, MissingPrerequisitesError) as error:
        console.print(str(error), markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\ninterrupted; run the same command again to go on from here")
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
