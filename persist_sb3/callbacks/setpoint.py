"""Finds, while the agent learns to keep any setpoint, the one with which it lives longest."""

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.metrics import kaplan_meier
from persist_sb3.setpoint import Setpoint, SetpointInForce, SetpointSearch, setpoint_names


class SetpointCallback(PersistCallback):
    """
    The outer loop around :class:`~persist_sb3.wrappers.RandomSetpoint`. A share of the training episodes, drawn at
    random, tries one candidate setpoint; the others draw theirs as before. After ``episodes`` of either kind the
    candidate is judged by survival alone: the restricted mean time to the first violation (Kaplan-Meier; episodes cut
    off or still in progress are censored) of those that tried it, less that of the others at the same time, so that it
    does not count in which phase of the training it was tried. (The homeostatic reward would be no judge: it is best
    where the setpoint is what the variables are anyway.) :class:`~persist_sb3.setpoint.SetpointSearch` then proposes
    the next. Where ``RandomSetpoint`` draws weights, too, a candidate has setpoints and weights.

    Evaluation environments get the best so far, and so does a replay of the saved model. The search is saved with the
    model and resumed. Logs under ``persist/setpoint/``: the best setpoint by variable, the best weight by
    ``w/<variable>``, ``gain`` (of the last candidate, in steps), ``trials``.

    :param episodes: of either kind in a trial
    :param share: of the training episodes that try the candidate, in ``(0, 1)``
    :param window: trials that the search remembers
    :param startup: trials drawn uniformly at first
    :param seed: of the search. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        episodes: int = 20,
        share: float = 0.5,
        window: int = 40,
        startup: int = 8,
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        if episodes < 1:
            raise ValueError(f"episodes={episodes} must be at least 1")
        if not 0.0 < share < 1.0:
            raise ValueError(f"share={share} must be in (0, 1)")
        SetpointSearch({"any": (0.0, 1.0)}, window, startup)
        self.episodes = episodes
        self.share = share
        self.window = window
        self.startup = startup
        self.seed = seed

    def _on_training_start(self) -> None:
        low, high = self._ranges("setpoint_range")
        weights = self._ranges("weight_range")
        if weights is not None:
            low, high = (np.concatenate(bounds) for bounds in ((low, weights[0]), (high, weights[1])))
        self._names = setpoint_names(self.lookup("viability").dims, weights is not None)
        # Where these are the same, nothing is drawn, and both are what is declared.
        self._declared = low
        ranges = {
            name: (float(a), float(b)) for name, a, b in zip(self._names, low, high, strict=True) if float(a) < float(b)
        }
        seed = self.model.seed if self.seed is None else self.seed
        self.search = SetpointSearch(ranges, self.window, self.startup, seed or 0)
        self.state.register("setpoint_search", self.search)
        self.in_force = SetpointInForce(self._names, self.share)
        self.state.register("setpoint", self.in_force, shared=True)
        n = self.training_env.num_envs
        self._duration = np.zeros(n, dtype=np.int64)
        self._violated = np.zeros(n, dtype=bool)
        self._counts = np.zeros(n, dtype=bool)
        self._gain = np.nan
        self._propose()
        super()._on_training_start()

    def _ranges(self, name: str) -> Any:
        try:
            return self.lookup(name)
        except RuntimeError as error:
            raise RuntimeError(
                "SetpointCallback looks for a setpoint, and no layer keeps any: wrap the environment in "
                "persist_sb3.wrappers.RandomSetpoint(ranges=...), between InternalState and HomeostatReward"
            ) from error

    def _propose(self) -> None:
        self._candidate = self.search.ask()
        self.in_force.candidate.copy_(torch.as_tensor(self._vector(self._candidate)))
        # Episodes that began in this trial: steps to a violation or to where watching stopped, and whether it was one.
        self._tried: list[tuple[int, bool]] = []
        self._others: list[tuple[int, bool]] = []
        self._counts[:] = False

    def _vector(self, setpoint: Setpoint) -> NDArray[np.float64]:
        return np.array([setpoint.get(name, own) for name, own in zip(self._names, self._declared, strict=True)])

    def _on_step(self) -> bool:
        step = self.store.read(self.locals)
        self._duration += ~self._violated
        self._violated |= step.cost > 0.0
        self._infos = self.locals["infos"]
        ended = np.flatnonzero(step.done)
        for slot in ended[self._counts[ended]].tolist():
            tried, outcome = self._outcome(slot)
            (self._tried if tried else self._others).append(outcome)
        self._duration[ended] = 0
        self._violated[ended] = False
        self._counts[ended] = True
        return super()._on_step()

    def _outcome(self, slot: int) -> tuple[bool, tuple[int, bool]]:
        """
        :param slot: an environment
        :return: whether its episode tries the candidate, and how that went so far
        """
        told = self._infos[slot]
        setpoint = np.concatenate([told["setpoint"], told.get("setpoint_weights", ())])
        tried = np.array_equal(setpoint, self.in_force.candidate.numpy())
        return tried, (int(self._duration[slot]), bool(self._violated[slot]))

    def _on_rollout_start(self) -> None:
        if min(len(self._tried), len(self._others)) < self.episodes:
            return
        # Those still in progress are mostly the long-lived: without them, long lives would be left out.
        for slot in np.flatnonzero(self._counts & (self._duration > 0)).tolist():
            tried, outcome = self._outcome(slot)
            (self._tried if tried else self._others).append(outcome)
        curves = [kaplan_meier(*zip(*outcomes, strict=True)) for outcomes in (self._tried, self._others)]
        horizon = min(curve.last for curve in curves)
        gain, base = (curve.restricted_mean(horizon) for curve in curves)
        self._gain = gain - base
        self.search.tell(self._candidate, self._gain)
        best = self.search.best
        if best is not None:
            self.in_force.chosen.copy_(torch.as_tensor(self._vector(best)))
        self._propose()

    def _on_rollout_end(self) -> None:
        self.logger.record("persist/setpoint/trials", self.search.count)
        if np.isfinite(self._gain):
            self.logger.record("persist/setpoint/gain", self._gain)
        for name, value in (self.search.best or {}).items():
            self.logger.record(f"persist/setpoint/{name}", value)
