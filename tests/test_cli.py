"""The command line: run as python would, coverage, and one clear error for what is wrong."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel

import adafisher_hf
from adafisher_hf.cli import TASKS, build_on_meta, main
from adafisher_hf.insight.others import OTHERS
from adafisher_hf.integrations.entries import OPTIMIZERS

COMMANDS = ("run", "compare", "coverage", "doctor")
TELL = """
import json, os, sys
path = [os.path.abspath(entry) for entry in sys.path]
print(json.dumps([__name__, __package__ or "", os.path.abspath(__file__), __spec__ and __spec__.name, sys.argv, path]))
print("optimizers" if "adafisher_hf" in sys.modules else "", file=sys.stderr)
assert sys.modules["__main__"].TELL is TELL
"""
TELL = "TELL = object()\n" + TELL


def run(*command, cwd=None, python=(sys.executable,)):
    return subprocess.run([*python, *map(str, command)], cwd=cwd, capture_output=True, text=True)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def in_process(monkeypatch):
    """Undoes what running a script changes in this process."""
    monkeypatch.setattr(sys, "argv", ["adafisher-hf"])
    monkeypatch.setattr(sys, "path", ["our own place", *sys.path[1:]])


# run


@pytest.mark.parametrize("target", [["scripts/tell.py"], ["-m", "package"], ["package"]], ids=" ".join)
def test_a_program_sees_what_it_sees_under_python(tmp_path, target):
    write(tmp_path / "scripts/tell.py", TELL)
    write(tmp_path / "package/__init__.py", "")
    write(tmp_path / "package/__main__.py", TELL)
    args = [*target, "--help", "-m", "x", "--", "a b", "run"]
    expected = run(*args, cwd=tmp_path)
    got = run("-m", "adafisher_hf", "run", *args, cwd=tmp_path)
    assert (got.returncode, expected.returncode) == (0, 0), got.stderr + expected.stderr
    assert json.loads(got.stdout) == json.loads(expected.stdout)
    assert got.stderr.strip() == "optimizers"


@pytest.mark.parametrize(
    ("ending", "status", "error"),
    [
        ("sys.exit(7)", 7, ""),
        ("raise RuntimeError('broken')", 1, "RuntimeError: broken"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
    ],
)
def test_exit_status(tmp_path, ending, status, error):
    script = write(tmp_path / "script.py", f"import sys\n{ending}\n")
    # Through a shell: that is where an interrupted python has status 130.
    got = run("-c", f"{sys.executable} -m adafisher_hf run {script}; exit $?", python=["bash"])
    assert got.returncode == status
    assert error in got.stderr
    if "Error" in error:
        assert f'File "{script}", line 2' in got.stderr


def test_a_script_that_just_ends(tmp_path, in_process):
    assert main(["run", str(write(tmp_path / "script.py", "x = 1\n"))]) == 0


def test_a_script_finds_the_optimizers_registered(tmp_path, in_process):
    script = write(
        tmp_path / "script.py",
        "import sys\n"
        "from transformers import HfArgumentParser, TrainingArguments\n"
        "args, = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
        "sys.exit(f'{args.optim.value} {args.optim_args}')\n",
    )
    argv = ["run", str(script), "--output_dir", str(tmp_path), "--use_cpu", "--optim", "adafisherw"]
    with pytest.raises(SystemExit) as caught:
        main([*argv, "--optim_args", "gamma=0.9"])
    assert caught.value.code == "adafisherw gamma=0.9"


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["run", "nowhere.py"], 2, "no script 'nowhere.py'"),
        (["run", "-m", "nowhere.at.all"], 1, "no module named 'nowhere.at.all'"),
        (["run", "-m", "json.nowhere"], 1, "no module named 'json.nowhere'"),
    ],
)
def test_what_is_not_there_gets_one_line(in_process, capsys, argv, status, message):
    assert main(argv) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"adafisher-hf: error: {message}")
    assert captured.err.count("\n") == 1


def test_a_package_that_fails_to_import_shows_its_own_error(tmp_path, in_process, monkeypatch):
    write(tmp_path / "broken/__init__.py", "import dependency_that_is_missing\n")
    write(tmp_path / "broken/train.py", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="dependency_that_is_missing"):
        main(["run", "-m", "broken.train"])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["run"],
        ["run", "-m"],
        ["run", "--fast", "x.py"],
        ["coverage"],
        ["coverage", "gpt2", "--summary", "--memory"],
        ["coverage", "gpt2", "--fail-under", "95"],
        ["coverage", "gpt2", "--fail-under", "most"],
        ["doctor", "gpt2", "--optim", "adamw_torch"],
        ["train"],
    ],
)
def test_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: adafisher-hf" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"adafisher-hf {adafisher_hf.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert ("update_interval = 10" in out) == (argv == ["--help"])


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)], ids=" ".join
)
def test_help_waits_for_nothing_heavy(argv):
    code = """
