"""The three APIs that run a layer: ``gymnasium.Env``, SB3's ``VecEnv`` and ``gymnasium.vector.VectorEnv``."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from persist_sb3.batch import Batch, add_batch_axis, first_row, stack, take, tree_map, with_rows
from persist_sb3.infos import Infos, ListInfos, SameStepInfos, VectorInfos, episode_ends, reset_source
from persist_sb3.wrappers.layer import Layer, Step

_ONE = np.zeros(1, dtype=np.intp)
_LIVE = np.ones(1, dtype=bool)


def lookup(env: gym.Env[Any, Any] | VecEnv | VectorEnv[Any, Any, Any], name: str) -> Any:
    """
    :param env: an environment of any of the three APIs
    :param name: name of a public attribute
    :return: the attribute of the outermost wrapper or environment that has it; of environment 0 where there are many
    :raises AttributeError: if none has it
    """
    if isinstance(env, gym.Env):
        return env.get_wrapper_attr(name)
    while isinstance(env, VecEnvWrapper | VectorWrapper):
        if hasattr(type(env), name) or name in vars(env):
            return getattr(env, name)
        env = env.venv if isinstance(env, VecEnvWrapper) else env.env
    if hasattr(env, name):
        return getattr(env, name)
    if isinstance(env, VecEnv):
        if env.has_attr(name):
            return env.get_attr(name, indices=0)[0]
    elif hasattr(env, "get_attr"):
        return env.get_attr(name)[0]
    raise AttributeError(f"no wrapper of this environment has an attribute {name!r}, and neither has {env}")


class LayerOwner:
    """What the three forms of a wrapper have in common: they make the layer and meet the environments below it."""

    layer_type: ClassVar[type[Layer]]
    #: What this form goes around, and how its classes' names begin.
    goes_around: ClassVar[type]
    prefix: ClassVar[str] = ""
    layer: Layer
    _step: Step

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "layer_type" in cls.__dict__:
            # The wrapper takes the layer's parameters: let help(), IDEs and the documentation show them.
            env = list(inspect.signature(cls.__init__).parameters.values())[1]
            parameters = inspect.signature(cls.layer_type).parameters.values()
            named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
            cls.__signature__ = inspect.Signature([env, *named])  # type: ignore[attr-defined]

    @classmethod
    def _make_layer(cls, env: Any, kwargs: Mapping[str, Any]) -> Layer:
        """
        :param env: what is to be wrapped
        :param kwargs: the layer's parameters
        :return: the layer
        :raises TypeError: if ``env`` asks for another form, or there is no such parameter
        """
        if not isinstance(env, cls.goes_around):
            layer = cls.__name__.removeprefix(cls.prefix)
            raise TypeError(
                f"{cls.__name__} does not go around a {type(env).__name__}: {layer} is for a gymnasium.Env "
                f"(PersistConfig.wrap; gymnasium.make makes one of an id), Vec{layer} for SB3's VecEnv "
                f"(PersistConfig.wrap_vec), Vector{layer} for a gymnasium.vector.VectorEnv"
            )
        known = inspect.signature(cls.layer_type).parameters
        for name in kwargs:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f", did you mean {nearest[0]!r}?" if nearest else "."
                raise TypeError(f"{cls.__name__} has no parameter {name!r}{hint} There are {', '.join(known)}")
        return cls.layer_type(**kwargs)

    def _attach(self, layer: Layer, num_envs: int, env: Any, observation_space: Any, action_space: Any) -> None:
        def find(name: str) -> Any:
            try:
                return lookup(env, name)
            except AttributeError as error:
                raise RuntimeError(
                    f"{type(self).__name__} needs {name!r}, and nothing below it has it: wrap the environment in "
                    f"InternalState(dims=..., constraints=...) first, or give {type(self).__name__} what it asks for"
                ) from error

        layer.attach(num_envs, observation_space, action_space, find)
        self.layer = layer
        self._step = Step()

    def _bind_layer(self, bundle: Mapping[str, Any], training: bool) -> None:
        # Here, since layers that have models of their own do not pass this on. Evaluation is of what is declared.
        self.layer.follow(bundle.get("curriculum") if training else None)
        self.layer.bind(bundle, training=training)

    def _turn_over(
        self, ended: NDArray[np.intp], observation: Batch, infos: Infos, set_last: Callable[[int, Any], None]
    ) -> Batch:
        """
        Where episodes ended, show the layer their last observation and then the first of the next.

        :param ended: where, ``(k,)``
        :param observation: what the environments returned: there, the first observation of the next episode
        :param infos: what the resets reported
        :param set_last: takes the number of an environment, and its last observation as the layer shows it
        :return: what is shown above the layer, ``(n, ...)``
        """
        if not self.layer.views:
            self.layer.begin(ended, observation, infos)
            return observation
        seen = self.layer.view(self.layer.everyone, self._step.next_observation)
        self.layer.begin(ended, observation, infos)
        first = self.layer.view(ended, take(observation, ended))
        for slot in ended.tolist():
            set_last(slot, tree_map(lambda leaf, slot=slot: leaf[slot].copy(), seen))
        return with_rows(seen, ended, first)


class LayerWrapper(LayerOwner, gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Runs a layer around a ``gymnasium.Env``, as a batch of one.

    :param env: the environment
    :param kwargs: the layer's parameters
    """

    goes_around = gym.Env

    def __init__(self, env: gym.Env[Any, Any], **kwargs: Any) -> None:
        layer = self._make_layer(env, kwargs)
        gym.utils.RecordConstructorArgs.__init__(self, **kwargs)
        gym.Wrapper.__init__(self, env)
        self._attach(layer, 1, env, env.observation_space, env.action_space)
        self.observation_space = self.layer.observation_space
        self.action_space = self.layer.action_space
        self._acts = type(self.layer).act is not Layer.act

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        """
        Hand the models to the layer and to every layer below.

        :param bundle: the models, by name
        :param training: False in evaluation
        """
        self._bind_layer(bundle, training)
        if self.env.has_wrapper_attr("bind"):
            self.env.get_wrapper_attr("bind")(bundle, training=training)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self.layer.seed(_ONE, np.array([seed], dtype=np.uint64))
        batch = add_batch_axis(observation)
        self.layer.begin(_ONE, batch, ListInfos([info]))
        self._step.observation = batch
        return first_row(self.layer.view(_ONE, batch)), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        actions = np.asarray(action)[None]
        if self._acts:
            actions = self.layer.act(actions)
            action = actions[0]
        observation, reward, terminated, truncated, info = self.env.step(action)
        step, batch = self._step, add_batch_axis(observation)
        step.action = actions
        step.next_observation = batch
        step.reward = np.array([reward], dtype=np.float64)
        step.terminated = np.array([terminated])
        step.truncated = np.array([truncated])
        step.live, step.all_live = _LIVE, True
        step.infos = ListInfos([info])
        rewards = self.layer.after(step)
        step.observation = batch
        return first_row(self.layer.view(_ONE, batch)), float(rewards[0]), terminated, truncated, info


