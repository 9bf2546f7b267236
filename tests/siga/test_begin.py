"""What a run of SIGA starts from: DeiT for T, the rectification's weights for R and S, the published initialisation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.reproduce import recipe
from common.train.checkpoint import save_atomic
from projects.siga import train
from projects.siga.flags import parse_training
from projects.siga.model.build import build_row, build_siga, init_published, start_model
from tests.siga.corpus import command, write_corpus

DEIT = "deit_base_patch16_224-b5f2ef4d.pth"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache of torch.hub; returns its folder of files."""
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def begin(words: list[str], start=None):
    o, _ = parse_training([*words, "--train_data", "data"])
    model = build_row(o.model_name, **o.build_options, freeze_tps=False)
    return model, *start_model(model, o.tps, o.pretrained, o.download, start)


def deit(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A file of DeiT's names and shapes for this model's encoder, with patches and positions of 16 x 16."""
    names = ("cls_token", "blocks.", "norm.")
    own = model.mgp_str.state_dict()
    state = {name: torch.full_like(value, 0.25) for name, value in own.items() if name.startswith(names)}
    width = own["cls_token"].shape[-1]
    more = {"patch_embed.proj.weight": torch.ones(width, 3, 16, 16), "pos_embed": torch.ones(1, 197, width)}
    return {**state, **more, "head.weight": torch.ones(1000, width), "head.bias": torch.ones(1000)}


def test_t_starts_from_deit_of_the_cache(no_cache: Path, monkeypatch) -> None:
    monkeypatch.setattr("common.models.pretrained.other_content", lambda path, file: "")
    words = ["--model_name", "SIGA_T"]
    model, lines, warnings = begin(words)
    assert lines == ["start: random weights"] and "the paper's figures cannot be reached this way" in warnings[0]
    assert begin([*words, "--pretrained", "none"])[2] == [], "none silences it"
    save_atomic(no_cache / DEIT, {"model": deit(model)})
    model, lines, warnings = begin(words)
    assert warnings == [] and f"DeiT-base from {no_cache / DEIT} (147 tensors loaded" in lines[0]
    net = model.mgp_str
    assert all((value == 0.25).all() for name, value in net.state_dict().items() if name.startswith("blocks."))
    assert (net.cls_token == 0.25).all() and (net.norm.bias == 0.25).all()
    assert not (net.patch_embed.proj.weight == 1).any() and not (net.pos_embed == 1).any()


def test_part_of_a_vit_is_refused(tmp_path: Path, no_cache: Path) -> None:
    model = build_siga("char_str_small")
    state = {name: value for name, value in deit(model).items() if not name.startswith("blocks.3.")}
    save_atomic(tmp_path / "part.pth", state)
    words = ["--model_name", "char_str_small", "--pretrained", str(tmp_path / "part.pth")]
    with pytest.raises(UserError, match=r"part\.pth.*blocks\.3"):
        begin(words)
    with pytest.raises(UserError, match="only T starts from a ViT"):
        begin(["--model_name", "TRBA_small", "--pretrained", str(tmp_path / "part.pth")])


def test_the_warning_is_in_every_log_and_the_metadata(corpus: Path, tmp_path: Path, monkeypatch, no_cache, capsys):
    monkeypatch.setattr("projects.siga.model.build.start_from", _absent)
    words = command(corpus, tmp_path, "char_str_small", "--num_iter", 1, "--save_interval", 1)
    assert train.main(words) == 0
    run = tmp_path / "saved_models" / "run-Seed1111"
    assert "WARNING: absent" in capsys.readouterr().out
    assert "WARNING: absent" in (run / "log_train.txt").read_text()
    assert json.loads((run / "iter_1.pth.json").read_text())["warnings"] == ["WARNING: absent"]
    assert train.main([*words, "--num_iter", "2", "--resume", "auto", "--allow_changes"]) == 0
    assert json.loads((run / "iter_2.pth.json").read_text())["warnings"] == ["WARNING: absent"], "kept on resuming"


def _absent(file, given, may_download):
    from common.models.pretrained import Start

    return Start(None, "start: random weights", "WARNING: absent")


def test_tps_of_a_whole_checkpoint_or_of_the_working_folder(tmp_path: Path, monkeypatch) -> None:
    """`--tps SIGA_R.pth` takes the rectification of a published checkpoint; ./TPS.pth is found as published."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    other = build_siga("TRBA")
    prefix = "model_one.Transformation."
    net = {f"module.{name}": value for name, value in other.state_dict().items()}
    save_atomic(tmp_path / "SIGA_R.pth", {"net": net, "iteration": 159_999})
    words = ["--model_name", "TRBA"]

    def frozen_and_equal(model) -> bool:
        own = dict(model.named_parameters())
        pairs = [(value, own[name]) for name, value in other.named_parameters() if name.startswith(prefix)]
        return all(not mine.requires_grad and torch.equal(theirs, mine) for theirs, mine in pairs)

    assert not frozen_and_equal(begin(words)[0])
    model, lines, _ = begin([*words, "--tps", "SIGA_R.pth"])
    assert frozen_and_equal(model) and lines == ["TPS: weights from SIGA_R.pth, frozen"]
    tps = {name.removeprefix("module."): value for name, value in net.items() if ".LocalizationNetwork." in name}
    save_atomic(tmp_path / "TPS.pth", tps)
    assert frozen_and_equal(begin(words)[0])
    assert not frozen_and_equal(begin([*words, "--tps", "none"])[0])


@pytest.mark.parametrize("name", ["TRBA", "TSBA"])
def test_published_initialisation_of_r_and_s(name: str) -> None:
    """By name: biases 0, weights of two and more dimensions normal with sqrt(2 / fan in), other weights 1."""
    torch.manual_seed(0)
    model = build_siga(name)
    init_published(model)
    kept = ("localization_fc2", "pos_embed")
    for parameter, value in model.named_parameters():
        if any(part in parameter for part in kept):
            continue
        if "bias" in parameter:
            assert not value.any(), parameter
        elif value.ndim >= 2:
            fan_in = value[0].numel()
            expected = math.sqrt(2 / fan_in)
            tolerance = 5 * expected / math.sqrt(2 * value.numel())
            assert abs(float(value.std()) - expected) < tolerance, (parameter, float(value.std()), expected)
            assert abs(float(value.mean())) < 5 * expected / math.sqrt(value.numel()), parameter
        else:
            assert (value == 1).all(), parameter


def test_published_initialisation_of_t() -> None:
    """The ViT truncated normal 0.02, the segmentation head's convolutions by fan out, norms 1 and 0."""
    torch.manual_seed(0)
    net = build_siga("SIGA_T").mgp_str
    for name, value in net.named_parameters():
        close = 5 / math.sqrt(2 * value.numel())
        if name.startswith("blocks.") and name.endswith("weight") and value.ndim == 2:
            assert float(value.std()) == pytest.approx(0.02, rel=close + 0.02), name
        elif name.startswith("blocks.") and "norm" not in name and name.endswith("bias"):
            assert not value.any(), name
        elif name.startswith("segmentation.") and value.ndim == 4 and "lstm" not in name:
            module = net.get_submodule(name.removesuffix(".weight"))
            if isinstance(module, torch.nn.Conv2d):
                expected = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
                assert float(value.std()) == pytest.approx(expected, rel=close), name


@pytest.mark.parametrize(
    ("scale", "model", "processes"),
    [("paper", "TRBA", 2), ("paper-s", "TSBA", 3), ("paper-t", "char_str_base_patch4_3_32_128", 3)],
)
def test_paper_scale_of_every_published_model(scale: str, model: str, processes: int, tmp_path: Path) -> None:
    """The commands parse, with the published number of processes; the start weights reach them."""
    values = {"data": str(tmp_path), "out": "out", "python": "python", "strlab": "strlab", "device": "cpu"}
    found = recipe.load("siga").scale(scale)
    train_step = next(step for step in found.steps if step.name == "train")
    words = recipe.command_line(train_step.run, {**values, "scale": scale, "pretrained": "SIGA_R.pth"})
    at = words.index("--nproc_per_node")
    assert words[at + 1] == str(processes)
    options, _ = parse_training(words[at + 3 :])
    assert options.model_name == model and found.model == f"siga/{model}"
    assert "SIGA_R.pth" in (options.pretrained, options.tps)
    assert options.batch_size == {"paper": 320, "paper-s": 288, "paper-t": 48}[scale]


def test_published_results_are_complete() -> None:
    rows = {row.name: row.accuracy for row in recipe.load("siga").published_rows}
    assert [rows[f"SIGA_{letter}"]["MPSC"] for letter in "RST"] == [65.6, 72.7, 72.0]
    assert [rows[f"SIGA_{letter}"]["ArbitText"] for letter in "RST"] == [66.0, 81.0, 71.7]
    assert rows["SIGA_T"]["WordArt"] == 73.7 and "COCOText" not in rows["SIGA_S"]
