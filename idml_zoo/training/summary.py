"""The end of a run: the leaderboard's tables, and where everything lies."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from idml_zoo.files import FileError
from idml_zoo.reports.leaderboard import build_leaderboard, summary
from idml_zoo.results import ResultError
from idml_zoo.training.console import warn
from idml_zoo.training.run import Run


def report(run: Run) -> None:
    """Builds the leaderboard that the run belongs to and prints its rows; on the main process only."""
    if not run.results:
        return
    board = Path(run.config.leaderboard)
    try:
        build_leaderboard(board)
    except (ResultError, FileError) as error:  # of another row, perhaps: this one is there
        warn(f"the result is saved, but no table can be made: {error}")
    last = next(r for r in reversed(run.results) if r.protocol.similarity == "cosine")
    out = Console(soft_wrap=True, markup=False, highlight=False)
    out.print(summary(run.results))
    weights = run.folder / ("best" if run.config.evaluation.select == "best" else "model")  # what was measured
    out.print(f"model    {weights}   idml_zoo.create_model('local-dir:{weights}', pretrained=True)")
    out.print(f"log      {run.log}")
    out.print(f"result   {last.path(board / 'results')}")
    out.print(f"table    {board / 'README.md'}")
