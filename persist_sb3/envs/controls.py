"""What layers, callbacks and people read and change of one world of GridLife, in whichever form it runs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import ACTIONS, CONSTRAINTS, INTERNAL_NAMES, SETPOINT, WEIGHTS, GridLifeParams
from persist_sb3.envs.interface import Interface, Split, checked_hidden, layout_range, make_viability
from persist_sb3.envs.render import draw
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.symmetry import Symmetry
from persist_sb3.viability import ViabilitySet


class Settings:
    """
    The keywords of GridLife, read and checked.

    :param flat: one flat Box as observation instead of a Dict
    :param continuous: two real numbers as action instead of one of five
    :param scent: whether the scent of food is observed
    :param split: which layouts episodes are played on: "train", "validation" or "test"
    :param layout_seed: if given, the one layout of all episodes
    :param constraints: limits, each on one of energy, temp and integrity
    :param setpoint: where the variables are at their best, and start; ``(3,)``
    :param hidden: internal variables that the observation does not show: they read 0
    :param dynamics: parameters of :class:`~persist_sb3.envs.dynamics.GridLifeParams`
    :raises TypeError: if a parameter is unknown
    :raises ValueError: if a value is out of its range, or a constraint is not a limit of a single variable
    """

    def __init__(
        self,
        *,
        flat: bool = False,
        continuous: bool = False,
        scent: bool = False,
        split: Split = "train",
        layout_seed: int | None = None,
        constraints: Sequence[str] = CONSTRAINTS,
        setpoint: Sequence[float] = SETPOINT,
        hidden: Sequence[str] = (),
        **dynamics: Any,
    ) -> None:
        self.params = GridLifeParams.from_keywords(dynamics)
        self.interface = Interface(self.params, flat, continuous, scent)
        self.layouts = layout_range(split, layout_seed)
        self.viability = make_viability(constraints, setpoint)
        self.hidden = checked_hidden(hidden)


class Controls(ABC):
    """The public side of one world, beside ``reset`` and ``step``. The forms say where the world's numbers are."""

    params: GridLifeParams
    _interface: Interface
    _viability: ViabilitySet

    def _adopt(self, settings: Settings) -> None:
        self.params = settings.params
        self._interface = settings.interface
        self._declared = self._viability = settings.viability
        self._hidden = settings.hidden
        self._intervention: tuple[int, Any, Any] | None = None

    @abstractmethod
    def _viability_changed(self) -> None:
        """The constraints in force are others than before."""

    @abstractmethod
    def _hidden_changed(self) -> None:
        """The variables to hide are others than before."""

    @property
    @abstractmethod
    def elapsed(self) -> int:
        """Steps of the episode so far."""

    @abstractmethod
    def get_internal(self) -> NDArray[np.float64]:
        """
        :return: the true internal variables, ``(3,)``
        """

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """
        :return: the complete state of the world; what happens later does not change it
        :raises ResetNeeded: before the first reset
        """

    @abstractmethod
    def restore(self, snapshot: Snapshot) -> None:
        """
        Go back to a snapshot: the same actions then lead to the same trajectory, to the last bit.

        :param snapshot: of one world with the same parameters
        :raises ValueError: if its parameters are others, or it is of several worlds
        """

    @abstractmethod
    def action_masks(self) -> NDArray[np.bool_]:
        """
        :return: which actions do not run into the edge of the grid, ``(5,)``
        :raises TypeError: in the continuous form
        """

    @property
    def internal_names(self) -> tuple[str, ...]:
        """Names of the internal variables."""
        return INTERNAL_NAMES

    @property
    def viability(self) -> ViabilitySet:
        """The constraints in force, which end the episode."""
        return self._viability

    @property
    def setpoint(self) -> tuple[float, ...]:
        """Where the internal variables are at their best, ``(3,)``."""
        assert self._viability.mu is not None
        return tuple(self._viability.mu.tolist())

    @property
    def weights(self) -> tuple[float, ...]:
        """How much a deviation of each internal variable matters, ``(3,)``."""
        return WEIGHTS

    @property
    def internal_entries(self) -> dict[str, str]:
        """Where the internal variables that are shown are in the observation."""
        return self._interface.entries(self._hidden)

    @property
    def window_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the flattened ``window`` in an observation."""
        return self._interface.window_shape

    @property
    def symmetries(self) -> list[Symmetry]:
        """The quarter turns and mirror images of the world."""
        return self._interface.symmetries()

    def set_constraints(self, constraints: Sequence[str]) -> None:
        """
        Change the constraints, from the next step on; the tolerance becomes 1.

        :param constraints: limits, each on one internal variable
        :raises ValueError: if one is not
        """
        self._declared = self._viability = make_viability(constraints, self.setpoint)
        self._viability_changed()

    def set_tolerance(self, k: float) -> None:
        """
        Draw the declared constraints together about the setpoint, from the next step on.

        :param k: below 1 wider, above 1 narrower than declared; calls do not accumulate
        :raises ValueError: if it is not positive
        """
        self._viability = self._declared.tighten(k)
        self._viability_changed()

    def set_hidden(self, names: Sequence[str]) -> None:
        """
        Hide internal variables: their entries of the observation read 0, from the next observation on.

        :param names: those to hide; all others are shown
        :raises ValueError: if there is no such variable
        """
        self._hidden = checked_hidden(names)
        self._hidden_changed()

    def mark_intervention(self, proposed: Any, executed: Any) -> None:
        """
        Show in the picture of the coming step that its action was changed.

        :param proposed: what the agent wanted to do
        :param executed: what is done instead
        """
        # Actions become names only where a picture is drawn, which is seldom.
        self._intervention = self.elapsed + 1, proposed, executed

    def _name_of(self, action: Any) -> str:
        if self._interface.continuous:
            # What was wanted need not be in the action space.
            action = np.nan_to_num(action).clip(-1.0, 1.0)
        return ACTIONS[self._interface.move(action)]

    def forget_intervention(self) -> None:
        """Show no intervention in the pictures to come: what was marked is of another episode."""
        self._intervention = None

    def picture(self) -> NDArray[np.uint8]:
        """
        :return: the world as it is, ``(height, width, 3)``
        :raises ResetNeeded: before the first reset
        """
        snapshot = self.snapshot()
        mark = self._intervention
        names = (self._name_of(mark[1]), self._name_of(mark[2])) if mark and mark[0] == self.elapsed else None
        return draw(snapshot, self._viability, self._hidden, names)
