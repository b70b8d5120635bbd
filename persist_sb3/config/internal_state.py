"""The internal variables: which they are, and what the agent sees of them."""

from typing import Any, Literal

from pydantic import Field, model_validator

from persist_sb3.config.section import Count, Entry, NonNegative, Positive, Probability, Section, Share
from persist_sb3.internal import InternalSource
from persist_sb3.viability import unknown_name


class SetpointSearchSection(Section):
    """
    Parameters of :class:`~persist_sb3.callbacks.SetpointCallback`.

    :param episodes: of either kind in a trial
    :param share: of the training episodes that try the candidate
    :param window: trials that the search remembers
    :param startup: trials drawn uniformly at first, fewer than ``window``
    """

    episodes: Count = 20
    share: Probability = 0.5
    window: Count = 40
    startup: Count = 8

    @model_validator(mode="after")
    def _check_together(self) -> "SetpointSearchSection":
        if not self.startup < self.window:
            raise ValueError(f"startup={self.startup} must be below window={self.window}")
        return self


class InternalStateSection(Section):
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
    :param noise: variables that it sees with Gaussian noise, and the noise's standard deviation
    :param delay: variables that it sees late, and by how many steps
    :param dropout: variables that it does not always see, and the share of steps in which it does not
    :param belief: show it an estimate of what it does not see as it is: ``"gru"``, learned from the truth, or
        ``"ekf"``, a Kalman filter on learned dynamics; see :class:`~persist_sb3.wrappers.BeliefState`
    :param mu_ranges: variables whose setpoint is drawn anew for every episode, and shown to the agent, with the least
        and greatest. Default: all stay at ``mu``
    :param w_ranges: the same of weights. Default: all stay at ``w``
    :param mu_search: look in these ranges for what the agent lives longest with. Default: do not
    """

    dims: tuple[str, ...] = ("energy", "temp", "integrity")
    mu: tuple[float, ...] = (0.7, 0.5, 0.9)
    w: tuple[NonNegative, ...] | None = None
    source: dict[str, str | dict[str, Any]] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    append: bool = False
    hidden: tuple[str, ...] = ()
    noise: dict[str, Positive] = Field(default_factory=dict)
    delay: dict[str, Count] = Field(default_factory=dict)
    dropout: dict[str, Share] = Field(default_factory=dict)
    belief: Literal["gru", "ekf"] | None = None
    mu_ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    w_ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    mu_search: SetpointSearchSection | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "InternalStateSection":
        if self.names_its_own and "mu" not in self.model_fields_set:
            raise ValueError(f"mu is missing: give the setpoint, where it is best, of each of {list(self.dims)}")
        for key in ("mu", "w", "low", "high"):
            values = getattr(self, key)
            if values is not None and len(values) != len(self.dims):
                raise ValueError(f"{key} has {len(values)} entries for {len(self.dims)} variables {list(self.dims)}")
        for key in ("hidden", "noise", "delay", "dropout", "mu_ranges", "w_ranges"):
            for name in getattr(self, key):
                if name not in self.dims:
                    raise ValueError(f"{key}: {unknown_name(name, self.dims)}")
        for key in ("mu_ranges", "w_ranges"):
            for name, (low, high) in getattr(self, key).items():
                if not low < high:
                    raise ValueError(f"{key}: {name} must have [least, greatest], not [{low:g}, {high:g}]")
        if self.mu_search is not None and not (self.mu_ranges or self.w_ranges):
            raise ValueError("mu_search looks in mu_ranges and w_ranges, and there are none: give mu_ranges")
        if self.belief == "ekf" and self.delay:
            raise ValueError(
                f"delay={self.delay} and belief='ekf' do not go together: the filter takes a late sighting for the "
                "present. Use belief='gru'"
            )
        InternalSource(self.dims, self.source)
        return self

    @property
    def names_its_own(self) -> bool:
        """Whether the variables are not GridLife's, so that no default of its setpoints or limits is meant."""
        return self.dims != type(self).model_fields["dims"].default

    @property
    def degraded(self) -> set[str]:
        """Variables that the agent does not see as they are."""
        return {*self.hidden, *self.noise, *self.delay, *self.dropout}

    @property
    def setpoint_layers(self) -> list[Entry]:
        """What decides where they should be."""
        mu, w = ({name: list(bounds) for name, bounds in ranges.items()} for ranges in (self.mu_ranges, self.w_ranges))
        # What draws weights declares them, too.
        declared = self.w and list(self.w) if w else None
        return [("RandomSetpoint", {"ranges": mu, "w_ranges": w or None, "w": declared})] if mu or w else []

    @property
    def observing_layers(self) -> list[Entry]:
        """What decides how much the agent sees of them."""
        layers: list[Entry] = []
        if self.degraded:
            how = {"hide": list(self.hidden), "noise": self.noise, "delay": self.delay, "dropout": self.dropout}
            layers.append(("PartialObservation", {key: value for key, value in how.items() if value}))
        if self.belief == "gru":
            layers.append(("BeliefState", {}))
        elif self.belief == "ekf":
            known = {"estimator": "ekf", "dynamics": "internal_model", "measurement_noise": self.noise or None}
            layers.append(("BeliefState", known))
        return layers

    @property
    def callbacks(self) -> list[Entry]:
        """What trains the estimate, and looks for the setpoint."""
        estimating = {"gru": "BeliefCallback", "ekf": "InternalModelCallback"}
        entries: list[Entry] = [] if self.belief is None else [(estimating[self.belief], {})]
        if self.mu_search is not None:
            entries.append(("SetpointCallback", self.mu_search.model_dump()))
        return entries