import sys
from adafisher_hf.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
assert not {"torch", "transformers", "huggingface_hub", "matplotlib", "vl_convert"} & set(sys.modules)
"""
    assert run("-c", code, *argv).stderr == ""


# coverage


def small_gpt2():
    return GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16)


@pytest.fixture
def folder(tmp_path):
    small_gpt2().save_pretrained(tmp_path)
    return tmp_path


def coverage_json(capsys, *argv):
    assert main(["coverage", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def kinds(content):
    return {row["kind"]: row["numbers"] for row in content["kinds"]}


def test_coverage_of_a_folder_is_that_of_its_model(folder, capsys):
    content = coverage_json(capsys, folder)
    expected = adafisher_hf.coverage(GPT2LMHeadModel(small_gpt2()))
    assert content["parameters"] == json.loads(json.dumps([row._asdict() for row in expected]))
    assert sum(row["share"] for row in content["kinds"]) == pytest.approx(1.0)
    assert content.keys() == {"model", "kinds", "parameters"} and content["model"] == str(folder)
    file = folder / "config.json"
    assert coverage_json(capsys, file) == {**content, "model": str(file)}
    assert coverage_json(capsys, folder, "--summary") == {"model": str(folder), "kinds": content["kinds"]}


def test_coverage_prints_aligned_tables(folder, capsys):
    assert main(["coverage", str(folder)]) == 0
    out = capsys.readouterr().out
    parameters, shares = (table.splitlines() for table in out.rstrip("\n").split("\n\n"))
    assert parameters[0].split() == ["name", "shape", "kind", "role", "treatment", "owners"]
    assert parameters[1].split(maxsplit=5) == [
        "transformer.wte.weight", "11×8", "embedding+linear", "vocabulary", "diagonal", "transformer.wte, lm_head",
    ]  # fmt: skip
    assert len(parameters) == 1 + len(adafisher_hf.coverage(GPT2LMHeadModel(small_gpt2())))
    for column in ("shape", "kind", "role", "treatment", "owners"):
        start = parameters[0].index(column)
        assert all(line[start - 2 : start] == "  " and line[start] != " " for line in parameters[1:])
    assert len({len(line) for line in shares}) == 1
    assert main(["coverage", str(folder), "--summary"]) == 0
    assert capsys.readouterr().out.splitlines() == shares


def test_coverage_of_a_model_type_needs_no_memory(capsys):
    numbers = sum(kinds(coverage_json(capsys, "llama")).values())
    assert numbers == 6_738_415_616


def test_memory_is_that_of_a_step(folder, capsys):
    args = "structure=kronecker,max_factor_dim=8"
    assert main(["coverage", str(folder), "--memory", "--json", "--optim_args", args]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content.keys() == {"model", "memory"} and content["model"] == str(folder)
    rows = content["memory"]
    assert [rows[0]["setting"], rows[-1]["setting"]] == ["AdamW", args]
    ids = torch.zeros(1, 3, dtype=torch.long)
    for row in (row for row in rows if row["setting"] == "AdamW" or row["setting"] not in OTHERS):
        model = GPT2LMHeadModel(small_gpt2())
        if row["setting"] in OPTIMIZERS:
            continue  # tests/family
        if row["setting"] == "AdamW":
            optimizer = torch.optim.AdamW(model.parameters())
        else:
            knobs = adafisher_hf.AdaFisherConfig.from_optim_args(row["setting"]).to_dict()
            optimizer = adafisher_hf.AdaFisherW(model, **knobs)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        skipped = "step" if row["setting"] == "AdamW" else None
        tensors = [value for state in optimizer.state.values() for key, value in state.items() if key != skipped]
        assert row["bytes"] == sum(value.nbytes for value in tensors)
        assert row["per_parameter"] == row["bytes"] / model.num_parameters()


def test_memory_prints_a_table_and_refuses_wrong_options(folder, capsys):
    assert main(["coverage", str(folder), "--memory"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "optimizer state" and lines[1].endswith(" 8.00")
    assert main(["coverage", str(folder), "--memory", "--optim_args", "gama=1"]) == 1
    assert "did you mean 'gamma'" in capsys.readouterr().err


def test_coverage_follows_architectures_task_and_config(tmp_path, capsys):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=11)

    def names(*options):
        return {row["name"] for row in coverage_json(capsys, tmp_path, *options)["parameters"]}

    config.save_pretrained(tmp_path)
    assert "cls.predictions.bias" in names()
    config.architectures = ["BertForTokenClassification"]
    config.save_pretrained(tmp_path)
    assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= names()
    assert "classifier.weight" not in names("--task", "base")
    assert "qa_outputs.weight" in names("--task", "question-answering")


def test_an_encoder_decoder_is_taken_as_a_whole(capsys):
    names = {row["name"] for row in coverage_json(capsys, "bart")["parameters"]}
    assert "model.encoder.layers.0.fc1.weight" in names


def test_every_task_names_a_class_of_transformers():
    import transformers

    assert all(hasattr(transformers, name) for task, name in TASKS.items() if task != "auto")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("lama", [], "unknown model 'lama': give a checkpoint's folder, a config file, a model of the Hub that"),
        ("lama", [], "did you mean 'llama'?"),
        (
            "bert-base-uncased",
            [],
            "(this one is not), package.module:Class, or a class or model type of transformers (did you mean 'bert'?)",
        ),
        ("gpt2-medium", [], "did you mean 'gpt2'?"),
        ("some/where/else", [], "unknown model 'some/where/else'"),
        ("nothing-like-it", [], "such as gpt2, llama, bert, t5, vit; all: "),
        ("detr", [], "cannot build 'detr': ImportError: TimmBackbone requires the timm library"),
        (".", [], "no config.json in the folder '.'"),
        ("vit", ["--task", "causal-lm"], "cannot build 'vit' for the task 'causal-lm'"),
    ],
)
def test_unknown_models_get_one_line(tmp_path, monkeypatch, capsys, model, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["coverage", model, *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("adafisher-hf: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("name", ["gpt2-small", "someone/gpt2-small"])
def test_a_name_stands_for_the_config_that_was_downloaded(tmp_path, monkeypatch, capsys, name):
    """Also where the user before the name is left out, as in the names of the first models."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--gpt2-small"
    write(repo / "refs/main", "abc")
    (repo / "snapshots/abc").mkdir(parents=True)
    small_gpt2().save_pretrained(repo / "snapshots/abc")
    expected = adafisher_hf.coverage(GPT2LMHeadModel(small_gpt2()))
    content = coverage_json(capsys, name)
    assert content["parameters"] == json.loads(json.dumps([row._asdict() for row in expected]))


