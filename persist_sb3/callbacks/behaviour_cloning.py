"""Lets a policy begin with what demonstrations show."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from persist_sb3.batch import Batch, take, tree_map, unflatten
from persist_sb3.buffers import Demonstrations
from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.models.spec import StateSpec


class BehaviourCloningCallback(PersistCallback):
    """
    Before the first step of the agent, makes the demonstrated actions likely under its policy (behaviour cloning,
    Pomerleau, 1991), so that it does not set out as a random one. ``VecNormalize`` begins with the moments of the
    demonstrated observations. A value function that knows nothing of such a policy would soon undo it, so for a while
    only the value function learns from experience.

    For the on-policy algorithms: PPO, A2C, TRPO and MaskablePPO. A run that is resumed is left as it is.

    :param demonstrations: safe episodes, or the file of :meth:`Demonstrations.save
        <persist_sb3.buffers.Demonstrations.save>` that holds them
    :param augment: clone the mirror images of each transition, too, by the symmetries that the environment declares
        (see :class:`~persist_sb3.symmetry.Symmetry`)
    :param value_steps: timesteps from the first on, in which only the value function learns
    :param gradient_steps: how many, of the cloning
    :param batch_size: transitions in a gradient step
    :param learning_rate: of Adam
    :param weight_decay: of Adam
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
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        augment: bool = False,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        for key, value in (("gradient_steps", gradient_steps), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if value_steps < 0:
            raise ValueError(f"value_steps={value_steps} must not be negative")
        if not learning_rate > 0.0:
            raise ValueError(f"learning_rate={learning_rate} must be positive")
        if not weight_decay >= 0.0:
            raise ValueError(f"weight_decay={weight_decay} must not be negative")
        self.demonstrations = demonstrations
        self.augment = augment
        self.value_steps = value_steps
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.cloned = False
        self._held: list[torch.nn.Parameter] = []

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
        policy: Any = self.model.policy
        if isinstance(policy, RecurrentActorCriticPolicy) or not hasattr(policy, "evaluate_actions"):
            raise RuntimeError(
                f"BehaviourCloningCallback cannot clone into a {type(policy).__name__}: it is for PPO, A2C, TRPO and "
                "MaskablePPO. Give the demonstrations to ViabilityCallback alone"
            )
        self.state.register("behaviour_cloning", self)
        if not self.cloned and self.model.num_timesteps == 0:
            self._clone()
            self.cloned = True
            if self.value_steps:
                self._hold()
        super()._on_training_start()

    def _on_step(self) -> bool:
        if self._held and self.num_timesteps >= self.value_steps:
            self._release()
        return super()._on_step()

    def _on_training_end(self) -> None:
        self._release()

    def _hold(self) -> None:
        """Keep the policy as it is: all of its parameters but those that only the value function uses."""
        policy: Any = self.model.policy
        value = {
            id(parameter)
            for part in (policy.mlp_extractor.value_net, policy.value_net)
            for parameter in part.parameters()
        }
        self._held = [p for p in policy.parameters() if p.requires_grad and id(p) not in value]
        for parameter in self._held:
            parameter.requires_grad_(False)

    def _release(self) -> None:
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = []

    def _clone(self) -> None:
        shown = self.demonstrations
        if not isinstance(shown, Demonstrations):
            shown = Demonstrations.load(shown, self.lookup("viability"))
        observation, action = self._images(shown) if self.augment else _pairs(shown)
        normalizer: Any = unwrap_vec_normalize(self.training_env)
        if normalizer is not None and normalizer.norm_obs:
            if isinstance(normalizer.obs_rms, dict):
                for key, moments in normalizer.obs_rms.items():
                    moments.update(observation[key])
            else:
                normalizer.obs_rms.update(observation)
            observation = normalizer.normalize_obs(observation)
        policy: Any = self.model.policy
        tensors = tree_map(lambda leaf: torch.as_tensor(leaf, device=policy.device), observation)
        actions = torch.as_tensor(action, device=policy.device)
        generator = np.random.default_rng(self.model.seed)
        optimizer = torch.optim.Adam(policy.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        policy.set_training_mode(True)
        for _ in range(self.gradient_steps):
            rows = generator.integers(len(actions), size=self.batch_size)
            _, log_prob, _ = policy.evaluate_actions(take(tensors, rows), actions[rows])
            loss = -log_prob.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if self.verbose > 0:
            print(f"The policy gives the demonstrated actions a mean log-likelihood of {-float(loss.detach()):.3f}")

    def _images(self, shown: Demonstrations) -> tuple[Batch, NDArray[Any]]:
        """
        :param shown: demonstrations
        :return: observations and actions of all their images, ``(g * n, ...)``
        """
        space: Any = self.model.observation_space
        spec = StateSpec(space, self.model.action_space, self.lookup("viability"))
        group = self.symmetry_group(spec)
        observation, action = _pairs(shown)
        state = np.tile(spec.encode(observation, shown.transitions.internal), (len(group), 1))
        which = np.repeat(np.arange(len(group)), len(shown))
        action = np.concatenate([action] * len(group))
        images = group.state(which, state)[:, : spec.observation_dim]
        return unflatten(space, images), group.action(which, action)


def _pairs(shown: Demonstrations) -> tuple[Batch, NDArray[Any]]:
    return shown.transitions.observation, shown.transitions.executed_action
