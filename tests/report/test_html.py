"""The page: one file, everything in it, whatever the run folder lacks."""

import html
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.report import write_report

SECTIONS = ["headline", "size", "learning", "weights", "architectures", "table", "time", "repeat"]
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects what a page would load, its ids in order, and unbalanced tags."""

    def __init__(self, text):
        super().__init__()
        self.references, self.ids, self.tags, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in {"src", "href", "xlink:href", "data", "srcset", "poster", "action"}:
                self.references.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()


def report(folder):
    (path,) = write_report([folder])
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"searches": 2, "repeats": 2},
        {"with_lambda": False, "status": "running"},
        {"with_metrics": False, "status": "failed"},
        {"searches": 0, "status": "running"},
    ],
    ids=["plain", "many", "no-lambda", "no-metrics", "nothing-yet"],
)
def test_every_section_is_there_and_nothing_is_loaded(run_folder, options):
    text = report(run_folder(**options))
    page = Page(text)
    assert page.open == []
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    assert all(ref.startswith(("#", "data:")) for ref in page.references)
    assert "script" not in page.tags and "iframe" not in page.tags
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"https?://|@import|url\((?!#)", without_namespaces)


def test_figures_have_title_axes_and_caption(run_folder):
    text = report(run_folder())
    titles = re.findall(r"<h3>([^<]*)</h3>\s*<svg", text)
    assert titles == [
        "Accuracy against parameters",
        "Parameters over λ, as read off",
        "Search: losses",
        "Search: validation accuracy",
        "Search: entropy of the structure",
        "Search: expected cost at both ends of λ",
        "Retraining: validation accuracy",
    ]
    assert len(re.findall(r"<figcaption>[^<]{40,}</figcaption>", text)) == len(titles)
    for label in (
        "parameters (log scale)",
        "accuracy (%)",
        "λ (log scale)",
        "expected cost",
        "epoch",
        "entropy (nats)",
    ):
        assert f">{label}</text>" in text


def test_accuracy_has_the_sampling_error_of_its_test_objects(run_folder, edit_summary):
    folder = run_folder()
    assert "test objects" not in report(folder)  # of a folder that does not say how many

    def change(summary):
        for row in summary["architectures"]:
            row["retrain"] = [{**one, "test_accuracy": 0.9, "test_objects": 900} for one in row["retrain"]]

    edit_summary(folder, change)
    assert "One standard error of 900 test objects: 1 points." in report(folder)  # sqrt(.9 * .1 / 900) = .01


def test_what_does_not_depend_on_lambda_is_not_drawn_over_it(run_folder, edit_summary):
    """Draws of a posterior: one line of the expected cost, and points that no line joins."""
    folder = run_folder()
    joined = report(folder).count("stroke-width: 1.3")

    def change(summary):
        for row in summary["architectures"]:
            row["lambda"] = None
            row["origin"] = row["origin"] if row["origin"] == "random" else "sample"

    edit_summary(folder, change)
    text = report(folder)
    assert "Search: expected cost<" in text and "both ends of λ" not in text
    assert joined > 0 and text.count("stroke-width: 1.3") < joined


def test_ids_of_two_figures_never_clash(run_folder):
    ids = Page(report(run_folder(searches=2))).ids
    assert len(ids) == len(set(ids))


def test_same_folder_gives_the_same_page(run_folder):
    folder = run_folder()
    assert report(folder) == report(folder)


def test_failed_trials_are_named_with_their_cause(run_folder, edit_summary):
    folder = run_folder(status="failed", with_metrics=False)
    failure = {"trial": "retrain-s0-lam3-seed0", "attempts": 2, "cause": "killed <by> signal 9"}
    edit_summary(folder, lambda summary: summary.update(failures=[failure]))
    text = report(folder)
    assert "retrain-s0-lam3-seed0 after 2 attempts: killed &lt;by&gt; signal 9" in text
    assert "The run failed" in text


def test_names_are_escaped_everywhere(run_folder, edit_summary):
    evil = "<script>alert(1)</script>$x$"
    folder = run_folder(title=evil)

    def change(summary):
        summary["data"] = summary["space"] = evil
        for row in summary["architectures"]:
            row["id"] = evil
            row["search"] = evil
            row["choices"] = {f"{evil}/op_1_0": evil, f"{evil}/input_1_0": [0], evil: evil}
        summary["curves"] = {evil: summary["curves"]["s0"], "other": summary["curves"]["s0"]}
        summary["searches"][0]["terms"] = {evil: 1.0}

    edit_summary(folder, change)
    row = {
        "stage": "search",
        "trial": evil,
        "epoch": 0,
        "weights": {evil: {evil: {evil: 0.5}}},
        "terms": {"entropy": 1.0},
    }
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "environment.json").write_text(json.dumps({evil: [evil], "command": evil}))
    text = report(folder)
    assert "<script" not in text
    assert html.escape(evil) in text


def test_lambda_curve_is_drawn_in_the_order_of_the_file(run_folder, edit_summary):
    folder = run_folder(with_metrics=False)
    sizes = [5000, 40000, 7000, 30000, 30000]

    def change(summary):
        rows = summary["curves"]["s0"][: len(sizes)]
        summary["curves"]["s0"] = [{**row, "params": size} for row, size in zip(rows, sizes, strict=True)]

    edit_summary(folder, change)
    text = report(folder)
    assert "s0: parameters grow with λ at 2 of 4 steps" in text
    figure = text[text.index('data-figure="curve"') :]
    line = next(
        m for m in re.findall(r'<path d="([^"]*)" clip-path', figure) if len(re.findall(r"[ML]", m)) == len(sizes)
    )
    y = [float(point.split()[1]) for point in re.split(r"[ML] ", line) if point.strip()]
    down = [b > a for a, b in itertools.pairwise(y)]
    assert down == [False, True, False, False] and y[3] == y[4]


@pytest.mark.parametrize("missing", ["config.yaml", "environment.json"])
def test_missing_files_are_said_to_be_missing(run_folder, missing):
    folder = run_folder(with_metrics=False)
    (folder / missing).unlink()
    assert f"{missing} is missing" in report(folder)


def test_architectures_without_retraining_are_shown(run_folder, edit_summary):
    folder = run_folder(with_metrics=False)
    edit_summary(folder, lambda summary: [row.update(retrain=[]) for row in summary["architectures"]])
    text = report(folder)
    assert "not retrained" in text
    assert "nothing retrained yet" in text
    assert "Parameters over λ, as read off" in text


def test_null_and_nan_values_do_no_harm(run_folder, edit_summary):
    folder = run_folder(with_metrics=False)

    def change(summary):
        for row in summary["architectures"][:2]:
            row.update(params=None, macs=None, log_prob=float("nan"))
            row["retrain"][0].update(test_accuracy=None, seconds=None)
        summary["searches"][0].update(seconds=None, val_accuracy=None, terms=None)
        summary["experiment"] = None

    edit_summary(folder, change)
    text = report(folder)
    assert "–" in text and not re.search(r">\s*(nan|None)\b", text)


def test_several_folders_give_a_report_each(run_folder):
    folders = [run_folder("a", with_metrics=False), run_folder("b", with_metrics=False)]
    assert write_report(folders) == [folder / "report.html" for folder in folders]
    assert all((folder / "report.html").is_file() for folder in folders)
    assert not list(folders[0].glob(".report-*"))


def test_a_folder_that_is_no_run_stops_before_anything_is_written(run_folder, tmp_path):
    good = run_folder(with_metrics=False)
    with pytest.raises(ConfigError, match=r"summary\.json.*\n.*--output"):
        write_report([good, tmp_path / "nowhere"])
    assert not (good / "report.html").exists()


def test_report_needs_neither_nni_nor_torch(run_folder):
    folder = run_folder(with_metrics=False)
    code = (
        "import sys; from pathlib import Path; from nni_bayes_nas.report import write_report; "
        f"write_report([Path({str(folder)!r})]); "
        "print(sorted({'nni', 'torch', 'pytorch_lightning', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def open_in_browser(page, folder, width):
    """Opens a page in headless Chromium; returns its console messages and the network requests that the page made."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    folder.mkdir()
    log = folder / "net.json"
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"),
        *(f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"),
        *(f"--screenshot={folder / 'page.png'}", f"--window-size={width},4000", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # The browser asks for things of its own; those have the initiator "not an origin".
    requests = [
        line
        for line in log.read_text(errors="replace").splitlines()
        if re.search(r'"url":"(https?|wss?):', line) and '"initiator":' in line and "not an origin" not in line
    ]
    return console, requests


@pytest.mark.slow
def test_browser_check_sees_what_it_looks_for(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://192.0.2.1/x.png"><script>console.error("seen")</script>')
    console, requests = open_in_browser(page, tmp_path / "browser", 800)
    assert "seen" in console[0] and "192.0.2.1" in requests[0]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 500])
def test_page_opens_in_chromium_without_a_complaint_or_a_request(run_folder, tmp_path, width):
    folder = run_folder()
    report(folder)
    console, requests = open_in_browser(folder / "report.html", tmp_path / "browser", width)
    assert (tmp_path / "browser" / "page.png").stat().st_size > 50_000
    assert console == []
    assert requests == []
