"""The whole configuration, and what follows from it."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium as gym
import yaml
from pydantic import ValidationError, model_validator

from persist_sb3.config.environment import EnvSection
from persist_sb3.config.internal_state import InternalStateSection
from persist_sb3.config.rewards import RewardsSection
from persist_sb3.config.section import Entry, Section, explain, given
from persist_sb3.config.train import CONTINUOUS_OFF_POLICY, ON_POLICY, RISKY, TrainSection
from persist_sb3.config.viability import ShieldSection, ViabilitySection
from persist_sb3.curriculum import read_stages
from persist_sb3.homeostat import Homeostat
from persist_sb3.viability import ViabilitySet

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv

EnvT = TypeVar("EnvT")


class PersistConfig(Section):
    """
    What an agent must keep, what it is rewarded for, and how it learns. The layers and callbacks that follow from it
    are the same through :meth:`wrap`, :meth:`wrap_vec` and rl-zoo3 (:meth:`zoo_entry`).

    Example::

        persist = PersistConfig.from_yaml("cartpole.yml")
        model = PPO(env=persist.make_env(), **persist.algorithm_kwargs())
        model.learn(100_000, callback=persist.callbacks())

    :param env: the environment
    :param internal_state: the internal variables
    :param viability: where they must stay
    :param rewards: what is added to the task reward
    :param train: algorithm and training
    :param curriculum: stages before what is declared, see :class:`~persist_sb3.curriculum.Stage`. Default: none
    :raises ValueError: naming the key, the value and the nearest known name
    """

    env: EnvSection = EnvSection()
    internal_state: InternalStateSection = InternalStateSection()
    viability: ViabilitySection = ViabilitySection()
    rewards: RewardsSection = RewardsSection()
    train: TrainSection = TrainSection()
    curriculum: tuple[dict[str, Any], ...] = ()

    def __init__(self, **sections: Any) -> None:
        try:
            super().__init__(**sections)
        except ValidationError as error:
            raise ValueError("\n".join(map(explain, error.errors()))) from None

    @model_validator(mode="after")
    def _check_together(self) -> "PersistConfig":
        state, viability, rewards = self.internal_state, self.viability, self.rewards
        if state.names_its_own and "constraints" not in viability.model_fields_set:
            raise ValueError(
                f"viability.constraints is missing: say what must hold of {list(state.dims)}, such as "
                f"'{state.dims[0]} >= 0.2'"
            )
        limits = {"low": state.low, "high": state.high}
        alive = ViabilitySet(viability.constraints, state.dims, mu=state.mu, scale=viability.scale, **limits)
        if viability.shield is not None:
            self._check_shield(viability.shield, alive)
        if viability.planner is not None and viability.planner.target is not None:
            ViabilitySet(viability.planner.target, state.dims, **limits)
        Homeostat(state.mu, state.w or [1.0] * len(state.dims), form=rewards.form, n=rewards.n, m=rewards.m)
        if self.curriculum:
            read_stages(self.curriculum)
        if self.train.model_rollouts is not None and not viability.looks_ahead:
            raise ValueError(
                f"train.model_rollouts={self.train.model_rollouts} is for a shield that looks ahead, or a planner: set "
                "viability.shield.mode to 'verify', 'search' or 'amortised', or viability.shield.infeasible to "
                "'planner', or viability.planner, or leave it out"
            )
        if state.belief is not None and not state.degraded:
            self._check_belief()
        if viability.counterfactual_share:
            self._check_counterfactuals()
        return self

    def _check_counterfactuals(self) -> None:
        """
        :raises ValueError: if nobody would learn from other internal variables, or what they are worth, or show, would
            be told wrongly
        """
        state, viability, rewards = self.internal_state, self.viability, self.rewards
        share = f"viability.counterfactual_share={viability.counterfactual_share}"
        if self.algo in ON_POLICY and not viability.overrules:
            raise ValueError(
                f"{share} is for the critic of a shield or planner and for the replay buffer of an off-policy "
                f"algorithm, and {self.train.algo} without a shield has neither: give viability.shield, or leave it out"
            )
        if state.degraded:
            raise ValueError(
                f"{share} changes internal variables in the observation, which does not show "
                f"{', '.join(sorted(state.degraded))} as they are: leave one of the two out"
            )
        if self.algo in ON_POLICY:
            return
        moving = {
            "rewards.intrinsic": rewards.intrinsic != "none",
            "rewards.cost_target": rewards.cost_target is not None,
            "curriculum": bool(self.curriculum),
            "internal_state.mu_ranges and w_ranges": bool(state.mu_ranges or state.w_ranges),
        }
        for key, asked in moving.items():
            if asked:
                raise ValueError(
                    f"{share} pays for other internal variables what the homeostat pays, and {key} changes that: "
                    "leave one of the two out"
                )

    def _check_shield(self, shield: ShieldSection, alive: ViabilitySet) -> None:
        """
        :param shield: its section
        :param alive: the constraints
        :raises ValueError: if it cannot guard what it names, or mask the actions of the algorithm
        """
        if shield.guards is not None:
            try:
                alive.about(shield.guards)
            except ValueError as error:
                raise ValueError(f"viability.shield.guards: {error}") from error
        if shield.correction == "mask" and self.algo in CONTINUOUS_OFF_POLICY:
            raise ValueError(
                f"viability.shield.correction='mask' needs actions that can be counted, and those of {self.train.algo} "
                "cannot: use 'project' or 'replace', or train.algo='PPO_MASK' in an environment with such actions"
            )

    def _check_belief(self) -> None:
        """
        :raises ValueError: if the environment shows all internal variables as they are, or cannot be made
        """
        try:
            with self._inner_env() as env:
                shown = set(env.get_wrapper_attr("internal_entries"))
                if env.has_wrapper_attr("internal_degraded"):
                    shown.difference_update(env.get_wrapper_attr("internal_degraded"))
        except (gym.error.Error, RuntimeError) as error:
            raise ValueError(f"internal_state.belief: {self.env_id} does not tell what it shows: {error}") from error
        if shown.issuperset(self.internal_state.dims):
            raise ValueError(
                f"internal_state.belief={self.internal_state.belief!r} has nothing to estimate: {self.env_id} shows "
                f"{', '.join(self.internal_state.dims)} as they are. Name variables in internal_state.hidden, noise, "
                "delay or dropout, or leave belief out"
            )

    def _inner_env(self) -> gym.Env[Any, Any]:
        return self._wrap(gym.make(self.env_id, **self.env_kwargs), "", self._inner_layers())

    @classmethod
    def from_yaml(cls, path: str | Path) -> "PersistConfig":
        """
        :param path: a YAML file
        :return: the configuration
        :raises ValueError: if the file is not YAML, or says something that is not a configuration
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path} must hold the sections {', '.join(cls.model_fields)}, not {data!r}")
        try:
            return cls(**{str(key): section for key, section in data.items()})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def algo(self) -> str:
        """rl-zoo3's name of the algorithm."""
        return self.train.algo.lower()

    @property
    def env_id(self) -> str:
        """
        The environment's id; a GridLife id becomes its continuous form for an algorithm that needs Box actions.

        :raises ValueError: if there are internal variables other than GridLife's, and nothing says where
        """
        if self.internal_state.names_its_own and "name" not in self.env.model_fields_set:
            raise ValueError(
                f"env.name is missing: name the environment that {list(self.internal_state.dims)} are in, as in "
                'env: {name: "CartPole-v1"}'
            )
        name = self.env.name
        if self.algo in CONTINUOUS_OFF_POLICY and name.startswith("GridLife") and "Continuous" not in name:
            return name.replace("GridLife", "GridLifeContinuous", 1)
        return name

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Arguments of ``gymnasium.make``."""
        keyword = "horizon" if self.env.name.startswith("GridLife") else "max_episode_steps"
        horizon = {} if self.env.horizon is None else {keyword: self.env.horizon}
        return {**self.env.kwargs, **horizon}

    def make_env(self) -> gym.Env[Any, Any]:
        """
        :return: the environment, wrapped
        """
        return self.wrap(gym.make(self.env_id, **self.env_kwargs))

    def layers(self) -> list[Entry]:
        """
        :return: name (of the gymnasium form, in :mod:`persist_sb3.wrappers`) and parameters of each layer, the
            innermost first
        """
        state, viability, rewards = self.internal_state, self.viability, self.rewards
        layers = [*self._inner_layers(), *state.setpoint_layers]
        if rewards.lambda_homeo > 0.0:
            layers.append(self._homeostat())
        layers += [*state.observing_layers, *rewards.outer_layers]
        if viability.shield is not None:
            layers.append(viability.shield.layer(self.algo, self.train.model_rollouts))
        if viability.planner is not None:
            layers.append(viability.planner.layer(self.train.model_rollouts))
        return [given(layer) for layer in layers]

    def _inner_layers(self) -> list[Entry]:
        """
        :return: the internal variables, and what lies below
        """
        state, viability = self.internal_state, self.viability
        parameters = {
            "dims": list(state.dims),
            "sources": state.source,
            "constraints": list(viability.constraints),
            "mu": list(state.mu),
            "low": state.low and list(state.low),
            "high": state.high and list(state.high),
            "scale": viability.scale and list(viability.scale),
            "append": state.append or None,
        }
        return [*self.env.layers, given(("InternalState", parameters))]

    def _homeostat(self) -> Entry:
        state, rewards = self.internal_state, self.rewards
        return "HomeostatReward", {
            # What draws weights declares them, too.
            "w": None if state.w_ranges else state.w and list(state.w),
            "form": rewards.form,
            "n": rewards.n,
            "m": rewards.m,
            "alive_bonus": rewards.alive_bonus,
            "death_penalty": rewards.death_penalty,
            "weight": rewards.lambda_homeo,
        }

    def wrap(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        """
        :param env: one environment
        :return: the same with every layer around it
        """
        return self._wrap(env, "", self.layers())

    def wrap_vec(self, venv: "VecEnv") -> "VecEnv":
        """
        :param venv: SB3's vectorised environments
        :return: the same with every layer around them, each run as one batch
        """
        return self._wrap(venv, "Vec", self.layers())

    @staticmethod
    def _wrap(env: EnvT, form: str, layers: list[Entry]) -> EnvT:
        # By name, as rl-zoo3 does it: this module lies below the wrappers.
        wrappers = importlib.import_module("persist_sb3.wrappers")
        for name, parameters in layers:
            env = getattr(wrappers, form + name)(env, **parameters)
        return env

    def callbacks(self) -> list["BaseCallback"]:
        """
        :return: the callbacks that go with the layers, for ``model.learn(..., callback=...)``
        """
        callbacks = importlib.import_module("persist_sb3.callbacks")
        return [getattr(callbacks, name)(**parameters) for name, parameters in self._callback_entries()]

    def _callback_entries(self) -> list[Entry]:
        """
        :return: name and parameters of each callback. What several parts need is there once, as the first asks for it
        """
        staged: list[Entry] = [("CurriculumCallback", {"stages": list(self.curriculum)})] if self.curriculum else []
        entries: list[Entry] = [
            *staged,
            *self.rewards.weighing_callbacks,
            *self.rewards.learning_callbacks,
            *([("InternalModelCallback", {})] if self._imagines_unseen else []),
            *self.internal_state.callbacks,
            *self.viability.callbacks,
            ("MetricsCallback", {}),
        ]
        once: dict[str, dict[str, Any]] = {}
        for name, parameters in entries:
            once.setdefault(name, parameters)
        return list(once.items())

    @property
    def _imagines_unseen(self) -> bool:
        """Whether empowerment needs a model of internal variables that the observation does not show."""
        if self.rewards.intrinsic != "empowerment":
            return False
        with self._inner_env() as env:
            shown: dict[str, str] = env.get_wrapper_attr("internal_entries")
        return any(name not in shown for name in self.internal_state.dims)

    def algorithm_kwargs(self) -> dict[str, Any]:
        """
        :return: what this configuration says of the algorithm, for its constructor:
            ``SAC(env=persist.make_env(), **persist.algorithm_kwargs())``. Off-policy that is the replay buffer, too,
            which learns from executed actions and recomputes bonuses
        """
        kind = ("MultiInput" if self._shows_dict else "Mlp") + ("Lstm" if self.algo == "ppo_lstm" else "")
        kwargs = {"policy": f"{kind}Policy", **self._algorithm()}
        for key in ("policy", "replay_buffer_class"):
            module, _, name = kwargs.get(key, "").rpartition(".")
            if module:
                kwargs[key] = getattr(importlib.import_module(module), name)
        return kwargs

    def zoo_entry(self) -> dict[str, Any]:
        """
        :return: what this configuration says, as an entry of an rl-zoo3 hyperparameter file. It lacks what the
            configuration leaves open (policy, network, learning rate ...)
        """
        entry = {
            "vec_env_wrapper": [{f"persist_sb3.wrappers.Vec{name}": parameters} for name, parameters in self.layers()],
            "callback": [
                {f"persist_sb3.callbacks.{name}": parameters} if parameters else f"persist_sb3.callbacks.{name}"
                for name, parameters in self._callback_entries()
            ],
            "env_kwargs": self.env_kwargs or None,
            "n_timesteps": self.train.n_timesteps,
            **self._algorithm(),
        }
        if "replay_buffer_class" in entry:
            entry["replay_buffer_class"] = f"get_class_by_name('{entry['replay_buffer_class']}')"
        return {key: value for key, value in entry.items() if value is not None}

    def _algorithm(self) -> dict[str, Any]:
        """
        :return: parameters of the algorithm, classes by name
        """
        train = self.train
        entry: dict[str, Any] = {"batch_size": train.batch_size, "gamma": train.gamma}
        if self.algo in ON_POLICY:
            entry["n_steps"] = train.update_every
        else:
            entry |= {"train_freq": train.update_every, "gradient_steps": train.update_every, **self._replay_buffer()}
        if train.risk_alpha is not None:
            observation = "MultiInput" if self._shows_dict else ""
            entry["policy"] = f"persist_sb3.risk.Risk{RISKY[self.algo]}{observation}Policy"
            entry["policy_kwargs"] = {"risk_alpha": train.risk_alpha}
        return {key: value for key, value in entry.items() if value is not None}

    def _replay_buffer(self) -> dict[str, Any]:
        """
        :return: what an off-policy algorithm learns from, where that is not SB3's own
        """
        viability, shield = self.viability, self.viability.shield
        executed = "ExecutedAction" if viability.overrules else ""
        led = self.rewards.cost_target is not None or any("homeo_factor" in stage for stage in self.curriculum)
        # What SMiRL pays cannot be recomputed.
        stale = self.rewards.learns_a_bonus or (led and self.rewards.intrinsic == "none")
        kind = executed + ("RecomputedBonus" if stale else "")
        kwargs: dict[str, Any] = {}
        if viability.counterfactual_share:
            kind, kwargs = "Counterfactual", {"counterfactual_share": viability.counterfactual_share}
        if not kind:
            return {}
        if shield is not None and shield.intervention_penalty:
            # Where the executed action alone is learned, nothing would pay.
            kwargs |= {"learn_from": "both", "intervention_penalty": shield.intervention_penalty}
        name = f"persist_sb3.buffers.{kind}{'Dict' if self._shows_dict else ''}ReplayBuffer"
        return {"replay_buffer_class": name, **({"replay_buffer_kwargs": kwargs} if kwargs else {})}

    @property
    def _shows_dict(self) -> bool:
        """Whether observations are dictionaries."""
        with gym.make(self.env_id, **self.env_kwargs) as env:
            space = env.observation_space
        return isinstance(space, gym.spaces.Dict)
