"""The shield over actions that can be counted: Discrete, MultiDiscrete and MultiBinary."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield.decision import Decision, Verdict

Floats = NDArray[np.float32]
Correction = Literal["project", "replace", "mask"]


class Verifier(Protocol):
    """Judges actions by more than the critic's value."""

    def __call__(self, state: Floats, action: NDArray[Any]) -> Verdict:
        """
        :param state: ``(r, D)``
        :param action: encoded, ``(r, A)``
        :return: ``r`` rows
        """


class EnumeratedShield:
    """
    Lets an action pass if the viability critic values it at ``threshold`` or more; where the value lies within
    ``band`` of the threshold and there is a verifier, the verifier decides. Without a critic it always does. An action
    that does not pass is replaced:

    - ``"project"``: by the passing action that changes the fewest components of it, the safest of those;
    - ``"replace"``: by the safest action of all;
    - ``"mask"``: as in ``"project"``, but an algorithm that asks :meth:`permitted` first proposes no such action.

    If no action passes, the safest is taken.

    :param spec: the environment's state and actions
    :param critic: values the actions; None if the verifier judges them all
    :param threshold: least value of an action that passes, in scaled margins
    :param correction: what replaces an action that does not pass
    :param verifier: decides about actions within the band
    :param band: half-width of the band about the threshold, in scaled margins
    """

    def __init__(
        self,
        spec: StateSpec,
        critic: ViabilityCritic | None,
        threshold: float,
        correction: Correction = "project",
        verifier: Verifier | None = None,
        band: float = 0.1,
    ) -> None:
        self._spec = spec
        self._critic = critic
        self.threshold = threshold
        self._correction = correction
        self._verifier = verifier
        self._band = band
        self._encoded = spec.encode_action(spec.actions)
        codes = spec.actions.reshape(len(spec.actions), -1)
        self._changes = (codes[:, None] != codes[None]).sum(axis=2)
        # What was permitted last, for the decision about the same states that usually follows.
        self._permitted: tuple[float, Floats, Verdict] | None = None

    def permitted(self, state: Floats) -> NDArray[np.bool_]:
        """
        :param state: ``(n, D)``
        :return: which actions pass; where none does, the safest alone, and where nothing is known because a model
            failed, none, ``(n, k)``
        """
        n, k = len(state), len(self._encoded)
        verdict = self._judge(state, np.repeat(np.arange(n), k), np.tile(np.arange(k), n), self._values(state))
        self._permitted = self.threshold, state, verdict
        safe, score = verdict.safe.reshape(n, k).copy(), verdict.score.reshape(n, k)
        none = np.logical_not(safe.any(axis=1))
        safest = score[none].argmax(axis=1)
        safe[none, safest] = np.isfinite(score[none, safest])
        return safe

    def decide(self, state: Floats, action: NDArray[Any]) -> Decision:
        """
        :param state: ``(n, D)``
        :param action: proposed, ``(n, ...)``
        :return: what to do instead, where something must be done
        """
        n, k = len(state), len(self._encoded)
        index = self._spec.index(action)
        judge = self._judge_of(state)
        proposed = judge(np.arange(n), index)
        refused = np.flatnonzero(~proposed.safe)
        if not len(refused):
            nothing = np.zeros(n, dtype=bool)
            return Decision(action, action, nothing, nothing, proposed, proposed)

        others = judge(np.repeat(refused, k), np.tile(np.arange(k), len(refused)))
        safe, score = others.safe.reshape(-1, k), others.score.reshape(-1, k)
        lost = np.logical_not(safe.any(axis=1))
        order = score if self._correction == "replace" else self._nearness(index[refused], safe, score)
        order = np.where(lost[:, None], score, order)
        best = order.argmax(axis=1)
        executed = proposed.take(np.arange(n))
        executed.put(refused, others.take(np.arange(len(refused)) * k + best))
        changed = index.copy()
        changed[refused] = best
        infeasible = np.zeros(n, dtype=bool)
        infeasible[refused] = lost
        chosen = self._spec.actions[changed].astype(action.dtype)
        return Decision(action, chosen, changed != index, infeasible, proposed, executed)

    def _nearness(self, index: NDArray[np.intp], safe: NDArray[np.bool_], score: Floats) -> Floats:
        """
        :param index: of the refused actions, ``(r,)``
        :param safe: which actions pass, ``(r, k)``
        :param score: of all actions, ``(r, k)``
        :return: greatest for the safest of the nearest actions that pass, ``(r, k)``
        """
        # A score counts for less than one changed component.
        spread = score / (1.0 + np.abs(score).max(axis=1, keepdims=True, where=safe, initial=0.0))
        order: Floats = np.where(safe, 0.4 * spread - self._changes[index], -np.inf).astype(np.float32)
        return order

    def _judge_of(self, state: Floats) -> Callable[[NDArray[np.intp], NDArray[np.intp]], Verdict]:
        """
        :param state: ``(n, D)``
        :return: gives the verdicts on actions in some of these states. Where it was just asked what is permitted in
            them, it says the same, without asking again
        """
        known, self._permitted = self._permitted, None
        if known is not None and known[0] == self.threshold and np.array_equal(known[1], state):
            k, verdict = len(self._encoded), known[2]
            return lambda row, index: verdict.take(row * k + index)
        values = self._values(state)
        return lambda row, index: self._judge(state, row, index, values)

    def _values(self, state: Floats) -> Floats | None:
        return None if self._critic is None else self._critic.values(state)

    def _judge(self, state: Floats, row: NDArray[np.intp], index: NDArray[np.intp], values: Floats | None) -> Verdict:
        """
        :param state: ``(n, D)``
        :param row: which state each action belongs to, ``(r,)``
        :param index: which action it is, ``(r,)``
        :param values: the critic's, of every action, overall and by constraint, ``(n, k, 1 + m)``
        :return: ``r`` rows
        """
        if values is None:
            assert self._verifier is not None
            return self._verifier(state[row], self._encoded[index])
        verdict = Verdict.by_critic(values[row, index], self.threshold)
        if self._verifier is not None:
            unsure = np.flatnonzero(np.abs(verdict.score - self.threshold) < self._band)
            if len(unsure):
                verdict.put(unsure, self._verifier(state[row[unsure]], self._encoded[index[unsure]]))
        return verdict
