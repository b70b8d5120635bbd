"""Teaches a network what the shield's search would say."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional

from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.models.safety import SafetyNetwork
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.schedules import Period
from persist_sb3.shield.lookahead import LookAhead, trained, trainers
from persist_sb3.shield.rollouts import RolloutVerifier
from persist_sb3.shield.sketch import Sketch

#: Box actions that the search is asked about in each state, the executed one included.
ASKED = 5

#: Share by which the network's running agreement moves toward that of the newest answers.
TRACKING = 0.05


class Answers(NamedTuple):
    """What the search said, ``b`` times."""

    inputs: Floats  # what the network saw, (b, I)
    p_safe: Floats  # (b,)


class SafetyNetworkCallback(LearningCallback):
    """
    Trains a :class:`~persist_sb3.models.safety.SafetyNetwork` on the answers of the search that
    :class:`~persist_sb3.wrappers.ActionShield` is set to (its ``horizon``, ``rollouts``, ``dynamics``, ``backup``):
    every ``train_freq`` steps the search is asked about all actions in the states at hand, those that the shielded
    policy comes to (DAgger: Ross, Gordon & Bagnell, AISTATS 2011). The network sees the outline of the search, one
    future of ``foresight`` steps without chance, and where no ``backup`` is given, so that the search goes on with the
    critic, what the critic says along it. The models that the search takes must be trained by their own callbacks;
    until they are, it is not asked.

    Each answer is a test first. Of those since the last rollout it logs, under ``persist/safety/``: ``agreement``
    (share of verdicts that are the same), ``false_safe`` (of the actions that the network passes, the share that the
    search rejects), ``missed`` (of those that the search rejects, the share that the network passes: where rejections
    are rare nearly all verdicts agree, and this is what counts), and ``loss``.

    :param net_arch: sizes of the hidden layers
    :param foresight: steps of the outline. More of them say more of what the search would find, and cost more to judge
        an action
    :param min_updates: gradient steps of the search's models before it is asked
    :param answers: how many are kept to learn from, each about an action, the newer ones more often
    :param batch_size: answers in a gradient step
    :param learning_starts: answers collected before the first gradient step
    :param train_freq: steps of the vectorised environment between two questions, and trainings
    :param gradient_steps: gradient steps in each training
    :param learning_rate: of Adam
    :param device: where to train
    :param seed: of initial weights and batches. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    name = "safety"
    actor: SafetyNetwork
    learner: SafetyNetwork

    def __init__(
        self,
        net_arch: Sequence[int] = (64, 64),
        foresight: int = 2,
        min_updates: int = 500,
        answers: int = 100_000,
        batch_size: int = 256,
        learning_starts: int = 500,
        train_freq: Period = 8,
        gradient_steps: int = 2,
        learning_rate: float = 1e-3,
        device: str = "cpu",
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            0,
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
        if foresight < 1:
            raise ValueError(f"foresight={foresight} must be at least 1")
        if answers < 1:
            raise ValueError(f"answers={answers} must be at least 1")
        if min_updates < 0:
            raise ValueError(f"min_updates={min_updates} must not be negative")
        self.net_arch = net_arch
        self.foresight = foresight
        self.answers = answers
        self.min_updates = min_updates

    def _make(self, spec: StateSpec) -> SafetyNetwork:
        return SafetyNetwork(spec, self.net_arch, self._lookahead.backup is None, self.foresight)

    def _on_training_start(self) -> None:
        try:
            self._lookahead: LookAhead = self.lookup("lookahead")
        except RuntimeError as error:
            raise RuntimeError(
                "SafetyNetworkCallback learns from the search of an ActionShield, and there is none: wrap the "
                "environment in persist_sb3.wrappers.ActionShield(mode='amortised')"
            ) from error
        super()._on_training_start()
        self._search: RolloutVerifier | None = None
        self._sketch: Sketch | None = None
        self._memory: Answers | None = None
        self._kept = 0
        self._tests = np.zeros(5)

    def _on_step(self) -> bool:
        transitions = self.store.read(self.locals)
        if self._turn() and self._find_search():
            self._ask(
                self.spec.encode(transitions.observation, transitions.internal),
                self.spec.encode_action(transitions.executed_action),
            )
        return super()._on_step()

    def _find_search(self) -> bool:
        """
        :return: whether there is a search, with trained models
        :raises RuntimeError: if nobody trains one of them
        """
        models = self.state.bundle()
        needed = self._lookahead.needs(models)
        missing = [name for name in needed if name not in models]
        if missing:
            raise RuntimeError(
                f"SafetyNetworkCallback asks a search that has no part {', '.join(map(repr, missing))}: put "
                f"{trainers(missing)} among the callbacks"
            )
        if self._search is None:
            self._search = self._lookahead.verifier(self.spec, models)
            self._sketch = self._lookahead.sketch(self.spec, models, self.foresight)
        return trained((models[name] for name in needed), self.min_updates)

    def _ask(self, state: Floats, executed: Floats) -> None:
        """
        Ask the search, compare the network's answers with its own, and keep them.

        :param state: ``(n, D)``
        :param executed: encoded, ``(n, A)``
        """
        assert self._search is not None and self._sketch is not None
        network = self.actor
        critic: Any = self.state.bundle()["viability"] if network.valued else None
        values: Floats | None = None
        if self.spec.continuous:
            others = self.generator.uniform(-1.0, 1.0, (len(state), ASKED - 1, executed.shape[1])).astype(np.float32)
            several = np.concatenate([executed[:, None], others], axis=1)
            action = several.reshape(-1, executed.shape[1])
            if critic is not None:
                values = critic.action_values(state, several).reshape(len(action), -1)
            state = np.repeat(state, ASKED, axis=0)
        else:
            every = self.spec.encode_action(self.spec.actions)
            if critic is not None:
                values = critic.values(state).reshape(len(state) * len(every), -1)
            action = np.tile(every, (len(state), 1))
            state = np.repeat(state, len(every), axis=0)
        inputs = network.inputs(state, action, values, self._sketch(state, action))
        answers = Answers(inputs, self._search(state, action).p_safe)
        guess = network.p_safe(answers.inputs)
        if self.updates:
            self._test(guess >= self._lookahead.conf, answers.p_safe >= self._lookahead.conf)
        self._keep(answers)

    def _test(self, passed: NDArray[np.bool_], safe: NDArray[np.bool_]) -> None:
        """
        :param passed: which actions the network passes, ``(b,)``
        :param safe: which the search passes, ``(b,)``
        """
        same = passed == safe
        self._tests += [same.sum(), same.size, (passed & ~safe).sum(), passed.sum(), (~safe).sum()]
        self.learner.agreement.lerp_(self.tensor(same.mean()), TRACKING)

    def _keep(self, answers: Answers) -> None:
        """
        :param answers: new ones, which take the place of the oldest
        """
        if self._memory is None:
            self._memory = Answers(*(np.empty((self.answers, *new.shape[1:]), np.float32) for new in answers))
        count = len(answers.inputs)
        where = (self._kept + np.arange(count)) % self.answers
        for memory, new in zip(self._memory, answers, strict=True):
            memory[where] = new
        self._kept += count

    def _due(self) -> bool:
        return self._turn() and self._kept >= max(self.learning_starts, 1)

    def _sample(self) -> Answers:
        assert self._memory is not None
        # The search's models go on learning, so old answers are not what it would say now: half of a batch is from the
        # newest quarter of them.
        age = min(self._kept, self.answers) * np.square(self.generator.random(self.batch_size))
        rows = (self._kept - 1 - age.astype(np.intp)) % self.answers
        return Answers(*(memory[rows] for memory in self._memory))

    def _update(self, batch: Answers) -> Mapping[str, float]:
        inputs, p_safe = map(self.tensor, batch)
        self.learner.standardizer.update(inputs)
        loss = functional.binary_cross_entropy_with_logits(self.learner(inputs), p_safe)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.learner.updates += 1
        return {"loss": float(loss.detach())}

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        same, asked, wrong, passed, rejected = self._tests
        for key, count, total in (
            ("agreement", same, asked),
            ("false_safe", wrong, passed),
            ("missed", wrong, rejected),
        ):
            if total:
                self.logger.record(f"persist/{self.name}/{key}", count / total)
        self._tests[:] = 0.0