class VecLayerWrapper(LayerOwner, VecEnvWrapper):
    """
    Runs a layer around SB3's ``VecEnv``, all environments in one batch.

    :param venv: the environments
    :param kwargs: the layer's parameters
    """

    goes_around = VecEnv
    prefix = "Vec"

    def __init__(self, venv: VecEnv, **kwargs: Any) -> None:
        layer = self._make_layer(venv, kwargs)
        #: The layer's parameters.
        self.kwargs = kwargs
        self._attach(layer, venv.num_envs, venv, venv.observation_space, venv.action_space)
        VecEnvWrapper.__init__(self, venv, layer.observation_space, layer.action_space)
        self._step.live, self._step.all_live = np.ones(self.num_envs, dtype=bool), True
        self._no_truncation = np.zeros(self.num_envs, dtype=bool)
        self._pending_seeds: Sequence[int | None] | None = None

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        """
        Hand the models to this layer alone: ``persist_sb3.callbacks`` walks the stack.

        :param bundle: the models, by name
        :param training: False in evaluation
        """
        self._bind_layer(bundle, training)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._pending_seeds = self.venv.seed(seed)
        return self._pending_seeds

    def reset(self) -> VecEnvObs:
        observation = self.venv.reset()
        if self._pending_seeds is not None:
            seeds = np.array([0 if seed is None else seed for seed in self._pending_seeds], dtype=np.uint64)
            self.layer.seed(self.layer.everyone, seeds)
            self._pending_seeds = None
        self._resets = reset_source(self.venv)
        self.reset_infos = self._resets.reset_infos
        self.layer.begin(self.layer.everyone, observation, ListInfos(self.reset_infos))
        self._step.observation = observation
        return self.layer.view(self.layer.everyone, observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        self._step.action = self.layer.act(actions)
        self.venv.step_async(self._step.action)

    def step_wait(self) -> VecEnvStepReturn:
        try:
            observation, rewards, dones, infos = self.venv.step_wait()
        except (EOFError, ConnectionResetError, BrokenPipeError) as error:
            raise self._worker_died() from error
        step, layer = self._step, self.layer
        # Layers below this one have made it already.
        told = infos if type(infos) is ListInfos else ListInfos(infos)
        step.reward = rewards.astype(np.float64)
        step.infos = told
        self.reset_infos = self._resets.reset_infos
        over = episode_ends(dones, told)
        if not np.count_nonzero(over):
            step.next_observation = observation
            step.terminated, step.truncated = over, self._no_truncation
            rewards = layer.after(step)
            step.observation = observation
            return layer.view(layer.everyone, observation), rewards.astype(np.float32), dones, told

        ended = over.nonzero()[0]
        step.defer_next_observation(
            lambda: with_rows(observation, ended, stack([infos[slot]["terminal_observation"] for slot in ended]))
        )
        step.truncated = self._no_truncation.copy()
        step.truncated[ended] = [infos[slot].get("TimeLimit.truncated", False) for slot in ended.tolist()]
        step.terminated = over & ~step.truncated
        rewards = layer.after(step)

        def set_last(slot: int, last: Any) -> None:
            infos[slot]["terminal_observation"] = last

        shown = self._turn_over(ended, observation, ListInfos(self.reset_infos), set_last)
        step.observation = observation
        return shown, rewards.astype(np.float32), dones, told

    def _worker_died(self) -> RuntimeError:
        processes = getattr(self.venv.unwrapped, "processes", [])
        for process in processes:
            process.join(timeout=1.0)
        dead = [
            f"{index} (pid {process.pid}, exit code {process.exitcode})"
            for index, process in enumerate(processes)
            if not process.is_alive()
        ]
        return RuntimeError(
            f"environment worker {', '.join(dead) or 'of an unknown index'} died during a step. Its own traceback is "
            "printed above; the same environment in a DummyVecEnv (--vec-env dummy) shows it at the step that failed. "
            "Checkpoints and logs written so far are untouched"
        )


class VectorLayerWrapper(LayerOwner, VectorWrapper[Any, Any, Any, Any, Any]):
    """
    Runs a layer around a ``gymnasium.vector.VectorEnv``, all environments in one batch, in any autoreset mode.

    :param env: the environments
    :param kwargs: the layer's parameters
    """

    goes_around = VectorEnv
    prefix = "Vector"

    def __init__(self, env: VectorEnv[Any, Any, Any], **kwargs: Any) -> None:
        layer = self._make_layer(env, kwargs)
        VectorWrapper.__init__(self, env)
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise TypeError(
                f"{env} does not say how it resets itself: set its metadata['autoreset_mode'] to a member of "
                f"gymnasium.vector.AutoresetMode, not {mode!r}"
            )
        self._mode = mode
        self._attach(layer, env.num_envs, env, env.single_observation_space, env.single_action_space)
        self.single_observation_space = layer.observation_space
        self.single_action_space = layer.action_space
        self.observation_space = batch_space(layer.observation_space, env.num_envs)
        self.action_space = batch_space(layer.action_space, env.num_envs)
        self._ended = np.zeros(env.num_envs, dtype=bool)
        self._shown: Batch = None

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        """
        Hand the models to the layer and to every layer below.

        :param bundle: the models, by name
        :param training: False in evaluation
        """
        self._bind_layer(bundle, training)
        if isinstance(self.env, VectorLayerWrapper):
            self.env.bind(bundle, training=training)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Batch, dict[str, Any]]:
        slots = self.layer.everyone
        if options is not None and "reset_mask" in options:
            slots = np.flatnonzero(options["reset_mask"])
        observation, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        if seed is not None:
            seeds = [seed + slot for slot in range(self.num_envs)] if isinstance(seed, int) else list(seed)
            given = np.array([slot for slot in slots if seeds[slot] is not None], dtype=np.intp)
            self.layer.seed(given, np.array([seeds[slot] for slot in given], dtype=np.uint64))
        self.layer.begin(slots, observation, VectorInfos(infos, self.num_envs))
        shown = self.layer.view(slots, take(observation, slots))
        self._shown = shown if len(slots) == self.num_envs else with_rows(self._shown, slots, shown)
        self._step.observation = observation
        self._ended[slots] = False
        return self._shown, infos

    def step(
        self, actions: Any
    ) -> tuple[Batch, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        step, layer = self._step, self.layer
        step.action = layer.act(actions)
        observation, rewards, terminated, truncated, infos = self.env.step(step.action)
        step.reward = np.asarray(rewards, dtype=np.float64)
        step.terminated, step.truncated = terminated, truncated
        step.next_observation = observation
        step.live = ~self._ended
        step.all_live = not self._ended.any()
        step.infos = VectorInfos(infos, self.num_envs)
        ended = terminated | truncated
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            slots = np.flatnonzero(ended)
            step.next_observation = with_rows(observation, slots, stack(list(infos["final_obs"][slots])))
            step.infos = SameStepInfos(infos, ended)
            rewards = layer.after(step)
            set_last = infos["final_obs"].__setitem__
            self._shown = self._turn_over(slots, observation, VectorInfos(infos, self.num_envs), set_last)
        else:
            rewards = layer.after(step)
            self._shown = self._view_next(observation, step.infos)
            self._ended = ended & (self._mode is AutoresetMode.NEXT_STEP)
        step.observation = observation
        return self._shown, rewards, terminated, truncated, infos

    def _view_next(self, observation: Batch, infos: Infos) -> Batch:
        """
        :param observation: what the environments returned: the first of a new episode where ``live`` is False
        :param infos: what they reported
        :return: what is shown above the layer
        """
        layer, live = self.layer, self._step.live
        if self._step.all_live:
            return layer.view(layer.everyone, observation)
        begun = np.flatnonzero(~live)
        layer.begin(begun, observation, infos)
        first = layer.view(begun, take(observation, begun))
        if len(begun) == self.num_envs:
            return first
        continued = np.flatnonzero(live)
        seen = layer.view(continued, take(observation, continued))
        return take(tree_map(lambda *leaves: np.concatenate(leaves), first, seen), np.argsort([*begun, *continued]))
