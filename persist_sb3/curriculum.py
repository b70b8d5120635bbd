"""A curriculum: constraints, rewards and shield in stages, from wide and gentle to as they are declared."""

import difflib
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Demands:
    """
    What is asked of the agent. The defaults are what the layers around the environment declare.

    :param tightness: the constraints are :meth:`ViabilitySet.tighten(tightness)
        <persist_sb3.viability.ViabilitySet.tighten>`, in ``(0, 1]``: 0.5 leaves twice the distance to the setpoint
    :param homeo_factor: share of ``lambda_H``, the weight of ``HomeostatReward``, in ``[0, 1]``
    :param intr_factor: factor on ``lambda_I``, the weight of the intrinsic rewards, at least 0
    :param threshold: of ``ActionShield``, in scaled margins of the constraints in force. None: as declared
    :param conf: of ``ActionShield``, in ``(0, 1]``. None: as declared
    :raises ValueError: if one is out of its range
    """

    tightness: float = 1.0
    homeo_factor: float = 1.0
    intr_factor: float = 1.0
    threshold: float | None = None
    conf: float | None = None

    def __post_init__(self) -> None:
        self._require("tightness", 0.0 < self.tightness <= 1.0, "in (0, 1]: the declared constraints come last")
        self._require("homeo_factor", 0.0 <= self.homeo_factor <= 1.0, "in [0, 1]: the declared weight comes last")
        self._require("intr_factor", 0.0 <= self.intr_factor < math.inf, "finite and at least 0")
        self._require("threshold", self.threshold is None or math.isfinite(self.threshold), "finite")
        self._require("conf", self.conf is None or 0.0 < self.conf <= 1.0, "in (0, 1]")

    def _require(self, name: str, holds: bool, demand: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)} of a stage must be {demand}")


@dataclass(frozen=True, kw_only=True)
class Stage(Demands):
    """
    What is asked for a while. The stage is over after ``steps``, or once at most a share ``violation_rate`` of its last
    ``episodes`` violated the constraints in force, whichever comes first; at least one of the two is given.

    :param steps: environment steps
    :param violation_rate: in ``[0, 1)``
    :param episodes: how many it is measured over; they began in this stage
    :raises ValueError: if a parameter is out of its range, or nothing ends the stage
    """

    steps: int | None = None
    violation_rate: float | None = None
    episodes: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("steps", self.steps is None or self.steps >= 1, "at least 1")
        rate = self.violation_rate
        self._require("violation_rate", rate is None or 0.0 <= rate < 1.0, "in [0, 1)")
        self._require("episodes", self.episodes >= 1, "at least 1")
        if self.steps is None and rate is None:
            raise ValueError("a stage needs an end: give it steps, or a violation_rate")


_KEYS = tuple(field.name for field in fields(Stage))

#: What may only rise from stage to stage.
RISING = ("tightness", "homeo_factor", "threshold", "conf")


def read_stages(given: Sequence[Stage | Mapping[str, Any]]) -> tuple[Stage, ...]:
    """
    :param given: stages, or their parameters as a YAML file has them; what is declared follows the last
    :return: the stages
    :raises ValueError: if there are none, a key is unknown, a value is out of its range, or a stage loosens what an
        earlier one asks
    """
    stages = tuple(stage if isinstance(stage, Stage) else _read(stage) for stage in given)
    if not stages:
        raise ValueError("a curriculum needs at least one stage before what is declared: give stages=[{...}]")
    for number, (before, after) in enumerate(pairwise(stages), start=2):
        for key in RISING:
            old, new = getattr(before, key), getattr(after, key)
            if new is not None and (old is None or new < old):
                declared = "as declared" if old is None else f"{old:g}"
                raise ValueError(
                    f"stage {number} loosens {key} from {declared} to {new:g}: stages may only tighten. Reorder them"
                )
    return stages


