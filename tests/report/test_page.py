"""``adafisher-hf report``: one page that needs nothing else, whatever the folders hold."""

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import Trainer

from adafisher_hf import CurvatureCallback
from adafisher_hf.cli import main
from tests.integrations.test_trainer import arguments, data
from tests.models import llama
from tests.report.runs import name_of, write_run

VOID = ("meta", "input")


class Page(HTMLParser):
    """Text, titles, data of pictures and addresses of a page; fails where a tag is not closed."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.open, self.addresses, self.titles, self.specs = "", [], [], [], {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "srcset", "href") if name in attrs]
        self.titles += [attrs["aria-label"].partition(". ")[0]] if attrs.get("class") == "plot" else []
        self.file = attrs.get("data-file", getattr(self, "file", None))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-2:] == ["figure", "script"]:
            self.specs[self.file] = json.loads(data)
        self.text += data if self.open[-1:] not in (["style"], ["script"]) else ""


def report(capsys, *argv):
    assert main(["report", *map(str, argv)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.strip()


def page_of(capsys, folder):
    capsys.readouterr()
    return Page(Path(report(capsys, folder)).read_text())


def test_two_runs(tmp_path, capsys):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", config='{"version": 1, "mode": "paper"}')
    path = report(capsys, one, two)
    assert path == str(one / "report.html")
    page = Page((one / "report.html").read_text())
    assert set(page.addresses) == {"#"}  # no network; tests/report/test_browser.py sees that nothing is asked for
    assert len(page.specs) == len(page.titles)
    assert page.titles == [
        "Loss", "Learning rate", "Gradient norm",
        *["Mean curvature: bright is stiff", "Update to weight: dark is starved"] * 2,
        "Spread of log-curvature: one", "Spread of log-curvature: two",
    ]  # fmt: skip
    for text in ("30 / 40", "6.25 (step 30)", "60.0%", "model.layers.0.mlp.up_proj", "calibrated", "paper"):
        assert text in page.text
    assert "Before you read on" not in page.text
    pictures = sorted(file.name for file in (one / "report").iterdir())
    assert pictures == sorted(
        ["loss.png", "learning_rate.png", "grad_norm.png"]
        + [f"{what}_{run}.png" for what in ("curvature", "update_ratio", "spread") for run in ("one", "two")]
    )
    assert all(np.asarray(Image.open(one / "report" / picture)).std() > 3 for picture in pictures)


def test_output_elsewhere(tmp_path, capsys):
    output = tmp_path / "new" / "folder" / "page.html"
    assert report(capsys, write_run(tmp_path / "run"), "--output", output) == str(output)
    assert output.exists() and (tmp_path / "new/folder/page/loss.png").exists()
    assert not (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize("part", ["state", "curvature"])
def test_a_truncated_file_gives_a_page_that_says_so(tmp_path, capsys, part):
    content = (write_run(tmp_path) / name_of(part)).read_text()
    write_run(tmp_path, **{part: content[: len(content) // 2]})
    page = page_of(capsys, tmp_path)
    assert "Before you read on" in page.text and name_of(part) in page.text
    assert ("Loss" in page.titles) == (part != "state")


def test_an_empty_folder(tmp_path, capsys):
    page = page_of(capsys, tmp_path)
    assert page.titles == []
    assert all(name_of(part) + " is missing" in page.text for part in ("state", "curvature", "coverage", "config"))


def test_one_logging_step_with_one_layer(tmp_path, capsys):
    row = {"kind": "linear", "mean": 1e-9, "log_spread": 0.0, "update": 0.0, "weight": 0.0}
    write_run(
        tmp_path,
        state='{"log_history": [{"step": 1, "loss": NaN, "learning_rate": 0.0, "grad_norm": Infinity}]}',
        curvature=json.dumps({"step": 1, "parameters": {"w": row}}) + "\n",
    )
    page = page_of(capsys, tmp_path)
    assert "Mean curvature: bright is stiff" in page.titles
    assert "Update to weight: dark is starved" not in page.titles  # 0 / 0
    assert "the loss was not finite at step 1" in page.text


def test_names_are_text_not_markup(tmp_path, capsys):
    folder = write_run(tmp_path / "<b>&", curvature=None, config='{"mode": "<script>"}')
    page = page_of(capsys, folder)
    assert "<script>" in page.text and "<b>&" in page.text


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_no_folder_is_one_line(tmp_path, capsys, name):
    (tmp_path / "file").write_text("")
    assert main(["report", str(write_run(tmp_path / "run")), str(tmp_path / name)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("adafisher-hf: error: ")
    assert repr(str(tmp_path / name)) in captured.err
    assert not (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["--help"], 0)])
def test_usage(capsys, argv, status):
    with pytest.raises(SystemExit) as caught:
        main(["report", *argv])
    assert caught.value.code == status
    captured = capsys.readouterr()
    assert "RUN_DIR" in captured.out + captured.err


def test_without_vl_convert_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert main(["report", str(write_run(tmp_path))]) == 1
    captured = capsys.readouterr()
    assert 'pip install "adafisher-hf[report]"' in captured.err and captured.err.count("\n") == 1


def test_a_page_that_cannot_be_written(tmp_path, capsys):
    run = write_run(tmp_path / "run", state=None, curvature=None)
    assert main(["report", str(run), "--output", str(run / "coverage.json" / "x.html")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_of_the_plain_trainer_has_everything(tmp_path, capsys):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, logging_steps=1)
    trainer = Trainer(llama(), args, train_dataset=data(), eval_dataset=data(4), callbacks=[CurvatureCallback()])
    trainer.train()
    trainer.save_state()
    page = page_of(capsys, tmp_path)
    assert "Before you read on" not in page.text
    assert len(page.titles) == 7
    assert "embedding+linear" in page.text


def rows_of(spec):
    return list(csv.DictReader(io.StringIO(spec["data"]["values"])))


def test_a_baseline_run_beside_ours(tmp_path, capsys):
    """AdamW has no files of ours: the best is still the lowest, and its lack of options is no difference."""
    history = [{"step": 30, "loss": 4.0}, {"step": 30, "eval_loss": 6.0}]
    told = {"CurvatureCallback": {"args": {}, "attributes": {"optimizer": "AdamW"}}}
    state = json.dumps({"log_history": history, "stateful_callbacks": told})
    ours = write_run(tmp_path / "ours")
    baseline = write_run(tmp_path / "baseline", state=state, curvature=None, coverage=None, config=None)
    html = Path(report(capsys, ours, baseline)).read_text()
    page = Page(html)
    rows = re.findall(r"<tr><td>(ours|baseline)</td><td>(.*?)</td>(.*?)</tr>", html)
    assert [(name, optimizer, row.count(">best<")) for name, optimizer, row in rows] == [
        ("ours", "AdaFisher", 0),
        ("baseline", "AdamW", 2),
    ]
    assert "class=differs" not in html
    assert "Before you read on" not in page.text  # there is nothing that AdamW could have written


def test_nothing_is_best_where_nothing_is_compared(tmp_path, capsys):
    assert ">best<" not in Path(report(capsys, write_run(tmp_path))).read_text()


def test_all_odd_layers_are_listed_with_what_is_normal(tmp_path, capsys):
    values = {**{f"normal{i}.weight": 1.0 for i in range(9)}, **{f"odd{i}.weight": 10.0 + i for i in range(5)}}
    rows = {name: {"kind": "linear", "mean": mean, "update": 1.0, "weight": 1.0} for name, mean in values.items()}
    write_run(tmp_path, curvature=json.dumps({"step": 1, "parameters": rows}), coverage=None)
    page = page_of(capsys, tmp_path)
    assert [f"odd{i}" in page.text for i in range(5)] == [True] * 5
    assert page.text.count("5.0e-01 to 2.0e+00") == 5


def test_what_adamqlr_chooses_is_drawn(tmp_path, capsys):
    chosen = {"adamqlr/lr": 0.5, "adamqlr/damping": 0.001, "adamqlr/rho": 0.9}
    history = [{"step": step, "loss": 1.0, **{key: value * step for key, value in chosen.items()}} for step in (1, 2)]
    page = page_of(capsys, write_run(tmp_path / "run", state=json.dumps({"log_history": history})))
    drawn = {file: [float(row["value"]) for row in rows_of(spec)] for file, spec in page.specs.items() if "qlr" in file}
    assert sorted(values[0] for values in drawn.values()) == sorted(chosen.values())
    assert all(values[1] == 2 * values[0] for values in drawn.values())


def test_times_are_logged_or_estimated_or_said_to_be_unknown(tmp_path, capsys):
    page = page_of(capsys, write_run(tmp_path / "unknown"))
    assert "loss_by_time" not in page.specs and "No loss by time" in page.text
    history = [{"step": step, "loss": 1.0} for step in (10, 20)] + [{"step": 20, "train_runtime": 50.0}]
    page = page_of(capsys, write_run(tmp_path / "estimated", state=json.dumps({"log_history": history})))
    assert [row["seconds"] for row in rows_of(page.specs["loss_by_time"])] == ["25", "50"]
    assert "Estimated for estimated" in page.text and "No loss by time" not in page.text
