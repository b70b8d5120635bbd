"""Trains in stages: wide constraints and small weights first, what is declared last."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.curriculum import Curriculum, Demands, Stage, StageInForce, read_stages


class CurriculumCallback(PersistCallback):
    """
    Leads the training through stages (:class:`~persist_sb3.curriculum.Stage`), after which everything is as the layers
    declare it. A stage changes, between two rollouts and everywhere at once:

    - the constraints of ``InternalState``, and of an environment that has ``set_tolerance(k)`` (``GridLife``);
    - the weights of ``HomeostatReward``, whose ``alive_bonus="auto"`` follows the constraints, and of the intrinsic
      rewards;
    - the constraints, threshold and confidence of ``ActionShield``.

    Evaluation environments keep what is declared, so that their scores compare, and so does everything that learns or
    measures: models of the viability, calibration, ``MetricsCallback``. Only ``info["cost"]`` is about the constraints
    in force, and what follows from it (death penalty, ``TerminateOnViolation``, the stages' own ``violation_rate``).

    The stage and its counters are saved with the model and resumed, with the same stages only. Logs under
    ``persist/curriculum/``: ``stage``, ``tightness``, ``violation_rate``.

    :param stages: the stages before what is declared, each a dict of the parameters of
        :class:`~persist_sb3.curriculum.Stage`; none may loosen what an earlier one asks
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a stage is malformed, or loosens what an earlier one asks
    """

    def __init__(
        self,
        stages: Sequence[Stage | Mapping[str, Any]],
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        self.stages = read_stages(stages)

    def _on_training_start(self) -> None:
        if any(stage.tightness != 1.0 for stage in self.stages):
            self.lookup("in_force")
        self.curriculum = Curriculum(self.stages, self.training_env.num_envs, midway=self.store.steps > 0)
        self.state.register("curriculum_progress", self.curriculum)
        self.in_force = StageInForce([*self.stages, Demands()])
        self.state.register("curriculum", self.in_force, shared=True)
        self._apply()
        super()._on_training_start()
        self._checked = False

    def _apply(self) -> None:
        self.in_force.stage.fill_(self.curriculum.index)
        env = self.training_env
        if env.has_attr("set_tolerance"):
            env.env_method("set_tolerance", self.curriculum.demands.tightness)

    def _on_rollout_start(self) -> None:
        if self.curriculum.advance():
            self._apply()
            if self.verbose > 0:
                print(f"Stage {self.curriculum.index} of the curriculum: {self.curriculum.demands}")

    def _on_step(self) -> bool:
        step = self.store.read(self.locals)
        if np.isnan(step.cost).any():
            raise RuntimeError(
                "CurriculumCallback reads info['cost'], which nothing reports: wrap the environment in "
                "persist_sb3.wrappers.InternalState"
            )
        if not self._checked:
            self._check_layers(set(step.terms), "intervened" in self.locals["infos"][0])
        self.curriculum.step(step.cost > 0.0, step.done)
        return super()._on_step()

    def _check_layers(self, terms: set[str], shielded: bool) -> None:
        """
        :param terms: of the reward
        :param shielded: whether there is a shield
        :raises RuntimeError: if a stage changes something that no layer has
        """
        self._checked = True
        for key, layer, there in (
            ("homeo_factor", "HomeostatReward", "homeo" in terms),
            ("intr_factor", "RNDBonus", "intrinsic" in terms),
            ("threshold", "ActionShield", shielded),
            ("conf", "ActionShield", shielded),
        ):
            declared = getattr(Demands(), key)
            if not there and any(getattr(stage, key) != declared for stage in self.stages):
                raise RuntimeError(
                    f"the curriculum changes {key}, and no layer follows it: wrap the environment in {layer}, or leave "
                    f"{key} out of the stages"
                )

    def _on_rollout_end(self) -> None:
        self.logger.record("persist/curriculum/stage", self.curriculum.index)
        self.logger.record("persist/curriculum/tightness", self.curriculum.demands.tightness)
        rate = self.curriculum.violation_rate
        if np.isfinite(rate):
            self.logger.record("persist/curriculum/violation_rate", rate)
