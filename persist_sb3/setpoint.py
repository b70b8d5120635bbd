"""Looks for the setpoint, and the weights of the deviations from it, with which agents live longest."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import create_trial

Setpoint = dict[str, float]

#: Share of the trials, the best ones, whose mean is the answer: a single best one is mostly the luckiest.
ELITE = 0.25


def setpoint_names(variables: Sequence[str], weights: bool) -> tuple[str, ...]:
    """
    :param variables: the internal variables, ``d`` of them
    :param weights: whether their weights are drawn, too
    :return: what a setpoint consists of: the variables, and then ``w/<variable>`` for the weight of each, ``(d,)`` or
        ``(2 d,)``
    """
    return (*variables, *(f"w/{name}" for name in variables)) if weights else tuple(variables)


class SetpointSearch:
    """
    Bayesian optimisation of a noisy figure over setpoints, by Optuna's multivariate tree-structured Parzen estimator
    (Bergstra, Bardenet, Bengio & Kégl, "Algorithms for hyper-parameter optimization", NeurIPS 2011). It forgets all but
    the last ``window`` trials, so that it follows where the world changes.

    :param ranges: least and greatest value of what is looked for, by name (:func:`setpoint_names`)
    :param window: trials remembered
    :param startup: trials drawn uniformly before the estimator is asked
    :param seed: of the draws
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self, ranges: Mapping[str, tuple[float, float]], window: int = 40, startup: int = 8, seed: int = 0
    ) -> None:
        if not ranges:
            raise ValueError("ranges={} leaves nothing to look for")
        if not 1 <= startup < window:
            raise ValueError(f"startup={startup} must be at least 1 and below window={window}")
        self.ranges = dict(ranges)
        self.window = window
        self.startup = startup
        self.seed = seed
        #: Trials so far, those forgotten included.
        self.count = 0
        self._trials: list[tuple[Setpoint, float]] = []

    def ask(self) -> Setpoint:
        """
        :return: the setpoint to try next
        """
        space: dict[str, BaseDistribution] = {
            name: FloatDistribution(low, high) for name, (low, high) in self.ranges.items()
        }
        with _quiet():
            sampler = TPESampler(
                n_startup_trials=self.startup, multivariate=True, seed=(self.seed + self.count) % 2**32
            )
            study = optuna.create_study(direction="maximize", sampler=sampler)
            study.add_trials(
                [create_trial(params=dict(tried), distributions=space, value=value) for tried, value in self._trials]
            )
            return {name: float(value) for name, value in study.ask(space).params.items()}

    def tell(self, setpoint: Setpoint, value: float) -> None:
        """
        :param setpoint: that was tried
        :param value: how it went, the greater the better
        """
        self._trials = [*self._trials, (dict(setpoint), float(value))][-self.window :]
        self.count += 1

    @property
    def best(self) -> Setpoint | None:
        """Mean of the best of the remembered trials; None before there are enough of them."""
        if len(self._trials) < self.startup:
            return None
        ranked = sorted(self._trials, key=lambda trial: trial[1], reverse=True)
        elite = ranked[: max(1, round(ELITE * len(ranked)))]
        return {name: float(np.mean([setpoint[name] for setpoint, _ in elite])) for name in self.ranges}

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the trials
        """
        return {"count": self.count, "trials": [(dict(tried), value) for tried, value in self._trials]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        :raises ValueError: if it is about other variables
        """
        for tried, _ in state["trials"]:
            if tried.keys() != self.ranges.keys():
                raise ValueError(f"it looked for setpoints of {list(tried)}, and this for those of {list(self.ranges)}")
        self.count = state["count"]
        self._trials = [(dict(tried), value) for tried, value in state["trials"]]


@contextmanager
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class SetpointInForce(torch.nn.Module):
    """
    What the search says, in shared memory: ``RandomSetpoint`` reads it when an episode begins.

    :param names: what a setpoint consists of, ``k`` entries (:func:`setpoint_names`)
    :param share: of the training episodes that try the candidate
    """

    candidate: torch.Tensor
    chosen: torch.Tensor

    def __init__(self, names: tuple[str, ...], share: float) -> None:
        super().__init__()
        self.names = names
        self.share = share
        #: Tried now, ``(k,)``.
        self.register_buffer("candidate", torch.full((len(names),), torch.nan, dtype=torch.float64))
        #: The best so far, ``(k,)``; NaN before there is one.
        self.register_buffer("chosen", torch.full((len(names),), torch.nan, dtype=torch.float64))

    def known(self) -> NDArray[np.float64] | None:
        """
        :return: the best so far, ``(k,)``, if there is one
        """
        chosen = self.chosen.numpy()
        return None if np.isnan(chosen).any() else chosen.copy()
