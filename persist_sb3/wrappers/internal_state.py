"""Where the internal variables are, and whether they are where they must be."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, is_vecenv_wrapped

from persist_sb3.batch import Batch, surely_finite, with_rows
from persist_sb3.curriculum import StageInForce
from persist_sb3.infos import Infos
from persist_sb3.internal import InternalSource, SimulatedVariable
from persist_sb3.symmetry import Symmetry
from persist_sb3.viability import LeastMargin, ViabilitySet
from persist_sb3.wrappers.adapters import LayerOwner, LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.extended import ExtendedObservation
from persist_sb3.wrappers.layer import Layer, Lookup, Step, declared


class NonFiniteError(RuntimeError):
    """An environment returned NaN or infinity."""


class InternalStateLayer(Layer):
    """
    Reads the internal variables ``x`` from the environment and publishes what every other layer and callback needs:
    ``info["internal"]`` (``x``), ``info["cost"]`` (1.0 on a step after which a constraint is violated, else 0.0),
    ``info["persist"]["margin"]`` (the smallest scaled margin) and ``info["reward_terms"]["task"]``. It leaves the
    reward alone and ends no episode.

    While a :class:`~persist_sb3.callbacks.CurriculumCallback` widens the constraints, ``cost`` is about those in force,
    ``margin`` about those declared, and ``info["persist"]["stage"]`` tells the stage.

    :param dims: names of the internal variables. Default: the environment's own ``internal_names``
    :param sources: where each variable is: ``"info.energy"``, ``"info.internal[0]"``, ``"obs[2]"``, ``"obs.battery"``,
        or the parameters of a :class:`~persist_sb3.internal.SimulatedVariable`. Default: the vector
        ``info["internal"]``
    :param constraints: what "alive" means, such as ``"energy >= 0.2"``, see :mod:`persist_sb3.viability`. Default: the
        environment's own ``viability``
    :param mu: setpoints, one a variable
    :param low: least values that the variables can take. Default: what the observation space, the simulation or the
        environment's own ``viability`` says, as far as it does
    :param high: greatest values that the variables can take, likewise
    :param scale: what each constraint's margin is divided by. Default: its margin at the setpoint
    :param append: show ``x`` to the agent: a Box grows by ``d`` entries, a Dict gets a key ``internal``, and any other
        space is flattened (in the order of ``gymnasium.spaces.flatten``) and grows by ``d`` entries
    :param symmetries: of the environment, as it is below this layer: parameters of a
        :class:`~persist_sb3.symmetry.Symmetry` each. Default: the environment's own ``symmetries``, if it has any.
        What models learn from them, they learn by ``augment=True``
    :param check_finite: raise :class:`NonFiniteError` on NaN or infinity in an observation or internal variable
    :raises ValueError: if the parameters contradict each other
    """

    def __init__(
        self,
        dims: Sequence[str] | None = None,
        sources: Mapping[str, str | Mapping[str, Any] | SimulatedVariable] | None = None,
        constraints: Sequence[str] | None = None,
        mu: Sequence[float] | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        append: bool = False,
        check_finite: bool = True,
        symmetries: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if constraints is None:
            for name, value in (("mu", mu), ("low", low), ("high", high), ("scale", scale)):
                if value is not None:
                    raise ValueError(f"{name}={value!r} describes the constraints: give constraints=[...] with it")
        elif dims is None:
            raise ValueError("constraints=[...] need the names of the internal variables: give dims=[...] with them")
        self._given_dims = dims
        self._sources = sources
        self._mu, self._low, self._high, self._scale = mu, low, high, scale
        self._constraints = constraints
        self.append = append
        self.check_finite = check_finite
        self._symmetries = None if symmetries is None else [Symmetry(**symmetry) for symmetry in symmetries]

    @property
    def views(self) -> bool:
        return self.append

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self.internal_names: tuple[str, ...] = tuple(self._given_dims or lookup("internal_names"))
        self._source = InternalSource(self.internal_names, self._sources)
        self._source.attach(num_envs, observation_space, action_space)
        self.viability = self._in_force = self._viability(lookup)
        self._margin = self._kept = LeastMargin(self.viability, num_envs)
        self._tightness = 1.0
        self.internal_entries: dict[str, str] = dict(self._source.entries)
        if self._sources is None and self.internal_names == tuple(declared(lookup, "internal_names", ())):
            self.internal_entries = dict(lookup("internal_entries"))
        self.symmetries = declared(lookup, "symmetries", None) if self._symmetries is None else self._symmetries
        if self.append:
            self._append()
        self.x = np.zeros((num_envs, len(self.internal_names)))
        self._nothing = np.zeros(num_envs)

    def _viability(self, lookup: Lookup) -> ViabilitySet:
        if self._constraints is None:
            declared: ViabilitySet = lookup("viability")
            if declared.dims != self.internal_names:
                raise RuntimeError(
                    f"dims={list(self.internal_names)}, but the environment's own constraints are about "
                    f"{list(declared.dims)}: give constraints=[...] for these variables"
                )
            return declared
        low, high = self._source.low, self._source.high
        with contextlib.suppress(RuntimeError):
            declared = lookup("viability")
            if self._sources is None and declared.dims == self.internal_names:
                low, high = declared.low, declared.high
        return ViabilitySet(
            self._constraints,
            self.internal_names,
            mu=self._mu,
            low=low.tolist() if self._low is None else self._low,
            high=high.tolist() if self._high is None else self._high,
            scale=self._scale,
        )

    @property
    def in_force(self) -> ViabilitySet:
        """The constraints that count now: those declared, unless a curriculum widens them."""
        self._follow_tightness()
        return self._in_force

    def _follow_tightness(self) -> None:
        tightness = self.demands.tightness
        if tightness != self._tightness:
            self._tightness = tightness
            self._in_force = self.viability if tightness == 1.0 else self.viability.tighten(tightness)
            self._kept = self._margin if tightness == 1.0 else LeastMargin(self._in_force, self.num_envs)

    def follow(self, curriculum: StageInForce | None) -> None:
        if curriculum is not None and self.viability.mu is None and any(d.tightness != 1.0 for d in curriculum.plan):
            raise RuntimeError(
                "a curriculum widens the constraints about the setpoint, and there is none: give InternalState mu=[...]"
            )
        super().follow(curriculum)

    def _append(self) -> None:
        inner = self.observation_space
        at = size = spaces.flatdim(inner)
        if isinstance(inner, spaces.Dict):
            if "internal" in inner.spaces:
                raise ValueError(
                    "append=True would overwrite the observation's own key 'internal': the environment already shows "
                    "its internal variables, so leave append=False"
                )
            at = sum(spaces.flatdim(part) for key, part in inner.spaces.items() if key < "internal")
        low, high = self.viability.low, self.viability.high
        self._extended = ExtendedObservation("InternalState(append=True)", inner, "internal", low, high)
        self.observation_space = self._extended.space
        self.internal_entries |= dict(zip(self.internal_names, self._extended.entries, strict=True))
        if self.symmetries is not None:
            self.symmetries = [symmetry.showing(size, len(self.internal_names), at) for symmetry in self.symmetries]

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        super().begin(slots, observation, infos)
        # A new array: the rows of the old one were published.
        self.x = with_rows(self.x, slots, self._source.begin(slots, observation, infos))
        if self.check_finite:
            self._check(slots, observation)
        infos.publish("internal", slots, self.x[slots])

    def after(self, step: Step) -> NDArray[np.float64]:
        reward = super().after(step)
        self._follow_tightness()
        infos, everyone = step.infos, self.everyone
        self.x = x = self._source.step(step.next_observation, step.action, step.reward, infos, step.live)
        if self.check_finite:
            self._check(everyone, step.next_observation)
        margin = self._margin(x)
        kept = margin if self._kept is self._margin else self._kept(x)
        infos.publish("internal", everyone, x)
        infos.publish("cost", everyone, (kept < self._nothing).astype(np.float64))
        infos.publish("persist", everyone, margin, "margin")
        if self.curriculum is not None:
            infos.publish("persist", everyone, np.full(self.num_envs, int(self.curriculum.stage)), "stage")
        infos.publish("reward_terms", everyone, reward, "task")
        return reward

    def view(self, slots: NDArray[np.intp], observation: Batch) -> Batch:
        return self._extended.show(observation, self.x[slots]) if self.append else observation

    def _check(self, slots: NDArray[np.intp], observation: Batch) -> None:
        if not surely_finite(self.x):
            for slot, column in np.argwhere(~np.isfinite(self.x)):
                self._refuse(slot, f"internal variable {self.internal_names[column]!r}", self.x[slot, column])
        self._check_observation(slots, observation, "obs")

    def _check_observation(self, slots: NDArray[np.intp], observation: Batch, path: str) -> None:
        if isinstance(observation, dict):
            for key, leaf in observation.items():
                self._check_observation(slots, leaf, f"{path}.{key}")
        elif isinstance(observation, tuple):
            for index, leaf in enumerate(observation):
                self._check_observation(slots, leaf, f"{path}[{index}]")
        elif observation.dtype.kind == "f" and not surely_finite(observation):
            for slot in slots:
                bad = np.argwhere(~np.isfinite(observation[slot]))
                if len(bad):
                    entry = f"{path}{list(map(int, bad[0])) if bad.shape[1] else ''}"
                    self._refuse(slot, f"observation entry {entry}", observation[slot][tuple(bad[0])])

    def _refuse(self, slot: int, what: str, value: float) -> None:
        raise NonFiniteError(
            f"environment {slot} returned {what} = {value} at step {self.age(slot)} of its episode. "
            "Find out why in the environment (a division by zero, a diverged simulation), or pass check_finite=False "
            "if your algorithm can learn from it"
        )


class _Declarations(LayerOwner):
    """What an environment with internal variables says about itself, for the layers and callbacks above."""

    layer: InternalStateLayer

    @property
    def internal_names(self) -> tuple[str, ...]:
        """Names of the internal variables, ``(d,)``."""
        return self.layer.internal_names

    @property
    def viability(self) -> ViabilitySet:
        """The constraints on them, as declared."""
        return self.layer.viability

    @property
    def in_force(self) -> ViabilitySet:
        """The constraints that count now: those declared, unless a curriculum widens them."""
        return self.layer.in_force

    @property
    def internal_entries(self) -> dict[str, str]:
        """Variables that the observation shows, and where, such as ``{"energy": "obs[2]"}``."""
        return self.layer.internal_entries

    @property
    def symmetries(self) -> list[Symmetry] | None:
        """What leaves the environment as it is; None if nobody says."""
        return self.layer.symmetries


class InternalState(_Declarations, LayerWrapper):
    """:class:`InternalStateLayer` around a ``gymnasium.Env``."""

    layer_type = InternalStateLayer


class VecInternalState(_Declarations, VecLayerWrapper):
    """
    :class:`InternalStateLayer` around SB3's ``VecEnv``.

    :raises RuntimeError: if a ``VecNormalize`` lies below: limits would be on what it makes of observation and reward
    """

    layer_type = InternalStateLayer

    def __init__(self, venv: VecEnv, **kwargs: Any) -> None:
        super().__init__(venv, **kwargs)
        if is_vecenv_wrapped(venv, VecNormalize):
            raise RuntimeError(
                "VecInternalState lies around a VecNormalize, and would read normalised observations and rewards: put "
                "the layers inside, VecNormalize(persist.wrap_vec(venv))"
            )


class VectorInternalState(_Declarations, VectorLayerWrapper):
    """:class:`InternalStateLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = InternalStateLayer
