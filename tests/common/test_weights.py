"""State dicts of trainers, partial loads with their table, and heads that change their character set."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.models.weights import ClassAxis, load_by_character, load_partial, load_strict, strip_prefix, unwrapped


class Reader(nn.Module):
    """Encoder blocks, a head and an embedding of the classes."""

    def __init__(self, classes: int = 3, width: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"patch_embed": nn.Linear(2, width), "blocks": nn.ModuleList(nn.Linear(width, width) for _ in range(depth))}
        )
        self.head = nn.Linear(width, classes)
        self.embedding = nn.Embedding(classes, width)


class Wrapped(nn.Module):
    """A model whose own names start with `model.`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Reader()


def encoder(name: str) -> bool:
    return name.startswith("encoder.")


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "module.model._orig_mod."],
)
@pytest.mark.parametrize("kind", [Reader, Wrapped])
def test_wrappers_in_any_nesting(prefix: str, kind: type) -> None:
    source, target = kind(), kind()
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    assert unwrapped(state, target.state_dict().keys()).keys() == target.state_dict().keys()
    load_strict(target, state)
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values()))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.model.", "model.module."])
def test_wrappers_where_the_names_are_not_known(prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in Reader().state_dict().items()}
    assert strip_prefix(state).keys() == Reader().state_dict().keys()
    assert "model.head.weight" in strip_prefix({"model.head.weight": 0, "other": 0})  # a part of the model itself


def test_a_compiled_part_and_a_rename() -> None:
    source, target = Reader(), Reader()
    state = {
        f"module.net.{name}".replace("encoder.", "encoder._orig_mod."): tensor
        for name, tensor in source.state_dict().items()
    }
    load_strict(target, state, lambda name: name.removeprefix("net.") if name.startswith("net.") else None)
    assert torch.equal(source.head.weight, target.head.weight)


def test_partial_load_shows_its_table() -> None:
    source, target, said = Reader(classes=5).state_dict(), Reader(), []
    report = load_partial(target, source, required=encoder, what="x.pth", say=said.append)
    assert [name for name in report.kept if not encoder(name)] == []
    assert report.shapes["head.weight"] == ((5, 4), (3, 4))
    assert "kept        6 tensors" in said[0] and "other shape: head.weight (5, 4), here (3, 4)" in said[0]


def test_a_load_that_misses_a_block_is_refused() -> None:
    """One tensor of fifty-three looked like success before."""
    source, target = Reader(depth=1).state_dict(), Reader(depth=2)
    before = target.state_dict()["encoder.blocks.0.weight"].clone()
    with pytest.raises(UserError, match=r"x\.pth: weights: 2 needed tensors do not fit \(encoder\.blocks\.1.*\n.*kept"):
        load_partial(target, source, required=encoder, what="x.pth")
    assert torch.equal(before, target.state_dict()["encoder.blocks.0.weight"])
    with pytest.raises(UserError, match="nothing fits"):
        load_partial(target, {"other": torch.zeros(1)}, required=lambda name: False)


def axes(before: str, after: str) -> list[ClassAxis]:
    tokens = [["[end]", *charset] for charset in (before, after)]
    return [ClassAxis(pattern, 0, *tokens) for pattern in ("head.*", "embedding.weight")]


def test_rows_move_by_character() -> None:
    source, target = Reader(classes=4), Reader(classes=5)
    fresh = target.head.weight.detach().clone()
    said: list[str] = []
    report = load_by_character(target, source.state_dict(), axes("abc", "京cbz"), required=encoder, say=said.append)
    assert report.tokens == (["[end]", "c", "b"], ["京", "z"], ["a"])
    assert torch.equal(target.head.weight[[0, 2, 3]], source.head.weight[[0, 3, 2]])
    assert torch.equal(target.head.bias[[0, 2, 3]], source.head.bias[[0, 3, 2]])
    assert torch.equal(target.embedding.weight[2], source.embedding.weight[3])
    assert torch.equal(target.head.weight[[1, 4]], fresh[[1, 4]])
    assert "new         2 characters  京 z" in said[0] and not report.missing


def test_the_same_number_of_characters_in_another_order_moves_too() -> None:
    source, target = Reader(classes=3), Reader(classes=3)
    load_by_character(target, source.state_dict(), axes("ab", "ba"), required=encoder, say=lambda text: None)
    assert torch.equal(target.head.weight, source.head.weight[[0, 2, 1]])


def test_a_charset_that_does_not_fit_the_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"head\.weight: 4 classes, but its character set makes 3"):
        load_by_character(Reader(classes=3), Reader(classes=4).state_dict(), axes("ab", "ab"), required=encoder)
