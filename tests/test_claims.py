"""What studies claim: kept with what they found, gathered, printed, and first on the page."""

import json

import pytest

from bwdln.errors import InvalidOption
from bwdln.studies import Claim, Findings, claims, descent_to_flow, write_findings
from bwdln.studies.base import title
from experiments import report

HELD = Claim("two is two", "§1", "2", "2", True)
FAILED = Claim("two is three", "the paper", "3", "2", False)


def written(folder, *claimed, **changes):
    folder.mkdir(parents=True)
    found = Findings(("a",), [("1",)], ["a remark of it"], [], [], [], 0.5, False, claimed)
    about = {"kind": "study", "name": "one", "title": "One", "seconds": 1.234} | changes
    return json.loads(write_findings(found, folder, **about).read_text())


def test_findings_on_disk_hold_all_that_was_found(tmp_path):
    content = written(tmp_path / "a", HELD)
    assert content["claims"] == [HELD._asdict()] and content["score"] == 0.5 and content["seconds"] == 1.23
    assert (content["columns"], content["rows"], content["notes"]) == (["a"], [["1"]], ["a remark of it"])
    assert claims.read(tmp_path / "a" / "findings.json") == [HELD]


def test_a_score_that_is_no_number_is_null(tmp_path):
    tmp_path.joinpath("a").mkdir()
    found = Findings((), [], [], [], [], [], float("inf"), False)
    path = write_findings(found, tmp_path / "a", kind="study", name="", title="", seconds=0.0)
    assert json.loads(path.read_text())["score"] is None


def test_claims_are_gathered_from_all_folders_and_counted(tmp_path):
    written(tmp_path / "b" / "deep", FAILED)
    written(tmp_path / "a", HELD, HELD)
    written(tmp_path / "c")
    for _ in range(2):  # what was gathered before is not gathered again
        found = claims.gather(tmp_path)
        assert [row[0] for row in found.rows] == ["a", "a", "b/deep"]
        assert [row[-1] for row in found.rows] == ["yes", "yes", "no"]
        assert (found.score, found.notes) == (1.0, ["2 of 3 claims held"])
    assert (tmp_path / "claims.csv").read_text().splitlines()[1] == "a,two is two,§1,2,2,yes"
    assert json.loads((tmp_path / "findings.json").read_text())["kind"] == "claims"


def test_a_folder_without_claims_has_none(tmp_path):
    written(tmp_path / "a")
    assert claims.gather(tmp_path) is None and [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("content", ["{", "[]", '{"claims": [{"statement": "only"}]}', '{"claims": 3}'])
def test_foreign_files_are_refused(content, tmp_path):
    written(tmp_path / "a", HELD)
    (tmp_path / "a" / "findings.json").write_text(content)
    with pytest.raises(InvalidOption, match="findings of a study"):
        claims.gather(tmp_path)


def test_the_command_prints_claims_and_puts_them_first_on_the_page(tmp_path, capsys):
    written(tmp_path / "a", HELD, FAILED)
    report.main([str(tmp_path), "--claims"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["a", "  held   two is two (§1)", "         predicted 2; measured 2"]
    assert lines[3].startswith("  FAILED two is three") and lines[5] == "1 of 2 claims held"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("two is three") < page.index("a remark of it")


def test_a_folder_without_claims_is_refused_in_one_line(tmp_path, capsys):
    written(tmp_path / "a")
    with pytest.raises(SystemExit) as end:
        report.main([str(tmp_path), "--claims"])
    assert end.value.code == 1 and not (tmp_path / "report.html").exists()
    assert capsys.readouterr().err.startswith("--claims: got ")


def test_a_title_is_a_sentence_about_the_study():
    said = title(descent_to_flow.descent_to_flow)
    assert said == "Gradient descent at several step sizes against the gradient flow, from the same starts"
