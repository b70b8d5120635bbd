"""Measures, while the agent learns, how often the shield's decisions turn out safe."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persist_sb3.buffers import Transitions
from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.models.belief import BeliefColumns
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield.calibration import EDGES, Calibration, bins_of
from persist_sb3.shield.lookahead import LookAhead
from persist_sb3.wrappers.layer import declared


class CalibrationCallback(PersistCallback):
    """
    Compares what the viability critic says of an executed action with what happens in the next ``horizon`` steps, and
    keeps the :class:`~persist_sb3.shield.calibration.Calibration` that
    :class:`~persist_sb3.wrappers.ActionShield` takes its ``p_safe`` from and, with ``threshold="calibrated"``, its
    threshold. :class:`ViabilityCallback` must stand before it.

    Only decisions near the boundary count: the others are safe whatever is decided, and with them nearly any shield
    would be right nearly always. A decision whose fate lies beyond the end of its episode is left out.

    Logs ``persist/calibration_error``: by how much the declared ``p_safe`` of the decisions since the last entry
    differs from what became of them (expected calibration error, Naeini et al., AAAI 2015; declared before the outcome
    was known). Under ``persist/calibration/``: ``realised`` (share of the passing ones that were safe), ``threshold``,
    ``level`` (what is asked of it), ``certified``, and ``risk/<constraint>`` (share of the passing ones in the episodes
    that are remembered after which this constraint broke).

    :param conf: confidence asked for, in (0, 1). Default: that of the environment's ``ActionShield``; without one, that
        which a shield has by default
    :param horizon: steps within which a decision must prove safe
    :param near: a decision is near the boundary if the smallest scaled margin before it lies in ``[0, near)``
    :param episodes: how many are remembered
    :param step_size: by which the level adapts, see :class:`~persist_sb3.shield.calibration.Calibration`
    :param fit_freq: episodes between two readings of the threshold
    :param min_updates: gradient steps of the critic before its decisions count
    :param seed: of the draws. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        conf: float | None = None,
        horizon: int = 8,
        near: float = 0.5,
        episodes: int = 500,
        step_size: float = 0.01,
        fit_freq: int = 10,
        min_updates: int = 500,
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        if conf is not None and not 0.0 < conf < 1.0:
            raise ValueError(f"conf={conf} must be in (0, 1)")
        for key, value in (("horizon", horizon), ("episodes", episodes), ("fit_freq", fit_freq)):
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if not near > 0.0:
            raise ValueError(f"near={near} must be positive")
        if not step_size >= 0.0:
            raise ValueError(f"step_size={step_size} must be at least 0")
        if min_updates < 0:
            raise ValueError(f"min_updates={min_updates} must not be negative")
        self.conf = conf
        self.horizon = horizon
        self.near = near
        self.episodes = episodes
        self.step_size = step_size
        self.fit_freq = fit_freq
        self.min_updates = min_updates
        self.seed = seed

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the random generator
        """
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        """
        self.generator.bit_generator.state = state["generator"]

    def _on_training_start(self) -> None:
        critic = self.state.bundle().get("viability")
        if not isinstance(critic, ViabilityCritic):
            raise RuntimeError(
                "CalibrationCallback measures a viability critic, and there is none yet: list "
                "persist_sb3.callbacks.ViabilityCallback before it"
            )
        self.critic = critic
        self.spec: StateSpec = critic.spec
        entries = declared(self.lookup, "belief_entries", {})
        self._belief = BeliefColumns.find(self.spec, entries) if entries else None
        shield: LookAhead = declared(self.lookup, "lookahead", LookAhead())
        conf = shield.conf if self.conf is None else self.conf
        if not conf < 1.0:
            raise RuntimeError(f"conf={conf} cannot be measured: no number of safe decisions shows that all are")
        self.calibration = Calibration(self.spec, conf, self.horizon, self.episodes, self.step_size)
        self.generator = np.random.default_rng(self.model.seed if self.seed is None else self.seed)
        self.state.register("calibration", self.calibration, shared=True)
        self.state.register("calibration_training", self)
        n, bins = self.training_env.num_envs, len(EDGES)
        #: Decisions whose fate is not known yet, the last ``horizon`` of each environment.
        self._value = np.zeros((self.horizon, n), dtype=np.float32)
        self._declared = np.zeros((self.horizon, n), dtype=np.float32)
        self._open = np.zeros((self.horizon, n), dtype=bool)
        self._now = 0
        #: Of the episodes in progress, by bin.
        self._made = np.zeros((n, bins), dtype=np.intp)
        self._kept = np.zeros((n, bins), dtype=np.intp)
        #: Of those that passed, how many, and after how many of them each constraint broke.
        self._passing = np.zeros(n, dtype=np.intp)
        self._broke = np.zeros((n, len(self.spec.viability.names)), dtype=np.intp)
        #: The greatest threshold that was in force in it.
        self._force = np.full(n, -np.inf)
        self._unfitted = 0
        self._begin_log()
        super()._on_training_start()

    def _begin_log(self) -> None:
        bins = len(EDGES)
        self._promised, self._seen, self._safe = np.zeros(bins), np.zeros(bins), np.zeros(bins)
        self._passed = np.zeros(2)

    def _on_step(self) -> bool:
        step = self.store.read(self.locals)
        if int(self.critic.updates) >= self.min_updates:
            self._decide(step)
            self._settle(step)
        return super()._on_step()

    def _decide(self, step: Transitions) -> None:
        """
        Note what is decided.

        :param step: of the environments, ``n`` transitions
        """
        margin = self.spec.viability.margins(step.internal).min(axis=1)
        value = self._valued(step)
        row = self._now % self.horizon
        self._value[row] = value
        self._declared[row] = self.calibration.p_safe(value)
        self._open[row] = (margin >= 0.0) & (margin < self.near) & np.isfinite(value)
        np.maximum(self._force, self.calibration.threshold, out=self._force)

    def _valued(self, step: Transitions) -> Floats:
        state = self.spec.encode(step.observation, step.internal)
        if self._belief is not None:
            state = self._belief.believed(state)
        if self.spec.continuous:
            return self.critic.action_values(state, self.spec.encode_action(step.executed_action).clip(-1.0, 1.0))[:, 0]
        return self.critic.values(state)[np.arange(len(step)), self.spec.index(step.executed_action), 0]

    def _settle(self, step: Transitions) -> None:
        """
        Note which decisions have turned out wrong, and which have proved safe.

        :param step: of the environments, ``n`` transitions
        """
        broken = self.spec.viability.margins(step.next_internal) < 0.0
        self._close(self._open & broken.any(axis=1), broken)
        self._now += 1
        oldest = np.zeros_like(self._open)
        oldest[self._now % self.horizon] = self._open[self._now % self.horizon]
        self._close(oldest, np.zeros_like(broken))
        ended = np.flatnonzero(step.done)
        if not len(ended):
            return
        self._open[:, ended] = False
        for slot, draw in zip(ended.tolist(), self.generator.random(len(ended)).tolist(), strict=True):
            self.calibration.add(
                self._made[slot],
                self._kept[slot],
                draw,
                float(self._force[slot]),
                int(self._passing[slot]),
                self._broke[slot],
            )
        self._made[ended] = self._kept[ended] = self._broke[ended] = 0
        self._passing[ended] = 0
        self._force[ended] = -np.inf
        self._unfitted += len(ended)
        if self._unfitted >= self.fit_freq:
            self._unfitted = 0
            self.calibration.fit()

    def _close(self, which: NDArray[np.bool_], broken: NDArray[np.bool_]) -> None:
        """
        :param which: decisions whose fate is known now, ``(h, n)``
        :param broken: what it is: which constraints broke, ``(n, m)``
        """
        rows, slots = np.nonzero(which)
        if not len(rows):
            return
        self._open[rows, slots] = False
        value, declared = self._value[rows, slots], self._declared[rows, slots]
        bins = bins_of(value)
        np.add.at(self._made, (slots, bins), 1)
        safe = np.logical_not(broken[slots].any(axis=1))
        np.add.at(self._kept, (slots, bins), safe)
        passing = value >= self.calibration.threshold
        self._passed += [np.count_nonzero(passing), np.count_nonzero(passing & safe)]
        np.add.at(self._passing, slots[passing], 1)
        np.add.at(self._broke, slots[passing], broken[slots[passing]])
        told = np.isfinite(declared)
        np.add.at(self._promised, bins[told], declared[told])
        np.add.at(self._seen, bins[told], 1.0)
        np.add.at(self._safe, bins[told], safe[told])

    def _on_rollout_end(self) -> None:
        calibration = self.calibration
        if self._seen.any():
            error = np.abs(self._promised - self._safe).sum() / self._seen.sum()
            self.logger.record("persist/calibration_error", float(error))
        if self._passed[0]:
            self.logger.record("persist/calibration/realised", float(self._passed[1] / self._passed[0]))
        self.logger.record("persist/calibration/threshold", calibration.threshold)
        self.logger.record("persist/calibration/level", float(calibration.level))
        self.logger.record("persist/calibration/certified", float(calibration.certified))
        for name, risk in zip(self.spec.viability.names, calibration.risk.tolist(), strict=True):
            if np.isfinite(risk):
                # SB3's console table cuts long names, and refuses two that it cuts to the same.
                self.logger.record(f"persist/calibration/risk/{name}", risk, exclude="stdout")
        self._begin_log()
