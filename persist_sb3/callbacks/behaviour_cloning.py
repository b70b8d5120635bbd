"""Lets a policy begin with what demonstrations show."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.hooks import RemovableHandle

from persist_sb3.batch import Batch, unflatten
from persist_sb3.buffers import Demonstrations
from persist_sb3.buffers.filled import fill
from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.lesson import Lesson
from persist_sb3.models.spec import StateSpec
from persist_sb3.pupils import Pupil, pupil_of
from persist_sb3.schedules import make_schedule


class BehaviourCloningCallback(PersistCallback):
    """
    Before the first step of the agent, makes the demonstrated actions likely under its policy (behaviour cloning,
    Pomerleau, 1991), so that it does not set out as a random one. ``VecNormalize`` begins with the moments of the
    demonstrated observations. A value function that knows nothing of such a policy would soon undo it, so for a while
    only the value function learns from experience.

    For PPO, A2C, TRPO and MaskablePPO, and for SAC, TQC, TD3 and DDPG, whose replay buffer then begins with the
    demonstrations, and which take no random steps first (their ``learning_starts`` become 0). Such demonstrations must
    be paid as the agent is, so record them in the same layers. A run that is resumed is not cloned again.

    While it has a ``weight``, it logs under ``persist/cloning/``: ``weight``, and ``distance`` (what the policy is from
    the demonstrations: nats of negative log-likelihood, or half-ranges of the action, squared).

    :param demonstrations: safe episodes, or the file of :meth:`Demonstrations.save
        <persist_sb3.buffers.Demonstrations.save>` that holds them
    :param augment: clone the mirror images of each transition, too, by the symmetries that the environment declares
        (see :class:`~persist_sb3.symmetry.Symmetry`)
    :param value_steps: timesteps from the first on, in which only the value function learns; off-policy the critics,
        while SAC's and TQC's entropy coefficient stays what it is and critics do not choose (``best_of`` of SAC's
        equivariant policies)
    :param gradient_steps: how many, before the first timestep
    :param batch_size: transitions in a gradient step
    :param learning_rate: of Adam: a number, ``"lin_0.003"``, which falls to 0, or a function of the progress that is
        left. A high one that stays high may leave the policy where a bad batch has just put it
    :param weight_decay: of Adam
    :param weight: of the cloning loss in the policy's own after ``value_steps`` (Rajeswaran et al., "Learning complex
        dexterous manipulation with deep reinforcement learning and demonstrations", RSS 2018). What critics say of
        actions that nobody has tried is not to be trusted, and a policy that climbs them forgets what it was shown.
        TRPO follows it beside its trust region, by the optimiser that its value function has
    :param weight_steps: timesteps in which it falls to 0
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        demonstrations: Demonstrations | str | os.PathLike[str],
        value_steps: int = 20_000,
        gradient_steps: int = 1000,
        batch_size: int = 256,
        learning_rate: float | str | Schedule = 1e-3,
        weight_decay: float = 1e-4,
        augment: bool = False,
        weight: float = 0.0,
        weight_steps: int = 100_000,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        counts = {"gradient_steps": gradient_steps, "batch_size": batch_size, "weight_steps": weight_steps}
        for key, value in counts.items():
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if value_steps < 0:
            raise ValueError(f"value_steps={value_steps} must not be negative")
        if not (np.isfinite(weight) and weight >= 0.0):
            raise ValueError(f"weight={weight} must be a finite number, at least 0")
        self._learning_rate = make_schedule(learning_rate)
        if not self._learning_rate(1.0) > 0.0:
            raise ValueError(f"learning_rate={learning_rate} must be positive")
        if not weight_decay >= 0.0:
            raise ValueError(f"weight_decay={weight_decay} must not be negative")
        self.demonstrations = demonstrations
        self.augment = augment
        self.value_steps = value_steps
        self.weight = weight
        self.weight_steps = weight_steps
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.cloned = False
        self._held: list[torch.nn.Parameter] = []
        self._log_ent_coef: torch.Tensor | None = None
        self._reminder: RemovableHandle | None = None
        self._distance: torch.Tensor | None = None
        # Of the demonstrated rewards, until they were compared with the first that the agent gets.
        self._terms: set[str] | None = None

    def state_dict(self) -> dict[str, Any]:
        """
        :return: whether the policy was made like the demonstrations
        """
        return {"cloned": self.cloned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        """
        self.cloned = state["cloned"]

    def _on_training_start(self) -> None:
        pupil = pupil_of(self.model)
        if pupil is None:
            raise RuntimeError(
                f"BehaviourCloningCallback cannot clone into a {type(self.model.policy).__name__}: it is for PPO, A2C, "
                "TRPO and MaskablePPO, and for SAC, TQC (without use_sde), TD3 and DDPG. Give the demonstrations to "
                "ViabilityCallback alone"
            )
        self.state.register("behaviour_cloning", self)
        begins = not self.cloned and self.model.num_timesteps == 0
        if begins or self._weight_now > 0.0:
            shown = self.demonstrations
            if not isinstance(shown, Demonstrations):
                shown = Demonstrations.load(shown, self.lookup("viability"))
            lesson = Lesson(pupil, *self._pairs(shown), self._normalizer, self.batch_size, self._generator())
            if begins:
                self._clone(pupil, shown, lesson)
            if self.weight:
                self._remind(pupil, lesson)
        super()._on_training_start()

    def _on_step(self) -> bool:
        if self._terms is not None:
            self._require_terms(self._terms)
            self._terms = None
        if self._held and self.num_timesteps >= self.value_steps:
            self._release()
        return super()._on_step()

    def _on_rollout_start(self) -> None:
        if self._held and self._log_ent_coef is not None:
            model: Any = self.model
            model.log_ent_coef.data.copy_(self._log_ent_coef)
        if self._distance is not None:
            self.logger.record("persist/cloning/weight", self._weight_now)
            self.logger.record("persist/cloning/distance", float(self._distance))
            self._distance = None
        super()._on_rollout_start()

    def _on_training_end(self) -> None:
        self._release()
        self._stop_reminding()

    def _require_terms(self, shown: set[str]) -> None:
        """
        :param shown: terms of the demonstrated rewards
        :raises RuntimeError: if the environment's consist of others
        """
        paid = set(self.locals["infos"][0].get("reward_terms", ()))
        if paid != shown:
            raise RuntimeError(
                f"the demonstrated rewards consist of {sorted(shown)}, and those of this environment of "
                f"{sorted(paid)}: record the demonstrations with the layers of this training"
            )

    def _hold(self, pupil: Pupil) -> None:
        """
        Keep the policy as it is.

        :param pupil: the policy
        """
        self._held = pupil.choosing
        for parameter in self._held:
            parameter.requires_grad_(False)
        log_ent_coef = getattr(self.model, "log_ent_coef", None)
        self._log_ent_coef = None if log_ent_coef is None else log_ent_coef.detach().clone()
        self._let_critics_choose(False)

    def _release(self) -> None:
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = []
        self._let_critics_choose(True)

    def _let_critics_choose(self, choose: bool) -> None:
        """
        :param choose: what a policy with ``best_of`` is told
        """
        choice: Any = getattr(self.model.policy, "choice", None)
        if choice is not None:
            choice.resting = not choose

    def _clone(self, pupil: Pupil, shown: Demonstrations, lesson: Lesson) -> None:
        """
        :param pupil: the policy
        :param shown: what it is to do
        :param lesson: batches of that
        """
        if isinstance(self.model, OffPolicyAlgorithm):
            self._bind_replay_buffer()
            fill(self.model, shown.transitions)
            self.model.learning_starts = 0
            self._terms = set(shown.transitions.terms)
        lesson.measure()
        optimizer = torch.optim.Adam(pupil.groups(self._learning_rate(1.0)), weight_decay=self.weight_decay)
        schedule = LambdaLR(optimizer, self._share_of_rate)
        self.model.policy.set_training_mode(True)
        for _ in range(self.gradient_steps):
            loss, distance = lesson.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if self.verbose > 0:
            print(f"The policy differs from the demonstrations by {float(distance.detach()):.3f} {pupil.unit}")
        self.cloned = True
        if self.value_steps:
            self._hold(pupil)

    def _remind(self, pupil: Pupil, lesson: Lesson) -> None:
        """
        Add the gradient of the cloning loss to what the policy's own optimiser is about to follow.

        :param pupil: the policy
        :param lesson: batches of what it was shown
        """

        def add(*_: Any) -> None:
            weight = self._weight_now
            if self._held or weight == 0.0:
                return
            distance = lesson.loss()[1]
            self._distance = distance.detach()
            slopes = torch.autograd.grad(weight * distance, pupil.choosing, allow_unused=True)
            for parameter, slope in zip(pupil.choosing, slopes, strict=True):
                if slope is not None:
                    parameter.grad = slope if parameter.grad is None else parameter.grad + slope

        # A training that was interrupted has left its own.
        self._stop_reminding()
        self._reminder = pupil.optimizer.register_step_pre_hook(add)

    def _stop_reminding(self) -> None:
        if self._reminder is not None:
            self._reminder.remove()
            self._reminder = None

    @property
    def _weight_now(self) -> float:
        """
        :return: of the cloning loss, at this timestep
        """
        left = 1.0 - (self.model.num_timesteps - self.value_steps) / self.weight_steps
        return self.weight * min(max(left, 0.0), 1.0)

    @property
    def _normalizer(self) -> VecNormalize | None:
        found: Any = unwrap_vec_normalize(self.training_env)
        return found if found is not None and found.norm_obs else None

    def _generator(self) -> np.random.Generator:
        """
        :return: what batches are drawn from
        """
        steps = self.model.num_timesteps
        return np.random.default_rng([self.model.seed or 0, steps] if steps else self.model.seed)

    def _share_of_rate(self, step: int) -> float:
        """
        :param step: gradient steps taken
        :return: the learning rate, as a share of the first
        """
        return self._learning_rate(1.0 - step / self.gradient_steps) / self._learning_rate(1.0)

    def _pairs(self, shown: Demonstrations) -> tuple[Batch, NDArray[Any]]:
        """
        :param shown: demonstrations
        :return: observations and actions, with their images if those are asked for, ``(m, ...)``
        """
        if self.augment:
            return self._images(shown)
        return shown.transitions.observation, shown.transitions.executed_action

    def _images(self, shown: Demonstrations) -> tuple[Batch, NDArray[Any]]:
        """
        :param shown: demonstrations
        :return: observations and actions of all their images, ``(g * n, ...)``
        """
        space: Any = self.model.observation_space
        spec = StateSpec(space, self.model.action_space, self.lookup("viability"))
        group = self.symmetry_group(spec)
        observation, action = shown.transitions.observation, shown.transitions.executed_action
        state = np.tile(spec.encode(observation, shown.transitions.internal), (len(group), 1))
        which = np.repeat(np.arange(len(group)), len(shown))
        action = np.concatenate([action] * len(group))
        images = group.state(which, state)[:, : spec.observation_dim]
        return unflatten(space, images), group.action(which, action)
