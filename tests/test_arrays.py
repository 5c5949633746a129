"""Arrays from files: what is read, and the one line for what is refused."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bwdln.arrays import finite, read_array, real_array
from bwdln.errors import InvalidOption

MATRIX = np.array([[1.5, -2.0, 1e-300], [4.0, 0.1, 6.0]])


def refusal(path, array=None):
    with pytest.raises(InvalidOption) as caught:
        read_array(str(path), array)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path, content):
    path.write_bytes(content)
    return path


def npy_bytes(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["float64", "float32", "int16", "uint8", "bool"])
def test_npy_and_npz_give_the_array_in_its_own_type(tmp_path, kind):
    expected = np.arange(6).reshape(2, 3).astype(kind)
    np.save(tmp_path / "a.npy", expected)
    np.savez_compressed(tmp_path / "a.npz", first=expected, second=MATRIX)
    for got in (read_array(str(tmp_path / "a.npy")), read_array(str(tmp_path / "a.npz"), "first")):
        assert got.dtype == kind
        np.testing.assert_array_equal(got, expected)


def test_the_only_array_of_an_npz_needs_no_name(tmp_path):
    np.savez(tmp_path / "a.npz", MATRIX)
    np.testing.assert_array_equal(read_array(str(tmp_path / "a.npz")), MATRIX)


def test_csv_is_read_exactly_with_comments_blank_lines_and_a_byte_order_mark(tmp_path):
    np.savetxt(tmp_path / "a.csv", MATRIX, delimiter=",", header="three columns")
    np.testing.assert_array_equal(read_array(str(tmp_path / "a.csv")), MATRIX)
    text = "\ufeff1, 2 # first\r\n\r\n3,nan\r\n"
    path = write(tmp_path / "b.CSV", text.encode())
    np.testing.assert_array_equal(read_array(str(path)), [[1.0, 2.0], [3.0, np.nan]])


def test_one_column_and_one_row_of_a_csv_stay_matrices(tmp_path):
    assert read_array(str(write(tmp_path / "a.csv", b"1\n2\n3\n"))).shape == (3, 1)
    assert read_array(str(write(tmp_path / "b.csv", b"1,2,3\n"))).shape == (1, 3)


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "a.npy", MATRIX)
    np.testing.assert_array_equal(read_array("~/a.npy"), MATRIX)


@pytest.mark.parametrize("name", ["absent.npy", "absent.npz", "absent.csv", "~nobody-here/a.npy", "a\0.npy"])
def test_a_missing_file_is_named(tmp_path, name):
    assert refusal(name) == (
        f"path: got {name}, which is not a file; takes a file that ends in .npy, .npz or .csv and exists"
    )


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.npy").mkdir()
    assert "which is not a file" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.npy.gz", "http://localhost/a.csv.html"])
def test_an_unknown_suffix_is_refused_before_the_file_is_looked_for(name):
    assert refusal(name) == f"path: got {name}; takes a file that ends in .npy, .npz or .csv"


def test_an_address_is_not_fetched():
    assert "which is not a file" in refusal("http://localhost:9/a.csv")


class Unpickled:
    """Says so, loudly, when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_objects_are_never_unpickled(tmp_path):
    objects = np.array([Unpickled(), 1.0], dtype=object)
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "a.npz", objects)
    for name in ("a.npy", "a.npz"):
        assert refusal(tmp_path / name) == (
            f"path: got {tmp_path / name}: an array of Python objects, which is never unpickled; "
            "takes an array of real numbers"
        )
    write(tmp_path / "b.npy", pickle.dumps(Unpickled()))
    assert "takes a complete .npy file" in refusal(tmp_path / "b.npy")


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array(["a"]), "<U1"),
        (np.array([1j]), "complex128"),
        (np.zeros(2, "f8,i4"), "[("),
        (np.zeros(1, "M8[D]"), "datetime64"),
    ],
)
def test_an_array_of_something_else_is_refused(tmp_path, array, kind):
    np.save(tmp_path / "a.npy", array)
    assert f"an array of {kind}" in refusal(tmp_path / "a.npy")


def test_the_name_of_an_array_in_an_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, mean=MATRIX, samples=MATRIX)
    assert refusal(path) == "array: got null; takes an array of a.npz, one of mean, samples"
    assert refusal(path, "sample") == (
        "array: got sample; takes an array of a.npz, one of mean, samples; did you mean samples?"
    )
    np.save(tmp_path / "a.npy", MATRIX)
    assert refusal(tmp_path / "a.npy", "mean") == (
        "array: got mean; takes null for a .npy file: only .npz files name their arrays"
    )
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    assert "no arrays" in refusal(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x,y\n1,2\n", "'x' in line 1, column 1"),
        ("# c\n\n1,2\n3,four\n", "'four' in line 4, column 2"),
        ("1,2,\n", "'' in line 1, column 3"),
        ("1;2\n3;4\n", "'1;2' in line 1, column 1"),
        ("1,2\n\n3\n", "1 columns in line 3, 2 in line 1"),
        ("", "no numbers"),
        ("# only a comment\n", "no numbers"),
    ],
)
def test_what_is_wrong_in_a_csv_is_said_with_its_place(tmp_path, text, fault):
    path = write(tmp_path / "a.csv", text.encode())
    assert refusal(path) == (
        f"path: got {path}: {fault}; takes lines of equally many numbers, separated by commas"
    )


def test_a_csv_that_is_no_text_is_refused(tmp_path):
    assert "takes a complete .csv file" in refusal(write(tmp_path / "a.csv", b"\xff\xfe1\x002"))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix):
    path = tmp_path / f"whole{suffix}"
    np.savez(path, MATRIX) if suffix == ".npz" else np.save(path, MATRIX)
    content = path.read_bytes()
    for length in range(len(content)):
        message = refusal(write(tmp_path / f"cut{suffix}", content[:length]))
        assert f"takes a complete {suffix} file" in message, (length, message)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 200), byte=st.integers(0, 255), zipped=st.booleans())
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path_factory, position, byte, zipped):
    stream = io.BytesIO()
    np.savez(stream, MATRIX) if zipped else np.save(stream, MATRIX)
    content = bytearray(stream.getvalue())
    content[position % len(content)] = byte
    path = tmp_path_factory.mktemp("damaged") / ("a.npz" if zipped else "a.npy")
    try:
        read_array(str(write(path, bytes(content))))
    except InvalidOption as error:
        assert "\n" not in str(error)


def test_a_header_that_promises_more_than_memory_holds_is_refused(tmp_path):
    content = npy_bytes(MATRIX).replace(b"(2, 3), }       ", b"(2, 9999999999)}")
    assert b"9999999999" in content
    assert "takes a complete .npy file" in refusal(write(tmp_path / "a.npy", content))


def test_lists_become_arrays_and_ragged_ones_are_refused():
    np.testing.assert_array_equal(real_array("values", [[1, 2], [3, 4]]), [[1, 2], [3, 4]])
    with pytest.raises(InvalidOption, match="values: got rows of different lengths; takes an array of real"):
        real_array("values", [[1, 2], [3]])


def test_entries_that_are_not_finite_are_counted():
    array = np.array([1.0, np.nan, np.inf, -np.inf])
    with pytest.raises(InvalidOption, match="values: got 3 of 4 entries not finite; takes finite numbers"):
        finite("values", array, 1e150)
    with pytest.raises(
        InvalidOption, match=r"values: got entries up to 1e\+151; takes entries up to 1e\+150"
    ):
        finite("values", np.array([-1e151]), 1e150)
    assert finite("values", np.array([3], np.int8), 1e150).dtype == np.float64
