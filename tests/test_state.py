"""PersistState: what it keeps, how it rides in SB3's zip, and how it refuses what it cannot use."""

import collections
import copy
import enum
import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3 import PPO

from persist_sb3 import state as state_module
from persist_sb3.state import PersistState, PersistStateError, last_loaded


class Box:
    """A part that holds any state."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"]


def through_bytes(value: Any) -> Any:
    state, part = PersistState(), Box()
    state.register("box", Box(value))
    PersistState.from_bytes(state.to_bytes()).register("box", part)
    return part.state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and (a == b or a != a)


ARRAYS = hnp.arrays(
    st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?"),
        hnp.complex_number_dtypes(endianness="?"),
        hnp.unicode_string_dtypes(endianness="?"),
        hnp.datetime64_dtypes(endianness="?"),
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), ARRAYS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert same(value, through_bytes(value))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_tensors_come_back_as_they_were(dtype: torch.dtype) -> None:
    value = {"a": (torch.arange(6).reshape(2, 3) % 2).to(dtype), "b": torch.tensor(3).to(dtype)}
    assert same(value, through_bytes(value))


def test_a_view_is_saved_without_the_storage_behind_it() -> None:
    state = PersistState()
    state.register("box", Box(torch.zeros(1_000_000)[:3]))
    assert len(state.to_bytes()) < 10_000


def test_numpy_scalars_come_back_as_python_numbers() -> None:
    assert same([0.5, 3, True], through_bytes([np.float32(0.5), np.int64(3), np.bool_(True)]))


@pytest.mark.parametrize("bit_generator", [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_generators_go_on_where_they_stopped(bit_generator: Any) -> None:
    generator = np.random.Generator(bit_generator(3))
    torch_generator = torch.Generator().manual_seed(3)
    generator.random(5), torch.rand(5, generator=torch_generator)
    saved = through_bytes({"numpy": generator.bit_generator.state, "torch": torch_generator.get_state()})
    other, torch_other = np.random.Generator(bit_generator(0)), torch.Generator()
    other.bit_generator.state = saved["numpy"]
    torch_other.set_state(saved["torch"])
    np.testing.assert_array_equal(generator.random(5), other.random(5))
    assert torch.equal(torch.rand(5, generator=torch_generator), torch.rand(5, generator=torch_other))


def test_training_goes_on_where_it_stopped() -> None:
    def train(model: torch.nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> None:
        for step in range(steps):
            optimiser.zero_grad()
            model(torch.full((2, 3), 0.1 * step)).square().sum().backward()
            optimiser.step()

    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        return model, torch.optim.Adam(model.parameters(), lr=0.01)

    torch.manual_seed(0)
    first = make()
    train(*first, 4)
    state = PersistState()
    state.register("model", first[0])
    state.register("optimiser", first[1])
    blob = state.to_bytes()

    second = make()
    resumed = PersistState.from_bytes(blob)
    resumed.register("model", second[0])
    resumed.register("optimiser", second[1])
    train(*first, 3)
    train(*second, 3)
    for a, b in zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"deep": [1, {2, 3}]}, r"box\.state_dict\(\)\['state'\]\['deep'\]\[1\] is a set"),
        (len, r"\['state'\] is a builtin_function_or_method"),
        (b"bytes", r"\['state'\] is a bytes"),
        (Colour.RED, r"\['state'\] is a Colour"),
        (collections.deque([1]), r"\['state'\] is a deque"),
        (np.array([object()]), r"\['state'\] is a ndarray"),
        (np.zeros(2, dtype=[("a", int)]), r"\['state'\] is a ndarray"),
        ({(1, 2): 3}, r"\['state'\] has the key \(1, 2\)"),
        ({"__ndarray__": 1}, r"\['state'\] is a dict"),
    ],
)
def test_what_a_safe_load_would_refuse_is_refused_at_save(value: Any, place: str) -> None:
    state = PersistState()
    state.register("box", Box(value))
    with pytest.raises(TypeError, match=place):
        state.to_bytes()


def test_parts_that_nobody_registers_are_kept() -> None:
    state = PersistState()
    state.register("a", Box(1))
    state.register("b", Box([2, np.arange(3)]))
    resumed = PersistState.from_bytes(state.to_bytes())
    resumed.register("a", Box())
    assert list(resumed.pending) == ["b"]
    assert repr(resumed) == "PersistState(parts=['a'], pending=['b'])"
    again, b = PersistState.from_bytes(resumed.to_bytes()), Box()
    again.register("b", b)
    assert same([2, np.arange(3)], b.state)
    assert list(again.pending) == ["a"]


def test_a_new_part_takes_over_from_the_one_that_held_its_name() -> None:
    state, old, new = PersistState(), Box([1, 2]), Box()
    state.register("box", old)
    state.register("box", old)
    state.register("box", new)
    new.state.append(3)
    assert (old.state, new.state, state.parts["box"]) == ([1, 2], [1, 2, 3], new)


def test_a_part_that_does_not_fit_is_named_and_the_saved_one_kept() -> None:
    state = PersistState()
    state.register("world", torch.nn.Linear(3, 4))
    resumed = PersistState.from_bytes(state.to_bytes())
    with pytest.raises(PersistStateError, match=r"(?s)saved part 'world': Linear does not accept it .*size mismatch"):
        resumed.register("world", torch.nn.Linear(3, 5))
    resumed.register("world", torch.nn.Linear(3, 4))


def test_only_modules_on_the_cpu_are_shared() -> None:
    state, module = PersistState(), torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match="'a', a int, needs state_dict"):
        state.register("a", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'a' is a Box: only a torch\.nn\.Module"):
        state.register("a", Box(), shared=True)
    with pytest.raises(TypeError, match="'a' has weight on meta"):
        state.register("a", torch.nn.Linear(1, 1, device="meta"), shared=True)
    assert not state.parts
    state.register("private", torch.nn.Linear(1, 1))
    state.register("shared", module, shared=True)
    assert state.bundle() == {"shared": module}


def test_save_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = tmp_path / "state.pt", PersistState()
    state.register("box", Box(1))
    state.save(path)
    before = path.read_bytes()
    state.register("box", Box(2))

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(OSError, match="disk full"):
                state.save(path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["state.pt"]


class Bomb:
    exploded = False

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return Bomb.explode, ()

    @staticmethod
    def explode() -> None:
        Bomb.exploded = True


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    state = PersistState()
    state.register("box", Box({"weights": torch.randn(50, 50), "stage": 2}))
    state.save(tmp_path / "state.pt")
    return tmp_path / "state.pt"


def test_damaged_files_are_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [0, 1, 4, 100, len(content) // 2, len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(
            PersistStateError, match=r"state\.pt: it is not a saved PersistState, or it is damaged\. Use"
        ):
            PersistState.load(saved)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    saved.write_bytes(flipped)
    with pytest.raises(PersistStateError, match="damaged"):
        PersistState.load(saved)
    with pytest.raises(FileNotFoundError):
        PersistState.load(saved.with_name("nothing.pt"))


def test_foreign_files_are_refused_and_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    for content in (b"r,l,t\n1,2,3\n", pickle.dumps(Bomb()), pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(PersistStateError, match="foreign: it is not a saved PersistState"):
            PersistState.load(path)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(PersistStateError, match="not a saved PersistState"):
        PersistState.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(PersistStateError):
        PersistState.load(path)
    assert not Bomb.exploded


def test_files_of_a_newer_version_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "VERSION", 0)
    with pytest.raises(
        PersistStateError, match=r"is in format 1, and this version of persist_sb3 reads up to 0\. Upgrade"
    ):
        PersistState.load(saved)


def test_only_loading_publishes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_last_loaded", None)
    state = PersistState()
    state.register("box", Box(1))
    PersistState.from_bytes(state.to_bytes())
    state.save(saved)
    assert last_loaded() is None
    loaded = PersistState.load(saved)
    assert last_loaded() is loaded


# --- in SB3's zip


@pytest.fixture(scope="module")
def model() -> PPO:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, policy_kwargs={"net_arch": [8]}, device="cpu")
    torch.manual_seed(0)
    model.persist = PersistState()  # type: ignore[attr-defined]
    model.persist.register("net", torch.nn.Linear(20, 20))  # type: ignore[attr-defined]
    model.persist.register("box", Box({"stage": 3, "trace": np.arange(4.0)}))  # type: ignore[attr-defined]
    return model


@pytest.fixture
def archive(model: PPO, tmp_path: Path) -> Path:
    model.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def rewritten(archive: Path, **attributes: Any) -> Path:
    """The same zip with other attributes; None takes one away."""
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    data = {**json.loads(members["data"]), **attributes}
    members["data"] = json.dumps({key: value for key, value in data.items() if value is not None}).encode()
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)
    return archive


def load_model(archive: Path) -> PersistState:
    state = PPO.load(archive, device="cpu").persist  # type: ignore[attr-defined]
    assert isinstance(state, PersistState)
    return state


@pytest.mark.parametrize("load", [load_model, PersistState.load])
def test_rides_in_the_zip(model: PPO, archive: Path, load: Callable[[Path], PersistState]) -> None:
    state = load(archive)
    assert last_loaded() is state
    assert repr(state) == "PersistState(parts=[], pending=['box', 'net'])"
    net, box = torch.nn.Linear(20, 20), Box()
    state.register("net", net)
    state.register("box", box)
    assert torch.equal(net.weight, model.persist.parts["net"].weight)  # type: ignore[attr-defined]
    assert same({"stage": 3, "trace": np.arange(4.0)}, box.state)


def test_a_second_generation_still_holds_everything(model: PPO, archive: Path) -> None:
    PPO.load(archive, device="cpu").save(archive)
    assert list(PersistState.load(archive).pending) == ["net", "box"]


def test_saving_and_training_publish_nothing(model: PPO, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_last_loaded", None)
    model.save(archive)
    model.learn(32)
    assert last_loaded() is None


def test_the_zip_holds_no_transcript_of_the_models(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        entry = json.loads(file.read("data"))["persist"]
    assert set(entry) == {":type:", ":serialized:"}


def test_a_python_without_the_package_needs_custom_objects(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "persist_sb3.state", None)
    with pytest.raises(ModuleNotFoundError, match=r"persist_sb3\.state"):
        PPO.load(archive, device="cpu")
    assert PPO.load(archive, device="cpu", custom_objects={"persist": None}).persist is None  # type: ignore[attr-defined]


def test_a_truncated_zip_is_refused(archive: Path) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[:-100])
    for length in (0, 1000, len(content) // 2, len(content) - 100, len(content) - 1):
        archive.write_bytes(content[:length])
        # Where the cut leaves one of the zips inside the zip whole, SB3 takes that for the model.
        with pytest.raises((ValueError, AssertionError), match=r"wasn't a zip-file|No data found"):
            PPO.load(archive, device="cpu")
        with pytest.raises(PersistStateError, match=r"model\.zip: it is not a saved PersistState, or it is damaged"):
            PersistState.load(archive)


def test_a_zip_without_a_state_is_refused(archive: Path) -> None:
    with pytest.raises(PersistStateError, match=r"model\.zip: the model was saved without a PersistState"):
        PersistState.load(rewritten(archive, persist=None))


def test_code_in_a_zip_is_not_executed(archive: Path) -> None:
    bomb = io.BytesIO()
    pickle.dump(Bomb(), bomb)
    poisoned = {":type:": "", ":serialized:": state_module.base64.b64encode(bomb.getvalue()).decode()}
    with pytest.raises(PersistStateError, match=r"model\.persist is not a PersistState .*explode"):
        PersistState.load(rewritten(archive, persist=poisoned))
    assert not Bomb.exploded


def test_a_damaged_state_in_a_zip_stops_the_load(model: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = model.persist.to_bytes()  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(PersistState, "to_bytes", lambda self: blob[: len(blob) // 2])
        model.save(tmp_path / "model.zip")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(PersistStateError, match="the PersistState of this model: it is not a saved PersistState"):
            PPO.load(tmp_path / "model.zip", device="cpu")


def test_a_copy_is_independent() -> None:
    state = PersistState()
    state.register("box", Box([1]))
    assert list(copy.deepcopy(state).pending) == ["box"]
