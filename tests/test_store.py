"""What results are stored under, and that a store survives kills, full disks, damage and other sweeps."""

import ast
import errno
import importlib.metadata
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import xarray
from hypothesis import example, given
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays_of
from problems import job

import bwdln
from bwdln import results, store
from bwdln.config import from_mapping
from bwdln.errors import InvalidOption
from bwdln.registry import load_plugins
from bwdln.store import Store, code, key
from tests import synthetic

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("one", "two", "three")


@pytest.fixture
def result():
    return synthetic.gaussian()


@pytest.fixture
def kept(tmp_path):
    return Store(tmp_path / "sweep" / "store")


# --- keys -----------------------------------------------------------------------------------------

#: Options of a job with values that all differ in what they compute; whole numbers also as floats.
MOMENTA = [{"name": "momentum", "momentum": each} for each in (0, 0.0, 0.5)]
VALUES = {
    "target__dimension": (4, 5),
    "target__condition_number": (10.0, 10, 11.0),
    "network__depth": (2, 3),
    "loss__tau": (0, 0.0, 0.1, 1, 1.0),
    "dynamics__step_size": (0.05, 0.1),
    "dynamics__optimizer": ({"name": "descent"}, *MOMENTA),
    "record__count": (6, 7),
    "seeds": (1, 3),
    "seed": (0, 1),
    "precision": ("float64", "float32"),
}  # fmt: skip
CHANGES = some.fixed_dictionaries({name: some.sampled_from(values) for name, values in VALUES.items()})


def shuffled(value, order):
    """Nested mappings in another order."""
    if not isinstance(value, dict):
        return value
    names = sorted(value, key=lambda name: order.random())
    return {name: shuffled(value[name], order) for name in names}


@given(CHANGES, CHANGES, some.integers(0, 2**32))
@example({name: values[0] for name, values in VALUES.items()}, {n: v[-1] for n, v in VALUES.items()}, 0)
def test_keys_are_equal_exactly_where_the_options_are(one, other, order):
    assert (key(job(**one)) == key(job(**other))) == (one == other)
    mapping = shuffled(job(**one).mapping(), random.Random(order))
    assert key(from_mapping(mapping)) == key(job(**one))


@pytest.mark.parametrize(
    "changes",
    [
        *({name: values[-1]} for name, values in VALUES.items()),
        {"target": {"name": "zipf", "dimension": 5}},
        {"initialization": {"name": "xavier_normal", "balanced": True}},
        {"initialization": {"name": "rotated", "start": {"name": "small", "scale": 0.5}}},
        {"loss": {"name": "frobenius"}},
        {"dynamics": {"name": "gradient_flow", "end_time": 1.0}},
        {"network": {"depth": 3, "bottleneck": 2}},
        {"record": {"count": 6, "sharpness": True}},
        {"record": {"count": 6, "spacing": "logarithmic"}},
    ],
)
def test_every_change_of_a_job_changes_its_key(changes):
    assert key(job(**changes)) != key(job(target__condition_number=10.5))
    assert key(job(**changes)) != key(job(seeds=4))


@pytest.mark.parametrize("optimizer", ["nested", "plain"])
def test_whole_numbers_are_the_same_as_floats(optimizer):
    as_integer, as_float = (
        {"optimizer": {"name": "momentum", "momentum": number}}
        if optimizer == "nested"
        else {"step_size": number}
        for number in (1, 1.0)
    )
    dynamics = {"name": "gradient_descent", "steps": 60, "step_size": 0.05}
    assert key(job(dynamics=dynamics | as_integer)) == key(job(dynamics=dynamics | as_float))
    assert key(job(network__depth=2)) == key(job(network__depth=2.0))


def test_the_code_of_the_package_is_part_of_the_key(monkeypatch):
    before = key(job())
    monkeypatch.setattr(store, "numerics", lambda: "other code")
    assert key(job()) != before


