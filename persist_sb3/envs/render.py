"""Pictures of GridLife: heat, tiles, the agent, and gauges of its internal variables."""

from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from persist_sb3.envs.dynamics import INTERNAL_NAMES
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.viability import ViabilitySet

Colour = tuple[int, int, int]
Point = tuple[float, float]

WIDTH, HEIGHT, MARGIN, BOARD = 768, 512, 16, 480
#: Everything is drawn this many times larger and then reduced, which smooths the edges.
OVERSAMPLING = 2

PAPER: Colour = (250, 249, 246)
INK: Colour = (38, 43, 54)
FAINT: Colour = (140, 146, 158)
TRACK: Colour = (228, 229, 233)
NEUTRAL: Colour = (243, 240, 232)
HOT: Colour = (214, 74, 58)
COLD: Colour = (52, 120, 196)
FOOD: Colour = (46, 148, 92)
LEAF: Colour = (128, 196, 110)
ITEM: Colour = (240, 178, 41)
HAZARD_GROUND: Colour = (70, 64, 78)
HAZARD_SIGN: Colour = (247, 201, 72)
AGENT: Colour = (38, 43, 54)
VIABLE: Colour = (190, 226, 200)
GOOD: Colour = (46, 148, 92)
CLOSE: Colour = (226, 140, 30)
BAD: Colour = (196, 48, 52)
SHIELD: Colour = (122, 72, 200)


def draw(
    snapshot: Snapshot, viability: ViabilitySet, hidden: tuple[str, ...], intervention: tuple[str, str] | None
) -> NDArray[np.uint8]:
    """
    :param snapshot: the world
    :param viability: the constraints in force
    :param hidden: internal variables that the agent does not see
    :param intervention: what the agent wanted to do and what was done instead, if that differs
    :return: ``(HEIGHT, WIDTH, 3)``
    """
    canvas = Canvas()
    draw_board(canvas, snapshot, intervention is not None)
    draw_panel(canvas, snapshot, viability, hidden, intervention)
    return canvas.pixels()


