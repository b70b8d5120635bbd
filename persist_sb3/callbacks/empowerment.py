"""Learns how much the agent's actions matter in each state, by imagining what they lead to."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.type_aliases import Schedule

from persist_sb3.buffers import Transitions
from persist_sb3.callbacks.base import iter_callbacks
from persist_sb3.callbacks.latent import LatentWorldModelCallback
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.intrinsic.contrastive import imagine
from persist_sb3.intrinsic.empowerment import Empowerment, Estimator, check_estimator
from persist_sb3.intrinsic.gaussian import GaussianEstimator, check_gaussian
from persist_sb3.intrinsic.likelihood import LikelihoodEstimator
from persist_sb3.intrinsic.outcomes import Outcomes, target_columns
from persist_sb3.intrinsic.unit import BonusFactor
from persist_sb3.models.imagination import Dynamics, KnownDynamics, LatentDynamics, LearnedDynamics
from persist_sb3.models.latent import LatentModel
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.paths import locate, parse_path
from persist_sb3.schedules import Period
from persist_sb3.shield.lookahead import Function, trained


class Estimates(NamedTuple):
    """What the estimator said, ``n`` times."""

    state: Floats  # (n, D)
    value: NDArray[np.float32]  # nats, (n,)


class EmpowermentCallback(LearningCallback):
    """
    Trains the :class:`~persist_sb3.intrinsic.Empowerment` behind :class:`~persist_sb3.wrappers.EmpowermentBonus`.
    Every ``train_freq`` steps an estimator says how much empowerment there is in ``states`` of the states that the
    agent has been in, by imagining sequences of actions with the world model (and with the internal model, where one is
    trained); the network learns that as a function of the state.

    InfoNCE's critic learns as often as the network. At each gradient step other states are asked about, and the network
    learns what the critic says of them before it has learned from them: of what it knows by heart it says too much.

    What an agent can decide depends on what is looked at: by default the whole next state, observation and internal
    variables, and ``target`` chooses a part, the agent's place for instance.

    The factor that a schedule gives changes between rollouts only, and ``callback.unit.set_factor(...)`` scales it
    further. Logs under ``persist/empowerment/``: ``loss`` (mean square of what the network gets wrong, in squares of
    its unit), ``estimate`` (mean of the newest estimates, nats), ``mean`` (of what the layer publishes, nats),
    ``bound`` (no estimate is greater, nats; not where there is none), ``factor``; and of InfoNCE ``critic_loss``.

    :param horizon: actions in a sequence, ``k``
    :param estimator: see :class:`~persist_sb3.intrinsic.Empowerment`. Default: ``"logdet"`` for Box actions, else
        ``"likelihood"`` where all sequences are at most ``negatives``, else ``"infonce"``
    :param negatives: sequences that the one taken is told from, itself included, ``K``; the estimate is at most its
        logarithm. Where there are no more than so many, the one taken is told from each of them
    :param target: what counts as outcome: names of internal variables, paths into the observation (``"obs.window"``),
        columns of the flattened state. Default: the whole state
    :param resolution: how sharply the outcome is perceived: standard deviation of a sensor's noise, in standard
        deviations of each number
    :param rollouts: imagined futures of each sequence, at least 2
    :param action_cov: for ``"logdet"``: covariance of an action, scaled to ``[-1, 1]``: a variance, or ``(A, A)``.
        Default: that of the uniform distribution
    :param noise_var: for ``"logdet"``: the noise's variance. Default: from the models and ``resolution``
    :param dynamics: known dynamics, see :class:`~persist_sb3.models.imagination.KnownDynamics`, or an object that has
        their ``members`` and ``step``. Default: the learned ones
    :param schedule: factor on the layer's weight over training: a constant, ``"lin_1"`` (rl-zoo3's notation: linearly
        from 1 to 0), or a function of the remaining progress
    :param min_updates: gradient steps of the models before they are asked
    :param warm_up: gradient steps of the network before its value is paid
    :param net_arch: sizes of the hidden layers, of the network and of InfoNCE's critic
    :param states: how many are asked about at a time. Default: 16, and ``batch_size`` for InfoNCE, which asks at each
        gradient step
    :param estimates: how many are kept to learn from; InfoNCE keeps none
    :param buffer_size: transitions kept to ask about
    :param batch_size: estimates in a gradient step
    :param learning_starts: estimates made before the first gradient step; for InfoNCE, transitions collected
    :param train_freq: steps of the vectorised environment between two questions, and trainings
    :param gradient_steps: gradient steps in each training
    :param learning_rate: of Adam
    :param device: where to train
    :param seed: of initial weights, batches and imagination. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    name = "empowerment"
    actor: Empowerment
    learner: Empowerment

    def __init__(
        self,
        horizon: int = 2,
        estimator: Estimator | None = None,
        negatives: int = 256,
        target: Sequence[str | int] | None = None,
        resolution: float = 0.05,
        rollouts: int = 4,
        action_cov: ArrayLike | None = None,
        noise_var: float | None = None,
        dynamics: Function | Dynamics | None = None,
        schedule: float | str | Schedule = 1.0,
        min_updates: int = 500,
        warm_up: int = 50,
        net_arch: Sequence[int] = (64, 64),
        states: int | None = None,
        estimates: int = 8192,
        buffer_size: int = 100_000,
        batch_size: int = 256,
        learning_starts: int = 256,
        train_freq: Period = 64,
        gradient_steps: int = 16,
        learning_rate: float = 1e-3,
        device: str = "cpu",
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            buffer_size,
            batch_size,
            learning_starts,
            train_freq,
            gradient_steps,
            learning_rate,
            device,
            seed,
            log_path,
            verbose,
        )
        check_estimator(estimator, horizon, negatives)
        check_gaussian(action_cov, noise_var)
        for key, value, least in (
            ("rollouts", rollouts, 2),
            ("min_updates", min_updates, 0),
            ("warm_up", warm_up, 1),
            ("states", 1 if states is None else states, 1),
            ("estimates", estimates, 1),
            ("buffer_size", buffer_size, 1),
        ):
            if value < least:
                raise ValueError(f"{key}={value} must be at least {least}")
        if not 0.0 < resolution < np.inf:
            raise ValueError(f"resolution={resolution} must be positive and finite")
        if estimator is not None and estimator != "logdet" and not (action_cov is None and noise_var is None):
            raise ValueError(f"action_cov and noise_var are for estimator='logdet', and it is {estimator!r}")
        self.horizon = horizon
        self.estimator = estimator
        self.negatives = negatives
        self.target = target
        self.resolution = resolution
        self.rollouts = rollouts
        self.action_cov = action_cov
        self.noise_var = noise_var
        self.dynamics = dynamics
        self.schedule = schedule
        self.min_updates = min_updates
        self.warm_up = warm_up
        self.net_arch = net_arch
        self.states = states
        self.estimates = estimates
        #: Of the bonus. ``Empowerment.full`` is its natural unit, so no deviation is measured.
        self.unit = BonusFactor(schedule)

    def _make(self, spec: StateSpec) -> Empowerment:
        try:
            columns = target_columns(spec, self.target, self._shown(spec))
        except ValueError as error:
            raise RuntimeError(f"EmpowermentCallback: {error}") from error
        return Empowerment(spec, self.estimator, self.horizon, self.negatives, columns, self.net_arch)

    def _shown(self, spec: StateSpec) -> list[int]:
        """
        :param spec: the environment's state
        :return: internal variables that the observation shows as numbers
        """
        entries: Mapping[str, str] = self.lookup("internal_entries")
        space = spec.observation_space
        return [
            variable
            for variable, name in enumerate(spec.viability.dims)
            if name in entries and len(locate(parse_path(entries[name])[1], space).columns(space)) == 1
        ]

    def state_dict(self) -> dict[str, Any]:
        """
        :return: counters, optimiser, random generator, and the factor of the bonus
        """
        return {**super().state_dict(), "unit": self.unit.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.unit.load_state_dict(state["unit"])

    def _on_training_start(self) -> None:
        siblings = list(iter_callbacks(self.locals["callback"]))
        trained_here = {getattr(callback, "name", None) for callback in siblings}
        whole = any(isinstance(callback, LatentWorldModelCallback) for callback in siblings)
        if self.dynamics is None and "world_model" not in trained_here:
            raise RuntimeError(
                "EmpowermentCallback imagines what actions lead to, and nothing learns that: add "
                "persist_sb3.callbacks.WorldModelCallback() to the callbacks, or give it dynamics=..."
            )
        super()._on_training_start()
        hidden = [name for i, name in enumerate(self.spec.viability.dims) if i not in self._shown(self.spec)]
        if self.dynamics is None and "internal_model" not in trained_here and hidden and not whole:
            raise RuntimeError(
                f"EmpowermentCallback: the observation does not show {', '.join(hidden)}, so the world model alone "
                "cannot imagine a later state: add persist_sb3.callbacks.InternalModelCallback() to the callbacks"
            )
        if self.dynamics is None and whole and self.actor.estimator == "logdet":
            raise RuntimeError(
                "EmpowermentCallback: the log-det estimator differentiates the dynamics, and a latent world model has "
                "no predict(state, action): use WorldModelCallback(kind='gaussian'), or estimator='infonce'"
            )
        self._outcomes = Outcomes(self.spec, self.actor.columns, self.resolution)
        self._uses = ["world_model", *(["internal_model"] if "internal_model" in trained_here else [])]
        self._known = self._known_dynamics()
        self._imagination: Dynamics | None = None
        self._memory: Estimates | None = None
        self._kept = 0
        self._published: list[float] = []
        if self._known is not None:
            self._prepare(self._known)

    def _known_dynamics(self) -> Dynamics | None:
        if self.dynamics is None or not callable(self.dynamics):
            return self.dynamics
        return KnownDynamics(self.spec, self.dynamics)

    def _prepare(self, dynamics: Dynamics) -> None:
        """
        :param dynamics: to imagine with
        :raises RuntimeError: if the estimator cannot use them
        """
        self._imagination = dynamics
        if self.actor.estimator == "likelihood":
            self._direct: LikelihoodEstimator | GaussianEstimator = LikelihoodEstimator(
                dynamics, self._outcomes, self.rollouts
            )
        elif self.actor.estimator == "logdet":
            try:
                self._direct = GaussianEstimator(
                    dynamics, self._outcomes, self.action_cov, self.noise_var, self.rollouts
                )
            except TypeError as error:
                raise RuntimeError(f"EmpowermentCallback: {error}") from error

    def _ready(self) -> bool:
        """
        :return: whether there are dynamics, learned well enough to be asked
        """
        if self._known is not None:
            return True
        models = self.state.bundle()
        if not trained((models[name] for name in self._uses), self.min_updates):
            return False
        if self._imagination is None:
            internal: Any = models.get("internal_model") if "internal_model" in self._uses else None
            world: Any = models["world_model"]
            latent = isinstance(world, LatentModel)
            self._prepare(LatentDynamics(world) if latent else LearnedDynamics(world, internal))
        return True

    def _on_rollout_start(self) -> None:
        factor = self.unit.at(self.model._current_progress_remaining)
        paid = factor / self.actor.full if int(self.learner.updates) >= self.warm_up else 0.0
        for model in (self.learner, self.actor):
            model.unit.fill_(paid)
        self.logger.record(f"persist/{self.name}/factor", factor)

    def _on_step(self) -> bool:
        self.store.read(self.locals)
        try:
            self._published += [info["persist"]["empowerment"] for info in self.locals["infos"]]
        except KeyError as error:
            raise RuntimeError(
                "EmpowermentCallback trains a model that no layer uses: wrap the environment in "
                "persist_sb3.wrappers.EmpowermentBonus (or VecEmpowermentBonus, around the vectorised environments)"
            ) from error
        due = self._turn()
        if self.actor.critic is None and due and len(self.store) and self._ready():
            self._ask()
        return super()._on_step()

    def _ask(self) -> None:
        """Estimate the empowerment of some of the states that the agent was in."""
        count = self.states or 16
        state = self._visited(count)
        value = self._direct(state, self._sequences(count), self.generator)
        self._losses["estimate"].append(float(value.mean()))
        self._keep(Estimates(state, value.astype(np.float32)))

    def _visited(self, count: int) -> Floats:
        """
        :param count: how many states, ``n``
        :return: that the agent was in, ``(n, D)``
        """
        transitions: Transitions = self.store.sample(count, self.generator)
        state = self.spec.encode(transitions.observation, transitions.internal)
        self.learner.standardizer.update(self.tensor(state))
        self._outcomes.calibrate(self.learner.standardizer.var.cpu().numpy())
        return state

    def _sequences(self, count: int) -> Floats:
        source = self.actor.source
        if self.actor.estimator == "logdet":
            return source.draw(count, self.generator)
        if self.actor.complete:
            return source.every()
        return np.unique(source.draw(self.negatives, self.generator), axis=0)

    def _keep(self, new: Estimates) -> None:
        """
        :param new: estimates, which take the place of the oldest
        """
        if self._memory is None:
            self._memory = Estimates(*(np.empty((self.estimates, *part.shape[1:]), np.float32) for part in new))
        where = (self._kept + np.arange(len(new.state))) % self.estimates
        for memory, part in zip(self._memory, new, strict=True):
            memory[where] = part
        self._kept += len(new.state)

    def _due(self) -> bool:
        if not self._turn():
            return False
        if self.actor.critic is None:
            return self._kept >= max(self.learning_starts, 1)
        return len(self.store) >= max(self.learning_starts, 1) and self._ready()

    def _sample(self) -> Estimates | Floats:
        if self.actor.critic is not None:
            return self._visited(self.states or self.batch_size)
        assert self._memory is not None
        rows = self.generator.integers(min(self._kept, self.estimates), size=self.batch_size)
        return Estimates(*(memory[rows] for memory in self._memory))

    def _update(self, batch: Estimates | Floats) -> Mapping[str, float]:
        losses: dict[str, float] = {}
        if isinstance(batch, Estimates):
            state, value = map(self.tensor, batch)
        else:
            state, value = self.tensor(batch), self._contrast(batch)
            losses["estimate"] = float(value.mean())
            losses["critic_loss"] = -losses["estimate"]
        losses["loss"] = self.learner.backpropagate(state, value)
        self.optimizer.step()
        self.learner.updates += 1
        return losses

    def _contrast(self, state: Floats) -> torch.Tensor:
        """
        Set the critic's gradients.

        :param state: ``(n, D)``
        :return: what InfoNCE says, before its critic learns from it, ``(n,)``
        """
        critic, source, complete = self.learner.critic, self.actor.source, self.actor.complete
        assert critic is not None and self._imagination is not None
        taken = source.draw(len(state), self.generator)
        others = source.every() if complete else source.draw(self.negatives - 1, self.generator)
        outcome = imagine(self._imagination, self._outcomes, state, taken, self.generator)
        rows, reached = self.tensor(state), self.tensor(outcome)
        critic.measure(rows, reached)
        information = critic.information(rows, self.tensor(taken), reached, self.tensor(others), complete=complete)
        critic.zero_grad()
        (-information.mean()).backward()
        return information.detach()

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        if self._published:
            self.logger.record(f"persist/{self.name}/mean", float(np.mean(self._published)))
            self._published.clear()
        if np.isfinite(self.actor.bound):
            self.logger.record(f"persist/{self.name}/bound", self.actor.bound)