def _read(given: Mapping[str, Any]) -> Stage:
    for key in given:
        if key not in _KEYS:
            nearest = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f", did you mean {nearest[0]!r}?" if nearest else "."
            raise ValueError(f"a stage has no key {key!r}{hint} Known: {', '.join(_KEYS)}")
    return Stage(**given)


class Curriculum:
    """
    Where a training stands in its stages. Knows no environment and no algorithm.

    :param stages: see :func:`read_stages`
    :param num_envs: number of environments, ``n``
    :param midway: the episodes now in progress began earlier
    :raises ValueError: as :func:`read_stages`
    """

    def __init__(self, stages: Sequence[Stage | Mapping[str, Any]], num_envs: int = 1, *, midway: bool = False) -> None:
        self.stages = read_stages(stages)
        #: Number of the stage; ``len(stages)`` once everything is as declared.
        self.index = 0
        #: Environment steps in this stage.
        self.steps = 0
        self._whole = np.full(num_envs, not midway)
        self._violated = np.zeros(num_envs, dtype=bool)
        self._outcomes: deque[bool] = deque(maxlen=self.stages[0].episodes)

    @property
    def finished(self) -> bool:
        """Whether everything is as declared."""
        return self.index == len(self.stages)

    @property
    def demands(self) -> Demands:
        """What is asked now."""
        return Demands() if self.finished else self.stages[self.index]

    @property
    def violation_rate(self) -> float:
        """Share of the last episodes that began in this stage and violated the constraints in force; NaN before any."""
        return float(np.mean(self._outcomes)) if self._outcomes else math.nan

    def step(self, violated: NDArray[np.bool_], done: NDArray[np.bool_]) -> None:
        """
        :param violated: whether the step violates the constraints in force, ``(n,)``
        :param done: whether it ended the episode, ``(n,)``
        """
        self.steps += len(done)
        self._violated |= violated
        self._outcomes.extend(self._violated[done & self._whole].tolist())
        self._whole |= done
        self._violated &= ~done

    def advance(self) -> bool:
        """
        Go to the next stage if this one is over.

        :return: whether it was
        """
        if self.finished:
            return False
        stage = self.stages[self.index]
        late = stage.steps is not None and self.steps >= stage.steps
        enough = len(self._outcomes) == stage.episodes
        stable = stage.violation_rate is not None and enough and self.violation_rate <= stage.violation_rate
        if not (late or stable):
            return False
        self.index += 1
        self.steps = 0
        self._whole[:] = False
        self._violated[:] = False
        self._outcomes = deque(maxlen=stage.episodes if self.finished else self.stages[self.index].episodes)
        return True

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the stage, how long it has lasted, how its episodes went, and which stages there are
        """
        return {
            "index": self.index,
            "steps": self.steps,
            "outcomes": list(self._outcomes),
            "stages": [asdict(stage) for stage in self.stages],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        :raises ValueError: if it is of other stages
        """
        if state["stages"] != [asdict(stage) for stage in self.stages]:
            raise ValueError(f"it was saved with the stages {state['stages']}, and these are others")
        self.index = state["index"]
        self.steps = state["steps"]
        last = self.stages[min(self.index, len(self.stages) - 1)]
        self._outcomes = deque(state["outcomes"], maxlen=last.episodes)


class StageInForce(torch.nn.Module):
    """
    The stage in force, in shared memory: layers read it at every step, in whichever process they run.

    :param plan: all that will be asked, in this order, what is declared last
    """

    stage: torch.Tensor

    def __init__(self, plan: Sequence[Demands]) -> None:
        super().__init__()
        self.plan = tuple(plan)
        #: Its number, from 0.
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    @property
    def demands(self) -> Demands:
        """What is asked now."""
        return self.plan[int(self.stage)]

    @property
    def leads_homeostat(self) -> bool:
        """Whether the weight of ``HomeostatReward`` is another in some stage."""
        return any(demands.homeo_factor != 1.0 for demands in self.plan)
