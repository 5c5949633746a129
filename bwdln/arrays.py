"""Arrays from outside: from a user's call or file, checked, in one line if they are refused."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bwdln.errors import InvalidOption, check, nearest


def real_array(option: str, values: Any) -> np.ndarray:
    """`values` as an array, in the type they have; raises `InvalidOption` unless real numbers."""
    takes = "an array of real numbers"
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidOption(option, "rows of different lengths", takes) from error
    check(array.dtype.kind in "biuf", option, f"an array of {array.dtype}", takes)
    return array


def finite(option: str, array: np.ndarray, largest: float) -> np.ndarray:
    """The array in float64.

    Raises `InvalidOption` for entries that are not finite, or larger in size than `largest`.
    """
    with np.errstate(over="ignore"):
        values = array.astype(np.float64)
    bad = int(np.sum(~np.isfinite(values)))
    check(bad == 0, option, f"{bad} of {values.size} entries not finite", "finite numbers only")
    size = np.abs(values).max()
    check(size <= largest, option, f"entries up to {size:.2g}", f"entries up to {largest:g} in size")
    return values


def read_array(path: str, array: str | None = None) -> np.ndarray:
    """The array of real numbers in an `.npy`, `.npz` or `.csv` file.

    Raises `InvalidOption` naming `path` or `array`. Never unpickles anything.
    """
    file_path = Path(os.path.expanduser(path))
    suffix = file_path.suffix.lower()
    takes = "a file that ends in .npy, .npz or .csv"
    check(suffix in (".npy", ".npz", ".csv"), "path", path, takes)
    check(os.path.isfile(file_path), "path", f"{path}, which is not a file", f"{takes} and exists")
    takes = f"null for a {suffix} file: only .npz files name their arrays"
    check(array is None or suffix == ".npz", "array", array, takes)
    readers = {".npy": _read_npy, ".npz": lambda each: _read_npz(each, array), ".csv": _read_csv}
    with blamed_on(path):
        try:
            loaded = readers[suffix](file_path)
        except InvalidOption:
            raise
        except Exception as error:  # whatever a decoder says of a damaged file
            reason = " ".join(str(error).split()) or type(error).__name__
            got = f"a file that cannot be read ({reason})"
            raise InvalidOption("path", got, f"a complete {suffix} file") from error
        return real_array("path", loaded)


@contextmanager
def blamed_on(path: str) -> Iterator[None]:
    """Name the option `path`, and the file, in what is wrong with a file's contents."""
    try:
        yield
    except InvalidOption as error:
        if error.option not in ("path", "samples", "covariance"):
            raise
        raise InvalidOption("path", f"{path}: {error.got}", error.takes) from error


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as stream:
        return _parsed_npy(stream)


def _read_npz(path: Path, array: str | None) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        names = [each.removesuffix(".npy") for each in archive.namelist() if each.endswith(".npy")]
        check(bool(names), "path", "no arrays", "an .npz file with an array")
        takes = f"an array of {path.name}, {nearest(array or '', names)}"
        check(array in names or (array is None and len(names) == 1), "array", array or "null", takes)
        with archive.open(f"{array or names[0]}.npy") as stream:
            return _parsed_npy(stream)


def _parsed_npy(stream: Any) -> np.ndarray:
    """An array in NumPy's own format; an array of Python objects is refused, never unpickled."""
    try:
        return np.lib.format.read_array(stream, allow_pickle=False)
    except ValueError as error:
        got = "an array of Python objects, which is never unpickled"
        check("Object arrays" not in str(error), "path", got, "an array of real numbers")
        raise


def _read_csv(path: Path) -> np.ndarray:
    text = path.read_text(encoding="utf-8-sig").splitlines()
    lines = {i: line for i, each in enumerate(text, 1) if (line := each.split("#")[0].strip())}
    takes = "lines of equally many numbers, separated by commas"
    check(bool(lines), "path", "no numbers", takes)
    try:
        return np.loadtxt(list(lines.values()), delimiter=",", ndmin=2, dtype=np.float64)
    except ValueError as error:
        raise InvalidOption("path", _csv_fault(lines) or str(error), takes) from error


def _csv_fault(lines: dict[int, str]) -> str | None:
    """The first thing wrong in numbered lines of comma separated numbers."""
    first = next(iter(lines))
    width = len(lines[first].split(","))
    for number, line in lines.items():
        cells = line.split(",")
        if len(cells) != width:
            return f"{len(cells)} columns in line {number}, {width} in line {first}"
        for column, cell in enumerate(cells, 1):
            if not _is_number(cell):
                return f"{cell.strip()[:40]!r} in line {number}, column {column}"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
