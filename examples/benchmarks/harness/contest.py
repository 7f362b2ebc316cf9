"""The stages of a benchmark that trains from scratch: tune, equal, final, clock, race.

tune    every arm is set on the tuning split, with one seed
equal   other seeds on the evaluation split, all with the same steps
final   then ever longer schedules until one ends at a rival's final loss
clock   all arms in turns; the machine should be idle
race    whole schedules of as many steps as fit into the baseline's time
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from errors import InputError

from .arms import Arm, Point
from .jobs import TUNING_SEED, Job
from .journal import Journal
from .laboratory import Laboratory, Plan
from .problem import Problem
from .runner import Run
from .standing import Standing
from .timing import read_timings, time_arms, timed_steps
from .tuning import COORDINATES, USUAL_RUNS, tune

STAGES = ("tune", "equal", "final", "clock", "race", "report")
SHARES = (0.25, 0.33, 0.5, 0.67, 0.8)  # of the steps: the schedules that are tried for a rival's loss


class Contest:
    """Arms on a problem; what is finished is kept in the folder ``out``.

    Args:
        rivals: names of arms; the first is the baseline, whose time the race has.
        starts: where the tuning of an arm begins, by its name, if not where the arm says.
        coordinates: what is tuned, in this order.
        processes: runs at a time.
    """

    def __init__(
        self,
        problem: Problem,
        arms: Sequence[Arm],
        rivals: Sequence[str],
        steps: int,
        seeds: int,
        out: Path,
        *,
        starts: Mapping[str, Point] | None = None,
        coordinates: Sequence[str] = COORDINATES,
        processes: int = 1,
    ):
        self.problem, self.arms, self.rivals, self.steps, self.out = problem, arms, rivals, steps, out
        self.seeds = range(TUNING_SEED + 1, TUNING_SEED + 1 + seeds)
        self.starts, self.coordinates, self.processes = starts or {}, coordinates, processes

    def measure(self, stage: str = "race") -> dict[str, Standing]:
        """Makes all that is missing of a stage and of what it needs; ``"report"`` reads what there is."""
        self._only_known = stage == "report"
        self._laboratory = Laboratory(self.problem, Journal(self.out / "runs.json"), self.processes, self._only_known)
        standings = self._tune()
        if stage in ("equal", "final", "race", "report"):
            self._equal(standings)
        if stage in ("final", "race", "report"):
            self._shorten(standings)
        if stage in ("clock", "race", "report"):
            self._clock(standings)
        if stage in ("race", "report"):
            self._race(standings)
        return standings

    # The stages; each adds to the standings what it finds -----------------------------------------------------------

    def _tune(self) -> dict[str, Standing]:
        plans = {arm.name: self._tuning(arm) for arm in self.arms}
        runs = len(self.arms) * len(self.coordinates) * USUAL_RUNS
        tried = self._laboratory.carry_out(plans, "tune", round(runs * self.steps))
        standings = {name: Standing(losses) for name, losses in tried.items()}
        if not self._only_known:
            write_points(self.out, {name: standing.point for name, standing in standings.items()})
        return standings

    def _equal(self, standings: dict[str, Standing]) -> None:
        arms = self._arms_of(standings)
        plans = {arm.name: self._runs(arm, standings[arm.name].point, self.steps) for arm in arms}
        steps = len(arms) * len(self.seeds) * self.steps
        for name, runs in self._laboratory.carry_out(plans, "equal steps", steps).items():
            standings[name].finals = runs

    def _shorten(self, standings: dict[str, Standing]) -> None:
        arms = [arm for arm in self._arms_of(standings) if standings[arm.name].finals]
        losses = {arm.name: standings[arm.name].mean_loss for arm in arms if arm.name in self.rivals}
        plans = {arm.name: self._shorter(arm, standings[arm.name], losses) for arm in arms}
        steps = len(arms) * len(self.seeds) * self.steps
        for name, found in self._laboratory.carry_out(plans, "fewer steps", steps).items():
            standings[name].steps_to = found

    def _clock(self, standings: dict[str, Standing]) -> None:
        arms = [arm.at(standings[arm.name].point) for arm in self._arms_of(standings)]
        path, steps = self.out / "timing.json", timed_steps(self.steps)
        timings = read_timings(self.problem, arms, path, steps)
        if timings is None and not self._only_known:
            rates = {name: standing.point.lr for name, standing in standings.items()}
            timings = time_arms(self.problem, arms, rates, path, steps)
        for name, timing in (timings or {}).items():
            standings[name].timing = timing

    def _race(self, standings: dict[str, Standing]) -> None:
        baseline = standings.get(self.rivals[0])
        if baseline is None or baseline.timing is None or not baseline.finals:
            return
        budget = baseline.timing.seconds(self.steps)
        plans = {}
        for arm in self._arms_of(standings):
            standing = standings[arm.name]
            if standing.timing and standing.finals and standing.mean_loss <= baseline.mean_loss:  # others are behind
                plans[arm.name] = self._runs(arm, standing.point, max(1, standing.timing.steps_within(budget)))
        steps = len(plans) * len(self.seeds) * self.steps
        for name, runs in self._laboratory.carry_out(plans, "race", steps).items():
            standings[name].equal_time = runs

    # Their plans ----------------------------------------------------------------------------------------------------

    def _tuning(self, arm: Arm) -> Plan[dict[Point, float]]:
        search = tune(arm, self.starts.get(arm.name, arm.start), self.coordinates)
        points = next(search)
        while True:
            runs = yield [Job(arm.at(point), point.lr, TUNING_SEED, self.steps, "tune") for point in points]
            try:
                points = search.send([run.loss for run in runs])
            except StopIteration as stop:
                return stop.value

    def _runs(self, arm: Arm, point: Point, steps: int) -> Plan[list[Run]]:
        return (yield [Job(arm.at(point), point.lr, seed, steps, "eval") for seed in self.seeds])

    def _shorter(
        self, arm: Arm, standing: Standing, losses: Mapping[str, float]
    ) -> Generator[list[Job], list[Run], dict[str, int | None]]:
        """The shortest schedule that ends at or below each rival's loss, over all seeds."""
        open_ = {rival for rival, loss in losses.items() if rival != arm.name and standing.mean_loss <= loss}
        reached: dict[str, int | None] = {rival: self.steps if rival in open_ else None for rival in losses}
        for share in SHARES:
            if not open_:
                break
            steps = max(1, round(share * self.steps))
            runs = yield from self._runs(arm, standing.point, steps)
            loss = statistics.mean(run.loss for run in runs)
            now = {rival for rival in open_ if loss <= losses[rival]}
            reached |= dict.fromkeys(now, steps)
            open_ -= now
        return reached

    def _arms_of(self, standings: Mapping[str, Standing]) -> list[Arm]:
        return [arm for arm in self.arms if arm.name in standings]


def write_points(folder: Path, points: Mapping[str, Point]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: dataclasses.asdict(point) for name, point in points.items()}
    (folder / "chosen.json").write_text(json.dumps(content, indent=1))


def read_points(path: Path) -> dict[str, Point]:
    """What an earlier benchmark set its arms to.

    Raises:
        InputError: no such file, or one of another kind.
    """
    try:
        items = json.loads(path.read_text()).items()
        return {name: Point(**{**values, "momentum": _hashable(values["momentum"])}) for name, values in items}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not the chosen.json of a finished tuning ({error})") from error


def _hashable(momentum: object) -> object:
    return tuple(momentum) if isinstance(momentum, list) else momentum
