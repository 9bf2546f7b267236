"""Cached decoding equals plain re-computation; beam search finds what brute force finds."""

from __future__ import annotations

import itertools

import pytest
import torch

from projects.dig.bench import recompute
from projects.dig.model.beam import beam_search
from projects.dig.model.decoder import DecoderSize
from projects.dig.model.encoder import Encoder, EncoderSize
from projects.dig.model.recogniser import AttnRecModel, RecModel

SMALL = EncoderSize(32, 2, depth=2, patch=8)


def model(classes: int = 97, max_len: int = 9, **options) -> RecModel:
    torch.manual_seed(3)
    built = RecModel(Encoder(SMALL), DecoderSize(2, 32, 4, 8, 64), classes, max_len, **options)
    with torch.no_grad():
        # far from uniform, so that an arg-max is not a matter of rounding
        built.decoder.classifier.weight.mul_(6)
        built.decoder.trg_word_emb.weight.mul_(3)
        built.decoder.classifier.bias[built.end] += 2
    return built.eval()


@pytest.mark.parametrize("options", [{}, {"conditioned": True}, {"one_row": True}])
def test_cached_decoding_equals_recomputation(options: dict) -> None:
    reader = model(**options)
    images = torch.rand(5, 3, 32, 128) * 2 - 1
    reading = reader.read(images, early_stop=False)
    memory = reader.memory(images)
    ids = recompute(reader, memory, reader.max_len)
    assert torch.equal(reading.ids, ids)
    inputs = torch.nn.functional.pad(ids[:, :-1], (1, 0), value=reader.classes)
    logits, _ = reader.decoder(memory, inputs, torch.full((5,), reader.max_len))
    torch.testing.assert_close(reading.scores, logits.softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recurrent", [False, True])
def test_early_stop_changes_nothing_up_to_the_end(recurrent: bool) -> None:
    reader = model(max_len=25)
    if recurrent:
        torch.manual_seed(0)
        reader = AttnRecModel(Encoder(SMALL), 97, 25).eval()
        with torch.no_grad():
            reader.decoder.decoder.fc.bias[reader.end] += 0.3
    images = torch.rand(4, 3, 32, 128) * 2 - 1
    stopped, full = reader.read(images, attention=True), reader.read(images, early_stop=False)
    for row in range(len(images)):
        ends = (full.ids[row] == reader.end).nonzero()
        until = int(ends[0]) + 1 if len(ends) else full.ids.shape[1]
        assert torch.equal(stopped.ids[row, :until], full.ids[row, :until])
        torch.testing.assert_close(stopped.scores[row, :until], full.scores[row, :until])
    assert stopped.maps.shape[0] == 4 and stopped.maps.shape[2] == 64


def test_early_stop_stops(monkeypatch) -> None:
    reader = model(max_len=25)
    with torch.no_grad():
        reader.decoder.classifier.bias[reader.end] += 1000
    steps = []
    decoding = reader.decoding
    monkeypatch.setattr(reader, "decoding", lambda *args, **more: steps.append(decoding(*args, **more)) or steps[0])
    assert (reader.read(torch.zeros(2, 3, 32, 128)).ids == reader.end).all()
    assert steps[0].caches[0].used == 1


def test_beam_search_finds_the_best_sequence() -> None:
    """With as many beams as prefixes it equals brute force over all sequences."""
    classes, length = 5, 3
    reader = model(classes=classes, max_len=length)
    images = torch.rand(2, 3, 32, 128) * 2 - 1
    memory = reader.memory(images)
    ids, scores = beam_search(reader, memory, width=classes**2)
    for row in range(2):
        one = memory[row : row + 1]
        chances = {tuple(s): probability(reader, one, s) for s in sequences(classes, length, reader.end)}
        best = max(chances, key=chances.get)
        assert tuple(ids[row, : len(best)].tolist()) == best
        assert scores[row].item() == pytest.approx(chances[best], abs=1e-4)


def sequences(classes: int, length: int, end: int) -> list[list[int]]:
    """All sequences that end, and all of full length that do not."""
    others = [c for c in range(classes) if c != end]
    ended = [[*p, end] for n in range(length) for p in itertools.product(others, repeat=n)]
    return ended + [list(p) for p in itertools.product(others, repeat=length)]


@torch.no_grad()
def probability(reader: RecModel, memory: torch.Tensor, sequence: list[int]) -> float:
    """log p of a sequence, by one teacher-forced pass."""
    ids = torch.tensor([[reader.classes, *sequence[:-1]]])
    logits, _ = reader.decoder(memory, ids, torch.tensor([len(sequence)]))
    return logits.log_softmax(-1)[0, torch.arange(len(sequence)), sequence].sum().item()


def test_beam_of_one_is_greedy() -> None:
    reader = model()
    images = torch.rand(3, 3, 32, 128) * 2 - 1
    greedy, (beam, _) = reader.read(images).ids, beam_search(reader, reader.memory(images), 1)
    for row in range(3):
        until = (greedy[row] == reader.end).nonzero()
        until = int(until[0]) + 1 if len(until) else reader.max_len
        assert torch.equal(greedy[row, :until], beam[row, :until])


def test_gradients_and_rows_do_not_depend_on_trimmed_columns() -> None:
    from projects.dig.model.losses import sequence_cross_entropy

    reader = model(max_len=25)
    images = torch.rand(2, 3, 32, 128) * 2 - 1
    targets, lengths = torch.randint(0, 90, (2, 25)), torch.tensor([4, 6])
    losses = [sequence_cross_entropy(reader(images, t, lengths).scores, t, lengths) for t in (targets, targets[:, :6])]
    torch.testing.assert_close(losses[0], losses[1])
