"""All label work of an iteration, without and with the pseudo label memory."""

from __future__ import annotations

from .label_step import label_step, label_step_with_p


@label_step.benchmark()
def test_label_step(race, contender, benchmark):
    race.report(contender, benchmark)


@label_step_with_p.benchmark()
def test_label_step_with_label_memory(race, contender, benchmark):
    race.report(contender, benchmark)
