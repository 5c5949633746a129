"""Compiled programs are kept for later processes, where they are told to be, and never in the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bwdln import compilation
from bwdln.errors import InvalidOption

ROOT = Path(__file__).resolve().parent.parent
#: A process that compiles by way of bwdln, and says where JAX keeps programs, and how many it found there.
COMPILES = """
import jax, jax.numpy as jnp
from bwdln import simulate
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("/cache_hits")))
simulate.set_up_process()
jax.jit(lambda x: jnp.linalg.eigh(x @ x.T)[0].sum())(jnp.eye(7)).block_until_ready()
print(jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir, sum(hits))
"""


def compiled(**variables):
    """Where such a process with these variables keeps its programs, how many it found, what it said."""
    inherited = {k: v for k, v in os.environ.items() if k not in (compilation.VARIABLE, "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES],
        env={**inherited, **{name: str(value) for name, value in variables.items()}},
        capture_output=True,
        text=True,
        check=True,
    )
    where, hits = done.stdout.split()
    return where, int(hits), done.stderr


def programs(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_programs_are_kept_in_the_cache_of_the_user_and_found_again(tmp_path):
    where, hits, _ = compiled(XDG_CACHE_HOME=tmp_path)
    assert where.startswith(str(tmp_path / "bwdln" / "programs")) and hits == 0
    first = programs(tmp_path)
    assert first
    assert compiled(XDG_CACHE_HOME=tmp_path)[1] == len(first)
    assert programs(tmp_path) == first


def test_the_variable_says_where_or_never(tmp_path):
    other = {"XDG_CACHE_HOME": tmp_path / "other", "JAX_COMPILATION_CACHE_DIR": tmp_path / "jax"}
    where, _, _ = compiled(BWDLN_PROGRAMS=tmp_path / "mine", **other)
    assert where.startswith(str(tmp_path / "mine")) and programs(tmp_path / "mine")
    assert compiled(BWDLN_PROGRAMS="never", **other)[0] == "False"
    assert not (tmp_path / "other").exists() and not (tmp_path / "jax").exists()


def test_options_of_jax_hold(tmp_path):
    where, _, _ = compiled(JAX_COMPILATION_CACHE_DIR=tmp_path / "jax", XDG_CACHE_HOME=tmp_path / "other")
    assert where == str(tmp_path / "jax")
    assert compiled(JAX_ENABLE_COMPILATION_CACHE="false", XDG_CACHE_HOME=tmp_path / "other")[0] == "False"
    assert not (tmp_path / "other").exists()


def test_a_cache_that_cannot_be_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    where, _, said = compiled(XDG_CACHE_HOME=tmp_path / "file")
    assert where == "None" and "compiled programs are not kept" in said


def test_damaged_programs_are_compiled_again(tmp_path):
    compiled(BWDLN_PROGRAMS=tmp_path)
    for path in programs(tmp_path):
        path.write_bytes(path.read_bytes()[:20])
    where, hits, said = compiled(BWDLN_PROGRAMS=tmp_path)
    assert where.startswith(str(tmp_path)) and hits == 0
    assert "Error reading persistent compilation cache entry" in said


def test_the_oldest_programs_go(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "MOST_BYTES", 100)
    for age in range(5):
        path = tmp_path / f"program{age}"
        path.write_bytes(bytes(20))
        os.utime(path, (1000 - age, 1000 - age))
    compilation._prune(tmp_path)
    assert len(programs(tmp_path)) == 5  # 100 bytes are not too many
    (tmp_path / "another").write_bytes(bytes(20))
    compilation._prune(tmp_path)
    assert [path.name for path in programs(tmp_path)] == ["another", "program0"]


def test_the_option_of_a_command(tmp_path):
    tiny = ("target.dimension=3", "dynamics.steps=1", "record.count=1", "seeds=1", "report=never")

    def command(*options):
        arguments = [sys.executable, "-m", "experiments.train", *tiny, "figures=never", *options]
        arguments += [f"hydra.run.dir={tmp_path}/{len(list(tmp_path.iterdir()))}"]
        return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)

    assert command(f"programs={tmp_path}/kept").returncode == 0
    assert programs(tmp_path / "kept")
    (tmp_path / "file").write_text("")
    refused = command(f"programs={tmp_path}/file")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"programs: got {tmp_path}/file; takes auto, never or a folder that can")


def test_an_empty_text_is_no_folder():
    with pytest.raises(InvalidOption, match="programs: got ''; takes auto, never or a folder"):
        compilation.choose("")
