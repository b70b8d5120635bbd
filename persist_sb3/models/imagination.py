"""What would happen: transitions of the whole state, learned or known, and rollouts of them."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
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


@runtime_checkable
class RecurrentDynamics(Dynamics, Protocol):
    """Dynamics that remember. :meth:`step` by itself starts from what the state alone says."""

    def begin(self, state: Floats) -> Dynamics:
        """
        :param state: where each row begins, ``(n, D)``
        :return: dynamics for these rows, whose steps follow one another: each takes the states that the last returned
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
    :param internal: predicts the internal variables
    :raises ValueError: if they are about different environments
    """

    def __init__(self, world: WorldModel, internal: InternalModel) -> None:
        check_spec(world.spec.fingerprint, internal.spec)
        self.members = min(world.members, internal.members)
        self._world = world
        self._internal = internal
        self._shown = np.array(world.shown, dtype=np.intp).reshape(-1, 2)

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """See :meth:`Dynamics.step`: one forward pass of each model."""
        observation = self._world.sample(state, action, members, noise)
        internal = self._internal.sample(state, action, members, noise)
        columns, variables = self._shown[self._world.faithful.numpy()].T
        observation[:, columns] = internal[:, variables]
        return np.concatenate([observation, internal], axis=1)


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
