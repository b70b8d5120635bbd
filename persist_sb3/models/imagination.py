"""What would happen: transitions of the whole state, learned or known, and rollouts of them."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.batch import Batch, unflatten
from persist_sb3.draws import Noise
from persist_sb3.models.base import check_spec
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.latent import Belief, LatentModel
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.models.world import WorldModel

#: Encoded actions of every step, ``(h, n, A)``, or a function of the number of the step and the states ``(n, D)``.
Actions = Floats | Callable[[int, Floats], Floats]


class Dynamics(Protocol):
    """How the state ``s = [o, x]`` goes on, for any number of rows at once."""

    #: Among how many networks a row can choose.
    members: int

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param members: which network imagines each row, ``(n,)``; a rollout keeps its own to the end
        :param noise: what chance is drawn from; None for no chance
        :return: ``s'``, ``(n, D)``
        """


class Rollout(Dynamics, Protocol):
    """Steps that follow one another, of dynamics that remember: each takes the states that the last returned."""

    def take(self, rows: NDArray[np.intp]) -> "Rollout":
        """
        :param rows: which rows go on, in this order; one may do so more than once, ``(m,)``
        :return: the rollout of these, each with what it remembers; this one does not follow it
        """


@runtime_checkable
class RecurrentDynamics(Dynamics, Protocol):
    """Dynamics that remember. :meth:`step` by itself starts from what the state alone says."""

    def begin(self, state: Floats) -> Rollout:
        """
        :param state: where each row begins, ``(n, D)``
        :return: dynamics for these rows, whose steps follow one another
        """


def begin(dynamics: Dynamics, state: Floats) -> Dynamics:
    """
    To be called by whoever imagines more than one step.

    :param dynamics: how the state goes on
    :param state: where each row begins, ``(n, D)``
    :return: dynamics for steps that follow one another from there
    """
    return dynamics.begin(state) if isinstance(dynamics, RecurrentDynamics) else dynamics


