"""What every command line has in common: the home folder, and refusals of one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from common.cli import build_parser
from common.errors import command
from common.flags import Flag, Parser, Table, at_home
from projects.siga.flags import parse_training
from projects.ssm.finetune import config as hydra_config
from projects.ssm.finetune.flags import evaluation_parser, parse_evaluation, parse_read
from projects.textssr.config import DIFFUSION_KEYS, read_config
from projects.textssr.flags import parse_infer
from tests.common.processes import run, torchrun

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


def test_values_that_begin_with_a_tilde(home: str) -> None:
    assert at_home("~/x") == f"{home}/x" and at_home("~") == home and at_home(Path("~/x")) == Path(home, "x")
    assert at_home(["~/a", "b", 3, None]) == [f"{home}/a", "b", 3, None]
    for text in ("~x", "a~/b", "", "~!@#"):
        assert at_home(text) == text


def test_flags_of_a_table_and_charsets(home: str) -> None:
    table = Table({"data": (Flag("--path"), Flag("--paths", nargs="+"), Flag("--character"))})
    words = ["--path=~/a", "--paths", "~/b", "~", "--character", "~/+"]
    values, _ = table.parse(words, "x.py", "")
    assert values == {"path": f"{home}/a", "paths": [f"{home}/b", home], "character": "~/+"}


def test_the_scripts(home: str) -> None:
    options, _ = parse_training(["--model_name", "TRBA", "--train_data=~/d", "--select_data", "MJ", "--output=~/o"])
    assert (options.train_data, options.output) == (f"{home}/d", f"{home}/o")
    o = parse_evaluation(["pretrained=~/a.ckpt", "--data_root=~/d"], evaluation_parser())
    assert (o.file, o.data_root) == (f"{home}/a.ckpt", f"{home}/d")
    assert parse_read(["~/a.ckpt", "--images", "~/x.png"])[:2] == (f"{home}/a.ckpt", [f"{home}/x.png"])
    assert parse_infer(["--data=~/x.json"], "").data == Path(home, "x.json")
    args = build_parser("read").parse_args(["read", "--checkpoint=~/a.pth", "~/x.png"])
    assert str(args.checkpoint) == f"{home}/a.pth" and str(args.images[0]) == f"{home}/x.png"


def test_textssr_configurations(home: str, tmp_path: Path) -> None:
    file = tmp_path / "c.py"
    base = ROOT / "projects/textssr/configs/train_diff_step1_cfg.py"
    file.write_text(base.read_text() + 'lmdb_path = "~/scenes"\n')
    config = read_config(file, DIFFUSION_KEYS, ["output_dir=~/out"])
    assert (config.lmdb_path, config.output_dir) == (f"{home}/scenes", f"{home}/out")


def test_values_of_hydra(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    hydra_config.start(lambda: None, ["data.root_dir=~/d", "hydra.run.dir='~/o'", "~model.x", "+a=x~/y"])
    assert sys.argv[1:] == [f"data.root_dir={home}/d", f"hydra.run.dir='{home}/o'", "~model.x", "+a=x~/y"]
    with initialize_config_dir(str(hydra_config.CONFIGS), version_base="1.2"):
        config = compose("main", ["+experiment=mdr-dec6-union", f"data.root_dir={home}/d", 'pretrained="~/p.ckpt"'])
    settled = hydra_config.settle(config)
    assert settled.pretrained == f"{home}/p.ckpt" and settled.data.root_dir == f"{home}/d"


def test_every_command_uses_the_parser() -> None:
    places = [p for folder in ("common", "projects") for p in (ROOT / folder).rglob("*.py") if p.name != "flags.py"]
    own = [str(p) for p in places if re.search(r"argparse\.ArgumentParser\(|import ArgumentParser", p.read_text())]
    assert not own, "use common.flags.Parser"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--pth", "x"],
            "error: unrecognized arguments: --pth x (did you mean --path?)",
        ),
        (["--steps", "many"], "error: --steps: invalid int value: 'many'"),
        (["--path"], "error: --path: expected one argument"),
    ],
)
def test_refusals_are_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture) -> None:
    parser = Parser("x.py")
    parser.add_argument("--path")
    parser.add_argument("--steps", type=int)
    with pytest.raises(SystemExit) as left:
        parser.parse_args(words)
    out = capsys.readouterr()
    assert left.value.code == 2 and out.err == f"{line}; `x.py --help` lists what it takes\n" and not out.out


def test_notices_come_from_the_first_process_only(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    table = Table({"": (Flag("--old", dead=True),)})
    table.parse(["--old", "1"], "x.py", "")
    assert capsys.readouterr().out == "no effect (accepted for compatibility): --old\n"
    monkeypatch.setenv("RANK", "1")
    table.parse(["--old", "1"], "x.py", "")
    assert not capsys.readouterr().out


def test_a_script_that_is_started_prints_one_line() -> None:
    command = [sys.executable, "projects/siga/train.py", "--model_name", "TRBA", "--batchsize", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: unrecognized arguments: --batchsize 3 (did you")
    assert done.stderr.count("\n") == 1


ALONE = """
import sys
from common.errors import UserError, command
from common.train.distributed import setup_distributed
@command
def main():
    dist = setup_distributed("cpu")
    if dist.rank == 1:
        raise UserError("only rank 1 has no data")
    dist.barrier()
