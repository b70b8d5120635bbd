"""Videos: what was drawn, in order, with gauges that say what the variables are."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3 import video
from persist_sb3.evaluation import Episode, evaluate
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import VecInternalState
from tests.test_evaluation import Constant
from tests.toys import Scripted

VIABILITY = ViabilitySet(["x >= 0.25"], ["x"], mu=[0.5], low=[0.0], high=[1.0])
INSIDE, OUTSIDE = MARKS = ("#0072B2", "#B00020")


class Drawn(Scripted):
    """Draws itself in a grey that says its time."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    size = (40, 400)

    def render(self) -> Any:
        return np.full((*self.size, 3), 10 * self.time % 256, dtype=np.uint8)


def record(rows: list[float], env: type[Scripted] = Drawn) -> tuple[list[bytes], Episode]:
    recorder = video.FrameRecorder(env(np.reshape(rows, (-1, 1))))
    venv = VecInternalState(DummyVecEnv([lambda: recorder]), dims=["x"], constraints=["x >= 0.25"])
    (episode,) = evaluate(Constant(), venv, 1)
    return recorder.episodes[0], episode


def frames(film: video.Film) -> list[Image.Image]:
    return [film[step] for step in range(len(film))]


def grey(image: Image.Image) -> int:
    return int(np.asarray(image.convert("L"))[20, 200])


def test_a_frame_after_each_step_the_last_included() -> None:
    recorded, episode = record([0.5, 0.6, 0.7, 0.2])
    images = frames(video.Film(recorded, episode, None))
    assert [grey(image) for image in images] == [10, 20, 30]
    assert {image.size for image in images} == {(400, 40)}


def test_large_frames_are_shrunk_to_fit() -> None:
    class Large(Drawn):
        size = (600, 1920)

    recorded, episode = record([0.5, 0.6], Large)
    (image,) = frames(video.Film(recorded, episode, None))
    assert image.size == (768, 240)


def mark(image: Image.Image) -> tuple[float, str]:
    """Where along the first gauge its mark is, from 0 to 1, and of what colour."""
    row = [f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.asarray(image)[60, : image.width - 72].tolist()]
    gauge = [column for column, colour in enumerate(row) if colour in {video.TRACK, video.BAND, *MARKS}]
    marked = [column for column in gauge if row[column] in MARKS]
    place = (np.mean(marked) - gauge[0]) / (gauge[-1] - gauge[0])
    return float(place), row[marked[0]]


def test_gauges_show_the_value_and_whether_it_is_viable() -> None:
    recorded, episode = record([0.5, 0.75, 0.5, 0.2])
    images = frames(video.Film(recorded, episode, VIABILITY))
    assert [grey(image) for image in images] == [10, 20, 30]
    places, colours = zip(*map(mark, images), strict=True)
    assert places == pytest.approx([0.75, 0.5, 0.2], abs=0.01)
    assert colours == (INSIDE, INSIDE, OUTSIDE)


@pytest.mark.parametrize("trace", [[0.5, 3.0, -4.0], [0.25, 0.25, 0.25]])
def test_gauges_of_variables_without_limits(trace: list[float]) -> None:
    recorded, episode = record(trace)
    unbounded = ViabilitySet(["x >= 0.25"], ["x"])
    places, _ = zip(*map(mark, frames(video.Film(recorded, episode, unbounded))), strict=True)
    assert all(0.0 < place < 1.0 for place in places)


def test_gif(tmp_path: Path) -> None:
    recorded, episode = record([0.5, 0.6, 0.7, 0.2])
    path = video.write(video.Film(recorded, episode, None), tmp_path / "episode.gif", fps=10)
    with Image.open(path) as gif:
        seen, durations = [], []
        for index in range(gif.n_frames):
            gif.seek(index)
            seen.append(grey(gif))
            durations.append(gif.info["duration"])
    assert seen == [10, 20, 30]
    # The end is held for a second.
    assert durations == [100, 100, 1100]
    assert list(tmp_path.iterdir()) == [path]


def test_long_episodes_are_shown_faster(tmp_path: Path) -> None:
    recorded, episode = record([0.5] * 501)
    path = video.write(video.Film(recorded, episode, None), tmp_path / "episode.gif", fps=10)
    total = 0
    with Image.open(path) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            total += gif.info["duration"]
    # 50 seconds, and one for the end, in 25 and one.
    assert total == 26_000


def test_mp4(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    recorded, episode = record([0.5, 0.6, 0.7, 0.2])
    path = video.write(video.Film(recorded, episode, VIABILITY), tmp_path / "episode.mp4", fps=10)
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert count == 13
    assert seconds == pytest.approx(1.3, abs=0.1)
    assert list(tmp_path.iterdir()) == [path]


def test_mp4_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    recorded, episode = record([0.5, 0.6])
    with pytest.raises(video.VideoError, match=r"pip install 'persist-sb3\[video\]'"):
        video.write(video.Film(recorded, episode, None), tmp_path / "episode.mp4", fps=10)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_cannot_draw_itself() -> None:
    with pytest.raises(video.VideoError, match="cannot draw itself into an array; its render_modes are"):
        record([0.5, 0.6], Scripted)
