"""The sweep: stage by stage, candidates in interleaved rounds, the best of each stage carried into the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from build.errors import BuildError
from recipes.schema import Recipe
from tuning.candidates import Room, Setting, Stage, candidates
from tuning.choice import Curve, Point, best_point, choose, curves
from tuning.rows import Figures, Measurements, Row
from tuning.server import CandidateError

CONFIRMATION = "confirmation"

Measure = Callable[[Setting], dict[int, Figures | str]]
"""What is found at each concurrency, or why nothing is. Raises CandidateError where the server does not start."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How a recipe is swept."""

    stages: tuple[Stage, ...]
    room: Room
    rounds: int
    p99_budget_ms: float | None = None


@dataclass(frozen=True)
class Choice:
    """The winner, and the recipe's own setting as the same rounds found it.

    Attributes:
        point: of the winner, at its best concurrency.
        before: of the recipe's own setting; None where it could not be measured, or not within the budget.
    """

    setting: Setting
    point: Point
    own: Setting
    before: Point | None


class Sweep:
    """Goes through the stages, or what `measurements` has not of them yet."""

    def __init__(
        self, recipe: Recipe, plan: Plan, measurements: Measurements, measure: Measure, tell: Tell = print
    ) -> None:
        self._recipe, self._plan, self._tell = recipe, plan, tell
        self._measurements, self._measure = measurements, measure

    def run(self) -> Choice:
        """
        Raises:
            BuildError: nothing could be measured, or nothing is within the budget.
        """
        own = incumbent = Setting.of(self._recipe.serving)
        stage, compared = CONFIRMATION, list[Setting]()
        for each in self._plan.stages:
            settings = candidates(each, incumbent, self._recipe, self._plan.room)
            if len(settings) > 1:
                stage, compared = each, settings
                incumbent = self._best_of(stage, compared, incumbent)
        if own not in compared:  # the stages stand on one another; the result is compared with where they began
            stage, compared = CONFIRMATION, list(dict.fromkeys([incumbent, own]))
            incumbent = self._best_of(stage, compared, incumbent)
        return self._choice(stage, incumbent, own)

    def _best_of(self, stage: str, compared: list[Setting], incumbent: Setting) -> Setting:
        """Measure and choose."""
        for round_ in range(self._plan.rounds):
            first = round_ % len(compared)
            for number, setting in enumerate(compared[first:] + compared[:first], 1):
                where = f"{stage}, round {round_ + 1} of {self._plan.rounds}, {number} of {len(compared)}"
                self._measure_once(stage, round_, setting, where)
        measured = self._curves(stage, compared)
        if not any(measured.values()):
            raise BuildError(f"no setting could be measured; the last error: {self._last_error()}")
        chosen = choose(measured, incumbent, self._plan.p99_budget_ms)
        self._tell(f"{stage}: {chosen}")
        return chosen

    def _measure_once(self, stage: str, round_: int, setting: Setting, where: str) -> None:
        """Unless it is measured already, or its server did not start in a round before."""
        measured = self._measurements
        if measured.is_measured(stage, round_, setting) or (round_ and not self._ever_started(stage, setting)):
            return
        try:
            result = self._measure(setting)
        except CandidateError as error:
            self._tell(f"{where}: {setting}: does not work; {str(error).splitlines()[0]}")
            measured.add([Row(stage=stage, round=round_, setting=setting, error=str(error))])
            return
        rows = [_row(stage, round_, setting, concurrency, each) for concurrency, each in result.items()]
        measured.add(rows)
        self._tell(f"{where}: {setting}: {_summary(rows)}")

    def _ever_started(self, stage: str, setting: Setting) -> bool:
        rows = self._measurements.of_stage(stage)
        return any(row.setting == setting and row.concurrency is not None for row in rows)

    def _curves(self, stage: str, compared: list[Setting]) -> dict[Setting, Curve]:
        by_setting = curves(self._measurements.of_stage(stage))
        return {setting: by_setting[setting] for setting in compared if setting in by_setting}

    def _choice(self, stage: str, setting: Setting, own: Setting) -> Choice:
        measured, budget = self._curves(stage, [setting, own]), self._plan.p99_budget_ms
        point = best_point(measured.get(setting, []), budget)
        if point is not None:
            return Choice(setting, point, own, best_point(measured.get(own, []), budget))
        lowest = min(measured[setting], key=lambda point: point.p99_ms)
        raise BuildError(f"no setting has a p99 of at most {budget:g} ms; the lowest is {lowest} with {setting}")

    def _last_error(self) -> str:
        return next((row.error for row in reversed(self._measurements.rows) if row.error), "none")


def _row(stage: str, round_: int, setting: Setting, concurrency: int, result: Figures | str) -> Row:
    figures, error = (None, result) if isinstance(result, str) else (result, None)
    return Row(stage=stage, round=round_, setting=setting, concurrency=concurrency, figures=figures, error=error)


def _summary(rows: list[Row]) -> str:
    """The best figures, and where there are none."""
    failed = [str(row.concurrency) for row in rows if row.figures is None]
    note = f" (failed at {', '.join(failed)} in flight)" if failed else ""
    ((_, points),) = curves(rows).items()
    point = best_point(points, None)
    return f"{point}{note}" if point else f"nothing could be measured: {rows[-1].error}"
