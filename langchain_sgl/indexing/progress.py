"""How far an indexer has got, for callbacks and for people."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class IndexProgress:
    """How far a run has got.

    Attributes:
        done: Pictures and files that were dealt with.
        total: Of how many; None where the collection's size is not known.
        new: Documents that no earlier run has delivered.
        unchanged: Documents that an earlier run has delivered.
        failed: Pictures that could not be used.
        skipped: Files that are no pictures, and are not called so.
        asked: Calls of the model. Pictures that are equal, byte by byte, share one; without a manifest, only
            those of a batch do.
        source: The last one's path or id.
    """

    done: int = 0
    total: int | None = None
    new: int = 0
    unchanged: int = 0
    failed: int = 0
    skipped: int = 0
    asked: int = 0
    source: str | None = None


class ProgressBar:
    """Shows progress on stderr: a bar on a terminal, and one line at the end where there is none."""

    def __init__(self, total: int | None) -> None:
        self._progress = Progress(
            TextColumn("pictures"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def show(self, progress: IndexProgress) -> None:
        """Draws how far the run has got."""
        counts = f"{progress.new} new, {progress.unchanged} unchanged, {progress.failed} failed"
        self._progress.update(self._task, completed=progress.done, description=counts)

    def close(self) -> None:
        """Stops drawing; what was drawn last stays on the terminal."""
        self._progress.stop()
