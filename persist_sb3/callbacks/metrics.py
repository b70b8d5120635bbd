"""Logs how well the agent keeps itself alive while it learns."""

import math
import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from persist_sb3.batch import tree_map
from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.infos import told_bonuses
from persist_sb3.metrics import EpisodeRecord, EpisodeTracker, bonus_shares, intrinsic_share, survival_curve
from persist_sb3.summary import bonus_names, intrinsic_correlation
from persist_sb3.viability import ViabilitySet

FILE_NAME = "persist.jsonl"

# SB3's console table cuts longer names, and refuses two that it cuts to the same.
_CONSOLE_WIDTH = 33


class MetricsCallback(PersistCallback):
    """
    Logs under ``persist/``, to wherever SB3's logger writes:

    - of the last ``window`` episodes: ``time_to_violation`` (restricted mean of the Kaplan-Meier curve, up to the
      longest episode) and ``time_to_violation_median`` (once half of them violate), ``survival`` (share that ends
      without a violation), ``recovery_rate``, ``intrinsic_correlation`` (see
      :func:`~persist_sb3.summary.intrinsic_correlation`);
    - of the steps since the last time: ``satisfaction/<variable>``, ``min_margin``, ``violations_per_1k_steps``,
      ``reward_terms/<name>`` (mean a step), ``intrinsic_share`` (see :func:`~persist_sb3.metrics.intrinsic_share`),
      ``policy_entropy`` (see :func:`policy_entropy`), and ``intervention_rate`` (share at which a shield changed the
      action);
    - where several layers pay a bonus, of each ``bonuses/<layer>`` (mean a step), ``bonus_share/<layer>`` (see
      :func:`~persist_sb3.metrics.bonus_shares`) and ``bonus_correlation/<layer>``;
    - of the whole run, and of the run that it resumes: ``violations`` (steps), ``deaths/<constraint>`` (episodes that
      violated this constraint first).

    It needs environments that publish ``info["internal"]`` and declare ``viability`` (``InternalState`` does both).
    All of it is about the declared constraints, also while a curriculum widens them: an episode then goes on after what
    counts as a violation here.

    Each finished episode becomes a line of ``persist.jsonl``, beside the Monitor's file, at most 64 steps of the
    vectorised environment later; see :func:`persist_sb3.metrics.read_episodes`. Training is the same, bit for bit, with
    and without.

    :param log_freq: timesteps between two entries of the log, at ends of rollouts
    :param window: number of episodes that episode statistics are taken over
    :param near: a step is near the boundary if its smallest scaled margin lies in ``[0, near)``
    :param core: a step is safe again from this margin on
    :param recovery_horizon: steps within which a near-boundary step has to become safe to count as recovered
    :param log_path: folder of ``persist.jsonl``. Default: that of the Monitor's file, or of a sibling callback's models
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        log_freq: int = 1000,
        window: int = 100,
        near: float = 0.1,
        core: float = 0.25,
        recovery_horizon: int = 20,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        for name, value in (("log_freq", log_freq), ("window", window), ("recovery_horizon", recovery_horizon)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0.0 < near <= core:
            raise ValueError(f"near={near} and core={core} must satisfy 0 < near <= core")
        self.log_freq = log_freq
        self.near = near
        self.core = core
        self.recovery_horizon = recovery_horizon
        self.recent: deque[EpisodeRecord] = deque(maxlen=window)
        self._episodes = 0
        self._earlier_violations = 0
        self._deaths: Counter[str] = Counter()
        self._viability: ViabilitySet
        self._tracker: EpisodeTracker | None = None
        self._began_at = 0
        self._stage: int | None = None
        self._logged_at = 0
        self._file: TextIO | None = None

    @property
    def violations(self) -> int:
        """Steps that violated a constraint, in the whole run."""
        return self._earlier_violations + (self._tracker.violations if self._tracker else 0)

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the counters of the whole run
        """
        self._catch_up()
        return {"episodes": self._episodes, "violations": self.violations, "deaths": dict(self._deaths)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        """
        self._episodes = state["episodes"]
        self._earlier_violations = state["violations"]
        self._deaths = Counter(state["deaths"])

    def _on_training_start(self) -> None:
        if self._tracker is None or self.store.steps == 0 or self.store.steps != self._tracker.steps:
            self._earlier_violations = self.violations
            self._tracker = None
        self._midway = self.store.steps > 0
        self._viability = self.lookup("viability")
        self.state.register("metrics", self)
        self._logged_at = self.num_timesteps
        self._open_file()
        super()._on_training_start()

    def _open_file(self) -> None:
        if self._file is not None or self.log_dir is None:
            return
        self.log_dir.mkdir(parents=True, exist_ok=True)
        path = self.log_dir / FILE_NAME
        if path.exists():
            _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")
        if self.verbose > 0:
            print(f"Writing episodes to {path}")

    def _on_step(self) -> bool:
        step = self.store.read(self.locals)
        infos = self.locals["infos"]
        intervened, bonuses = _interventions(infos), told_bonuses(infos)
        if self._tracker is None:
            self._tracker = EpisodeTracker(
                self._viability,
                len(step),
                tuple(step.terms),
                bonuses=tuple(bonuses),
                near=self.near,
                core=self.core,
                horizon=self.recovery_horizon,
                midway=self._midway,
                prompt=False,
                shielded=intervened is not None,
            )
            self._began_at = self.num_timesteps - len(step)
        stage = infos[0].get("persist", {}).get("stage")
        if stage != self._stage:
            self._catch_up()
            self._stage = stage
        self._keep(
            self._tracker.step(
                step.next_internal, step.reward, step.terms, step.done, step.truncated, intervened, bonuses
            )
        )
        return super()._on_step()

    def _keep(self, records: Sequence[EpisodeRecord]) -> None:
        for record in records:
            record.timestep += self._began_at
            record.stage = self._stage
            self._episodes += 1
            if record.violated is not None:
                self._deaths[record.violated] += 1
            self.recent.append(record)
            if self._file is not None:
                self._file.write(record.to_json() + "\n")
        if records and self._file is not None:
            self._file.flush()

    def _catch_up(self) -> None:
        if self._tracker is not None:
            self._keep(self._tracker.take())

    def _on_rollout_end(self) -> None:
        if self.num_timesteps - self._logged_at >= self.log_freq:
            self._logged_at = self.num_timesteps
            self._catch_up()
            self._log_steps()
            self._log_episodes()

    def _log_steps(self) -> None:
        assert self._tracker is not None
        steps = self._tracker.summary()
        self._record("min_margin", steps.min_margin)
        self._record("violations", self.violations)
        self._record("violations_per_1k_steps", 1000.0 * steps.violations / steps.steps)
        for name, rate in steps.satisfaction.items():
            self._record(f"satisfaction/{name}", rate)
        for name, mean in steps.reward_terms.items():
            self._record(f"reward_terms/{name}", mean)
        share = intrinsic_share(steps.reward_terms)
        if share is not None:
            self._record("intrinsic_share", share)
        for name, mean in steps.bonuses.items():
            self._record(f"bonuses/{name}", mean)
        for name, part in bonus_shares(steps.reward_terms, steps.bonuses).items():
            self._record(f"bonus_share/{name}", part)
        if steps.intervention_rate is not None:
            self._record("intervention_rate", steps.intervention_rate)
        entropy = policy_entropy(self.model)
        if entropy is not None:
            self._record("policy_entropy", entropy)

    def _log_episodes(self) -> None:
        for constraint in self._viability.constraints:
            self._record(f"deaths/{constraint.text}", self._deaths[constraint.text])
        if not self.recent:
            return
        curve = survival_curve(self.recent)
        self._record("time_to_violation", curve.restricted_mean())
        if math.isfinite(curve.median):
            self._record("time_to_violation_median", curve.median)
        self._record("survival", float(np.mean([episode.survived for episode in self.recent])))
        near_steps = sum(episode.near_steps for episode in self.recent)
        if near_steps:
            self._record("recovery_rate", sum(episode.recovered_steps for episode in self.recent) / near_steps)
        correlation = intrinsic_correlation(self.recent)
        if correlation is not None:
            self._record("intrinsic_correlation", correlation)
        for name in bonus_names(self.recent):
            correlation = intrinsic_correlation(self.recent, name)
            if correlation is not None:
                self._record(f"bonus_correlation/{name}", correlation)

    def _record(self, name: str, value: float) -> None:
        self.logger.record(f"persist/{name}", value, exclude="stdout" if len(name) > _CONSOLE_WIDTH else None)

    def _on_training_end(self) -> None:
        self._catch_up()
        if self._file is not None:
            self._file.close()
            self._file = None


def _interventions(infos: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_] | None:
    """
    :param infos: of one step
    :return: where a shield changed the action, ``(n,)``; None if there is no shield
    """
    return np.array([info["intervened"] for info in infos]) if "intervened" in infos[0] else None


def _drop_torn_line(path: Path) -> None:
    """
    Cut off what a killed process left unfinished, so that what is appended begins a line.

    :param path: a file of lines
    """
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)


def policy_entropy(model: BaseAlgorithm) -> float | None:
    """
    Entropy of the policy over the states it visits, in nats (differential, so possibly negative, in Box actions).

    On-policy: the mean of ``-log pi(a|s)`` over the rollout's actions, which is unbiased, respects action masks, and is
    there already. DQN and QR-DQN: that of the epsilon-greedy policy, exactly. SAC, TQC and CrossQ: the mean of
    ``-log pi(a|s)`` over the newest observations in the replay buffer, one action each.

    :param model: the algorithm, at the end of a rollout
    :return: the entropy; None for a deterministic policy (TD3, DDPG)
    """
    if isinstance(model, OnPolicyAlgorithm):
        return -float(model.rollout_buffer.log_probs.mean())
    if isinstance(model.action_space, spaces.Discrete):
        return _epsilon_greedy_entropy(model.exploration_rate, int(model.action_space.n))  # type: ignore[attr-defined]
    if isinstance(model, OffPolicyAlgorithm) and hasattr(model.actor, "action_log_prob"):
        return _replay_entropy(model, 256)
    return None


def _epsilon_greedy_entropy(epsilon: float, actions: int) -> float:
    """
    :param epsilon: probability of a uniformly random action
    :param actions: how many there are
    :return: entropy of the mixture with the greedy action
    """
    other = epsilon / actions
    greedy = 1.0 - epsilon + other
    return -sum(p * math.log(p) * count for p, count in ((greedy, 1), (other, actions - 1)) if p > 0.0)


def _replay_entropy(model: OffPolicyAlgorithm, count: int) -> float:
    """
    :param model: an algorithm whose actor gives log-probabilities
    :param count: about how many observations to average over
    :return: Monte-Carlo estimate of the policy's entropy
    """
    buffer = model.replay_buffer
    assert isinstance(buffer, ReplayBuffer | DictReplayBuffer)
    rows = min(-(-count // buffer.n_envs), buffer.size())
    newest = (buffer.pos - 1 - np.arange(rows)) % buffer.buffer_size
    observations = tree_map(lambda leaf: leaf[newest].reshape(-1, *leaf.shape[2:]), buffer.observations)
    if model._vec_normalize_env is not None:
        observations = model._vec_normalize_env.normalize_obs(observations)
    tensor, _ = model.policy.obs_to_tensor(observations)
    # The draws are put back, so that training goes on as if nobody had looked.
    with torch.no_grad(), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        _, log_prob = model.actor.action_log_prob(tensor)  # type: ignore[operator]
    return -float(log_prob.mean())