@pytest.mark.slow
def test_every_model_type_is_built_or_says_why_not():
    from transformers import CONFIG_MAPPING

    from adafisher_hf.cli.errors import CommandError

    silent = []
    for kind in sorted(CONFIG_MAPPING.keys()):
        try:
            build_on_meta(kind, "auto")
        except CommandError as error:
            reason = str(error).partition("Error: ")[2]
            silent += [] if reason.strip() else [kind]
    assert silent == []


def test_a_reader_that_stops_early_is_no_error(folder):
    command = f"{sys.executable} -m adafisher_hf coverage {folder} | true; exit ${{PIPESTATUS[0]}}"
    got = run("-c", command, python=["bash"])
    assert (got.returncode, got.stderr) == (0, "")


# launchers

RANKS = """
import sys, torch, torch.distributed as dist
from transformers import HfArgumentParser, TrainingArguments
args, = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
args.device
ranks = torch.tensor([args.process_index])
dist.all_reduce(ranks)
open(f"{args.output_dir}/{args.process_index}", "w").write(
    f"{dist.get_backend()} {dist.get_world_size()} {int(ranks)} {args.optim.value} {__name__}"
)
dist.destroy_process_group()
sys.exit(3 if args.seed == 3 else 0)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


TORCHRUN = "torch.distributed.run --nproc_per_node=2 --master_port=PORT"
ACCELERATE = (
    "accelerate.commands.launch --multi_gpu --num_machines=1 --num_processes=2 --main_process_port=PORT"
    " --mixed_precision=no --dynamo_backend=no"
)


@pytest.mark.parametrize(("launcher", "seed"), [(TORCHRUN, 2), (ACCELERATE, 3)], ids=["torchrun", "accelerate"])
def test_launchers_run_a_script_on_two_processes(tmp_path, launcher, seed):
    script = write(tmp_path / "train.py", RANKS)
    options = ["--output_dir", tmp_path, "--use_cpu", "--optim", "adafisherw", "--seed", seed]
    launch = launcher.replace("PORT", str(free_port())).split()
    got = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "adafisher_hf", "run", *map(str, [script, *options])],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (got.returncode == 0) == (seed == 2), got.stderr
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text() == "gloo 2 1 adafisherw __main__"
