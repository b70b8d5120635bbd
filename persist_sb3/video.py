"""Record an episode as the environment draws it, with gauges of the internal variables, and write it as GIF or MP4."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv

from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.evaluation import Episode, declared_viability, evaluate
from persist_sb3.plots import DEATH, FAINT, INK, PALETTE
from persist_sb3.viability import ViabilitySet

TRACK, BAND = "#E3E3E3", "#A9D9BC"
#: Longest side of a recorded frame, in pixels.
LONGEST_SIDE = 768
#: Of a GIF; one is left, for what is transparent.
COLOURS = 255
#: Longest video, in seconds: long episodes run faster.
LONGEST = 25.0


class VideoError(RuntimeError):
    """An episode cannot be drawn or written."""


class FrameRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """
    Keeps what the environment draws at each reset and step. It belongs beneath whatever resets the environment at an
    episode's end, since the last frame is gone afterwards.

    :param env: an environment with ``render_mode="rgb_array"``
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        #: The frames of each episode, as PNG files: uncompressed, an episode could take hundreds of megabytes.
        self.episodes: list[list[bytes]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(seed=seed, options=options)
        self.episodes.append([self._frame()])
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self.episodes[-1].append(self._frame())
        return result

    def _frame(self) -> bytes:
        pixels: Any = None
        try:
            pixels = self.env.render()
        except gym.error.DependencyNotInstalled as error:
            raise VideoError(
                f"{error}; pip install 'persist-sb3[video]' has what the usual environments draw with"
            ) from error
        except NotImplementedError:
            pass
        if not isinstance(pixels, np.ndarray):
            modes = self.env.metadata.get("render_modes")
            raise VideoError(f"{self.env} cannot draw itself into an array; its render_modes are {modes}")
        image = Image.fromarray(pixels)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        return file.getvalue()


class Film:
    """
    An episode frame by frame, each after one of its ``T`` steps and drawn when it is asked for.

    :param recorded: what a :class:`FrameRecorder` has of the episode, ``T + 1`` frames
    :param episode: the episode
    :param viability: its constraints, to draw gauges beneath each frame; None if the environment draws its own
    """

    def __init__(self, recorded: Sequence[bytes], episode: Episode, viability: ViabilitySet | None) -> None:
        self._recorded = recorded[1:]
        self._gauges = None if viability is None else Gauges(viability, episode)

    def __len__(self) -> int:
        return len(self._recorded)

    def __getitem__(self, step: int) -> Image.Image:
        image = Image.open(io.BytesIO(self._recorded[step])).convert("RGB")
        return image if self._gauges is None else self._gauges.beneath(image, step)


class Gauges:
    """
    A bar a variable: the viable band, a tick at the setpoint, and a mark at the value, red where a constraint on it is
    violated.

    :param viability: the constraints
    :param episode: whose variables are drawn
    """

    ROW, EDGE = 26, 12

    def __init__(self, viability: ViabilitySet, episode: Episode) -> None:
        self._viability = viability
        self._internal = episode.internal
        self._broken = viability.margins(episode.internal) < 0.0
        self._font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 12)
        low, high = viability.box()
        least, most = (np.isfinite(bound) for bound in (viability.low, viability.high))
        floor = np.where(least, viability.low, np.fmin(episode.internal.min(axis=0), _finite(low)))
        top = np.where(most, viability.high, np.fmax(episode.internal.max(axis=0), _finite(high)))
        room = np.where(least & most, 0.0, np.where(top > floor, 0.1 * (top - floor), 1.0))
        self._floor, self._top = floor - room, top + room
        self._low, self._high = np.maximum(low, self._floor), np.minimum(high, self._top)
        self._decimals = np.maximum(2 - np.floor(np.log10(self._top - self._floor)), 0).astype(int)
        self._left = self.EDGE + round(max(map(self._font.getlength, viability.dims))) + 14

    def beneath(self, image: Image.Image, step: int) -> Image.Image:
        """
        :param image: a frame
        :param step: of the episode, from 0
        :return: the frame with the gauges beneath
        """
        width, dims = max(image.width, 320), self._viability.dims
        canvas = Image.new("RGB", (width, image.height + self.ROW * (len(dims) + 1) + self.EDGE), "white")
        canvas.paste(image, ((width - image.width) // 2, 0))
        draw = ImageDraw.Draw(canvas)
        y = image.height + self.EDGE
        for column in range(len(dims)):
            self._gauge(draw, column, step, width, y + self.ROW * column)
        names = [self._viability.names[j] for j in np.flatnonzero(self._broken[step])]
        text = f"step {step + 1}" + (f"   violated: {', '.join(names)}" if names else "")
        draw.text((self.EDGE, y + self.ROW * len(dims)), text, font=self._font, fill=DEATH if names else FAINT)
        return canvas

    def _gauge(self, draw: ImageDraw.ImageDraw, column: int, step: int, width: int, y: int) -> None:
        name, value = self._viability.dims[column], self._internal[step, column]
        left, right = self._left, width - 72
        span = self._top[column] - self._floor[column]

        def x(at: float) -> float:
            return left + (right - left) * float(np.clip((at - self._floor[column]) / span, 0.0, 1.0))

        about = [name in constraint.names for constraint in self._viability.constraints]
        colour = DEATH if self._broken[step, about].any() else PALETTE[0]
        draw.rectangle((left, y + 4, right, y + 12), fill=TRACK)
        draw.rectangle((x(self._low[column]), y + 4, x(self._high[column]), y + 12), fill=BAND)
        if self._viability.mu is not None:
            at = x(self._viability.mu[column])
            draw.line((at, y + 2, at, y + 14), fill=FAINT, width=1)
        draw.ellipse((x(value) - 5, y + 3, x(value) + 5, y + 13), fill=colour)
        draw.text((self.EDGE, y), name, font=self._font, fill=INK)
        draw.text((right + 10, y), f"{value:.{self._decimals[column]}f}", font=self._font, fill=colour)


def film(model: PolicyPredictor, venv: VecEnv, *, deterministic: bool = True, seed: int | None = None) -> Film:
    """
    Play an episode, and keep what the environment draws.

    :param model: an SB3 model, or anything with its ``predict``
    :param venv: one environment that draws itself, with a :class:`FrameRecorder` innermost
    :param deterministic: take the policy's best action instead of a sample
    :param seed: of the environment and of the policy's samples. Default: left as they are
    :return: the episode, with gauges unless the environment draws its own
    :raises VideoError: if the environment cannot be drawn
    """
    before = len(venv.get_attr("episodes")[0])
    (episode,) = evaluate(model, venv, 1, deterministic=deterministic, seed=seed)
    recorded = venv.get_attr("episodes")[0][before]
    draws_gauges = isinstance(venv.get_attr("unwrapped")[0], GridLifeEnv)
    return Film(recorded, episode, None if draws_gauges else declared_viability(venv))


def _finite(bound: Any) -> Any:
    return np.where(np.isfinite(bound), bound, np.nan)


def write(film: Film, path: Path, fps: float) -> Path:
    """
    Write a video, which rests on its last frame for a second. The file is complete or untouched.

    :param film: what to write
    :param path: where to, ``*.gif`` or ``*.mp4``
    :param fps: frames a second; more if the video would be too long otherwise
    :return: the path
    :raises VideoError: if MP4 is asked for and imageio-ffmpeg is not installed
    """
    fps = max(fps, len(film) / LONGEST)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(film, temporary, fps)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _write_gif(film: Film, path: Path, fps: float) -> None:
    palette = _palette(film)
    first, *others = (film[step].quantize(palette=palette, dither=Image.Dither.NONE) for step in range(len(film)))
    # A GIF counts in hundredths of a second, and viewers slow down what is faster than two of them.
    duration = max(round(100 / fps), 2) * 10
    durations = [*[duration] * len(others), duration + 1000]
    # What does not change from one frame to the next is transparent, which compresses well.
    first.save(
        path,
        "GIF",
        save_all=True,
        append_images=others,
        duration=durations,
        loop=0,
        transparency=COLOURS,
        optimize=True,
    )


def _palette(film: Film) -> Image.Image:
    """
    :param film: any
    :return: an image with the colours that its frames have in common: with a palette each, hardly a pixel would stay
        the same from one frame to the next
    """
    steps = np.linspace(0, len(film) - 1, min(len(film), 8)).astype(int).tolist()
    sample = Image.fromarray(np.concatenate([np.asarray(film[step]) for step in steps]))
    # The first is exact if the colours are few enough, the second better if they are not.
    exact = sample.getcolors(COLOURS) is not None
    return sample.quantize(COLOURS, method=Image.Quantize.MEDIANCUT if exact else Image.Quantize.FASTOCTREE)


def _write_mp4(film: Film, path: Path, fps: float) -> None:
    try:
        import imageio_ffmpeg  # type: ignore[import-untyped]
    except ImportError as error:
        raise VideoError("MP4 needs imageio-ffmpeg: pip install 'persist-sb3[video]', or choose --video gif") from error
    writer = imageio_ffmpeg.write_frames(str(path), film[0].size, fps=fps, macro_block_size=2, ffmpeg_log_level="error")
    writer.send(None)
    for step in [*range(len(film)), *[len(film) - 1] * round(fps)]:
        writer.send(film[step].tobytes())
    writer.close()
