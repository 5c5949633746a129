"""The page of a result: what it holds, that nothing breaks out of it, and what it refuses."""

from __future__ import annotations

import hashlib
import html.parser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import sweeps
import synthetic
import xarray

from bwdln import report, results
from bwdln.errors import InvalidOption
from bwdln.report import markup, pictures, reading, view
from experiments import report as application

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "bwdln" / "report" / "vendor"


class Page(html.parser.HTMLParser):
    """Elements, addresses and texts of a page, as a browser takes them apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(*folders: Path) -> Page:
    return Page(report.make(folders))


# --- what the page holds --------------------------------------------------------------------------


def test_run_shows_seeds_figures_and_command(tmp_path: Path) -> None:
    made = page(pages.run(tmp_path / "run"))
    assert "python -m experiments.train seeds=3 loss.tau=0.1" in made.texts  # not the folder of the first
    assert {"3 reached end", "Seeds", "float64"} <= set(made.texts)
    (image,) = made.of("img")
    assert image["src"].startswith("data:image/") and "gap" in image["alt"].lower()
    assert (image["width"], image["height"]) == ("600", "400")
    links = [each["href"] for each in made.of("a")]
    assert {"./gap.pdf", "./gap.data.csv", "./result.nc"} <= set(links)
    assert len([each for each in made.of("tr") if (each.get("id") or "").startswith("s1-seed-")]) == 3


def test_sweep_shows_every_job_the_failed_ones_too(tmp_path: Path) -> None:
    failed = {18: ({"network.depth": -1, "dynamics.step_size": 0.1, "loss.tau": 0}, "network.depth: got -1")}
    made = page(pages.sweep(tmp_path / "sweep", failed=failed))
    rows = [each["id"] for each in made.of("tr") if (each.get("id") or "").startswith("s1-job-")]
    assert len(rows) == 19 and rows[-1] == "s1-job-18"
    assert ": network.depth: got -1" in made.text
    assert "∞" in made.texts
    expected = shlex.join(
        [
            "python",
            "-m",
            "experiments.train",
            "-m",
            "loss.tau=0,0.1",
            "sweep.zip=[a,b]",
            "hydra.sweep.dir=x y",
        ]
    )
    assert expected in made.texts
    assert "./18/" in [each["href"] for each in made.of("a")]


def test_study_landscape_and_claims(tmp_path: Path) -> None:
    pages.findings(tmp_path / "paper" / "studies" / "rates")
    pages.findings(tmp_path / "paper" / "points", kind="landscape", title="Critical points")
    claims = {
        "columns": ["study", "held"],
        "rows": [["studies/rates", "yes"], ["points", "no"]],
        "figures": [],
    }
    pages.findings(tmp_path / "paper", kind="claims", title="Claims", **claims)
    pages.run(tmp_path / "paper" / "run")
    made = page(tmp_path / "paper")
    sections = [(each["id"], each["data-kind"]) for each in made.of("article")]
    assert sections == [("s1", "claims"), ("s2", "landscape"), ("s3", "run"), ("s4", "study")]
    assert {"#s4", "#s2"} <= {each["href"] for each in made.of("a")}
    assert {"Rates of convergence", "the rate halves", "1 min 15 s"} <= set(made.texts)


def test_numbers_of_findings_stand_below_their_head_on_the_right(tmp_path: Path) -> None:
    rows = [["1", "0.5", "yes"], ["2", "–", "no"]]
    made = page(pages.findings(tmp_path / "rates", columns=["depth", "rate", "held"], rows=rows))
    cells = [each.get("class") for each in [*made.of("th"), *made.of("td")] if "data-key" not in each]
    assert cells[:9] == ["number", "number", None] * 3


def test_findings_stand_at_the_top_of_the_page_of_their_sweep(tmp_path: Path) -> None:
    folder = pages.sweep(tmp_path / "sweep")
    pages.findings(folder, kind="sweep study")
    made = page(folder)
    assert made.texts.index("Findings") < made.texts.index("Explore")
    assert [each["data-kind"] for each in made.of("article")] == ["sweep"]


def test_several_folders_make_one_page(tmp_path: Path) -> None:
    one, two = pages.run(tmp_path / "one"), pages.sweep(tmp_path / "two")
    path = report.make([one, two], tmp_path / "both.html")
    made = Page(path)
    assert len(made.of("article")) == 2
    assert {"./one/result.nc", "./two/sweep.nc"} <= {each["href"] for each in made.of("a")}


def test_job_of_a_sweep_of_studies(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    for job in (0, 1, 10):
        pages.findings(folder / str(job), title=f"Study {job}")
    (folder / "multirun.yaml").write_text("hydra: {}\n")
    assert [each.title for each in reading.sections(folder)] == ["Study 0", "Study 1", "Study 10"]


def test_landscape_command(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    text = "hydra: {job: {name: landscape}, overrides: {task: ['target.dimension=5', 'x=a b'], hydra: []}}\n"
    (tmp_path / ".hydra" / "hydra.yaml").write_text(text)
    assert reading.command(tmp_path) == "python -m experiments.landscape target.dimension=5 'x=a b'"
    assert reading.command(tmp_path / "none") is None


# --- the data of the view -------------------------------------------------------------------------


def test_view_of_a_sweep_keeps_what_diverged_and_what_failed() -> None:
    dataset = sweeps.dataset(pages.GRID, pages.make).assign_attrs(failed='{"18": "why"}', objective="gap")
    seen = view.of_sweep(dataset, {18: {"network.depth": "2", "dynamics.step_size": "x"}})
    lost = [job["dynamics.step_size"] == 0.4 for job in pages.GRID]
    assert [value == float("inf") for value in seen.quantity("gap").values[:18]] == lost
    assert seen.quantity("gap").values[18] is None and seen.messages[18] == "why"
    assert [seen.options[name][18] for name in seen.options] == [2.0, None, None]
    axes = {axis.name: axis for axis in seen.axes}
    assert axes["network.depth"].values == [1, 2, 3] and axes["network.depth"].at[18] == 1
    assert axes["dynamics.step_size"].at[18] is None
    assert seen.curves.which[18] is None and seen.curves.values["relative_gap"][18] is None


def test_what_only_some_jobs_record_is_missing_in_the_others() -> None:
    def make(options):
        result = pages.make(options)
        if options["network.depth"] == 1:
            return result
        return results.Result(result.dataset.assign(sharpness=result.dataset["loss"]))

    seen = view.of_sweep(sweeps.dataset(pages.GRID[::3], make), {})
    values = seen.quantity("sharpness").values
    depths = [job["network.depth"] for job in pages.GRID[::3]]
    assert [value is None for value in values] == [depth == 1 for depth in depths]


def test_curves_are_thinned_and_end_where_the_run_ends() -> None:
    result = synthetic.gaussian(records=180, steps=900)
    curves = view.of_run(result).curves
    assert all(len(along) == view.RECORDS for along in curves.along)
    assert (curves.along[0][0], curves.along[0][-1]) == (0, 900)
    stopped = result.dataset.copy(deep=True)
    stopped["step"][:, 60:] = stopped["step"][:, 60]
    assert view.of_run(results.Result(stopped)).curves.along[0][-1] == float(stopped["step"][0, 60])


def test_diverged_seeds_of_a_run() -> None:
    dataset = synthetic.gaussian().dataset.copy(deep=True)
    for name in ("loss", "gap", "relative_gap"):
        dataset[name][1, 5:] = float("nan")
    seen = view.of_run(results.Result(dataset))
    assert seen.quantity("loss").values[1] == float("inf")
    assert seen.curves.values["relative_gap"][1][-1] == float("inf")


# --- nothing breaks out, nothing is loaded --------------------------------------------------------


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    hostile = pages.HOSTILE
    name = "a<b>&'\"</script>"  # netCDF knows no spaces in names, nor does Hydra
    jobs = [{"network.depth": depth, name: value} for depth in (1, 2) for value in (hostile, "b")]
    failed = {9: ({"network.depth": 1, name: hostile}, f"message {hostile}")}
    folder = tmp_path / "x <b>&"
    pages.sweep(folder / "sweep", jobs, failed)
    claims = {"columns": [hostile], "rows": [[hostile]], "notes": [hostile], "title": hostile}
    pages.findings(folder / "study", **claims)
    made = page(folder)
    assert not made.of("b")
    assert all(each.get("src", "").startswith("data:") for each in made.of("img"))
    assert not any(name.startswith("on") for _, attributes in made.elements for name in attributes)
    assert hostile in made.texts
    (payload,) = (each for each in made.scripts if each.startswith("{"))
    assert [
        axis for axis in json.loads(payload)["axes"] if axis["name"] == name and hostile in axis["values"]
    ]


@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028", "&lt;"])
def test_data_cannot_end_their_element(text: str) -> None:
    written = markup.data({"a": text}, "data")
    inside = written.removeprefix('<script type="application/json" id="data">').removesuffix("</script>")
    assert not re.search("[<>&\u2028]", inside)
    assert json.loads(inside) == {"a": text}


def test_page_loads_nothing(tmp_path: Path) -> None:
    pages.run(tmp_path / "run")
    pages.sweep(tmp_path / "sweep")
    made = page(tmp_path)
    for tag, attributes in made.elements:
        for name in ("src", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        if tag == "link":
            assert attributes["href"] == "data:,"
        if tag == "a":
            assert re.match(r"#|\./", attributes["href"]), attributes
    assert "url(" not in (ROOT / "bwdln/report/report.css").read_text()
    (policy,) = (each["content"] for each in made.of("meta") if "http-equiv" in each)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe-eval" not in policy
    executed = [each for each in made.scripts if not each.startswith("{")]
    assert policy.count("sha256-") == len(executed) == 7


def test_page_without_views_has_no_library_of_plots(tmp_path: Path) -> None:
    path = report.make([pages.findings(tmp_path / "study")])
    assert path.stat().st_size < 300_000
    assert "vegaEmbed=" not in path.read_text(encoding="utf-8").replace(" ", "")


def test_libraries_are_what_versions_say() -> None:
    versions = json.loads((VENDOR / "versions.json").read_text())
    assert set(versions) == {"jquery", "datatables.net", "vega", "vega-lite", "vega-embed"}
    for entry in versions.values():
        assert hashlib.sha256((VENDOR / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
        assert "copyright" in (VENDOR / entry["license_file"]).read_text(encoding="utf-8").lower()


def test_page_is_the_same_again(tmp_path: Path) -> None:
    folder = pages.sweep(tmp_path / "sweep")
    assert report.make([folder]).read_bytes() == report.make([folder]).read_bytes()


def test_large_sweep_makes_a_small_page(tmp_path: Path) -> None:
    def make(options):
        rate = 1e-3 * (1 + options["loss.tau"]) * (1 + 0.01 * options["network.depth"])
        return sweeps.result(rate, seeds=(0,), records=100)

    taus = [0.1 * each for each in range(5)]
    jobs = sweeps.product(network__depth=range(1, 22), loss__tau=taus, dynamics__step_size=range(1, 12))
    assert len(jobs) == 1155
    assert report.make([pages.sweep(tmp_path / "sweep", jobs, make=make)]).stat().st_size < 5e6


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_are_embedded_small_and_on_white(tmp_path: Path) -> None:
    pages.figure(tmp_path / "wide", (2800, 1000))
    picture = pictures.embedded(tmp_path / "wide.png")
    assert (picture.width, picture.height) == (1400, 500) and len(picture.address) < 20_000
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert pictures.embedded(tmp_path / "broken.png") is None


def test_broken_picture_does_not_lose_the_page(tmp_path: Path) -> None:
    folder = pages.run(tmp_path / "run")
    (folder / "gap.png").write_bytes(b"no picture")
    assert "no picture that can be shown" in page(folder).text


# --- what is refused ------------------------------------------------------------------------------


def nothing(folder: Path) -> Path:
    return folder / "nowhere"


def empty(folder: Path) -> Path:
    return folder


def foreign_file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("x")
    return folder / "notes.txt"


def foreign_netcdf(folder: Path) -> Path:
    xarray.Dataset({"a": 1.0}).to_netcdf(folder / "sweep.nc")
    return folder


def foreign_result(folder: Path) -> Path:
    xarray.Dataset({"a": 1.0}).to_netcdf(folder / "result.nc")
    return folder


def damaged(folder: Path) -> Path:
    (folder / "result.nc").write_bytes(b"CDF, or not")
    return folder


def broken_json(folder: Path) -> Path:
    (folder / "findings.json").write_text('{"schema": 1')
    return folder


def other_json(folder: Path) -> Path:
    (folder / "findings.json").write_text("[1, 2]")
    return folder


def newer_findings(folder: Path) -> Path:
    return pages.findings(folder, schema=2)


def findings_of_elsewhere(folder: Path) -> Path:
    (folder.parent / "secret.csv").write_text("x")
    return pages.findings(folder, tables=["../secret.csv"])


def ragged_findings(folder: Path) -> Path:
    return pages.findings(folder, rows=[["1"]])


def newer_sweep(folder: Path) -> Path:
    dataset = sweeps.dataset(pages.GRID, pages.make).assign_attrs(schema=results.SCHEMA + 1)
    results.write_dataset(dataset, folder / "sweep.nc")
    return folder


def newer_result(folder: Path) -> Path:
    dataset = synthetic.gaussian().dataset.assign_attrs(schema=results.SCHEMA + 1)
    results.write_dataset(dataset, folder / "result.nc")
    return folder


def incomplete_sweep(folder: Path) -> Path:
    dataset = sweeps.dataset(pages.GRID, pages.make).drop_vars("outcome")
    results.write_dataset(dataset, folder / "sweep.nc")
    return folder


def broken_yaml(folder: Path) -> Path:
    pages.run(folder)
    (folder / ".hydra" / "hydra.yaml").write_text("hydra: [")
    return folder


def unfinished_sweep(folder: Path) -> Path:
    pages.run(folder / "0")
    (folder / "multirun.yaml").write_text("hydra: {}\n")
    return folder


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (nothing, "where there is nothing"),
        (empty, "a folder with a sweep.nc or result.nc or findings.json"),
        (foreign_file, "a folder with results"),
        (foreign_netcdf, "something else"),
        (foreign_result, "something else"),
        (damaged, "damaged, truncated or something else"),
        (broken_json, "a findings.json of bwdln"),
        (other_json, "a findings.json of bwdln"),
        (newer_findings, "of a newer version of bwdln"),
        (findings_of_elsewhere, "a findings.json of bwdln"),
        (ragged_findings, "a findings.json of bwdln"),
        (newer_sweep, "of a newer version of bwdln"),
        (newer_result, "of a newer version of bwdln"),
        (incomplete_sweep, "this one has no outcome"),
        (broken_yaml, "a YAML file of Hydra"),
        (unfinished_sweep, "this sweep has not ended"),
    ],
)
def test_refused_in_one_line_and_nothing_is_written(prepare, says, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = prepare(folder)
    with pytest.raises(SystemExit) as ended:
        application.main([str(path)])
    said = capsys.readouterr()
    assert ended.value.code == 1 and said.out == ""
    assert says in said.err and said.err.count("\n") == 1
    assert not [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.part")]


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    folder = pages.findings(tmp_path / "study")
    for output in (tmp_path / "none" / "page.html", folder):
        with pytest.raises(InvalidOption, match=r"output: got .*; takes a file that can be written"):
            report.make([folder], output)
    assert not list(tmp_path.rglob("*.part"))


def test_no_folder_at_all() -> None:
    with pytest.raises(InvalidOption, match="path: got none"):
        report.make([])


def test_command_says_where_the_page_is(tmp_path: Path) -> None:
    folder = pages.findings(tmp_path / "study")
    command = [sys.executable, "-m", "experiments.report", str(folder), "--output", str(tmp_path / "p.html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"report   {tmp_path / 'p.html'}") and done.stderr == ""
    assert (tmp_path / "p.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


SMALL = ("target=power_law", "target.dimension=4", "seeds=1", "dynamics.steps=100", "hydra.run.dir=run")


def test_a_run_ends_with_its_page(command) -> None:
    status, output, _ = command(*SMALL)
    assert status == 0 and "report   run/report.html" in output.splitlines()
    assert "python -m experiments.train target=power_law" in Page(Path("run/report.html")).text


def test_a_run_without_a_page(command) -> None:
    status, output, _ = command(*SMALL, "report=never")
    assert status == 0 and "report" not in output and not Path("run/report.html").exists()


def test_a_page_that_fails_loses_nothing(command, monkeypatch) -> None:
    def fail(paths):
        raise RuntimeError("no\npage")

    monkeypatch.setattr(report, "make", fail)
    status, output, errors = command(*SMALL)
    assert status == 0 and "result   run/result.nc" in output.splitlines()
    assert "warning: no report was made: " in errors and errors.count("\n") == 1
    assert results.load("run").outcomes == ("reached_end",)


def test_a_sweep_has_one_page_and_its_jobs_have_none(command) -> None:
    arguments = ("-m", *SMALL[:-1], "hydra.sweep.dir=sweep", "loss.tau=0,0.1,-1", "figures=never")
    status, output, _ = command(*arguments)
    assert status == 1 and "report   sweep/report.html" in output.splitlines()
    assert [str(path) for path in Path().rglob("*.html")] == ["sweep/report.html"]
    assert "loss.tau: got -1" in Page(Path("sweep/report.html")).text


def test_help_needs_no_jax() -> None:
    code = "import sys, experiments.report; print('jax' in sys.modules or 'xarray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
