"""Make the controller's virtual environment. Runs on the system's Python before anything is installed.

`.venv` is made anew when requirements.txt differs from the copy that it was made from, and left alone otherwise.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements.txt"
MADE_FROM = VENV / "requirements.txt"
OLDEST_PYTHON = (3, 11)
HEARTBEAT_SECONDS = 15


def is_current() -> bool:
    """Return whether the environment was made, to its end, from the requirements as they are now."""
    return MADE_FROM.exists() and filecmp.cmp(REQUIREMENTS, MADE_FROM, shallow=False)


def run(command: list[str]) -> None:
    """Run a command, with a line of life now and then; end with its output where it fails."""
    started = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            print(f"  environment: {time.monotonic() - started:.0f} s", flush=True)

    threading.Thread(target=beat, daemon=True).start()
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    done.set()
    if result.returncode:
        sys.exit("\n".join([*result.stdout.splitlines()[-20:], f"environment: failed: {' '.join(command)}"]))


def have_venv_module() -> None:
    """Install Debian's package for `python3 -m venv` where the distribution split it off."""
    try:
        import ensurepip  # noqa: F401, PLC0415  (its absence is the question)
    except ModuleNotFoundError:
        stdlib = sysconfig.get_path("stdlib")
        if shutil.which("apt-get") is None or not stdlib.startswith("/usr/lib"):
            sys.exit(f"environment: this Python ({sys.executable}) has no module ensurepip; install its venv package.")
        print("environment: installs python3-venv", flush=True)
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        run([*sudo, "apt-get", "update", "--quiet"])
        run([*sudo, "apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "python3-venv"])


def main() -> None:
    """Make the environment unless it is there."""
    if is_current():
        return
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(
            f"environment: Python >= 3.11 is needed, python3 is {sys.version.split()[0]}. Set PYTHON=/path/of/one."
        )
    started = time.monotonic()
    print("environment: makes .venv from requirements.txt", flush=True)
    have_venv_module()
    run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    python = str(VENV / "bin" / "python")
    # Modules are compiled when they are first imported: compiling all of Ansible's collections takes longer than the rest.
    run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--require-hashes",
            "--requirement",
            str(REQUIREMENTS),
        ]
    )
    site_packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(site_packages, "freehold.pth").write_text(f"{ROOT}\n")
    shutil.copy(REQUIREMENTS, MADE_FROM)
    print(f"environment: ready after {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
