"""What the commands print: tables, JSON and progress."""

from __future__ import annotations

import json
import shutil
import textwrap
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gmcore.extras import require

if TYPE_CHECKING:
    from gmcore.evaluation import Event

WIDTH = 100
"""Columns that a table may take."""


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under column heads, within `WIDTH`; the last column wraps."""
    console = require("rich.console", "printing tables").Console(
        width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns), highlight=False
    )
    table = require("rich.table", "printing tables").Table(box=require("rich.box", "printing tables").SIMPLE)
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1], overflow="fold")
    text = require("rich.text", "printing tables").Text
    for row in rows:
        table.add_row(*[text(cell) for cell in row])
    console.print(table)


def figure_text(result: dict[str, Any]) -> str:
    """A reported figure and what it depends on, on one line."""
    error = "" if result["standard_error"] is None else f" +- {result['standard_error']:.2f}"
    settings = [f"{result['data']} {result['split']}", f"n = {result['n']}", f"seed {result['seed']}"]
    if "k" in result:
        settings.insert(1, f"k = {result['k']}")
    if "log_z_by" in result:
        settings.insert(1, f"log Z by {result['log_z_by']}")
    if result.get("binarize", "none") != "none":
        settings.insert(-1, f"{result['binarize']} binarisation")
    if "bits_per_character" in result:
        bits = result["bits_per_character"]
        return f"{result['bound']:.3f} {result['unit']}, {bits:.3f} bits ({', '.join(settings)})"
    return f"{result['bound']:.2f}{error} {result['unit']} ({', '.join(settings)})"


def print_result(result: dict[str, Any]) -> None:
    """Print a reported figure and its baseline, in lines of a name and a value."""
    print_field(f"{result['split']} {result['figure']}", figure_text(result))
    if "log_z" in result:
        low, high = result["log_z_interval"]
        known = "exact" if low == high else f"95 % within {low:.2f} to {high:.2f}, {result['runs']} runs"
        print_field("log Z", f"{result['log_z']:.2f} ({known})")
    if result["baseline"] is not None:
        print_field("baseline", f"{result['baseline']:.2f} {result['unit']} ({result['baseline_is']})")


def print_field(name: str, value: object) -> None:
    """Print a line, or a paragraph within `WIDTH`, of a name and its value."""
    print(textwrap.fill(str(value), WIDTH, initial_indent=f"{name:<18} ", subsequent_indent=" " * 19,
                        break_long_words=False, break_on_hyphens=False))  # fmt: skip


class Progress:
    """A bar on standard error, and a line for an epoch now and then, which also a log file keeps."""

    def __enter__(self) -> Progress:
        rich = require("rich.progress", "showing progress")
        console = require("rich.console", "showing progress").Console(stderr=True, highlight=False)
        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=None),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar.start()
        self._task = self._bar.add_task("preparing (kernels are compiled at their first use)", total=None)
        self._stage = ""
        self._shown = 0.0
        self._valid = ""
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._bar.disable:  # some versions of rich end a bar that they never showed by an empty line
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        if event.line is not None:
            self._end_of_epoch(event)
        if event.note is not None:
            self._bar.console.print(f"steps  {event.note}")
        if event.stage in ("epoch", "valid", "capture"):
            return
        training = event.stage == "step"
        # The bar of training is over all epochs; that of an evaluation over its examples.
        done, total = event.done, event.total
        if training:
            done, total = done + (event.epoch - 1) * total, event.epochs * total
        if self._stage != event.stage:
            self._stage = event.stage
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task("", total=total, completed=done)
        elif time.monotonic() - self._shown < 0.1 and done < total:
            return  # reading the loss at every step would wait for the device
        self._shown = time.monotonic()
        text = f"evaluating the {event.stage} split"
        if training:
            assert event.loss is not None
            text = f"epoch {event.epoch}/{event.epochs}  loss {event.loss.item():.2f}{self._valid}"
        self._bar.update(self._task, description=text, completed=done)

    def _end_of_epoch(self, event: Event) -> None:
        line = event.line
        assert line is not None
        self._valid = f"  validation {line['valid_bound']:.2f}"
        every = max(1, event.epochs // 10)
        if event.epoch % every == 0 or event.epoch in (1, event.epochs):
            self._bar.console.print(
                f"epoch {event.epoch:>4}/{event.epochs}  training {-line['train_loss']:9.2f}"
                f"{self._valid}  {line['seconds']:.0f} s"
            )
