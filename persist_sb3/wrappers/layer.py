"""A layer: one idea about persistence, written once for ``n`` environments and run by any adapter."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch
from persist_sb3.curriculum import Demands, StageInForce
from persist_sb3.infos import Infos

Lookup = Callable[[str], Any]

_DECLARED = Demands()


def declared(lookup: Lookup, name: str, default: Any) -> Any:
    """
    :param lookup: what :meth:`Layer.attach` is given
    :param name: of an attribute that nothing below need have
    :param default: stands for it
    :return: the attribute of the nearest wrapper or environment below that has it, or the default
    """
    try:
        return lookup(name)
    except RuntimeError:
        return default


class Step:
    """
    One transition of ``n`` environments, as the environments below the layer made it. An adapter owns one and fills it
    anew at each step.

    ``observation``, ``next_observation``: ``(n, ...)``; where an episode ended, ``next_observation`` is its last one,
    never the first of the next episode.
    ``action``: ``(n, ...)``, what was executed.
    ``reward``: ``(n,)`` float64.
    ``terminated``, ``truncated``: ``(n,)`` bool.
    ``live``: ``(n,)`` bool, False where no transition took place because the environment only reset itself.
    ``all_live``: whether all are.
    ``infos``: what the step reported.
    """

    __slots__ = (
        "_make",
        "_next",
        "action",
        "all_live",
        "infos",
        "live",
        "observation",
        "reward",
        "terminated",
        "truncated",
    )

    observation: Batch
    action: Batch
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    live: NDArray[np.bool_]
    all_live: bool
    infos: Infos
    _next: Batch
    _make: Callable[[], Batch] | None

    @property
    def next_observation(self) -> Batch:
        """What the environments showed after the step, ``(n, ...)``."""
        if self._make is not None:
            self._next, self._make = self._make(), None
        return self._next

    @next_observation.setter
    def next_observation(self, observation: Batch) -> None:
        self._next, self._make = observation, None

    def defer_next_observation(self, make: Callable[[], Batch]) -> None:
        """
        :param make: returns ``next_observation``; called if a layer asks for it, since many do not
        """
        self._make = make

    def where_live(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """
        :param values: of the transitions, ``(n,)``
        :return: the same, and 0 where none took place, ``(n,)``
        """
        return values if self.all_live else np.where(self.live, values, 0.0)


class Layer:
    """
    Logic and per-environment state of one layer, for ``num_envs`` environments at once. It knows no environment API:
    the adapters in :mod:`persist_sb3.wrappers.adapters` call it. Override what the layer is about.

    A step calls :meth:`act`, then :meth:`after`, then :meth:`view`; a new episode :meth:`begin`, then :meth:`view`.
    """

    num_envs: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    everyone: NDArray[np.intp]
    curriculum: StageInForce | None = None

    @property
    def demands(self) -> Demands:
        """What a curriculum asks now; without one, and in evaluation, what the layers declare."""
        return _DECLARED if self.curriculum is None else self.curriculum.demands

    @property
    def views(self) -> bool:
        """Whether :meth:`view` shows something else than it sees; where it does not, adapters may leave it out."""
        return type(self).view is not Layer.view

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        """
        Meet the environments. Set ``observation_space`` and ``action_space`` to what the layer presents above itself.

        :param num_envs: how many there are, ``n``
        :param observation_space: of one environment, as it is below the layer
        :param action_space: of one environment, as it is below the layer
        :param lookup: gives the attribute of the nearest wrapper or environment below that has it
        :raises RuntimeError: if something that the layer needs is not there
        """
        self.num_envs = num_envs
        self.observation_space = observation_space
        self.action_space = action_space
        self.everyone = np.arange(num_envs)
        # Steps taken, and how many they were when each episode began.
        self._clock, self._began = 0, np.zeros(num_envs, dtype=np.int64)

    def seed(self, slots: NDArray[np.intp], seeds: NDArray[np.uint64]) -> None:
        """
        :param slots: environments, ``(k,)``
        :param seeds: the seeds that they are being reset with, ``(k,)``
        """

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        """
        Take the models that a callback trains. Until this is called a layer must pass everything through.

        :param bundle: the models, by name
        :param training: False in evaluation, where running statistics and counters must stand still
        """

    def follow(self, curriculum: StageInForce | None) -> None:
        """
        Let :attr:`demands` follow a curriculum from now on. A layer that takes part in one checks here whether it can
        do all that will be asked.

        :param curriculum: the stage in force; None in evaluation
        :raises RuntimeError: if a stage asks for something that the layer cannot do
        """
        self.curriculum = curriculum

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        """
        New episodes begin.

        :param slots: where, ``(k,)``
        :param observation: ``(n, ...)``; only the rows of ``slots`` are meant
        :param infos: what the reset reported
        """
        self._began[slots] = self._clock

    def act(self, action: Batch) -> Batch:
        """
        :param action: what comes from above, ``(n, ...)``
        :return: what is to be executed, ``(n, ...)``
        """
        return action

    def after(self, step: Step) -> NDArray[np.float64]:
        """
        :param step: the transition; publish what the layer has to say through ``step.infos``
        :return: the reward that goes up, ``(n,)``
        """
        self._clock += 1
        return step.reward

    def age(self, slots: NDArray[np.intp] | int | np.integer) -> NDArray[np.int64]:
        """
        A layer whose :meth:`begin` and :meth:`after` do not call these here has none.

        :param slots: environments, ``(k,)``, or one
        :return: steps that their episodes have taken, ``(k,)``, or its episode
        """
        return np.asarray(self._clock - self._began[slots])

    def view(self, slots: NDArray[np.intp], observation: Batch) -> Batch:
        """
        Called once for every observation of an environment, in order.

        :param slots: the environments that these observations come from, ``(k,)``
        :param observation: ``(k, ...)``, not to be changed in place
        :return: what is shown above the layer, ``(k, ...)``
        """
        return observation
