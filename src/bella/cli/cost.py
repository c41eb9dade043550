"""``bella cost``: what a run's posterior costs."""

from __future__ import annotations

from bella.cli.common import Json, OwnCode, Quiet, Run, hush, print_figures, print_json


def cost(run: Run, own_code: OwnCode = False, json: Json = False, quiet: Quiet = False) -> None:
    """Trainable parameters, bytes on disk and peak memory of a run's posterior."""
    hush(quiet)
    from bella.evaluation.cost import cost as count
    from bella.runs import open_run

    found = count(open_run(run, own_code=own_code).posterior)
    if json:
        print_json(found)
    else:
        print_figures(found, str(run))
