"""Compiled programs are kept for later processes, where they are told to be, and never in the way."""

import os
import subprocess
import sys

import pytest

from bwdln import compilation
from bwdln.errors import InvalidOption

#: A process that compiles one program by way of bwdln, and says where JAX keeps it.
COMPILES = """
import jax, jax.numpy as jnp
from bwdln import simulate
simulate.set_up_process()
jax.jit(lambda x: jnp.linalg.eigh(x @ x.T)[0].sum())(jnp.eye(7)).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def compiled(**variables):
    """Where such a process with these variables keeps its programs, and what it said to stderr."""
    inherited = {k: v for k, v in os.environ.items() if k not in (compilation.VARIABLE, "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES],
        env={**inherited, **{name: str(value) for name, value in variables.items()}},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def programs(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_programs_are_kept_in_the_cache_of_the_user_and_found_again(tmp_path):
    where, _ = compiled(XDG_CACHE_HOME=tmp_path)
    assert where.startswith(str(tmp_path / "bwdln" / "programs"))
    first = programs(tmp_path)
    assert first
    written = [path.stat().st_mtime_ns for path in first]
    compiled(XDG_CACHE_HOME=tmp_path)
    assert programs(tmp_path) == first
    assert [path.stat().st_mtime_ns for path in first] == written


def test_the_variable_says_where_or_never(tmp_path):
    where, _ = compiled(BWDLN_PROGRAMS=tmp_path / "mine", XDG_CACHE_HOME=tmp_path / "other")
    assert where.startswith(str(tmp_path / "mine"))
    assert programs(tmp_path / "mine") and not (tmp_path / "other").exists()
    assert compiled(BWDLN_PROGRAMS="never", XDG_CACHE_HOME=tmp_path / "none")[0] == "None"
    assert not (tmp_path / "none").exists()


def test_options_of_jax_hold(tmp_path):
    where, _ = compiled(JAX_COMPILATION_CACHE_DIR=tmp_path / "jax", XDG_CACHE_HOME=tmp_path / "other")
    assert where == str(tmp_path / "jax")
    assert compiled(JAX_ENABLE_COMPILATION_CACHE="false", XDG_CACHE_HOME=tmp_path / "other")[0] == "None"
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    where, said = compiled(BWDLN_PROGRAMS=tmp_path / "file")
    assert where == "None" and said == ""


def test_damaged_programs_are_compiled_again_in_silence(tmp_path):
    compiled(BWDLN_PROGRAMS=tmp_path)
    for path in programs(tmp_path):
        path.write_bytes(path.read_bytes()[:20])
    where, said = compiled(BWDLN_PROGRAMS=tmp_path)
    assert where.startswith(str(tmp_path)) and said == ""


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


def test_the_option_of_a_command(command, monkeypatch, tmp_path):
    monkeypatch.setenv(compilation.VARIABLE, "before")
    tiny = ("target.dimension=3", "dynamics.steps=1", "record.count=1", "seeds=1", "report=never")
    assert command(*tiny, "programs=kept")[0] == 0
    assert os.environ[compilation.VARIABLE] == str(tmp_path / "kept")
    assert command(*tiny, "programs=never")[0] == 0
    assert os.environ[compilation.VARIABLE] == "never"
    status, _, errors = command("programs=' '")
    assert status == 1 and errors.startswith("programs: got ' '; takes auto, never or a folder")


def test_an_empty_text_is_no_folder():
    with pytest.raises(InvalidOption, match="programs: got ''; takes auto, never or a folder"):
        compilation.choose("")
