"""What every callback of this package does: keep its state with the model, read transitions, hand models down."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, is_vecenv_wrapped

from persist_sb3.buffers import CounterfactualReplayBuffer, RecomputedBonusReplayBuffer, TransitionStore
from persist_sb3.homeostat import Pay
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.symmetry import SymmetryGroup
from persist_sb3.state import PersistState
from persist_sb3.wrappers.adapters import lookup
from persist_sb3.wrappers.intrinsic import find_paid
from persist_sb3.wrappers.layer import declared

#: The shared parts of callbacks that change what a reward is worth, by their names.
LEADS = {"LagrangeCallback": "lagrange", "CurriculumCallback": "curriculum"}

# Beside the model and not on it, where SB3 would save the transitions with every checkpoint.
_stores: WeakKeyDictionary[BaseAlgorithm, TransitionStore] = WeakKeyDictionary()


def bind_all(env: VecEnv, state: PersistState, *, training: bool) -> None:
    """
    Hand the shared parts of a state to every layer around and inside the environments, by calling
    ``bind(bundle, training=training)`` on those that have it. In a ``DummyVecEnv`` the layers get the very same
    modules, in a ``SubprocVecEnv`` modules whose tensors lie in memory that the processes share. Layers must expect to
    be bound again, when parts have joined.

    :param env: vectorised environments
    :param state: holds the parts
    :param training: False in evaluation, where running statistics and counters must stand still
    """
    bundle = state.bundle()
    while isinstance(env, VecEnvWrapper):
        # Asked of the class: an attribute of the object would be looked for in all wrappers below, too.
        if hasattr(type(env), "bind"):
            env.bind(bundle, training=training)
        env = env.venv
    if env.has_attr("bind"):
        env.env_method("bind", bundle, training=training)


def iter_callbacks(callback: BaseCallback) -> Iterator[BaseCallback]:
    """
    :param callback: the root of a tree of callbacks
    :return: every callback in it, the root first
    """
    yield callback
    children = [*getattr(callback, "callbacks", ())]
    children += [getattr(callback, name, None) for name in ("callback", "callback_on_new_best")]
    for child in children:
        if isinstance(child, BaseCallback):
            yield from iter_callbacks(child)


class PersistCallback(BaseCallback):
    """
    Base of this package's callbacks. It keeps its parts in ``self.state``, which is ``model.persist`` and is saved with
    the model; reads transitions through ``self.store``, which all callbacks of a model share; and binds the shared
    parts to the layers of the training environments and of the evaluation environments of its sibling callbacks.

    A subclass makes and registers its parts in :meth:`_on_training_start` and calls the base's last. Its constructor
    holds parameters and does nothing else: rl-zoo3 makes callbacks that it never uses.

    :param log_path: folder for the files that the callback writes. Default: see :attr:`log_dir`
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    """

    state: PersistState
    store: TransitionStore
    #: Until training starts, and where a callback has nothing to do in it, there is nothing to check.
    _wiring_checked = True

    def __init__(self, log_path: str | os.PathLike[str] | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.log_path = log_path

    def _init_callback(self) -> None:
        state = getattr(self.model, "persist", None)
        self.state = state if isinstance(state, PersistState) else PersistState()
        self.model.persist = self.state  # type: ignore[attr-defined]
        self.store = _stores.setdefault(self.model, TransitionStore())
        self.store.attach(self.model)
        self._wiring_checked = False

    def _on_training_start(self) -> None:
        bind_all(self.training_env, self.state, training=True)
        self._bind_replay_buffer()
        for callback in iter_callbacks(self.locals["callback"]):
            env = getattr(callback, "eval_env", None)
            if isinstance(env, VecEnv) and env is not self.training_env:
                bind_all(env, self.state, training=False)
        self._unmonitored_ends_matter = self._is_monitored()

    def on_rollout_start(self) -> None:
        # Not before: only now have all callbacks brought their models.
        if not self._wiring_checked:
            self._check_wiring()
        super().on_rollout_start()

    def _check_wiring(self) -> None:
        """
        :raises RuntimeError: if a layer lacks models. Raised here, it is told in the main process
        """
        self._wiring_checked = True
        error: RuntimeError | None = declared(self.lookup, "wiring_error", None)
        if error is not None:
            raise error

    def _bind_replay_buffer(self) -> None:
        buffer = getattr(self.model, "replay_buffer", None)
        if isinstance(buffer, RecomputedBonusReplayBuffer):
            self._bind_bonuses(buffer)
        elif isinstance(buffer, CounterfactualReplayBuffer):
            self._bind_counterfactuals(buffer)

    def _bind_bonuses(self, buffer: RecomputedBonusReplayBuffer) -> None:
        """
        :param buffer: the algorithm's
        :raises RuntimeError: if it is to recompute a bonus that depends on more than a transition
        """
        paid = []
        for layer, weight, bonus in find_paid(self.training_env):
            if bonus is None:
                raise RuntimeError(
                    f"{type(buffer).__name__} cannot recompute the bonus of {layer} from single transitions: leave "
                    "the layer out, or use SB3's replay buffer"
                )
            paid.append((weight, bonus))
        buffer.bind(paid, self.state.bundle(), self.store)

    def _bind_counterfactuals(self, buffer: CounterfactualReplayBuffer) -> None:
        """
        :param buffer: the algorithm's
        :raises RuntimeError: if what internal variables are worth changes in time, or from episode to episode, or the
            observation does not always show them as they are
        """
        self.refuse_degraded(type(buffer).__name__, "use ExecutedActionReplayBuffer")
        parts = self.state.bundle()
        led = [name for name, part in LEADS.items() if part in parts]
        if declared(self.lookup, "setpoint_range", None) is not None:
            led.append("RandomSetpoint")
        if led:
            raise RuntimeError(
                f"{type(buffer).__name__} pays for other internal variables what the homeostat pays, and {led[0]} "
                "changes that: leave it out, or use ExecutedActionReplayBuffer"
            )
        pay: Pay | None = declared(self.lookup, "homeostat_pay", None)
        buffer.bind(self.lookup("viability"), self.lookup("internal_entries"), pay)

    def refuse_degraded(self, who: str, instead: str) -> None:
        """
        :param who: changes internal variables in the observation
        :param instead: what else to do than to leave ``PartialObservation`` out
        :raises RuntimeError: if the observation does not always show them as they are
        """
        degraded = declared(self.lookup, "internal_degraded", ())
        if degraded:
            raise RuntimeError(
                f"{who} changes internal variables in the observation, which does not always show "
                f"{', '.join(degraded)} as they are: leave PartialObservation out, or {instead}"
            )

    def _is_monitored(self) -> bool:
        env = self.training_env
        return is_vecenv_wrapped(env, VecMonitor) or env.env_is_wrapped(Monitor)[0]

    def _on_step(self) -> bool:
        if self._unmonitored_ends_matter and np.count_nonzero(self.locals["dones"]):
            self._check_monitor()
        return True

    def _check_monitor(self) -> None:
        for slot in np.flatnonzero(self.locals["dones"]):
            if "episode" not in self.locals["infos"][slot]:
                self._unmonitored_ends_matter = False
                warnings.warn(
                    f"environment {slot} ended an episode that its Monitor did not see: a wrapper outside the Monitor "
                    "ends episodes. EvalCallback counts only those that the Monitor sees, and may never finish. End "
                    "episodes inside the Monitor, or put another Monitor outside that wrapper",
                    stacklevel=2,
                )

    def lookup(self, name: str) -> Any:
        """
        :param name: what an environment or ``InternalState`` declares: ``viability``, ``internal_names`` ...
        :return: its value in the training environments
        :raises RuntimeError: if nothing declares it
        """
        try:
            return lookup(self.training_env, name)
        except AttributeError as error:
            raise RuntimeError(
                f"{type(self).__name__} needs {name!r}, and no environment or wrapper declares it: wrap the "
                "environment in persist_sb3.wrappers.InternalState(dims=..., constraints=...)"
            ) from error

    def symmetry_group(self, spec: StateSpec) -> SymmetryGroup:
        """
        :param spec: what the policy sees
        :return: the symmetries that the environment, or ``InternalState``, declares
        :raises RuntimeError: if there are none, or they are not those of what the policy sees
        """
        symmetries = self.lookup("symmetries")
        if not symmetries:
            raise RuntimeError(
                f"{type(self).__name__}(augment=True) learns from mirror images, and nothing says how this environment "
                "may be mirrored: give InternalState(symmetries=[...]), or leave augment=False"
            )
        try:
            return SymmetryGroup(spec, symmetries)
        except ValueError as error:
            raise RuntimeError(
                f"{type(self).__name__}(augment=True): {error}. A layer that changes the observation may lie above "
                "what declares the symmetries: declare them for what the policy sees, or leave augment=False"
            ) from error

    @property
    def log_dir(self) -> Path | None:
        """
        Where files of this run belong: ``log_path`` if given, else the folder of the Monitor's file, else that of a
        sibling callback's models. None if the run writes nothing.
        """
        if self.log_path is not None:
            return Path(self.log_path)
        writer = self._results_writer()
        if writer is not None:
            return Path(writer.file_handler.name).parent
        for callback in iter_callbacks(self.locals["callback"]):
            for name in ("best_model_save_path", "save_path"):
                path = getattr(callback, name, None)
                if path is not None:
                    return Path(path)
        return None

    def _results_writer(self) -> ResultsWriter | None:
        """
        :return: what writes the Monitor's file, if it does so in this process
        """
        env = self.training_env
        while isinstance(env, VecEnvWrapper):
            if isinstance(env, VecMonitor):
                return env.results_writer
            env = env.venv
        # Asking a SubprocVecEnv would kill its workers: an open file cannot be sent back.
        if isinstance(env, DummyVecEnv):
            monitor = unwrap_wrapper(env.envs[0], Monitor)
            return monitor.results_writer if isinstance(monitor, Monitor) else None
        return None
