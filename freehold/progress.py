"""What a long command shows: phases with their time, a bar where there is a count, plain lines without a terminal."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

HEARTBEAT_SECONDS = 15
LINES_SHOWN_ON_FAILURE = 25
console = Console(highlight=False, soft_wrap=True)
ENDED_STATUS = 143  # as by SIGTERM
_under_way: set[subprocess.Popen[str]] = set()
_ended = threading.Event()


def end_commands() -> None:
    """Ask all commands that phases run to end, those of other threads, too, which no exception reaches; none begins any more."""
    _ended.set()
    for process in list(_under_way):
        process.terminate()


class CommandError(Exception):
    """A command failed. Its text is for the person at the terminal: what, the last lines, where the rest is."""

    def __init__(self, command: list[str], status: int, log: Path, summary: str = "") -> None:
        self.command, self.status, self.log = command, status, log
        lines = log.read_text(errors="replace").rstrip().splitlines()[-LINES_SHOWN_ON_FAILURE:]
        end = ["", f"failed (status {status}): {_shortened(command)}", f"the whole output: {log}"]
        super().__init__("\n".join([summary or "\n".join(lines), *end]))


@dataclass
class Phase:
    """A phase under way. Whoever works in it tells how far it is."""

    name: str
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    text: str = ""
    seconds: float = 0.0

    def describe(self) -> str:
        """Return how far the phase is, on one line."""
        count = f"{self.done}/{self.total}" if self.total else str(self.done or "")
        return " ".join(part for part in (count, self.text) if part)

    def announce(self, text: str) -> None:
        """Print a line that stays."""
        console.print(f"       {self.name}: {text}", markup=False)

    def step(self, text: str = "") -> None:
        """Count one more."""
        self.done, self.text = self.done + 1, text

    def run(
        self,
        command: list[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """Run a command with its output in a log file; each line also goes to `on_line`.

        Raises CommandError where it fails, and SystemExit where all are to end.
        """
        if _ended.is_set():
            raise SystemExit(ENDED_STATUS)
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("w") as file,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=env,
                cwd=cwd,
            ) as process,
        ):
            assert process.stdout is not None
            _under_way.add(process)
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    if on_line:
                        on_line(line.rstrip())
            except BaseException:
                process.terminate()
                raise
            finally:
                _under_way.discard(process)
        if _ended.is_set():
            raise SystemExit(ENDED_STATUS)
        if process.returncode:
            raise CommandError(command, process.returncode, log)


@contextmanager
def phase(name: str) -> Iterator[Phase]:
    """Show a phase from its beginning to its end; afterwards its `seconds` are known."""
    current = Phase(name)
    follow = _live if console.is_terminal else _plain
    try:
        with follow(current):
            yield current
    except BaseException:
        console.print(f"[red]failed[/] {name} after {_clock(time.monotonic() - current.started)}")
        raise
    finally:
        current.seconds = time.monotonic() - current.started
    console.print(
        f"[green]done[/]   {name:<16} {_clock(current.seconds):>6}  {current.describe()}".rstrip(), markup=True
    )


def _shortened(command: list[str], words: int = 12) -> str:
    return " ".join(command[:words] + ["..."] * (len(command) > words))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@contextmanager
def _repeat(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _plain(current: Phase) -> Iterator[None]:
    console.print(f"start  {current.name}")

    def beat() -> None:
        elapsed = _clock(time.monotonic() - current.started)
        console.print(f"       {current.name} {elapsed} {current.describe()}".rstrip(), markup=False)

    with _repeat(HEARTBEAT_SECONDS, beat):
        yield


@contextmanager
def _live(current: Phase) -> Iterator[None]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[name]:<16}"),
        TimeElapsedColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task("", name=current.name, text="", total=None)

        def draw() -> None:
            bar.update(task, completed=current.done, total=current.total or None, text=current.describe()[:80])

        with _repeat(0.2, draw):
            yield
