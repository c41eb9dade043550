"""The formulas of docs/scale.md, against what processes gave to their messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import scale
from process_cases import results

WIDTH, PARTICLES, RANK = 16, 4, 8


@pytest.mark.parametrize(("processes", "sharing"), [(2, 1), (2, 2), (4, 2)])
def test_the_bytes_of_a_step_are_those_of_the_formulas(tmp_path, processes, sharing):
    setting = scale.Setting(
        particles=PARTICLES,
        layers=2,
        factors=2 * RANK * (WIDTH + WIDTH),
        copied=(WIDTH + 1) * 3,
        particle_processes=sharing,
        data_processes=processes // sharing,
    )
    for found in results(processes, "parallel_cases", "weighed", tmp_path, sharing):
        for given in found["given"]:
            said = scale.summed_over_particles(setting)
            if sharing == processes:  # the world is one with them: whether there is a new plan
                said += 8
            counted = scale.summed_over_examples(setting)
            if sharing == 1:
                counted += 8
            assert given["particles gather"] == scale.gathered(setting)
            assert given["particles sum"] == (said if sharing > 1 else 0)
            assert given["data sum"] == (counted if processes > sharing else 0)
            assert given["data gather"] == 0


def test_the_table_of_the_page_is_that_of_the_formulas():
    page = Path(scale.__file__).with_suffix(".md").read_text(encoding="utf-8")
    assert scale.table() in page
