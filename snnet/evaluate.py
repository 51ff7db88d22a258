"""``python -m snnet.evaluate``: CMC and mAP of a checkpoint, or of weights from elsewhere."""

from __future__ import annotations

import sys

from snnet.system.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

from snnet.config.commands import EvaluateCommand
from snnet.errors import UserError
from snnet.system.command import parse_early, run_command

if __name__ == "__main__":
    command = parse_early(EvaluateCommand.parse)

import contextlib
import json
from typing import Any, overload

from snnet.data import dataset_of
from snnet.retrieval.features import (
    check_same_images,
    decode_retrieval_set,
    expand_and_rank,
    known_identities,
    rank_gallery,
    rerank_gallery,
    retrieval_features,
    shot_seed,
)
from snnet.retrieval.rank_tables import rank_record, rank_table
from snnet.retrieval.trained import load_trained_model
from snnet.retrieval.verification import false_pairs, true_positive_rates
from snnet.runtime import show_warnings_as_lines
from snnet.system.processes import ALONE, Processes, several_processes
from snnet.system.progress import set_quiet
from snnet.system.terminal import answer


def main(command: EvaluateCommand) -> None:
    show_warnings_as_lines()
    set_quiet(command.quiet)
    # With --json, stdout is that object alone.
    with contextlib.redirect_stdout(sys.stderr), several_processes() as processes:
        result = evaluate(command, processes)
    if result is None:
        return
    if command.json:
        answer(json.dumps(result))
    else:
        also = {"re-ranked": "reranked", "expanded": "expanded"}
        again = {title: result[name] for title, name in also.items() if name in result}
        answer(*rank_table({result["arch"]: result, **again}).split("\n"))
        if "tpr_at_fpr" in result:
            answer(
                "accepted: "
                + ", ".join(
                    f"{100 * tpr:.2f} of true pairs at {100 * float(fpr):g} of false ones"
                    for fpr, tpr in result["tpr_at_fpr"].items()
                )
                + " (in percent)"
            )


@overload
def evaluate(command: EvaluateCommand) -> dict[str, Any]: ...
@overload
def evaluate(command: EvaluateCommand, processes: Processes) -> dict[str, Any] | None: ...
def evaluate(command: EvaluateCommand, processes: Processes = ALONE) -> dict[str, Any] | None:
    """Rank the gallery for every query; returns :func:`snnet.retrieval.rank_tables.rank_record` and what was evaluated.

    The key ``reranked`` has the results after re-ranking (``--rerank``), ``expanded`` those of expanded features
    (``--query-expansion``), and ``tpr_at_fpr`` maps false positive rates to true positive rates (``--roc``). With
    several ``processes`` each extracts its share. Rank 0 ranks and returns the result, the others return None. Raises
    :class:`~snnet.errors.UserError` for a checkpoint, weights or data that cannot be used.
    """
    with processes.one_warns():
        trained = load_trained_model(command.checkpoint, command.preset, command.given)
    processes.check_device(trained.placement.device)
    trained.check_same(processes)
    config, data = trained.config, trained.config.data
    dataset = processes.first_ahead(lambda: dataset_of(data))
    check_same_images(dataset, processes)
    identities = known_identities(dataset)
    if identities is None:
        raise UserError(f"dataset {data.dataset} has no query and gallery: there is nothing to evaluate on")
    if command.roc:
        false_pairs(*identities.arrays())  # raises where there are none
    retrieval = decode_retrieval_set(dataset, config, processes)
    assert retrieval is not None  # since its identities are known
    features = retrieval_features(trained, retrieval, processes)
    if not processes.is_first:
        return None
    definition, shot = config.output.average_precision, shot_seed(config)
    result = {
        "dataset": data.dataset,
        "arch": config.model.arch,
        "checkpoint": str(command.checkpoint) if command.checkpoint else None,
        "weights": None if command.checkpoint else config.model.weights,
        **rank_record(rank_gallery(*features, retrieval, definition, shot)),
    }
    if config.output.rerank:
        result["reranked"] = rank_record(rerank_gallery(*features, retrieval, definition, shot))
    if command.query_expansion is not None:
        result["expanded"] = rank_record(
            expand_and_rank(*features, retrieval, definition, command.query_expansion, shot)
        )
    if command.roc:
        rates = true_positive_rates(*features, *retrieval.arrays())
        result["tpr_at_fpr"] = {str(rate): share for rate, share in rates.items()}
    return result


if __name__ == "__main__":
    run_command(lambda: main(command))
