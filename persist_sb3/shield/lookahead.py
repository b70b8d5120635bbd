"""How a shield looks ahead: the parameters of its search, and the models that it takes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from persist_sb3.batch import Batch
from persist_sb3.models.belief import BeliefColumns
from persist_sb3.models.imagination import Dynamics, KnownDynamics, learned
from persist_sb3.models.latent import LatentModel
from persist_sb3.models.spec import StateSpec
from persist_sb3.shield.criteria import Criterion
from persist_sb3.shield.rollouts import Backup, CriticBackup, Policy, PolicyBackup, RolloutVerifier, check_search
from persist_sb3.shield.sketch import Sketch

Mode = Literal["critic", "verify", "search", "amortised"]
MODES: tuple[Mode, ...] = get_args(Mode)

#: Who trains the model of this name, among persist_sb3.callbacks.
CALLBACKS = {
    "viability": "ViabilityCallback",
    "internal_model": "InternalModelCallback",
    "world_model": "WorldModelCallback",
    "familiarity": "InternalModelCallback",
    "safety": "SafetyNetworkCallback",
    "calibration": "CalibrationCallback",
}

#: Models about the constraints that a shield guards, and not about all that are declared.
GUARDING = ("viability", "safety")

#: Takes observations, internal variables and actions, and returns the next observations and internal variables.
Function = Callable[[Batch, NDArray[Any], NDArray[Any]], tuple[Batch, NDArray[Any]]]


@dataclass(frozen=True)
class LookAhead:
    """
    The parameters of a :class:`~persist_sb3.shield.rollouts.RolloutVerifier`, before there are models.

    :param conf: confidence asked for, in ``(0, 1]``
    :param horizon: steps looked ahead
    :param rollouts: futures of each action
    :param criterion: when they are safe enough
    :param threshold: least value at the end of a safe future, in scaled margins
    :param dynamics: known dynamics, see :class:`~persist_sb3.models.imagination.KnownDynamics`, or an object that has
        their ``members`` and ``step``. Default: the learned ones
    :param backup: a safe policy that goes on after the action, see
        :class:`~persist_sb3.shield.rollouts.PolicyBackup`. Default: the critic's best action
    :param belief: where the observation shows mean and variance of hidden variables, which each future then draws
    :raises ValueError: if a parameter is out of its range
    """

    conf: float = 0.9
    horizon: int = 5
    rollouts: int = 16
    criterion: Criterion = "probability"
    threshold: float = 0.2
    dynamics: Function | Dynamics | None = None
    backup: Policy | None = None
    belief: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_search(self.conf, self.horizon, self.rollouts, self.criterion)
        check_dynamics(self.dynamics)

    def needs(self, models: Mapping[str, Any]) -> tuple[str, ...]:
        """
        :param models: those that there are, by name
        :return: names of the models that it takes, there or not
        """
        names = foreseeing(self.dynamics, models)
        return names if self.backup is not None else ("viability", *names)

    def verifier(self, spec: StateSpec, models: Mapping[str, Any]) -> RolloutVerifier:
        """
        :param spec: the environment's state and actions
        :param models: by name; those that it :meth:`needs` are there
        :return: what judges actions
        """
        parts = self._parts(spec, models)
        belief = BeliefColumns.find(spec, self.belief) if self.belief else None
        return RolloutVerifier(
            spec, *parts, self.conf, self.horizon, self.rollouts, self.criterion, self.threshold, belief
        )

    def sketch(self, spec: StateSpec, models: Mapping[str, Any], steps: int) -> Sketch:
        """
        :param spec: the environment's state and actions
        :param models: by name; those that it :meth:`needs` are there
        :param steps: how many
        :return: outlines what :meth:`verifier` would imagine
        """
        return Sketch(spec, *self._parts(spec, models), steps)

    def _parts(self, spec: StateSpec, models: Mapping[str, Any]) -> tuple[Dynamics, Backup]:
        """
        :param spec: the environment's state and actions
        :param models: by name
        :return: how the state goes on, and what the agent does there
        """
        dynamics = find_dynamics(spec, self.dynamics, models)
        return dynamics, CriticBackup(models["viability"]) if self.backup is None else PolicyBackup(spec, self.backup)


def check_dynamics(known: Any) -> None:
    """
    :param known: known dynamics, see :class:`LookAhead`; None for the learned ones
    :raises ValueError: if they are neither a function nor an object that makes steps
    """
    if not (known is None or callable(known) or (hasattr(known, "members") and hasattr(known, "step"))):
        raise ValueError(
            f"dynamics={known!r} must be a function of (observations, internal variables, actions), or an object with "
            "'members' and 'step'; leave it out to use the models that are learned"
        )


def foreseeing(known: Function | Dynamics | None, models: Mapping[str, Any]) -> tuple[str, ...]:
    """
    :param known: known dynamics, see :class:`LookAhead`; None for the learned ones
    :param models: those that there are, by name
    :return: names of the models that together tell how the whole state goes on, there or not
    """
    if known is not None:
        return ()
    whole = isinstance(models.get("world_model"), LatentModel)
    return ("world_model",) if whole else ("internal_model", "world_model")


def find_dynamics(spec: StateSpec, known: Function | Dynamics | None, models: Mapping[str, Any]) -> Dynamics:
    """
    :param spec: the environment's state and actions
    :param known: known dynamics, see :class:`LookAhead`; None for the learned ones
    :param models: by name; those that :func:`foreseeing` names are there
    :return: how the state goes on
    """
    if known is None:
        return learned(models["world_model"], models.get("internal_model"))
    return KnownDynamics(spec, known) if callable(known) else known


def trainers(missing: Iterable[str]) -> str:
    """
    For error messages.

    :param missing: names of models that are not there
    :return: the callbacks that train them
    """
    return ", ".join(dict.fromkeys(f"persist_sb3.callbacks.{CALLBACKS[name]}" for name in missing))


def trained(models: Iterable[Any], min_updates: int) -> bool:
    """
    :param models: each counts its gradient steps in ``updates``
    :param min_updates: how many are enough
    :return: whether all have enough
    """
    return all(int(model.updates) >= min_updates for model in models)