def test_a_key_is_the_same_in_another_process():
    done = subprocess.run(
        [sys.executable, "-c", "from problems import job; from bwdln.store import key; print(key(job()))"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == key(job())


@pytest.mark.parametrize(
    "changes",
    [{"dynamics__steps": 60.5}, {"loss__tua": 0.1}, {"target__name": "zipff"}, {"plugins": ["no_such"]}],
)
def test_there_is_no_key_for_what_does_not_exist(changes):
    with pytest.raises(InvalidOption):
        key(job(**changes))


@pytest.mark.parametrize("where", ["target", "initialization", "within"])
def test_what_a_file_holds_is_part_of_the_key(tmp_path, monkeypatch, where):
    file = tmp_path / "matrix.npy"
    of_file = {"name": "file", "path": "~/matrix.npy"}
    group = {"target": "target"}.get(where, "initialization")
    config = job(**{group: {"name": "rotated", "start": of_file} if where == "within" else of_file})
    monkeypatch.setenv("HOME", str(tmp_path))
    missing = key(config)
    np.save(file, np.eye(3))
    before = key(config)
    os.utime(file, (1, 1))
    assert key(config) == before
    np.save(file, 2 * np.eye(3))
    assert len({missing, before, key(config)}) == 3
    file.unlink()
    file.mkdir()
    assert key(config) == missing


PLUGIN = """
    from bwdln.losses import LOSSES, frobenius
    from {helper} import FACTOR

    @LOSSES.register("{name}")
    def mine():  # a comment
        '''What it is.'''
        return frobenius()
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plugin of the user's, a package of two modules: gives its name, and how to write and reload it."""
    name = f"plugin_{tmp_path.name.replace('-', '_')}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / name).mkdir()

    def write(change=lambda source: source, factor="1.0"):
        (tmp_path / name / "helper.py").write_text(f"FACTOR = {factor}\n")
        source = textwrap.dedent(PLUGIN).format(name=name, helper=f"{name}.helper")
        (tmp_path / name / "__init__.py").write_text(change(source))

    def reload():
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[module]
        importlib.invalidate_caches()
        load_plugins([name])

    write()
    yield name, write, reload
    from bwdln.losses import LOSSES

    LOSSES._functions.pop(name, None)
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("named", "chosen"),
    [(True, True), (False, True), (True, False)],
    ids=["named as a plugin and chosen", "only imported", "only named"],
)
def test_the_code_of_a_plugin_is_part_of_the_key(plugin, named, chosen):
    name, write, reload = plugin
    load_plugins([name])
    config = job(loss={"name": name if chosen else "frobenius"}, plugins=[name] if named else [])
    before = key(config)
    write(lambda source: source.replace("a comment", "another").replace("What it is", "What it was"))
    reload()
    assert key(config) == before
    write(lambda source: source.replace("frobenius()", "frobenius(  )\n\nMORE = 1"))
    # What is edited does not run before it is loaded again.
    assert key(config) == before
    reload()
    changed = key(config)
    write(factor="2.0")
    reload()
    assert len({before, changed, key(config)}) == 3


def test_a_function_without_a_file_counts_by_its_text(monkeypatch):
    from bwdln.losses import LOSSES

    def of(source):
        names = {"__name__": "typed_in"}
        exec(compile(source, "<typed in>", "exec"), names)
        lines = [f"{line}\n" for line in source.splitlines()]
        cache = {"<typed in>": (len(source), None, lines, "<typed in>")}
        monkeypatch.setattr("linecache.cache", cache)
        monkeypatch.setitem(LOSSES._functions, "typed_in", names["mine"])
        return key(job(loss={"name": "typed_in"}))

    assert of("def mine():\n    return 1") == of("def mine():\n    # so\n    return 1")
    assert of("def mine():\n    return 1") != of("def mine():\n    return 2")


# --- the code that decides the numbers ------------------------------------------------------------

SOURCE = '''
"""A module."""
import math

class Thing:
    """A class."""
    size: int = 3

def area(radius: float) -> float:
    """A function."""
    return math.pi * radius**2  # not the circumference

async def later():
    return "text"
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("  # not the circumference", "", True),
        ('"""A function."""', '"""Another."""', True),
        ('    """A function."""\n', "", True),
        ('"""A module."""\n', "", True),
        ('    """A class."""\n', "", True),
        ('    return "text"', '    """New."""\n    return "text"', True),
        ("math.pi * radius**2", "(math.pi\n        * radius**2)", True),
        ("radius**2", "radius**3", False),
        ("math.pi", "math.e", False),
        ("size: int = 3", "size: int = 4", False),
        ('"text"', '"texts"', False),
        ("def area", "def volume", False),
    ],
)
def test_code_is_what_runs(old, new, same):
    assert old in SOURCE
    assert (code(SOURCE) == code(SOURCE.replace(old, new))) == same


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package to edit; gives the digest of its code after an edit of a file."""
    copy = tmp_path / "bwdln"
    shutil.copytree(Path(bwdln.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(bwdln, "__file__", str(copy / "__init__.py"))

    def edited(name, more):
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write(f"\n{more}\n")
        return store.numerics.__wrapped__()

    return edited


def test_only_edits_of_code_that_decides_numbers_count(package):
    assert package("losses.py", "") == store.numerics()
    assert package("losses.py", "# a comment") == store.numerics()
    assert package("figures/run.py", "MORE = 1") == store.numerics()
    assert package("store.py", "MORE = 1") == store.numerics()
    once = package("losses.py", "MORE = 1")
    twice = package("dynamics/integrate.py", "MORE = 1")
    assert len({store.numerics(), once, twice}) == 3


@pytest.mark.parametrize("name", ["jax", "jaxlib", "optax", "numpy"])
def test_the_versions_of_what_computes_count(monkeypatch, name):
    true = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda each: "0" if each == name else true(each))
    assert store.numerics.__wrapped__() != store.numerics()


def test_no_code_that_decides_numbers_hides_where_edits_do_not_count():
    root = Path(bwdln.__file__).parent
    used = set()
    for path in root.rglob("*.py"):
        if path.relative_to(root).with_suffix("").parts[0] in store.NOT_NUMERICS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "bwdln":
                used |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add((node.module or "").removeprefix("bwdln.").partition(".")[0])
    # Messages, types, Ctrl-C, where programs are kept, and the description of arrays that are there already.
    assert used & set(store.NOT_NUMERICS) == {"compilation", "errors", "types", "interruption", "results"}


# --- results --------------------------------------------------------------------------------------


def complaints(caplog):
    """The warnings of the store, all in one line each."""
    messages = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert all("\n" not in message for message in messages)
    return messages


def hidden(folder):
    return [path for path in folder.rglob(".*") if path.is_file()]


def test_what_is_kept_comes_back(kept, result):
    assert (kept.has("one"), kept.result("one"), kept.keys()) == (False, None, [])
    path = kept.keep("one", result)
    kept.keep("two", synthetic.gaussian(seeds=1))
    assert (kept.has("one"), kept.keys()) == (True, ["one", "two"])
    xarray.testing.assert_identical(kept.result("one").dataset, result.dataset)
    xarray.testing.assert_identical(Store(kept.folder).result("one").dataset, result.dataset)
    # Plain xarray sees what it is the result of.
    with xarray.open_dataset(path, decode_times=False) as opened:
        assert opened.attrs["key"] == "one"
    assert "key" not in result.dataset.attrs


def test_what_is_there_stays_unless_it_is_replaced(kept, result):
    other = synthetic.gaussian(seeds=1)
    path = kept.keep("one", result)
    before = path.stat().st_ino, path.stat().st_mtime_ns
    kept.keep("one", other)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    kept.keep("one", other, replace=True)
    xarray.testing.assert_identical(kept.result("one").dataset, other.dataset)


def truncated(path, other):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path, other):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path, other):
    path.write_bytes(b"")


def text(path, other):
    path.write_text("mine")


def another_file(path, other):
    xarray.Dataset({"x": ("y", [1.0, 2.0])}).to_netcdf(path)


def of_another_job(path, other):
    shutil.copyfile(other, path)


@pytest.mark.parametrize("damage", [truncated, zeros, empty, text, another_file, of_another_job])
def test_a_damaged_file_is_set_aside(kept, result, caplog, damage):
    path = kept.keep("one", result)
    damage(path, kept.keep("two", synthetic.gaussian(seeds=1)))
    content = path.read_bytes()
    assert kept.result("one") is None
    (message,) = complaints(caplog)
    assert message.startswith(f"{path} is computed again; the file is kept as one.nc.damaged (")
    assert (kept.folder / "one.nc.damaged").read_bytes() == content
    assert (kept.has("one"), kept.keys()) == (False, ["two"])
    kept.keep("one", result)
    xarray.testing.assert_identical(kept.result("one").dataset, result.dataset)


# --- results in the folders of jobs ---------------------------------------------------------------


@pytest.fixture(params=["links", "copies"])
def names(request, monkeypatch):
    """Whether the file system can give a file a second name."""
    if request.param == "copies":
        monkeypatch.setattr(os, "link", no_links)
    return request.param


def no_links(source, path):
    raise OSError(errno.EPERM, "Operation not permitted")


def test_a_result_is_shown_in_the_folder_of_its_job(kept, result, tmp_path, names):
    source = kept.keep("one", result)
    path = kept.publish("one", tmp_path / "sweep" / "0")
    assert path == tmp_path / "sweep" / "0" / "result.nc"
    assert path.samefile(source) == (names == "links")
    shown = results.load(path).dataset
    assert shown.attrs.pop("key") == "one"
    xarray.testing.assert_identical(shown, result.dataset)
    before = path.parent.stat().st_mtime_ns
    assert kept.publish("one", path.parent) == path
    assert (path.parent.stat().st_mtime_ns == before) == (names == "links")
    assert os.listdir(path.parent) == ["result.nc"]


def test_another_result_of_the_store_takes_the_place(kept, result, tmp_path, names):
    for name in ("one", "two"):
        kept.keep(name, result)
    for name in ("one", "two", "one"):
        path = kept.publish(name, tmp_path)
        assert results.load(path).dataset.attrs["key"] == name
    # One that was computed again, too.
    other = synthetic.gaussian(seeds=1)
    kept.keep("one", other, replace=True)
    assert results.load(kept.publish("one", tmp_path)).dataset.sizes["seed"] == 1
    assert kept.keys() == ["one", "two"]
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("foreign", ["text", "run", "second name", "other sweep"])
def test_a_file_of_another_origin_is_never_replaced(kept, result, tmp_path, foreign):
    kept.keep("one", result)
    folder = tmp_path / "job"
    folder.mkdir()
    path = folder / "result.nc"
    if foreign == "text":
        path.write_text("mine")
    elif foreign == "other sweep":
        shutil.copyfile(Store(tmp_path / "other").keep("three", result), path)
    else:
        results.write(result, path)
        if foreign == "second name":
            os.link(path, tmp_path / "second.nc")
    content = path.read_bytes()
    with pytest.raises(
        InvalidOption, match=rf"^hydra.sweep.dir: got {folder}; takes a folder whose result.nc"
    ):
        kept.publish("one", folder)
    assert path.read_bytes() == content
    assert os.listdir(folder) == ["result.nc"]


def test_what_a_killed_process_left_does_not_lead_into_the_store(kept, result, tmp_path, monkeypatch):
    """A copy must not be written through a second name that a link gave to the stored file."""
    first, second = kept.keep("one", result), kept.keep("two", synthetic.gaussian(seeds=1))
    os.link(first, tmp_path / ".result.nc")
    content = first.read_bytes()
    monkeypatch.setattr(os, "link", no_links)
    assert kept.publish("two", tmp_path).read_bytes() == second.read_bytes()
    assert first.read_bytes() == content
    assert hidden(tmp_path) == []


# --- one sweep at a time --------------------------------------------------------------------------


def hold(folder):
    """Hold the lock of a store until killed, and say so."""
    with Store(folder).lock():
        (Path(folder) / "held").touch()
        time.sleep(600)


def process(function, *arguments):
    started = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    started.start()
    return started


def test_another_sweep_waits_until_the_process_is_gone(kept, monkeypatch):
    holder = process(hold, str(kept.folder))
    try:
        deadline = time.monotonic() + 60
        while not (kept.folder / "held").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(InvalidOption) as raised, kept.lock():
            pass
        message = str(raised.value)
        assert message.startswith(
            f"hydra.sweep.dir: got {kept.folder.parent}; takes a folder where no sweep runs"
        )
        assert f"process {holder.pid} on " in message and "wait, or choose another" in message
        assert "\n" not in message
    finally:
        holder.kill()
        holder.join(60)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "two\nlines"])
    takes = f"process {os.getpid()} on .*, python -c 'two lines': wait"
    with kept.lock(), pytest.raises(InvalidOption, match=takes), kept.lock():
        pass
    with pytest.raises(KeyError), kept.lock():
        raise KeyError
    with kept.lock():
        assert (kept.folder / "lock").read_text().count("process") == 1


def test_what_killed_processes_left_is_removed(kept, result):
    kept.keep("one", result)
    kept.save_checkpoint(KEYS, {"step": np.arange(3)})
    for name in (".one-0123.nc", ".writable-0123", "checkpoints/.0123.npz", "checkpoints/.writable-0123"):
        (kept.folder / name).touch()
    (kept.folder / ".notes").touch()
    with kept.lock():
        assert hidden(kept.folder) == [kept.folder / ".notes"]
    assert kept.keys() == ["one"]
    assert kept.checkpoints() == [KEYS]


# --- checkpoints ----------------------------------------------------------------------------------

ARRAYS = some.dictionaries(
    some.text("abc_/.0", min_size=1, max_size=6),
    arrays_of.arrays(
        some.sampled_from(["f4", "f8", "i8", "u4", "?", "U5"]), arrays_of.array_shapes(min_dims=0, min_side=0)
    ),
    max_size=3,
)


@given(ARRAYS)
@example({"keys": np.array(1.0), "file": np.array(2.0), "allow_pickle": np.array(True)})
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path_factory, arrays):
    kept = Store(tmp_path_factory.mktemp("store"))
    kept.save_checkpoint(KEYS, arrays)
    found = Store(kept.folder).checkpoint(KEYS)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_each_batch_has_the_last_of_its_checkpoints(kept):
    assert (kept.checkpoints(), kept.checkpoint(KEYS)) == ([], None)
    kept.drop_checkpoint(KEYS)
    for step in (1, 2):
        kept.save_checkpoint(KEYS, {"step": np.array(step)})
        kept.save_checkpoint(KEYS[:1], {"step": np.array(10 * step)})
    assert sorted(kept.checkpoints()) == sorted([KEYS, KEYS[:1]])
    assert kept.checkpoint(KEYS)["step"] == 2
    assert kept.checkpoint(KEYS[:1])["step"] == 20
    assert kept.checkpoint(KEYS[::-1]) is None
    kept.drop_checkpoint(KEYS)
    assert kept.checkpoints() == [KEYS[:1]]
    assert kept.checkpoint(KEYS) is None
    assert kept.keys() == []


def test_no_damage_to_a_checkpoint_goes_unnoticed(kept, caplog):
    """Every bit turned, every length: what comes back is what was saved, or nothing."""
    array = np.linspace(0, 1, 12).reshape(3, 4)
    kept.save_checkpoint(KEYS, {"weights": array})
    (path,) = kept.folder.glob("checkpoints/*.npz")
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    for bit in range(8 * len(whole)):
        turned = bytearray(whole)
        turned[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(turned))
    noticed = 0
    for content in damaged:
        path.write_bytes(content)
        kept.checkpoints()
        found = kept.checkpoint(KEYS)
        noticed += found is None
        assert path.exists() == (found is not None)
        assert found is None or (list(found) == ["weights"] and np.array_equal(found["weights"], array))
    assert noticed > 0.7 * len(damaged)
    assert len(complaints(caplog)) == noticed


def test_a_smaller_shape_does_not_hide_a_wrong_checksum(kept):
    """NumPy stops before the end then, where the checksum would be compared."""
    kept.save_checkpoint(KEYS, {"weights": np.zeros((3, 4000))})
    (path,) = kept.folder.glob("checkpoints/*.npz")
    content = path.read_bytes()
    assert content.count(b"(3, 4000)") == 1
    path.write_bytes(content.replace(b"(3, 4000)", b"(2, 4000)"))
    assert kept.checkpoint(KEYS) is None


def test_a_checkpoint_of_another_batch_or_with_objects_is_set_aside(kept, caplog):
    kept.save_checkpoint(KEYS, {"step": np.array(1)})
    (path,) = kept.folder.glob("checkpoints/*.npz")
    kept.save_checkpoint(KEYS[:1], {"step": np.array(1)})
    (other,) = set(kept.folder.glob("checkpoints/*.npz")) - {path}
    shutil.copyfile(other, path)
    assert kept.checkpoint(KEYS) is None
    with path.open("wb") as file:
        step = {"names": np.array(["step"]), "state_step": np.array([{}], dtype=object)}
        np.savez(file, keys=np.array(KEYS), **step)
    assert kept.checkpoint(KEYS) is None
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert kept.checkpoint(KEYS) is None
    path.write_text("mine")
    assert kept.checkpoints() == [KEYS[:1]]
    assert path.read_text() == "mine"
    assert len(complaints(caplog)) == 3


# --- full disks and folders that cannot be written ------------------------------------------------


@pytest.fixture
def full():
    """Files cannot grow beyond a size: the system refuses it in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    def empty():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield fill, empty
    empty()


@pytest.mark.parametrize("what", ["keep", "publish", "save_checkpoint", "lock"])
def test_a_full_disk_loses_nothing(kept, result, tmp_path, monkeypatch, full, what):
    monkeypatch.setattr(os, "link", no_links)
    kept.keep("one", result)
    kept.keep("two", result)
    kept.publish("one", tmp_path / "job")
    kept.save_checkpoint(KEYS, {"step": np.zeros(1000)})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    calls = {
        "keep": lambda: kept.keep("one", synthetic.gaussian(seeds=1), replace=True),
        "publish": lambda: kept.publish("two", tmp_path / "job"),
        "save_checkpoint": lambda: kept.save_checkpoint(KEYS, {"step": np.ones(1000)}),
        "lock": lambda: kept.lock().__enter__(),
    }
    fill, empty = full
    fill(0 if what == "lock" else 1000)
    with pytest.raises(InvalidOption) as raised:
        calls[what]()
    empty()
    assert str(raised.value).startswith("folder: got ") and "\n" not in str(raised.value)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    after.pop(kept.folder / "lock", None)
    assert after == before
    assert kept.checkpoint(KEYS)["step"].sum() == 0
    monkeypatch.undo()
    calls[what]()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, result):
    (tmp_path / "file").write_text("mine")
    kept = Store(tmp_path / "file" / "store")
    for call in (
        lambda: kept.lock().__enter__(),
        lambda: kept.keep("one", result),
        lambda: kept.save_checkpoint(KEYS, {}),
    ):
        with pytest.raises(InvalidOption, match=rf"^folder: got {tmp_path}/file/store.*Not a directory"):
            call()
    there = Store(tmp_path / "store")
    there.keep("one", result)
    with pytest.raises(InvalidOption, match=rf"^folder: got {tmp_path}/file; takes .*File exists"):
        there.publish("one", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# --- kills ----------------------------------------------------------------------------------------


def write_for_ever(folder, results_by_key):
    """Keep, show and save again and again; all numbers of a checkpoint are the same."""
    kept, number = Store(folder), 0
    with kept.lock():
        while True:
            number += 1
            kept.save_checkpoint(
                KEYS, {"a": np.full(30_000, number), "b": np.full((100, 300), float(number))}
            )
            for name, result in results_by_key.items():
                kept.keep(name, result, replace=True)
                kept.publish(name, Path(folder).parent / "job")


def kill_writers(folder, kills):
    """Start writers and kill each at a random moment; then everything there must be whole.

    In a process of its own, whose writers are its copies, so that they start at once.
    """
    results_by_key = {name: synthetic.gaussian(seeds=seeds) for seeds, name in enumerate(KEYS, 1)}
    moment, kept = random.Random(0), Store(folder)
    leftovers = 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            write_for_ever(folder, results_by_key)
        time.sleep(moment.uniform(0.02, 0.3))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        leftovers += len(hidden(kept.folder.parent))
        with kept.lock():
            assert hidden(kept.folder) == []
        for name in kept.keys():  # noqa: SIM118
            xarray.testing.assert_identical(kept.result(name).dataset, results_by_key[name].dataset)
        for path in kept.folder.parent.glob("job/result.nc"):
            assert results.load(path).dataset.attrs["key"] in KEYS
        for keys in kept.checkpoints():
            found = kept.checkpoint(keys)
            assert len({*found["a"].tolist(), *found["b"].ravel().tolist()}) == 1
        assert list(kept.folder.rglob("*.damaged")) == []
    # Some were killed in the middle of a write.
    assert kept.keys() == sorted(KEYS) and leftovers > 0
    (kept.folder / "whole").write_text(json.dumps(leftovers))


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_process_leaves_only_whole_files(kept, kills):
    writers = process(kill_writers, str(kept.folder), kills)
    writers.join(60 + kills)
    assert writers.exitcode == 0
    assert (kept.folder / "whole").exists()
