"""The command line: exit codes, one line per mistake, and no torch where none is needed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from roots.cli.main import main
from roots.errors import RootsError
from tests.helpers.command import run_roots
from tests.helpers.runs import VOCAB_SIZE, write_dataset

TINY = "model: {hidden_size: 32, num_layers: 2, num_heads: 4, sequence_length: 16}\n"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_show_prints_the_resolved_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.yaml", TINY)
    assert call("config", "show", path, "training.seed=77", "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["training"]["seed"], tree["model"]["num_layers"]) == (77, 2)


def test_schema_describes_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("config", "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"model", "parallel", "training", "data"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_schema_checks_the_config_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.yaml", TINY)
    assert call("config", "schema", path, "training.steps=3") == 0
    assert "properties" in json.loads(capsys.readouterr().out)
    assert call("config", "schema", path, "training.steps=0") == 2
    assert capsys.readouterr().err.startswith("roots: error: training.steps=0: ")


def test_deepspeed_prints_the_engines_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.yaml", TINY)
    wishes = ["training.precision=fp16", "parallel.tensor=2", "loss_scale.window=50"]
    assert call("config", "deepspeed", path, *wishes, "--world-size", "4") == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["fp16"]["loss_scale_window"] == 50
    assert (tree["train_batch_size"], tree["gradient_accumulation_steps"]) == (32, 2)


def test_mistakes_are_lines_on_stderr_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.yaml", TINY + "trainning: {}\nparallel: {tensor: zwei}\n")
    assert call("train", path, "data.train=x") == 2
    assert capsys.readouterr().err.splitlines() == [
        "roots: error: parallel.tensor='zwei': input should be a valid integer, unable to parse "
        "string as an integer; give tensor-parallel ranks (Shoeybi et al. 2019) (default 1)",
        "roots: error: trainning={}: unknown key; did you mean training?",
    ]


def test_train_without_data_says_how_to_make_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", write(tmp_path / "c.yaml", TINY)) == 2
    assert capsys.readouterr().err == (
        "roots: error: data.train=[]: must name at least one dataset; "
        "set data.train to the prefix that `roots preprocess --out PREFIX` wrote\n"
    )


def test_train_reports_config_data_and_batch_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    path = write(tmp_path / "c.yaml", TINY)
    assert call("train", path, "optimizer.beta1=2", "parallel.pipeline=9", "training.sed=1") == 2
    starts = [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert starts == [
        "training.sed=1",
        "optimizer.beta1=2",
        "parallel.pipeline=9",
        "data.train=[]",
        "world size=3",
    ]


@pytest.mark.parametrize(("times", "command"), [(1, "verify"), (2, "train")])
def test_keyboard_that_ends_a_command_is_told_and_exits_130(
    times: int, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run takes the first for a request to stop, from its beginning on."""

    def interrupted(*_: object, **__: object) -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("roots.config.load_config", interrupted)
    # A suite that was started in the background is deaf to it, and so would this be.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert call(command, "c.yaml") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == (
        "roots: interrupted by the keyboard, ended at once; what was not finished is not kept\n"
    )


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_debug_shows_the_traceback_wherever_it_stands(place: int, tmp_path: Path) -> None:
    words = ["train", write(tmp_path / "c.yaml", TINY), "training.steps=0"]
    words.insert(place, "--debug")
    with pytest.raises(RootsError, match=r"^training\.steps=0"):
        main(words)


@pytest.mark.parametrize("option", ["--local_rank=1", "--local-rank=1"])
def test_train_takes_the_rank_that_a_launcher_adds(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.yaml", TINY)
    assert call("train", option, path, "data.train=x", "training.steps=0") == 2
    assert capsys.readouterr().err.startswith("roots: error: training.steps=0: ")


def test_current_folder_that_was_removed_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert call("train", "c.yaml") == 2
    assert capsys.readouterr().err == (
        "roots: error: current folder: cannot be used (No such file or directory); "
        "change to a folder that is there\n"
    )


def test_unknown_option_is_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--bogus", write(tmp_path / "c.yaml", TINY)) == 2
    assert "No such option: --bogus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trane"], "No such command 'trane'"),
        (["checkpoint", "prune"], "Missing argument 'run'; see `roots checkpoint prune --help`"),
        (
            ["checkpoint", "prune", "x", "--keep-last", "0"],
            "--keep-last='0': must be at least 1; see `roots checkpoint prune --help`",
        ),
        (
            ["generate", "x", "--temperature=warm"],
            "--temperature='warm': must be a number; see `roots generate --help`",
        ),
        (["info", "--json=3"], "Option '--json' does not take a value; see `roots info --help`"),
        (
            ["checkpoint", "prune", "x", "--keep-last"],
            "Option '--keep-last' requires an argument; see `roots checkpoint prune --help`",
        ),
        (["info", "more"], "Got unexpected extra argument(s) (more); see `roots info --help`"),
    ],
)
def test_words_that_no_command_takes_are_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"roots: error: {line}")


@pytest.mark.parametrize("words", [[], ["checkpoint"]])
def test_a_group_without_words_shows_its_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    assert "Usage: " in "".join(capsys.readouterr())


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from roots.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'deepspeed' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ("missing", "data.train[0].prefix: {prefix}.idx: no such file; check data.train"),
        ("vocabulary", "{prefix} token id={largest}: model.vocab_size is 50, so ids go"),
        ("batch", "training.global_batch_size=9: must be a multiple of"),
    ],
)
def test_training_that_cannot_start_exits_2_in_lines(
    damage: str, line: str, tmp_path: Path
) -> None:
    """In a process of its own, one of them started as a launcher does."""
    prefix = write_dataset(tmp_path / "data")
    if damage == "missing":
        (tmp_path / "data.idx").unlink()
    vocabulary = 50 if damage == "vocabulary" else VOCAB_SIZE
    batch = 9 if damage == "batch" else 8
    path = write(tmp_path / "c.yaml", TINY)
    words = [
        f"data.train={prefix}",
        "data.split=1,1,0",
        f"model.vocab_size={vocabulary}",
        f"training.global_batch_size={batch}",
        f"run.directory={tmp_path / 'runs'}",
    ]
    if damage == "missing":
        command = [sys.executable, "-m", "roots.cli.main", "train", path, *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    else:
        result = run_roots("train", path, *words)
    errors = [text for text in result.stderr.splitlines() if text.startswith("roots: error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    assert line.format(prefix=prefix, largest=VOCAB_SIZE - 1) in errors[0], errors


def test_only_the_first_rank_tells_a_mistake_in_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "c.yaml", TINY + "trainning: {}\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert call("train", path, "data.train=x") == 2
        told.append(capsys.readouterr().err.splitlines())
    assert [len(lines) for lines in told] == [1, 0]
