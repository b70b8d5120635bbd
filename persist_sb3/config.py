"""One description of a persistent agent, for Python and for rl-zoo3."""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import gymnasium as gym
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from persist_sb3.curriculum import read_stages
from persist_sb3.homeostat import Homeostat
from persist_sb3.internal import InternalSource
from persist_sb3.shield.enumerated import Correction
from persist_sb3.shield.lookahead import Mode
from persist_sb3.shield.projection import Projection
from persist_sb3.viability import ViabilitySet, unknown_name

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv

EnvT = TypeVar("EnvT")

ON_POLICY = ("a2c", "ppo", "ppo_lstm", "ppo_mask", "trpo")
DISCRETE_OFF_POLICY = ("dqn", "qrdqn")
CONTINUOUS_OFF_POLICY = ("crossq", "ddpg", "sac", "td3", "tqc")

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_nearest_key(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    nearest = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                    hint = f", did you mean {nearest[0]!r}?" if nearest else "."
                    raise ValueError(f"unknown key {key!r}{hint} Known here: {', '.join(cls.model_fields)}")
        return data


def _plain(problem: Mapping[str, Any]) -> str:
    """
    :param problem: as pydantic reports it
    :return: where it is and what it is, without pydantic's own address and a copy of the whole input
    """
    where = ".".join(map(str, problem["loc"]))
    said = str(problem["msg"]).removeprefix("Value error, ")
    value = "" if said != problem["msg"] or isinstance(problem["input"], dict) else f", not {problem['input']!r}"
    return f"{where}: {said}{value}" if where else f"{said}{value}"


def _listed(value: Any) -> Any:
    """
    :param value: anything
    :return: the same, with lists in the place of tuples, as YAML has them
    """
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


class MemorySection(_Section):
    """
    Parameters of :class:`~persist_sb3.wrappers.SpatialMemory`.

    :param window: key of the observation that holds the window
    :param radius: of the map. Default: one tile more than the window's
    :param position: where the info has row and column of the agent's tile
    :param fade: what a step leaves of a memory's freshness
    """

    window: str = "window"
    radius: Annotated[int, Field(gt=0)] | None = None
    position: str = "info.position"
    fade: Annotated[float, Field(ge=0, le=1)] = 0.99


class EnvSection(_Section):
    """
    :param name: a registered gymnasium id
    :param horizon: steps after which an episode is truncated. Default: the environment's own
    :param kwargs: further arguments of ``gymnasium.make``
    :param memory: let the agent remember what the window of a grid world showed. Default: it sees the window alone
    """

    name: str = "GridLife-v0"
    horizon: Annotated[int, Field(gt=0)] | None = None
    kwargs: dict[str, Any] = {}
    memory: MemorySection | None = None


class InternalStateSection(_Section):
    """
    :param dims: names of the internal variables
    :param mu: their setpoints
    :param w: weight of each one's deviation. Default: 1 each
    :param source: where each one is: ``"info.energy"``, ``"obs[2]"``, ``"obs.battery"``, or the parameters of a
        simulated variable. Default: the vector ``info["internal"]``
    :param low: least values that they can take
    :param high: greatest values that they can take
    :param append: show them to the agent
    :param hidden: variables that the agent does not see, though the observation shows them
    :param belief: show it an estimate of hidden variables instead: ``"gru"``, learned from the truth, or ``"ekf"``, a
        Kalman filter on learned dynamics; see :class:`~persist_sb3.wrappers.BeliefState`
    :param mu_ranges: variables whose setpoint is drawn anew for every episode, and shown to the agent, with the least
        and greatest. Default: all stay at ``mu``
    :param w_ranges: the same of weights. Default: all stay at ``w``
    """

    dims: tuple[str, ...] = ("energy", "temp", "integrity")
    mu: tuple[float, ...] = (0.7, 0.5, 0.9)
    w: tuple[NonNegative, ...] | None = None
    source: dict[str, str | dict[str, Any]] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    append: bool = False
    hidden: tuple[str, ...] = ()
    belief: Literal["gru", "ekf"] | None = None
    mu_ranges: dict[str, tuple[float, float]] = {}
    w_ranges: dict[str, tuple[float, float]] = {}

    @model_validator(mode="after")
    def _check_lengths(self) -> "InternalStateSection":
        for key in ("mu", "w", "low", "high"):
            values = getattr(self, key)
            if values is not None and len(values) != len(self.dims):
                raise ValueError(f"{key} has {len(values)} entries for {len(self.dims)} variables {list(self.dims)}")
        for name in self.hidden:
            if name not in self.dims:
                raise ValueError(f"hidden: {unknown_name(name, self.dims)}")
        InternalSource(self.dims, self.source)
        return self

    @property
    def observing_layers(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and parameters of the layers that decide what the agent sees of them."""
        layers: list[tuple[str, dict[str, Any]]] = []
        if self.hidden:
            layers.append(("PartialObservation", {"hide": list(self.hidden)}))
        if self.belief == "gru":
            layers.append(("BeliefState", {}))
        elif self.belief == "ekf":
            layers.append(("BeliefState", {"estimator": "ekf", "dynamics": "internal_model"}))
        return layers


class ShieldSection(_Section):
    """
    :param mode: who judges the actions, see :class:`~persist_sb3.wrappers.ActionShield`. Default: ``"verify"`` if
        ``conf`` or ``horizon`` asks for a look ahead, else ``"critic"``
    :param conf: confidence with which an action must be safe, ``alpha``. Default: the shield's own
    :param horizon: steps that are foreseen. Default: the shield's own
    :param threshold: least value of an action that passes, in scaled margins; or ``"calibrated"``: the least with which
        a share ``conf`` of them is safe, as measured in training
    :param correction: what replaces an action that does not pass. Default: ``"mask"`` for PPO_MASK, else ``"project"``
    :param projection: how the nearest safe Box action is looked for
    :param intervention_penalty: what a changed action costs the policy that proposed it
    :param min_updates: gradient steps of a model before it is trusted
    :param fallback: an action known to be safe, or a list of such actions, of which one is drawn for each step;
        executed while the shield waits and where a model fails
    :param infeasible: what is executed where no action passes: ``"safest"``, or ``"planner"``: the first step of a
        planned course that stays inside
    :param caution: how far the threshold rises where the internal model's networks disagree twice as much as is typical
    :param guards: internal variables that it keeps inside their limits. Default: all
    """

    mode: Mode | None = None
    conf: Probability | None = None
    horizon: Annotated[int, Field(gt=0)] | None = None
    threshold: float | Literal["calibrated"] = 0.2
    correction: Correction | None = None
    projection: Projection = "cem"
    intervention_penalty: NonNegative = 0.0
    min_updates: Annotated[int, Field(ge=0)] = 500
    fallback: int | tuple[int, ...] | tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None
    infeasible: Literal["safest", "planner"] = "safest"
    caution: NonNegative = 0.0
    guards: tuple[str, ...] | None = None

    @property
    def judge(self) -> Mode:
        """The mode, given or default."""
        if self.mode is not None:
            return self.mode
        asks = self.horizon is not None or (self.conf is not None and self.threshold != "calibrated")
        return "verify" if asks else "critic"

    @property
    def looks_ahead(self) -> bool:
        """Whether it, or its planner, imagines futures."""
        return self.judge != "critic" or self.infeasible == "planner"

    @model_validator(mode="after")
    def _check_together(self) -> "ShieldSection":
        unused = {"horizon": self.horizon, "conf": None if self.threshold == "calibrated" else self.conf}
        for key, value in unused.items():
            if not self.looks_ahead and value is not None:
                raise ValueError(
                    f"{key}={value} is nothing that mode='critic' asks: use mode='verify', or leave {key} out"
                )
        return self

    @property
    def callbacks(self) -> list[str]:
        """Names of the callbacks that train what it needs."""
        names = ["ViabilityCallback"]
        if self.looks_ahead or self.caution:
            names.append("InternalModelCallback")
        if self.looks_ahead:
            names.append("WorldModelCallback")
        if self.judge == "amortised":
            names.append("SafetyNetworkCallback")
        if self.threshold == "calibrated":
            names.append("CalibrationCallback")
        return names


class ViabilitySection(_Section):
    """
    :param constraints: what "alive" means, see :mod:`persist_sb3.viability`
    :param scale: what each constraint's margin is divided by. Default: its margin at the setpoint
    :param shield: filter the actions. Default: no shield
    """

    constraints: tuple[str, ...] = ("energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6")
    scale: tuple[Positive, ...] | None = None
    shield: ShieldSection | None = None


class RewardsSection(_Section):
    """
    :param lambda_homeo: weight of the homeostatic reward
    :param lambda_intr: weight of the intrinsic reward
    :param intrinsic: which one
    :param form: of the homeostatic reward, see :class:`~persist_sb3.homeostat.Homeostat`
    :param n: exponent inside the drive
    :param m: root of the drive
    :param alive_bonus: added at every step alive. ``"auto"``: the least one with which no step alive costs the agent,
        so that dying early never pays
    :param death_penalty: subtracted at a step that violates a constraint
    :param cost_target: violating steps an episode that are allowed: each costs what
        :class:`~persist_sb3.callbacks.LagrangeCallback` finds that it must. Default: no such cost
    """

    lambda_homeo: NonNegative = 0.5
    lambda_intr: NonNegative = 0.0
    intrinsic: Literal["none", "rnd", "surprise", "empowerment"] = "none"
    form: Literal["deviation", "drive_reduction"] = "deviation"
    n: Positive = 2.0
    m: Positive = 2.0
    alive_bonus: NonNegative | Literal["auto"] = "auto"
    death_penalty: NonNegative = 20.0
    cost_target: NonNegative | None = None


class TrainSection(_Section):
    """
    :param algo: rl-zoo3's name of the algorithm, in capitals or not
    :param n_timesteps: environment steps. Default: the hyperparameter file's
    :param batch_size: of a gradient step. Default: the hyperparameter file's
    :param gamma: discount factor. Default: the hyperparameter file's
    :param update_every: steps of each environment between updates: ``n_steps`` on-policy, ``train_freq`` (with as many
        gradient steps) off-policy. Default: the hyperparameter file's
    :param model_rollouts: rollouts of the models for each decision of the shield
    """

    algo: str = "PPO"
    n_timesteps: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=1)] | None = None
    gamma: Annotated[float, Field(gt=0, le=1)] | None = None
    update_every: Annotated[int, Field(gt=0)] | None = None
    model_rollouts: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_algorithm(self) -> "TrainSection":
        known = (*ON_POLICY, *DISCRETE_OFF_POLICY, *CONTINUOUS_OFF_POLICY)
        if self.algo.lower() not in known:
            nearest = difflib.get_close_matches(self.algo.lower(), known, n=1)
            raise ValueError(
                f"algo={self.algo!r} is not one of {', '.join(known)}"
                + (f", did you mean {nearest[0]!r}?" if nearest else "")
            )
        return self


class PersistConfig(_Section):
    """
    What an agent must keep, what it is rewarded for, and how it learns. The layers and callbacks that follow from it
    are the same through :meth:`wrap`, :meth:`wrap_vec` and rl-zoo3 (:meth:`zoo_entry`).

    Example::

        persist = PersistConfig.from_yaml("cartpole.yml")
        model = PPO("MlpPolicy", persist.wrap(gym.make("CartPole-v1")))
        model.learn(100_000, callback=persist.callbacks())

    :param env: the environment
    :param internal_state: the internal variables
    :param viability: where they must stay
    :param rewards: what is added to the task reward
    :param train: algorithm and training
    :param curriculum: stages before what is declared, see :class:`~persist_sb3.curriculum.Stage`. Default: none
    :raises pydantic.ValidationError: (a ``ValueError``) naming the key, the value and the nearest known name
    """

    env: EnvSection = EnvSection()
    internal_state: InternalStateSection = InternalStateSection()
    viability: ViabilitySection = ViabilitySection()
    rewards: RewardsSection = RewardsSection()
    train: TrainSection = TrainSection()
    curriculum: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _check_together(self) -> "PersistConfig":
        state, rewards = self.internal_state, self.rewards
        ViabilitySet(
            self.viability.constraints,
            state.dims,
            mu=state.mu,
            low=state.low,
            high=state.high,
            scale=self.viability.scale,
        )
        Homeostat(state.mu, state.w or [1.0] * len(state.dims), form=rewards.form, n=rewards.n, m=rewards.m)
        if self.curriculum:
            read_stages(self.curriculum)
        if self.train.model_rollouts is not None and (
            self.viability.shield is None or not self.viability.shield.looks_ahead
        ):
            raise ValueError(
                f"train.model_rollouts={self.train.model_rollouts} is for a shield that looks ahead: set "
                "viability.shield.mode to 'verify', 'search' or 'amortised', or viability.shield.infeasible to "
                "'planner', or leave it out"
            )
        if (rewards.intrinsic == "none") != (rewards.lambda_intr == 0.0):
            raise ValueError(
                f"rewards.intrinsic={rewards.intrinsic!r} and rewards.lambda_intr={rewards.lambda_intr} contradict "
                "each other: name an intrinsic reward and give it a weight, or give neither"
            )
        return self

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
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError("\n".join(f"{path}: {_plain(problem)}" for problem in error.errors())) from error

    @property
    def algo(self) -> str:
        """rl-zoo3's name of the algorithm."""
        return self.train.algo.lower()

    @property
    def env_id(self) -> str:
        """The environment's id; a GridLife id becomes its continuous form for an algorithm that needs Box actions."""
        name = self.env.name
        if self.algo in CONTINUOUS_OFF_POLICY and name.startswith("GridLife") and "Continuous" not in name:
            return name.replace("GridLife", "GridLifeContinuous", 1)
        return name

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Arguments of ``gymnasium.make``."""
        horizon = {} if self.env.horizon is None else {self._horizon_keyword: self.env.horizon}
        return {**self.env.kwargs, **horizon}

    @property
    def _horizon_keyword(self) -> str:
        return "horizon" if self.env.name.startswith("GridLife") else "max_episode_steps"

    def make_env(self) -> gym.Env[Any, Any]:
        """
        :return: the environment, wrapped
        """
        return self.wrap(gym.make(self.env_id, **self.env_kwargs))

    def layers(self) -> list[tuple[str, dict[str, Any]]]:
        """
        :return: name (of the gymnasium form, in :mod:`persist_sb3.wrappers`) and parameters of each layer, the
            innermost first
        """
        state, rewards = self.internal_state, self.rewards
        internal: dict[str, Any] = {
            "dims": list(state.dims),
            "sources": state.source,
            "constraints": list(self.viability.constraints),
            "mu": list(state.mu),
            "low": state.low and list(state.low),
            "high": state.high and list(state.high),
            "scale": self.viability.scale and list(self.viability.scale),
            "append": state.append or None,
        }
        homeostat: dict[str, Any] = {
            "w": state.w and list(state.w),
            "form": rewards.form,
            "n": rewards.n,
            "m": rewards.m,
            "alive_bonus": rewards.alive_bonus,
            "death_penalty": rewards.death_penalty,
            "weight": rewards.lambda_homeo,
        }
        layers = [] if self.env.memory is None else [("SpatialMemory", self.env.memory.model_dump())]
        layers.append(("InternalState", internal))
        if state.mu_ranges or state.w_ranges:
            mu, w = ({n: list(bounds) for n, bounds in ranges.items()} for ranges in (state.mu_ranges, state.w_ranges))
            # What draws weights declares them, too.
            declared = homeostat.pop("w") if w else None
            layers.append(("RandomSetpoint", {"ranges": mu, "w_ranges": w or None, "w": declared}))
        if rewards.lambda_homeo > 0.0:
            layers.append(("HomeostatReward", homeostat))
        layers += state.observing_layers
        if rewards.cost_target is not None:
            layers.append(("CostPenalty", {}))
        bonus = {"rnd": "RNDBonus", "surprise": "SurpriseBonus", "empowerment": "EmpowermentBonus"}.get(
            rewards.intrinsic
        )
        if bonus is not None:
            layers.append((bonus, {"weight": rewards.lambda_intr}))
        if self.viability.shield is not None:
            layers.append(("ActionShield", self._shield(self.viability.shield)))
        return [(name, {key: value for key, value in kwargs.items() if value is not None}) for name, kwargs in layers]

    def _shield(self, shield: ShieldSection) -> dict[str, Any]:
        """
        :param shield: what is asked for
        :return: parameters of the layer
        """
        default = "mask" if self.algo == "ppo_mask" else "project"
        return {
            "threshold": shield.threshold,
            "correction": shield.correction or default,
            "projection": shield.projection if self.algo in CONTINUOUS_OFF_POLICY else None,
            # Off-policy the penalty is paid in the replay buffer, by the proposed action alone.
            "intervention_penalty": shield.intervention_penalty if self.algo in ON_POLICY else None,
            "min_updates": shield.min_updates,
            "fallback": _listed(shield.fallback),
            "mode": shield.judge,
            "conf": shield.conf,
            "horizon": shield.horizon,
            "rollouts": self.train.model_rollouts,
            "infeasible": shield.infeasible,
            "caution": shield.caution,
            "guards": shield.guards and list(shield.guards),
        }

    def wrap(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        """
        :param env: one environment
        :return: the same with every layer around it
        """
        return self._wrap(env, "")

    def wrap_vec(self, venv: "VecEnv") -> "VecEnv":
        """
        :param venv: SB3's vectorised environments
        :return: the same with every layer around them, each run as one batch
        """
        return self._wrap(venv, "Vec")

    def _wrap(self, env: EnvT, form: str) -> EnvT:
        # By name, as rl-zoo3 does it: this module lies below the wrappers.
        wrappers = importlib.import_module("persist_sb3.wrappers")
        for name, kwargs in self.layers():
            env = getattr(wrappers, form + name)(env, **kwargs)
        return env

    def callbacks(self) -> list["BaseCallback"]:
        """
        :return: the callbacks that go with the layers, for ``model.learn(..., callback=...)``
        """
        callbacks = importlib.import_module("persist_sb3.callbacks")
        return [getattr(callbacks, name)(**kwargs) for name, kwargs in self._callback_entries()]

    def _callback_entries(self) -> list[tuple[str, dict[str, Any]]]:
        """
        :return: name and parameters of each callback
        """
        staged = [("CurriculumCallback", {"stages": list(self.curriculum)})] if self.curriculum else []
        target = self.rewards.cost_target
        priced = [] if target is None else [("LagrangeCallback", {"target": target})]
        return [*staged, *priced, *((name, {}) for name in self._callback_names())]

    def _callback_names(self) -> list[str]:
        intrinsic = {
            "rnd": ["RNDCallback"],
            "surprise": ["WorldModelCallback"],
            "empowerment": ["WorldModelCallback", "EmpowermentCallback"],
        }
        shield, belief = self.viability.shield, self.internal_state.belief
        estimating = {None: [], "gru": ["BeliefCallback"], "ekf": ["InternalModelCallback"]}[belief]
        names = [*intrinsic.get(self.rewards.intrinsic, []), *estimating]
        names += [*(shield.callbacks if shield is not None else []), "MetricsCallback"]
        return list(dict.fromkeys(names))

    def zoo_entry(self) -> dict[str, Any]:
        """
        :return: what this configuration says, as an entry of an rl-zoo3 hyperparameter file. It lacks what the
            configuration leaves open (policy, network, learning rate ...)
        """
        train = self.train
        entry: dict[str, Any] = {
            "vec_env_wrapper": [{f"persist_sb3.wrappers.Vec{name}": kwargs} for name, kwargs in self.layers()],
            "callback": [
                {f"persist_sb3.callbacks.{name}": kwargs} if kwargs else f"persist_sb3.callbacks.{name}"
                for name, kwargs in self._callback_entries()
            ],
            "env_kwargs": self.env_kwargs or None,
            "n_timesteps": train.n_timesteps,
            "batch_size": train.batch_size,
            "gamma": train.gamma,
        }
        if train.update_every is not None:
            if self.algo in ON_POLICY:
                entry["n_steps"] = train.update_every
            else:
                entry |= {"train_freq": train.update_every, "gradient_steps": train.update_every}
        if self.viability.shield is not None and self.algo not in ON_POLICY:
            entry |= self._replay_buffer(self.viability.shield)
        return {key: value for key, value in entry.items() if value is not None}

    def _replay_buffer(self, shield: ShieldSection) -> dict[str, Any]:
        """
        :param shield: that changes actions
        :return: the replay buffer that an off-policy algorithm learns from, as rl-zoo3 reads it
        """
        with gym.make(self.env_id, **self.env_kwargs) as env:
            kind = "Dict" if isinstance(env.observation_space, gym.spaces.Dict) else ""
        entry: dict[str, Any] = {
            "replay_buffer_class": f"get_class_by_name('persist_sb3.buffers.ExecutedAction{kind}ReplayBuffer')"
        }
        if shield.intervention_penalty:
            # Where the executed action alone is learned, nothing would pay.
            penalty = {"learn_from": "both", "intervention_penalty": shield.intervention_penalty}
            entry["replay_buffer_kwargs"] = penalty
        return entry