sys.exit(main())
"""


def test_an_error_of_another_rank_alone_is_shown(tmp_path: Path) -> None:
    """Its printing is silenced, its errors are not."""
    (tmp_path / "alone.py").write_text(ALONE)
    done = run(*torchrun(), tmp_path / "alone.py")
    assert done.returncode and "error: only rank 1 has no data\n" in done.stderr, done.stderr


@pytest.mark.parametrize("words", [["--batch_size", "3"], ["--batch-size=3"], ["--batch_size=3"]])
def test_a_flag_with_other_dashes_is_the_same_flag(words: list[str]) -> None:
    args = build_parser("read").parse_args(["read", "x.png", *words])
    assert args.batch_size == 3 and args.images == ["x.png"]
    table = Table({"steps": (Flag("--valInterval --val_interval", int), Flag("--batch_size", int))})
    assert table.parse(["--val-interval", "4", "--batch-size=5"], "x.py", "")[0] == {"valInterval": 4, "batch_size": 5}
    parser = Parser()
    parser.add_argument("--max-side", type=int)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args(["--max_side", "7", "--", "--max_side"])
    assert args.max_side == 7 and args.names == ["--max_side"]


@pytest.mark.parametrize(
    "words, told",
    [
        (["read", "x.png", "--batchsize", "3"], "--batchsize 3 (did you mean --batch-size?); `strlab read --help`"),
        (["read", "x.png", "--csv"], "unrecognized arguments: --csv; `strlab read --help`"),
        (["raed", "x.png"], "invalid choice: 'raed' (did you mean read?); `strlab --help`"),
        (["data", "convert", "gtt"], "invalid choice: 'gtt' (did you mean gt?); `strlab data convert --help`"),
    ],
)
def test_a_mistyped_command_or_flag(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    from common import cli

    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_the_usage_of_many_flags_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (Flag("--data", required=True), *(Flag(f"--size{number}", int) for number in range(50)))
    with pytest.raises(SystemExit):
        Table({"data": flags}).parse(["--help"], "x.py", "Train.")
    text = capsys.readouterr().out
    assert text.startswith("usage: x.py --data VALUE [options]\n") and "--size7 N" in text


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
        MemoryError("Unable to allocate 7.3 TiB for an array"),
    ],
)
def test_memory_that_does_not_suffice_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def train() -> None:
        raise error

    assert train() == 2
    text = capsys.readouterr().err
    assert text.startswith(f"error: out of memory ({str(error)[:40]}") and "make the batch smaller" in text
    assert text.count("\n") == 1


def test_other_errors_of_torch_keep_their_traceback() -> None:
    @command
    def train() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train()


def test_near_names_of_a_configuration_are_of_its_kind_and_each_once() -> None:
    told = hydra_config.one_line("In 'main': Could not find 'experiment/parsek'")
    near = told.partition("near names: ")[2].split(", ")
    assert near[0] == "parseq" and len(set(near)) == len(near) and "main" not in near