class LearnedDynamics:
    """
    The two learned models together. Where the observation shows an internal variable, the internal model's word counts.

    :param world: predicts the observation
    :param internal: predicts the internal variables. Default: they are read from the predicted observation
    :raises ValueError: if they are about different environments, or without ``internal`` the observation does not show
        every internal variable
    """

    def __init__(self, world: WorldModel, internal: InternalModel | None = None) -> None:
        self._world = world
        self._internal = internal
        self._shown = np.array(world.shown, dtype=np.intp).reshape(-1, 2)
        if internal is not None:
            check_spec(world.spec.fingerprint, internal.spec)
            self.members = min(world.members, internal.members)
            return
        self.members = world.members
        order = np.argsort(self._shown[:, 1])
        self._read, variables = self._shown[order].T
        dims = world.spec.viability.dims
        hidden = [name for variable, name in enumerate(dims) if variable not in variables]
        if hidden:
            raise ValueError(f"the observation does not show {', '.join(hidden)}: the internal model must predict that")

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """See :meth:`Dynamics.step`: one forward pass of each model."""
        observation = self._world.sample(state, action, members, noise)
        if self._internal is None:
            return np.concatenate([observation, observation[:, self._read]], axis=1)
        internal = self._internal.sample(state, action, members, noise)
        columns, variables = self._faithful.T
        observation[:, columns] = internal[:, variables]
        return np.concatenate([observation, internal], axis=1)

    def moments(self, state: Floats, action: Floats, members: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param members: which network predicts each row, ``(n,)``
        :return: mean and variance of ``s'``, probabilities of what is a category, ``(n, D)`` both
        """
        both = []
        world = self._world.moments(state, action, members)
        internal = world if self._internal is None else self._internal.moments(state, action, members)
        for observed, inner in zip(world, internal, strict=True):
            if self._internal is None:
                both.append(np.concatenate([observed, observed[:, self._read]], axis=1))
                continue
            columns, variables = self._faithful.T
            observed[:, columns] = inner[:, variables]
            both.append(np.concatenate([observed, inner], axis=1))
        mean, var = both
        return mean, var

    def predict(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :meth:`moments` in torch, of all members together, differentiable in the state and in the action.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: mean of the members' means and of their variances, ``(n, D)`` both
        """
        both = []
        world = self._world.predict(state, action)
        internal = world if self._internal is None else self._internal.predict(state, action)
        for observed, inner in zip(world, internal, strict=True):
            outer, inside = observed.mean(dim=0), inner.mean(dim=0)
            if self._internal is None:
                both.append(torch.cat([outer, outer[:, torch.as_tensor(self._read, device=state.device)]], dim=1))
                continue
            columns, variables = torch.as_tensor(self._shown, device=state.device)[self._world.faithful].T
            both.append(torch.cat([outer.index_copy(1, columns, inside[:, variables]), inside], dim=1))
        mean, var = both
        return mean, var

    @property
    def _faithful(self) -> NDArray[np.intp]:
        return self._shown[self._world.faithful.numpy()]


class LatentDynamics:
    """
    The latent model by itself, which imagines observation and internal variables together. A rollout remembers what it
    has imagined; where it begins, it knows what the state alone says, unless it is told more.

    :param model: imagines
    """

    members = LatentModel.members

    def __init__(self, model: LatentModel) -> None:
        self._model = model

    def begin(self, state: Floats, belief: Belief | None = None) -> "LatentRollout":
        """
        See :meth:`RecurrentDynamics.begin`.

        :param state: where each row begins, ``(n, D)``
        :param belief: what is known of these rows' episodes, as :class:`~persist_sb3.models.latent.LatentFilter` keeps
            it. Default: nothing
        """
        return LatentRollout(self._model, self._model.initial(state) if belief is None else belief)

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """See :meth:`Dynamics.step`."""
        return self._model.sample(state, action, members, noise)


class LatentRollout:
    """
    Steps that follow one another.

    :param model: imagines
    :param belief: about the rows' episodes, ``(n, ...)``
    """

    members = LatentModel.members

    def __init__(self, model: LatentModel, belief: Belief) -> None:
        self._model = model
        self._belief = belief

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """
        See :meth:`Dynamics.step`.

        :raises ValueError: if there are not as many rows as the rollout began with
        """
        if len(state) != len(self._belief.memory):
            raise ValueError(f"a rollout that began with {len(self._belief.memory)} rows goes on with {len(state)}")
        following, self._belief = self._model.imagine(self._belief, state, action, noise)
        return following

    def take(self, rows: NDArray[np.intp]) -> "LatentRollout":
        """See :meth:`Rollout.take`."""
        return LatentRollout(self._model, self._belief.rows(rows))


def learned(world: WorldModel | LatentModel, internal: InternalModel | None) -> Dynamics:
    """
    :param world: of either kind
    :param internal: predicts the internal variables, where ``world`` does not
    :return: the whole state's dynamics
    :raises ValueError: if they are about different environments, or the internal model is needed and not there
    """
    if isinstance(world, LatentModel):
        return LatentDynamics(world)
    if internal is None:
        raise ValueError("a WorldModel predicts the observation only: give the InternalModel as well")
    return LearnedDynamics(world, internal)


class KnownDynamics:
    """
    Dynamics that are known need not be learned.

    :param spec: the environment's state and actions
    :param function: takes observations, internal variables ``(n, d)`` and actions, as the environment has them but in
        batches of ``n``, and returns the next observations and the next internal variables
    """

    members = 1

    def __init__(
        self, spec: StateSpec, function: Callable[[Batch, NDArray[Any], NDArray[Any]], tuple[Batch, NDArray[Any]]]
    ) -> None:
        self._spec = spec
        self._function = function

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """
        See :meth:`Dynamics.step`.

        :raises TypeError: if the function returns something of another shape
        """
        spec = self._spec
        observation = unflatten(spec.observation_space, state[:, : spec.observation_dim])
        executed = spec.decode_action(action) if spec.continuous else unflatten(spec.action_space, action)
        following = spec.encode(*self._function(observation, state[:, spec.observation_dim :], executed))
        if following.shape != state.shape:
            raise TypeError(
                f"the known dynamics turned states of shape {state.shape} into {following.shape}: they must return as "
                "many observations, and internal variables (n, d), as they are given"
            )
        return following


def rollout(
    dynamics: Dynamics,
    state: Floats,
    actions: Actions,
    horizon: int,
    members: NDArray[np.intp],
    noise: Noise | None,
) -> Floats:
    """
    :param dynamics: how the state goes on
    :param state: where each row begins, ``(n, D)``
    :param actions: what is done
    :param horizon: steps, ``h``
    :param members: which network imagines each row, ``(n,)``
    :param noise: what chance is drawn from; None for no chance
    :return: the states after each step, ``(h, n, D)``
    """
    states = np.empty((horizon, *state.shape), dtype=np.float32)
    dynamics = begin(dynamics, state)
    for step in range(horizon):
        action = actions(step, state) if callable(actions) else actions[step]
        states[step] = state = dynamics.step(state, action, members, noise)
    return states