class Canvas:
    """A picture to draw on, in the units of the final image."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def box(self, x: float, y: float, width: float, height: float, fill: Colour, radius: float = 0.0) -> None:
        """A filled rectangle, with round corners."""
        if width > 0 and height > 0:
            corners = self._scaled((x, y), (x + width, y + height))
            self._draw.rounded_rectangle([corners[0], corners[1]], radius * OVERSAMPLING, fill=fill)

    def frame(self, x: float, y: float, width: float, height: float, colour: Colour, line: float) -> None:
        """The outline of a rectangle."""
        corners = self._scaled((x, y), (x + width, y + height))
        self._draw.rectangle([corners[0], corners[1]], outline=colour, width=round(line * OVERSAMPLING))

    def disc(self, x: float, y: float, radius: float, fill: Colour | None, outline: Colour | None = None) -> None:
        """A filled circle, a ring, or both."""
        corners = self._scaled((x - radius, y - radius), (x + radius, y + radius))
        line = max(round(0.16 * radius * OVERSAMPLING), 1) if outline else 0
        self._draw.ellipse([corners[0], corners[1]], fill=fill, outline=outline, width=line)

    def polygon(self, points: list[Point], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon(self._scaled(*points), fill=fill)

    def text(self, x: float, y: float, text: str, colour: Colour = INK, size: int = 15, anchor: str = "lm") -> None:
        """A line of text; the anchor is Pillow's."""
        self._draw.text(self._scaled((x, y))[0], text, fill=colour, font=_font(size), anchor=anchor)

    def pixels(self) -> NDArray[np.uint8]:
        """The picture, ``(HEIGHT, WIDTH, 3)``."""
        return np.array(self._image.reduce(OVERSAMPLING))

    @staticmethod
    def _scaled(*points: Point) -> list[Point]:
        return [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    return ImageFont.load_default(size * OVERSAMPLING)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    return (
        round(first[0] + (second[0] - first[0]) * share),
        round(first[1] + (second[1] - first[1]) * share),
        round(first[2] + (second[2] - first[2]) * share),
    )


def _heat_colour(heat: float) -> Colour:
    return _mix(NEUTRAL, HOT if heat > 0.5 else COLD, min(abs(heat - 0.5) * 1.8, 1.0))


def draw_board(canvas: Canvas, snapshot: Snapshot, shielded: bool) -> None:
    """
    :param canvas: to draw on
    :param snapshot: the world
    :param shielded: whether the agent's last action was changed
    """
    params = snapshot.params
    size, tile = params.size, BOARD / params.size
    gap = 0.03 * tile

    def corner(cell: int) -> Point:
        return MARGIN + cell % size * tile, MARGIN + cell // size * tile

    canvas.box(MARGIN - 3, MARGIN - 3, BOARD + 6, BOARD + 6, TRACK, 6)
    for cell in range(size**2):
        x, y = corner(cell)
        ground = HAZARD_GROUND if snapshot.hazard[cell] else _heat_colour(float(snapshot.heat[cell]))
        canvas.box(x + gap, y + gap, tile - 2 * gap, tile - 2 * gap, ground, 0.1 * tile)
        if snapshot.hazard[cell]:
            x, y = x + tile / 2, y + 0.54 * tile
            canvas.polygon(
                [(x, y - 0.28 * tile), (x + 0.3 * tile, y + 0.24 * tile), (x - 0.3 * tile, y + 0.24 * tile)],
                HAZARD_SIGN,
            )
            canvas.box(x - 0.035 * tile, y - 0.12 * tile, 0.07 * tile, 0.19 * tile, HAZARD_GROUND)
            canvas.disc(x, y + 0.15 * tile, 0.045 * tile, HAZARD_GROUND)
    for slot, cell in enumerate(snapshot.places.tolist()):
        x, y = corner(cell)
        x, y = x + tile / 2, y + tile / 2
        present = snapshot.due[slot] == 0
        if slot < params.food:
            _draw_food(canvas, x, y, tile, present, slot < params.ringed_food)
        else:
            reach = (0.24 if present else 0.07) * tile
            canvas.polygon([(x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y)], ITEM if present else FAINT)
            if present:
                canvas.polygon([(x, y - reach), (x + reach, y), (x, y - 0.2 * reach)], _mix(ITEM, PAPER, 0.55))
    row, col = divmod(int(snapshot.cell), size)
    first_row, first_col = max(row - params.radius, 0), max(col - params.radius, 0)
    rows = min(row + params.radius, size - 1) - first_row + 1
    cols = min(col + params.radius, size - 1) - first_col + 1
    canvas.frame(MARGIN + first_col * tile, MARGIN + first_row * tile, cols * tile, rows * tile, FAINT, 1.5)
    x, y = corner(int(snapshot.cell))
    _draw_agent(canvas, x + tile / 2, y + tile / 2, tile, bool(snapshot.alive), shielded)


def _draw_food(canvas: Canvas, x: float, y: float, tile: float, present: bool, ringed: bool) -> None:
    if ringed:
        canvas.disc(x, y, 0.42 * tile, None, FOOD if present else FAINT)
    if present:
        canvas.disc(x, y + 0.04 * tile, 0.22 * tile, FOOD)
        canvas.polygon(
            [(x, y - 0.16 * tile), (x + 0.2 * tile, y - 0.3 * tile), (x + 0.15 * tile, y - 0.1 * tile)], LEAF
        )
    else:
        canvas.disc(x, y, 0.07 * tile, FAINT)


def _draw_agent(canvas: Canvas, x: float, y: float, tile: float, alive: bool, shielded: bool) -> None:
    if shielded:
        canvas.disc(x, y, 0.48 * tile, None, SHIELD)
    canvas.disc(x, y, 0.36 * tile, PAPER)
    canvas.disc(x, y, 0.32 * tile, AGENT)
    for side in (-1, 1):
        eye = x + side * 0.12 * tile
        if alive:
            canvas.disc(eye, y - 0.05 * tile, 0.075 * tile, PAPER)
        else:
            canvas.box(eye - 0.08 * tile, y - 0.06 * tile, 0.16 * tile, 0.045 * tile, PAPER)


def draw_panel(
    canvas: Canvas,
    snapshot: Snapshot,
    viability: ViabilitySet,
    hidden: tuple[str, ...],
    intervention: tuple[str, str] | None,
) -> None:
    """
    :param canvas: to draw on
    :param snapshot: the world
    :param viability: the constraints in force
    :param hidden: internal variables that the agent does not see
    :param intervention: what the agent wanted to do and what was done instead, if that differs
    """
    left, width = 2 * MARGIN + BOARD, WIDTH - BOARD - 3 * MARGIN
    right = left + width
    canvas.text(left, 30, "GridLife", size=24)
    canvas.text(right, 32, f"layout {int(snapshot.layout_seed)}", FAINT, 12, "rm")
    canvas.text(left, 68, "step", FAINT, 13)
    canvas.text(left, 90, f"{int(snapshot.step)} / {snapshot.params.horizon}", size=18)
    canvas.text(right, 68, "reward", FAINT, 13, "rm")
    canvas.text(right, 90, f"{float(snapshot.total):g}", size=18, anchor="rm")

    low, high = viability.box()
    assert viability.mu is not None
    for j, name in enumerate(INTERNAL_NAMES):
        _draw_gauge(
            canvas,
            (left, 132 + 84 * j, width),
            f"{name}  (hidden)" if name in hidden else name,
            float(snapshot.internal[j]),
            (max(float(low[j]), 0.0), min(float(high[j]), 1.0)),
            float(viability.mu[j]),
        )

    if intervention is not None:
        canvas.box(left, 396, width, 34, _mix(PAPER, SHIELD, 0.14), 6)
        canvas.text(left + 10, 413, "shield", SHIELD, 14)
        wanted, done = intervention
        # A move can be asked for by many numbers.
        told = f"{done} instead of {wanted}" if done != wanted else f"{done}, by other numbers"
        canvas.text(right - 10, 413, told, INK, 14, "rm")
    if not snapshot.alive:
        broken = int(viability.violated(snapshot.internal[None])[0])
        colour = GOOD if broken < 0 else BAD
        canvas.box(left, 440, width, 56, _mix(PAPER, colour, 0.16), 6)
        canvas.text(left + 10, 457, "survived" if broken < 0 else "died: broke", colour, 14)
        canvas.text(left + 10, 479, "to the horizon" if broken < 0 else viability.names[broken], INK, 15)


def _draw_gauge(
    canvas: Canvas,
    place: tuple[float, float, float],
    label: str,
    value: float,
    band: tuple[float, float],
    setpoint: float,
) -> None:
    x, y, width = place
    room = min(value - band[0], band[1] - value) if band[1] < 1.0 else value - band[0]
    reach = max(setpoint - band[0], 1e-9)
    colour = BAD if room < 0 else CLOSE if room < 0.25 * reach else GOOD
    canvas.text(x, y, label, size=15)
    canvas.text(x + width, y, f"{value:.2f}", colour, 16, "rm")
    top, height = y + 16, 16
    canvas.box(x, top, width, height, TRACK, 4)
    canvas.box(x + band[0] * width, top, (band[1] - band[0]) * width, height, VIABLE, 4)
    canvas.box(x, top + 5, max(value, 0.012) * width, height - 10, colour, 3)
    canvas.box(x + setpoint * width - 1, top - 3, 2, height + 6, INK)
    for limit in band:
        if 0.0 < limit < 1.0:
            canvas.text(x + limit * width, top + height + 9, f"{limit:.2g}", FAINT, 11, "mm")
    canvas.disc(x + value * width, top + height / 2, 6, PAPER)
    canvas.disc(x + value * width, top + height / 2, 4.5, colour)


class Window:
    """
    A window on the screen. Needs pygame.

    :param frames_per_second: at which :meth:`show` is slowed down
    :raises DependencyNotInstalled: if pygame is missing
    """

    def __init__(self, frames_per_second: int) -> None:
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled(
                "render_mode='human' needs pygame: pip install pygame-ce, or use render_mode='rgb_array'"
            ) from error
        self._pygame = pygame
        self._frames_per_second = frames_per_second
        pygame.display.init()
        pygame.display.set_caption("GridLife")
        self._screen = pygame.display.set_mode((WIDTH, HEIGHT))
        self._clock = pygame.time.Clock()

    def show(self, picture: NDArray[np.uint8]) -> None:
        """
        :param picture: ``(HEIGHT, WIDTH, 3)``
        """
        self._screen.blit(self._pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
        self._pygame.event.pump()
        self._clock.tick(self._frames_per_second)
        self._pygame.display.flip()

    def close(self) -> None:
        """Remove it from the screen."""
        self._pygame.display.quit()
