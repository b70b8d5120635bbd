"""Tests models on the next steps, as they were before they saw them."""

import copy
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from persist_sb3.models.forecast import LinearDynamics, forecast
from persist_sb3.models.imagination import learned
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.latent import Belief, LatentModel
from persist_sb3.models.spec import Floats
from persist_sb3.models.world import WorldModel

#: Steps ahead that are looked at, and steps of the environments from one test to the next.
HORIZONS, INTERVAL = (1, 4, 8), 64

#: World model, internal model where there is one, and what is believed of the running episodes.
Models = tuple[WorldModel | LatentModel, InternalModel | None, Belief | None]


class Forecasts:
    """
    Once the models have been trained, it keeps them as they are at the beginning of every :data:`INTERVAL` steps; when
    the next steps have been taken, it asks what they would have predicted, told the actions.

    :param models: asked where a test begins
    """

    def __init__(self, models: Callable[[], Models]) -> None:
        self._ask = models
        self._step = 0
        #: Sums of squared errors of the model, of its linear regression, and of "nothing changes", by steps ahead.
        self._squares: dict[int, NDArray[np.float64]] = {}

    def add(self, read: Callable[[], tuple[Floats, Floats, Floats, NDArray[np.bool_]]]) -> None:
        """
        Take note of a step.

        :param read: called if the step is part of a test; returns states ``(n, D)``, encoded actions ``(n, A)``,
            successors ``(n, D)``, and where an episode ends ``(n,)``
        """
        if self._step == 0:
            models = self._ask()
            if not int(models[0].updates):
                return
            self._models = copy.deepcopy(models)
            state, action, successor, done = read()
            self._state, self._actions, self._truth = state, [action], [successor]
            self._running = [np.ones(len(state), dtype=np.bool_), ~done]
        elif self._step < HORIZONS[-1]:
            _, action, successor, done = read()
            self._actions.append(action)
            self._truth.append(successor)
            self._running.append(self._running[-1] & ~done)
        if self._step == HORIZONS[-1] - 1:
            self._test()
        self._step = (self._step + 1) % INTERVAL

    def _test(self) -> None:
        world, internal, belief = self._models
        state, actions = self._state, np.stack(self._actions)
        if internal is None and isinstance(world, WorldModel):
            return
        dynamics = learned(world, internal)
        linear = LinearDynamics(world) if internal is None else LinearDynamics(world, internal)
        predicted = forecast(dynamics, state, actions, belief), forecast(linear, state, actions)
        for ahead in HORIZONS:
            truth, rows = self._truth[ahead - 1], self._running[ahead - 1]
            guesses = np.stack([predicted[0][ahead - 1], predicted[1][ahead - 1], state])
            squares = np.square(guesses - truth)[:, rows].sum(axis=1, dtype=np.float64)
            self._squares[ahead] = self._squares.get(ahead, np.zeros_like(squares)) + squares

    def report(self) -> dict[str, float]:
        """
        :return: of the tests since it was last asked, by what it is: root mean squared errors over that of "nothing
            changes", averaged over the columns of the state that change
        """
        report: dict[str, float] = {}
        for ahead, (model, linear, still) in self._squares.items():
            changing = still > 0.0
            if changing.any():
                for name, squares in (("forecast", model), ("linear", linear)):
                    report[f"{name}_{ahead}"] = float(np.sqrt(squares[changing] / still[changing]).mean())
        self._squares.clear()
        return report
