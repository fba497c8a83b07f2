"""The study of a search: Optuna's trials in one SQLite file, which survives being killed and belongs to one recipe.

A study remembers what it was made for: the head's settings and ranges, the encoder and the labelled pictures. Trials of
another recipe or of other data are not comparable, so such a study is refused. A file that SQLite cannot read, as one
that was cut off, is refused too, and left as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipes.head_section import Search
from training.errors import StepError
from training.fit_inputs import FitInputs

if TYPE_CHECKING:
    import optuna

_MADE_FOR = "made_for"
_OPTUNAS_TABLES = {"studies", "trials"}
_BUSY_S = 60
_IRRELEVANT = ("trials", "sampler", "pruner")
"""Settings of a search that may change while it is resumed."""


def study_url(file: Path) -> str:
    """The address of a study's file, as Optuna and its dashboard take it."""
    return f"sqlite:///{file.absolute()}"


def made_for(inputs: FitInputs, search: Search, metric: str) -> dict[str, str]:
    """What makes trials comparable, as texts by name; those that are long as their sums."""
    settings = inputs.head.settings()
    ranges = search.model_dump(mode="json", exclude=set(_IRRELEVANT))
    return {
        "recipe": inputs.recipe.name,
        "head": inputs.head.name,
        "settings of the head": _sum(settings),
        "search": _sum(ranges),
        "metric": f"{metric} of {search.set}",
        "encoder": f"{inputs.encoder.id} {str(inputs.encoder.weights_sha256)[:12]}",
        "labelled pictures": f"{len(inputs.data.label)}, {inputs.data.fingerprint[:12]}",
    }


@contextlib.contextmanager
def opened_study(
    file: Path, search: Search, direction: Literal["minimize", "maximize"], purpose: dict[str, str], seed: int
) -> Iterator[Any]:
    """The study in a file, which is made if there is none, for as long as this process searches.

    Trials that a killed process left running are set down as failed.

    Raises:
        StepError: another process searches there, the file is damaged or no study, or it is another recipe's.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file):
        _check_file(file)
        options = {"connect_args": {"timeout": _BUSY_S}}
        storage = optuna.storages.RDBStorage(study_url(file), engine_kwargs=options)
        try:
            study = optuna.create_study(
                storage=storage, study_name=purpose["head"], direction=direction, load_if_exists=True
            )
            _check_purpose(file, study, purpose)
            for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            # A resumed study draws on with other random numbers: with the same it would try the same again.
            study.sampler = _sampler(search, seed + len(study.get_trials(deepcopy=False)))
            study.pruner = _pruner(search)
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


def finished(study: optuna.Study) -> int:
    """Trials that were measured, or ended by the pruner."""
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    """The best of the trials that were measured; None while there is none."""
    from optuna.trial import TrialState

    return study.best_trial if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) else None


def _sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    kinds = {
        "tpe": lambda: samplers.TPESampler(seed=seed),
        "gp": lambda: samplers.GPSampler(seed=seed),
        "nsgaii": lambda: samplers.NSGAIISampler(seed=seed),
        "random": lambda: samplers.RandomSampler(seed=seed),
    }
    return kinds[search.sampler]()


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    from optuna import pruners

    kinds = {
        "median": lambda: pruners.MedianPruner(n_startup_trials=6, n_warmup_steps=3),
        "halving": pruners.SuccessiveHalvingPruner,
        "hyperband": pruners.HyperbandPruner,
        "none": pruners.NopPruner,
    }
    return kinds[search.pruner]()


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StepError(f"{file}: another process searches with this study; wait for it, or end it") from error
        yield


def _check_file(file: Path) -> None:
    """Refuse what is no whole study; a file that is empty, or not there, becomes one."""
    if not file.exists() or file.stat().st_size == 0:
        return
    remedy = "nothing was changed; move it away, or name another with --study"
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_BUSY_S)) as connection:
            (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise StepError(f"{file}: not a study that can be read ({error}), as if it was cut off; {remedy}") from error
    if state != "ok":
        raise StepError(f"{file}: a damaged study ({state}); {remedy}")
    if tables and not tables & _OPTUNAS_TABLES:
        raise StepError(f"{file}: a database of something else (tables {', '.join(sorted(tables)[:4])}); {remedy}")


def _check_purpose(file: Path, study: optuna.Study, purpose: dict[str, str]) -> None:
    before = study.user_attrs.get(_MADE_FOR)
    if before is None:
        study.set_user_attr(_MADE_FOR, purpose)
        return
    differing = [
        f"{name}: was {before.get(name)}, is {value}" for name, value in purpose.items() if before.get(name) != value
    ]
    if differing:
        raise StepError(
            f"{file}: this study has {len(study.get_trials(deepcopy=False))} trials of something else: "
            f"{'; '.join(differing)}. Its trials cannot be compared with new ones: move it away, or name another file "
            "with --study"
        )


def _sum(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
