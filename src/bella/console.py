"""Progress bars with rate and remaining time, on standard error."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """The current speed."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


def shown_text(value: object) -> Text:
    """Somebody's words for a table, as they are: not read as rich's markup, and with escapes in
    the place of what a terminal would obey or cannot show (control characters, bytes that are not
    UTF-8)."""
    return Text("".join(c if c.isprintable() else _escape(c) for c in str(value)))


def _escape(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode("ascii")


def progress_bar(show: bool = True) -> Progress:
    """A progress display; nothing where ``show`` is false or nobody is watching."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not show,
    )
