"""Recipes: their checks, skipping of finished steps, failure and resuming, the report at the end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from common import cli, registry
from common.errors import UserError
from common.reproduce import command, release, runner
from common.reproduce import recipe as recipes
from common.reproduce.run_command import run_command

COUNT = """{python} -c 'import pathlib, sys; f = pathlib.Path(sys.argv[1]); f.parent.mkdir(parents=True, exist_ok=True);
f.write_text((f.read_text() if f.exists() else "") + "x"); print("ran", f.name)' """


def recipe_text(second: str = COUNT + "{out}/two") -> str:
    return f'''
title = "A toy"
[published]
data = "nothing"
[[published.rows]]
name = "Toy"
accuracy = {{ SVT = 90.0 }}
[smoke]
note = "a moment"
corpus = """{{python}} -c 'import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(parents=True)' {{data}}"""
[[smoke.steps]]
name = "one"
run = """{COUNT}{{out}}/one"""
outputs = ["{{out}}/one"]
[[smoke.steps]]
name = "two"
run = """{second}"""
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy's recipe, taken for the only project; outputs go below it."""
    root = tmp_path / "a root"
    root.mkdir()
    path = root / "recipe.toml"
    path.write_text(recipe_text())
    monkeypatch.setattr(recipes, "recipe_path", lambda name: path)
    monkeypatch.setattr(registry, "project_module", lambda project, module: None)
    monkeypatch.setattr(runner, "ROOT", root)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    return root


def run(*flags: str) -> int:
    return cli.main(["reproduce", "toy", "--scale", "smoke", *flags])


def counts(root: Path) -> tuple[int, int]:
    out = root / "outputs" / "toy" / "smoke"
    return tuple(len((out / name).read_text()) if (out / name).exists() else 0 for name in ("one", "two"))


def test_steps_run_once_and_the_report_is_written(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    assert "[1/3] corpus" in out and "| ran one" in out and "report.html" in out
    assert run() == 0 and counts(project) == (1, 1)
    page = (project / "outputs" / "toy" / "smoke" / "report.html").read_text("utf-8")
    assert "A toy" in page and "synthetic corpus" in page and "commit" in page
    assert cli.main(["report", str(project / "outputs")]) == 0


def test_a_changed_command_runs_with_what_follows(project: Path) -> None:
    assert run() == 0
    (project / "recipe.toml").write_text(recipe_text(COUNT + "{out}/two --again"))
    assert run() == 0 and counts(project) == (1, 2)
    (project / "outputs" / "toy" / "smoke" / "one").unlink()
    assert run() == 0 and counts(project) == (1, 3)
    assert run("--fresh") == 0 and counts(project) == (1, 1)
    assert len(list((project / "outputs" / "toy").glob("smoke-until-*"))) == 1


def test_a_dry_run_does_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dry-run") == 0 and counts(project) == (0, 0)
    assert "outputs/toy/smoke/two" in capsys.readouterr().out


def test_a_failed_step_says_how_to_go_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "recipe.toml").write_text(recipe_text("{python} -c 'raise SystemExit(3)'"))
    assert run() == 2
    error = capsys.readouterr().err
    assert "step two" in error and "status 3" in error and "strlab reproduce toy --scale smoke" in error
    (project / "recipe.toml").write_text(recipe_text())
    assert run() == 0 and counts(project) == (1, 1)


def test_own_data_is_used_and_named(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "my words"
    data.mkdir()
    assert run("--data", str(data)) == 0
    assert "corpus" not in capsys.readouterr().out
    assert run("--data", str(tmp_path / "absent")) == 2


@pytest.mark.parametrize("text, words", [
    ("title = [", "not valid TOML"),
    ("surprise = 1", "unknown key 'surprise'"),
    ("[smoke]\nsteps = [{ name = 'a' }]", "`name` and `run` are needed"),
    ("[smoke]\nsteps = [{ name = 'a', run = '{where}' }]", "unknown placeholder {where}"),
    ("[smoke]\nsteps = [{ name = 'a', run = 'x' }, { name = 'a', run = 'y' }]", "the same name"),
    ("[smoke]\nsteps = []\nspeed = 1", "unknown key 'speed'"),
])  # fmt: skip
def test_a_faulty_recipe_is_refused_in_words(project: Path, text: str, words: str) -> None:
    (project / "recipe.toml").write_text(text)
    with pytest.raises(UserError, match=words.replace("{", "\\{").replace("}", "\\}")):
        recipes.load("toy")


def test_an_unknown_scale_names_those_that_are_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "toy", "--scale", "paper"]) == 2
    assert "it has smoke" in capsys.readouterr().err


def test_blanks_in_paths_do_no_harm() -> None:
    values = {"data": "a b", "python": "py", "strlab": "py\n-m\ncommon.cli"}
    assert recipes.command_line("{strlab} eval --data {data}/x # note", values) == [
        "py",
        "-m",
        "common.cli",
        "eval",
        "--data",
        "a b/x",
    ]


@pytest.mark.parametrize("name", sorted(registry.project_modules()))
def test_the_recipes_of_the_projects_are_well_formed(name: str) -> None:
    if not recipes.recipe_path(name).is_file():
        pytest.skip(f"{name} has no recipe yet")
    recipe = recipes.load(name)
    for scale_name, scale in recipe.scales.items():
        steps = runner.Runner(recipe, scale_name, scale, Path("out"), None if scale.corpus else Path())
        assert all(words for _, words, _, _ in steps.plan())


def test_a_terminated_command_is_heard_out(tmp_path: Path) -> None:
    """What it says at the end, saving its state, is more than the pipe holds."""
    child = (
        "import signal, sys, time\n"
        "def leave(*_):\n signal.alarm(300); print('x' * 300_000 + ' saved'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave); print('ready', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"

    def terminate() -> None:
        while not log.exists() or b"ready" not in log.read_bytes():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        threading.Thread(target=terminate, daemon=True).start()
        with pytest.raises(SystemExit):
            run_command([sys.executable, "-c", child], tmp_path, log)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert log.read_bytes().rstrip().endswith(b"saved")


def test_variants_of_the_paper_scale_and_start_weights(project: Path, tmp_path: Path, capsys) -> None:
    """`paper-NAME` is a scale of its own; `--pretrained` reaches the commands and is refused where none takes it."""
    path = project / "recipe.toml"
    table = (
        '[paper-big]\ncorpus = "true"\n[[paper-big.steps]]\nname = "train"\nrun = "train --pretrained {pretrained}"\n'
    )
    path.write_text(recipe_text() + table)
    words = ["reproduce", "toy", "--dry-run", "--scale"]
    assert cli.main([*words, "paper-big"]) == 0
    assert "train --pretrained auto" in capsys.readouterr().out
    weights = tmp_path / "deit base.pth"
    weights.write_bytes(b"")
    assert cli.main([*words, "paper-big", "--pretrained", str(weights)]) == 0
    assert f"train --pretrained '{weights}'" in capsys.readouterr().out
    assert cli.main([*words, "smoke", "--pretrained", str(weights)]) == 2
    assert "smoke of toy has no use for start weights" in capsys.readouterr().err
    assert cli.main([*words, "paper-big", "--pretrained", "missing.pth"]) == 2
    assert "--pretrained: missing.pth does not exist" in capsys.readouterr().err
    assert cli.main([*words, "paper-small"]) == 2
    assert "has no scale 'paper-small'; it has smoke, paper-big" in capsys.readouterr().err


RELEASE = f'''
[release]
[[release.steps]]
name = "train {{seed}}"
run = """{COUNT}{{out}}/run-{{seed}} --steps {{images/32}}"""
outputs = ["{{out}}/run-{{seed}}"]
[[release.steps]]
name = "compare"
run = """{COUNT}{{out}}/all A={{out}}/run-{{seed}}"""
'''


def test_the_release_scale_repeats_steps_for_every_seed(project: Path, capsys, monkeypatch) -> None:
    corpus = "{python} -c 'import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(parents=True)' {data} {images}"
    for name, words in release.WORDS.items():
        monkeypatch.setitem(
            release.WORDS, name, replace(words, corpus=corpus.replace("{images}", f"{{images}} {name}"))
        )
    monkeypatch.setattr(recipes.release, "SEEDS", (1, 2))
    (project / "recipe.toml").write_text(recipe_text() + RELEASE)
    words = ["reproduce", "toy", "--scale", "release"]
    assert cli.main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "train 1" in out and "train 2" in out and "--steps 31250" in out and " 1000000" in out
    assert "A=outputs/toy/release/run-1 A=outputs/toy/release/run-2" in out
    assert cli.main([*words, "--images", "3200"]) == 0
    folder = project / "outputs" / "toy" / "release-3200"
    assert {p.name for p in folder.iterdir()} >= {"run-1", "run-2", "all", "report.html"}
    about = json.loads((folder / "about.json").read_text())
    assert about["images_seen"] == 3200 and "rendered" in about["data"]
    capsys.readouterr()
    assert cli.main([*words, "--images", "3200"]) == 0
    assert capsys.readouterr().out.count("finished before") == 4
    assert cli.main([*words, "--words", "numbers"]) == 0  # another corpus, another folder
    other = json.loads((folder.with_name("release-numbers") / "about.json").read_text())
    assert "numbers" in other["data"] and other["data"] != about["data"]
    assert cli.main(["reproduce", "toy", "--scale", "smoke", "--images", "3200"]) == 2
    assert cli.main(["reproduce", "toy", "--scale", "smoke", "--words", "numbers"]) == 2
    assert cli.main([*words, "--images", "10"]) == 2 and cli.main([*words, "--data", str(project)]) == 2


@pytest.mark.parametrize("key", ["corpus = 'x'", "seeds = [1]", "images = 5"])
def test_a_recipe_cannot_have_a_release_budget_of_its_own(project: Path, key: str) -> None:
    (project / "recipe.toml").write_text(recipe_text() + RELEASE.replace("[release]\n", f"[release]\n{key}\n"))
    with pytest.raises(UserError, match="unknown key"):
        recipes.load("toy")


def test_a_step_computes_with_the_threads_of_its_scale(tmp_path: Path) -> None:
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['OMP_NUM_THREADS'])"
    run_command([sys.executable, "-c", code, str(tmp_path / "said")], tmp_path, tmp_path / "log", threads=1)
    assert (tmp_path / "said").read_text() == "1"


@pytest.mark.parametrize("corpus, images, batch", [("full", 1_000_000, 32), ("numbers", 8_000, 8)])
def test_every_reader_of_the_release_scale_has_three_seeds_and_the_same_budget(corpus, images, batch) -> None:
    corpora = set()
    for name in ("siga", "mgpstr", "dig", "ssm"):
        recipe = recipes.load(name)
        scale = replace(recipe.scales["release"], **release.budget(corpus, images))
        plan = runner.Runner(recipe, "release", scale, Path("out"), None).plan()
        corpora.add(tuple(plan[0][1][3:]))
        seeds = Counter(step.rpartition(" seed ")[0] for step, *_ in plan if " seed " in step)
        assert seeds and set(seeds.values()) == {3}, name
        for step, words, *_ in plan:
            text = " ".join(words).replace("=", " ").split()
            steps = [
                text[i + 1] for i, word in enumerate(text) if word in ("--num_iter", "--batch_size", "model.batch_size")
            ]
            assert set(steps) <= {str(batch), str(images // batch)}, (name, step)
            assert steps or not {"train", "finetune", "scratch", "pretrain"} & set(step.split()), (name, step)
        compared = next(words for step, words, *_ in plan if step == "compare")
        assert sum("=" in word for word in compared) == sum(seeds.values())
    assert len(corpora) == 1


def test_the_hint_keeps_the_output_folder(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "recipe.toml").write_text(recipe_text(second="{python} -c 'raise SystemExit(3)'"))
    out = tmp_path / "else where"
    assert run("--out", str(out)) == 2
    assert f"continue with `strlab reproduce toy --scale smoke --out '{out}'`" in capsys.readouterr().err
    assert run() == 2 and "--out" not in capsys.readouterr().err


def test_the_gpu_scale_needs_a_gpu_before_anything_is_rendered(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "recipe.toml").write_text(recipe_text().replace("[smoke]", "[gpu]").replace("smoke.steps", "gpu.steps"))
    monkeypatch.setattr(command, "default_device", lambda: "cpu")
    assert cli.main(["reproduce", "toy", "--scale", "gpu"]) == 2
    assert "--scale gpu: no CUDA device can be used here; take --scale cpu" in capsys.readouterr().err
    assert not (project / "data").exists() and not (project / "outputs").exists()
