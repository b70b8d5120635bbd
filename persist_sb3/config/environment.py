"""The environment."""

from typing import Annotated, Any

from pydantic import Field

from persist_sb3.config.section import Count, Entry, Section


class MemorySection(Section):
    """
    Parameters of :class:`~persist_sb3.wrappers.SpatialMemory`.

    :param window: key of the observation that holds the window
    :param radius: of the map. Default: one tile more than the window's
    :param position: where the info has row and column of the agent's tile
    :param fade: what a step leaves of a memory's freshness
    """

    window: str = "window"
    radius: Count | None = None
    position: str = "info.position"
    fade: Annotated[float, Field(ge=0, le=1)] = 0.99


class EnvSection(Section):
    """
    :param name: a registered gymnasium id
    :param horizon: steps after which an episode is truncated. Default: the environment's own
    :param kwargs: further arguments of ``gymnasium.make``
    :param memory: let the agent remember what the window of a grid world showed. Default: it sees the window alone
    """

    name: str = "GridLife-v0"
    horizon: Count | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)
    memory: MemorySection | None = None

    @property
    def layers(self) -> list[Entry]:
        """What lies below the internal variables."""
        return [] if self.memory is None else [("SpatialMemory", self.memory.model_dump())]
