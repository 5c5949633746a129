"""The rules that keep the parts apart: who imports what, and what no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: From bottom to top: a module imports from lower layers and from itself, never sideways.
LAYERS = (
    {"errors", "types", "interruption", "batching"},
    {"registry"},
    {"config"},
    {"linalg", "arrays", "fits"},
    {"polar"},
    {"data"},
    {"targets", "networks"},
    {"initializations"},
    {"losses"},
    {"dynamics", "diagnostics", "theory"},
    {"results", "analysis", "collection", "comparison", "figures", "report"},
    {"store"},
    {"certification", "compilation", "distribution", "program", "record_points"},
    {"lanes"},
    {"simulate"},
    {"sweep"},
    {"engines"},
    {"studies"},
    {"launcher", "experiments"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

#: What everyone may import.
BASE = {"errors", "types", "interruption", "registry"}
#: Parts that read results: all they may import, beside the base.
ONLY = {
    "results": {"config", "initializations", "targets"},
    "analysis": {"config", "results", "targets"},
    "collection": {"results"},
    "comparison": {"analysis", "fits", "results", "theory"},
    "figures": {"analysis", "comparison", "fits", "results", "theory"},
    "report": {"analysis", "results"},
}
#: Who may read the configuration.
CONFIG_READERS = {
    "networks",
    *ONLY,
    "certification",
    "record_points",
    "simulate",
    "store",
    "sweep",
    "engines",
    "studies",
    "launcher",
    "experiments",
}
#: Who may import what reads results.
FIGURE_READERS = {"studies", "launcher", "experiments"}

#: Libraries and the only parts that may import them; an empty set for none at all.
LIBRARIES = {
    "hydra": {"experiments", "launcher"},
    "omegaconf": {"experiments", "launcher"},
    "hydra_plugins": set(),
    "matplotlib": {"figures"},
    "PIL": {"report"},
    "xarray": {"results", "analysis", "collection", "simulate"},
    "netCDF4": {"results"},
    "sklearn": {"data"},
    "skimage": {"data"},
    "diffrax": set(),
    "submitit": {"engines"},
    "ray": {"engines"},
    "pickle": set(),
    "pandas": set(),
    "torch": set(),
    "pytest": set(),
}
#: Parts that load without JAX, so that help and tab completion answer at once.
LIGHT = {"errors", "types", "registry", "config", "batching", "launcher"}
HEAVY = {"jax", "jaxlib", "optax"}


class Import(NamedTuple):
    """An absolute dotted name that a file of the given part imports."""

    part: str
    name: str
    place: str


def part_of(name: str) -> str | None:
    """The part a dotted name belongs to: `bwdln.dynamics.base` to `dynamics`; None if not ours."""
    pieces = name.split(".")
    if pieces[0] == "experiments":
        return "experiments"
    return pieces[1] if pieces[0] == "bwdln" and len(pieces) > 1 else None


def imports(root: Path) -> Iterator[Import]:
    """Every import in the product under `root`, inside functions and `TYPE_CHECKING` too."""
    for path in sorted([*root.glob("bwdln/**/*.py"), *root.glob("experiments/**/*.py")]):
        relative = path.relative_to(root)
        module = list(relative.with_suffix("").parts)
        package = module[:-1]
        part = part_of(".".join(module).removesuffix(".__init__")) or "bwdln"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{relative}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) + 1 - node.level] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                # `from bwdln import losses` imports a part, `from bwdln.losses import Loss` names one.
                names = [f"{origin}.{alias.name}" if origin == "bwdln" else origin for alias in node.names]
            else:
                continue
            yield from (Import(part, name, place) for name in dict.fromkeys(names))


def violations(root: Path) -> list[str]:
    """Every breach of the import rules under `root`, one line each."""
    found = []
    for part, name, place in imports(root):
        other, library = part_of(name), name.split(".")[0]
        line = f"{place}: {part} imports {name}"
        sideways_or_up = other not in (None, part) and not allowed(part, other or "")
        foreign = part not in LIBRARIES.get(library, {part}) or (part in LIGHT and library in HEAVY)
        if part != "bwdln" and part not in LEVEL:
            found.append(f"{place}: {part} is in no layer")
        elif sideways_or_up or foreign:
            found.append(line)
    return found


def allowed(part: str, other: str) -> bool:
    """Whether `part` may import from the different part `other`."""
    if part == "bwdln" or other not in LEVEL:
        return False
    if part in ONLY:
        return other in BASE | ONLY[part]
    if other == "config":
        return part in CONFIG_READERS
    if other in ("analysis", "collection", "comparison", "figures", "report"):
        return part in FIGURE_READERS
    return LEVEL[other] < LEVEL.get(part, 0)


def test_imports_point_down() -> None:
    assert violations(ROOT) == []


def test_every_module_is_checked() -> None:
    seen = {part for part, _, _ in imports(ROOT)}
    assert {"losses", "networks", "targets", "simulate", "results", "studies", "experiments"} <= seen


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("bwdln/losses.py", "from bwdln import simulate"),
        ("bwdln/losses.py", "from bwdln.dynamics.base import State"),
        ("bwdln/losses.py", "import bwdln.dynamics.base"),
        ("bwdln/losses.py", "from . import simulate"),
        ("bwdln/losses.py", "from .dynamics import base"),
        ("bwdln/losses.py", "def f():\n    from bwdln.simulate import run"),
        ("bwdln/losses.py", "from bwdln.config import Config"),
        ("bwdln/dynamics/base.py", "from ..theory import hessians"),
        ("bwdln/dynamics/base.py", "from bwdln.theory.hessians import spectrum"),
        ("bwdln/theory/hessians.py", "from bwdln.dynamics import base"),
        ("bwdln/targets.py", "from bwdln.networks import widths"),
        ("bwdln/config.py", "from bwdln.linalg import safe_sqrt"),
        ("bwdln/config.py", "import jax.numpy as jnp"),
        ("bwdln/types.py", "from jax import Array"),
        ("bwdln/results.py", "from bwdln.losses import LOSSES"),
        ("bwdln/simulate.py", "from bwdln.figures import save_all"),
        ("bwdln/simulate.py", "from omegaconf import OmegaConf"),
        ("bwdln/analysis.py", "from matplotlib import pyplot"),
        ("bwdln/analysis.py", "from bwdln.comparison import descent_to_flow"),
        ("bwdln/comparison/one.py", "from bwdln.simulate import run"),
        ("bwdln/figures/run.py", "from bwdln.studies import descent_to_flow"),
        ("bwdln/figures/run.py", "from bwdln.config import Config"),
        ("bwdln/report/page.py", "from bwdln.figures import save_all"),
        ("bwdln/report/page.py", "import matplotlib"),
        ("bwdln/simulate.py", "from bwdln.comparison import descent_to_flow"),
        ("bwdln/simulate.py", "from bwdln.studies import conduct"),
        ("bwdln/studies/base.py", "from matplotlib.figure import Figure"),
        ("bwdln/studies/base.py", "import experiments.display"),
        ("bwdln/results.py", "import pickle"),
        ("bwdln/dynamics/base.py", "import diffrax"),
        ("bwdln/losses.py", "import experiments.train"),
        ("bwdln/novelty.py", "import math"),
        ("bwdln/__init__.py", "from bwdln.losses import frobenius"),
        ("experiments/train.py", "import diffrax"),
    ],
)
def test_the_checker_sees_a_breach(tmp_path: Path, path: str, source: str) -> None:
    target = tmp_path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{source}\n")
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("bwdln/losses.py", "from bwdln import networks\nfrom bwdln.targets import Target\nimport jax"),
        ("bwdln/dynamics/base.py", "from bwdln.dynamics.integrate import advance\nfrom . import integrate"),
        ("bwdln/networks.py", "from bwdln.config import Network"),
        ("bwdln/simulate.py", "from bwdln import diagnostics, losses, results, targets"),
        ("bwdln/figures/run.py", "import matplotlib.pyplot\nfrom bwdln.analysis import band"),
        ("bwdln/figures/study.py", "from bwdln.comparison.one import Comparison\nfrom . import parts"),
        ("bwdln/studies/one.py", "from bwdln import comparison, config, figures, results, simulate"),
        ("experiments/train.py", "import hydra\nfrom bwdln import figures\nimport experiments.display"),
    ],
)
def test_the_checker_accepts_what_is_right(tmp_path: Path, path: str, source: str) -> None:
    target = tmp_path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{source}\n")
    assert violations(tmp_path) == []


def test_configuration_loads_without_jax() -> None:
    modules = ", ".join(f"bwdln.{part}" for part in sorted(LIGHT))
    code = f"import sys, {modules}; print([name for name in {sorted(HEAVY)} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def undocumented(root: Path) -> list[str]:
    """Public modules, classes, functions and methods of the package without a docstring."""
    missing = []
    for path in sorted(root.glob("bwdln/**/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [tree, *tree.body]
        nodes += [each for node in tree.body if isinstance(node, ast.ClassDef) for each in node.body]
        for node in nodes:
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            name = getattr(node, "name", "module")
            if isinstance(node, kinds) and not name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(root)}:{getattr(node, 'lineno', 1)}: {name}")
    return missing


def test_everything_public_has_a_docstring() -> None:
    assert undocumented(ROOT) == []


def test_the_checker_sees_a_missing_docstring(tmp_path: Path) -> None:
    (tmp_path / "bwdln").mkdir()
    documented = '"""A module."""\n\ndef documented():\n    """Yes."""\n\n'
    source = f"{documented}def bare(): ...\n\ndef _private(): ...\n"
    (tmp_path / "bwdln" / "new.py").write_text(source)
    assert undocumented(tmp_path) == ["bwdln/new.py:6: bare"]


# --- what no file may hold ------------------------------------------------------------------------

FORBIDDEN = {
    "an option of a package index": r"--(?:extra-)?index[-]url|--find[-]links|--trusted[-]host",
    "an address of a package": r"https?://\S+(?:/simple\b|\.whl\b|\.tar\.gz\b)",
    "a host of packages": r"https?://[\w.-]*(?:py[p]i|python[h]osted|cond[a]|artifactory|nexus)[\w.-]*",
    "a path of one machine": r"(?<![\w.~/])/(?:home|root|Users|work|opt|mnt|scratch|tmp)/\w",
    "a path of one machine, in Windows": r"\b[A-Z]:\\{1,2}Users\b",
    "an address in a private network": r"\b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+\b",
}


def tracked() -> list[Path]:
    """The files of the repository."""
    command = ["git", "ls-files", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def forbidden(text: str) -> list[str]:
    """What a text holds that no file may, with the words in question."""
    return [f"{what}: {match.group()}" for what, how in FORBIDDEN.items() for match in re.finditer(how, text)]


def test_no_file_names_a_registry_or_a_machine() -> None:
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" in content:  # a picture
            continue
        text = content.decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {what}" for what in forbidden(text)]
    assert found == []


@pytest.mark.parametrize(
    "pieces",
    [
        ("pip install --extra-", "index-url somewhere"),
        ("https://packages.example.org", "/simple/jax"),
        ("https://example.org/jax-1-py3-none-any", ".whl"),
        ("open('", "/home", "/someone/data.npy')"),
        ("C:", "\\Users\\someone"),
        ("http://10", ".0.0.1:8080"),
    ],
)
def test_the_checker_sees_a_forbidden_text(pieces: tuple[str, ...]) -> None:
    assert len(forbidden("".join(pieces))) == 1


def test_constraints_are_names_and_versions() -> None:
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    lines = [line for line in pinned if line and not line.startswith("#")]
    pattern = r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+(?: ; python_version (?:<|>=) '3\.\d+')?"
    assert lines and all(re.fullmatch(pattern, line) for line in lines)
