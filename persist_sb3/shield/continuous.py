"""The shield over real-valued actions: Box."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield.decision import Decision, Verdict
from persist_sb3.shield.enumerated import Correction, Verifier
from persist_sb3.shield.projection import Projection, Search, cem, gradient
from persist_sb3.streams import Streams

Floats = NDArray[np.float32]

#: Actions between the proposed one and the one found that the verifier is asked about.
VERIFIED = 8

#: Values are sought this far above the threshold: with the batch that it is computed in, the critic's value of one
#: action changes by rounding.
ROUNDING = 1e-5


class BoxShield:
    """
    Lets an action pass if the viability critic values it at ``threshold`` or more; where the value lies within
    ``band`` of the threshold and there is a verifier, the verifier decides. An action that does not pass is replaced:

    - ``"project"``: by the nearest one that does, ``argmin |a' - a|`` over ``Q(s, a') >= threshold``, with every
      component scaled to ``[-1, 1]``; see :mod:`~persist_sb3.shield.projection`. An ``inset`` asks for more, since the
      nearest action lies where the critic is about to change its mind: ``Q(s, a') >= threshold + inset * (Q(s, b) -
      threshold)``, with ``b`` the critic's safest action;
    - ``"replace"``: by the critic's safest action, as its safe actor or its pieces know it.

    With a verifier, the critic alone looks for the nearest action whose value lies above the band, and the verifier is
    asked about the segment from the proposed action to that one. If no action that was tried passes, the safest is
    taken.

    :param spec: the environment's state and actions
    :param critic: values the actions
    :param threshold: least value of an action that passes, in scaled margins
    :param streams: what samples are drawn from, one an environment
    :param correction: what replaces an action that does not pass: ``"project"`` or ``"replace"``
    :param projection: how the nearest action is looked for: ``"cem"``, by samples, or ``"gradient"``, by linearising
        the critic, without any
    :param inset: how far inside of what passes it is looked for, from 0, at the threshold, to 1, at the safest
    :param verifier: decides about actions within the band
    :param band: half-width of the band about the threshold, in scaled margins
    :param samples: actions drawn in each round of ``"cem"``
    :param rounds: batches of actions that are tried
    """

    def __init__(
        self,
        spec: StateSpec,
        critic: ViabilityCritic,
        threshold: float,
        streams: Streams,
        correction: Correction = "project",
        projection: Projection = "cem",
        inset: float = 0.0,
        verifier: Verifier | None = None,
        band: float = 0.1,
        samples: int = 48,
        rounds: int = 6,
    ) -> None:
        self._spec = spec
        self._critic = critic
        self.threshold = threshold
        self._streams = streams
        self._correction = correction
        self._projection = projection
        self._inset = inset
        self._verifier = verifier
        self._band = band
        self._samples = samples
        self._rounds = rounds

    def decide(self, state: Floats, action: NDArray[Any]) -> Decision:
        """
        :param state: ``(n, D)``
        :param action: proposed, ``(n, ...)``; judged as if clipped to its limits
        :return: what to do instead, where something must be done
        """
        n = len(state)
        encoded: Floats = self._spec.encode_action(action).clip(-1.0, 1.0)
        proposed = self._judge(state, encoded)
        refused = np.flatnonzero(~proposed.safe)
        nothing = np.zeros(n, dtype=bool)
        if not len(refused):
            return Decision(action, action, nothing, nothing, proposed, proposed)

        replacement, verdict = self._replace(refused, state[refused], encoded[refused])
        executed = proposed.take(np.arange(n))
        executed.put(refused, verdict)
        chosen = action.copy()
        chosen[refused] = self._spec.decode_action(replacement)
        intervened = (chosen != action).reshape(n, -1).any(axis=1)
        infeasible = nothing.copy()
        infeasible[refused] = ~verdict.safe
        return Decision(action, chosen, intervened, infeasible, proposed, executed)

    def _replace(self, slots: NDArray[np.intp], state: Floats, proposed: Floats) -> tuple[Floats, Verdict]:
        """
        :param slots: environments in which an action was refused, ``(r,)``
        :param state: theirs, ``(r, D)``
        :param proposed: the refused actions, encoded, ``(r, A)``
        :return: what to do instead, encoded, ``(r, A)``, and the verdict on it, ``r`` rows
        """
        found: Floats = self._critic.best_action(state)
        if self._correction == "project":
            found = self._nearest(slots, state, proposed, found)
        if self._verifier is None or self._correction == "replace":
            return found, self._judge(state, found)
        steps = np.arange(1, VERIFIED + 1, dtype=np.float32)[:, None] / VERIFIED
        tried = proposed[:, None] + steps * (found - proposed)[:, None]
        every = np.repeat(state, VERIFIED, axis=0)
        verdict = self._judge(every, tried.reshape(len(every), -1))
        safe, score = verdict.safe.reshape(-1, VERIFIED), verdict.score.reshape(-1, VERIFIED)
        best = np.where(safe.any(axis=1), safe.argmax(axis=1), score.argmax(axis=1))
        rows = np.arange(len(state))
        return tried[rows, best], verdict.take(rows * VERIFIED + best)

    def _nearest(self, slots: NDArray[np.intp], state: Floats, proposed: Floats, safest: Floats) -> Floats:
        """
        :param slots: environments, ``(r,)``
        :param state: theirs, ``(r, D)``
        :param proposed: the refused actions, encoded, ``(r, A)``
        :param safest: the critic's safest, ``(r, A)``
        :return: the nearest action that the critic passes by itself, or else the one that it values most, ``(r, A)``
        """

        def value(actions: Floats) -> Floats:
            return self._critic.action_values(state, actions)[:, :, 0]

        def slope(actions: Floats) -> tuple[Floats, Floats]:
            r, k, size = actions.shape
            values, slopes = self._critic.action_slopes(np.repeat(state, k, axis=0), actions.reshape(r * k, size))
            return values.reshape(r, k), slopes.reshape(r, k, size)

        sure = self.threshold + ROUNDING + (0.0 if self._verifier is None else self._band)
        aim: float | Floats = sure
        if self._inset:
            room = value(safest[:, None])[:, 0] - sure
            aim = (sure + self._inset * np.where(room > 0.0, room, 0.0)).astype(np.float32)
        search = Search(value, proposed, safest, aim)
        if self._projection == "gradient":
            return gradient(search, slope, self._rounds)
        r, size = proposed.shape
        noise = self._streams.normal(slots, self._rounds * self._samples * size).astype(np.float32)
        return cem(search, noise.reshape(r, self._rounds, self._samples, size).swapaxes(0, 1))

    def _judge(self, state: Floats, action: Floats) -> Verdict:
        """
        :param state: ``(r, D)``
        :param action: encoded, ``(r, A)``
        :return: ``r`` rows
        """
        verdict = Verdict.by_critic(self._critic.action_values(state, action), self.threshold)
        if self._verifier is not None:
            unsure = np.flatnonzero(np.abs(verdict.score - self.threshold) < self._band)
            if len(unsure):
                verdict.put(unsure, self._verifier(state[unsure], action[unsure]))
        return verdict
