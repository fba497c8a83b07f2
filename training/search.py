"""Embedding store → better settings of a head, by many trials, and the head that the best of them make.

    python -m training.search --recipe taste-vit-b-32
    python -m training.search --recipe taste-vit-b-32 --trials 300     # goes on where the last search ended

The recipe's section `search` of the head says what is tried (recipes/README.md). Each trial trains a head on the
training part of the split, from embeddings in memory, and is measured on the validation part, or the set that the
recipe names. Optuna chooses what to try and ends what falls behind. Trials are kept in
artifacts/<recipe>/searches/<head>.db as they end, so that a search which was interrupted or killed goes on; its
optuna-dashboard command is printed.

The recipe's own settings are measured too. The best settings of all are printed as the recipe's `fit`, and a head is
trained with them and saved as training.fit does, in the place of the head before. Prints the path of head.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from common.paths import search_file
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.head_section import Fit, Head, Search, SearchMetric
from training.errors import INTERRUPTED, StepError
from training.fit import device_name, fit_and_save
from training.fit_inputs import FitInputs, read_inputs
from training.losses import LOSSES
from training.progress import say, trials_shown
from training.search_space import losses_of, suggested_fit

if TYPE_CHECKING:
    from optuna import Study, Trial

    from training.trials import Trials

_OWN = "own"
_FIT = "fit"


def metric_of(head: Head, search: Search) -> SearchMetric:
    """The figure that a search is scored by.

    Raises:
        StepError: the head's task has no such figure, or cannot be searched.
    """
    from training.trials import METRICS

    offered = METRICS.get(head.task)
    if offered is None:
        raise StepError(f"a search is for {', '.join(METRICS)} heads; head {head.name} is {head.task}")
    metric = search.metric or offered[0]
    if metric not in offered:
        raise StepError(f"search.metric {metric} is none of a {head.task} head: {', '.join(offered)}")
    unfit = [loss for loss in losses_of(head, search) if loss not in LOSSES[head.task]]
    if unfit:
        raise StepError(f"search.loss {unfit[0]} does not fit a {head.task} head: {', '.join(LOSSES[head.task])}")
    return metric


def search_settings(inputs: FitInputs, search: Search, file: Path) -> tuple[Fit, str]:
    """Run what is left of the trials; returns the best settings and a sentence on how they compare.

    Raises:
        StepError: the study cannot be used, or no trial could be measured.
    """
    from training.study import best_trial, finished, made_for, opened_study, study_url
    from training.trials import SMALLER_IS_BETTER, Trials

    head, metric = inputs.head, metric_of(inputs.head, search)
    smaller = metric in SMALLER_IS_BETTER
    trials = Trials(
        inputs.data, head, inputs.split, device_name(), metric, search.set, layer_widths=inputs.layer_widths
    )
    purpose = made_for(inputs, search, metric)
    with opened_study(file, search, "minimize" if smaller else "maximize", purpose, head.fit.seed) as study:
        say(f"look at the trials with: optuna-dashboard {shlex.quote(study_url(file))}")
        own = _own_value(study, trials, head)
        _run(study, trials, head, search, metric)
        best = best_trial(study)
        if best is None:
            raise StepError(f"none of the {len(study.get_trials(deepcopy=False))} trials could be measured; see {file}")
        value = float(best.value or 0)
        shown = f"{metric} of the {search.set} rows"
        beside = f"{value:.4g} by trial {best.number} of {finished(study)}, {own:.4g} by the recipe's own settings"
        if value == own or (value > own) == smaller:
            return head.fit, f"{shown}: {beside}, which stay"
        return Fit.model_validate(best.user_attrs[_FIT]), f"{shown}: {beside}"


def _own_value(study: Study, trials: Trials, head: Head) -> float:
    """The figure of the recipe's own settings, measured as a trial is; kept with the study."""
    if _OWN not in study.user_attrs:
        study.set_user_attr(_OWN, trials.value(head.fit))
    return float(study.user_attrs[_OWN])


def _run(study: Study, trials: Trials, head: Head, search: Search, metric: str) -> None:
    import optuna

    from training.study import best_trial, finished

    done = finished(study)

    def objective(trial: Trial) -> float:
        fit = suggested_fit(trial, head, search)
        trial.set_user_attr(_FIT, fit.model_dump(mode="json"))

        def report(epoch: int, value: float) -> None:
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        return trials.value(fit, report)

    with trials_shown(f"search {head.name}", done, search.trials) as show:

        def after(study: Study, _trial: Any) -> None:
            best = best_trial(study)
            text = "" if best is None else f"best {metric} {best.value:.4g} (trial {best.number})"
            show(finished(study), text)

        # A trial whose loss is no longer finite is set down as failed.
        study.optimize(objective, n_trials=max(0, search.trials - done), callbacks=[after], catch=(StepError,))


def _fit_yaml(fit: Fit) -> str:
    """The settings as the recipe's `fit`, without what is so by default."""
    changed = {name: value for name, value in fit.model_dump(mode="json").items() if value != _default(name)}
    return yaml.safe_dump({"fit": changed}, sort_keys=False, default_flow_style=None).strip()


def _default(name: str) -> Any:
    return Fit.model_fields[name].get_default()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    parser.add_argument(
        "--trials", type=int, help="trials in all, those of earlier runs included; default: the recipe's"
    )
    parser.add_argument("--study", type=Path, help="SQLite file; default: artifacts/<recipe>/searches/<head>.db")
    parser.add_argument("--track", nargs="?", const="", metavar="URI", help="record the final fit with MLflow")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_of(arguments)
    head = recipe.head(arguments.head)
    if head.prompts:
        raise StepError(f"head {head.name} is made of its prompts, which leave no settings to search; use training.fit")
    search = head.search or Search()
    if arguments.trials is not None:
        search = Search.model_validate(search.model_dump() | {"trials": arguments.trials})
    metric_of(head, search)
    file = arguments.study or search_file(recipe, head)
    check_writable(file.parent)
    inputs = read_inputs(recipe, head, arguments.store)
    started = time.monotonic()
    fit, sentence = search_settings(inputs, search, file)
    say(f"{sentence} ({time.monotonic() - started:.0f} s)")
    say(_fit_yaml(fit))
    winner = head.model_copy(update={"fit": fit})
    print(fit_and_save(FitInputs(**{**vars(inputs), "head": winner}), arguments.track))


if __name__ == "__main__":
    sys.exit(run_step("training.search", main, INTERRUPTED))
