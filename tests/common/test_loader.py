"""Samplers that resume exactly, ratio mixing, and batches that no worker count changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from common.data.bad import BadSamples
from common.data.loader import RatioMix, SeededSampler, reading_loader, word_loader
from common.data.words import WordDataset
from common.errors import UserError
from tests.common.compare import same
from tests.common.lmdbs import write_words
from tests.common.test_words import roll


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = write_words(tmp_path_factory.mktemp("words") / "x", [f"w{i}" for i in range(50)], broken=[7, 31], masks=True)
    return WordDataset([path], image_size=(8, 16), augment=roll)


def run(dataset, sampler, batches: int, workers: int = 0, endless: bool = True, **options) -> list:
    loader = word_loader(dataset, sampler, workers, endless=endless, bad=BadSamples(50, limit=1.0), **options)
    seen = []
    for batch in loader:
        seen.append((batch.images.clone(), batch.labels, batch.indices.tolist()))
        if len(seen) == batches:
            break
    return seen


def test_an_epoch_is_a_permutation_and_epochs_differ():
    sampler = SeededSampler(10, 3, seed=5)
    first, second = list(sampler), list(sampler)
    assert [len(batch) for batch in first] == [3, 3, 3, 1] and sampler.epoch == 2
    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second)) == list(range(10))
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()
    assert len(SeededSampler(10, 3, drop_last=True)) == 3
    plain = SeededSampler(5, 2, shuffle=False)
    assert np.concatenate(list(plain)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_an_epoch(world):
    def of_ranks(**options):
        return [np.concatenate(list(SeededSampler(10, 2, 1, rank, world, **options))) for rank in range(world)]

    even = of_ranks()
    assert len({len(part) for part in even}) == 1 and set(np.concatenate(even)) == set(range(10))
    assert sorted(np.concatenate(of_ranks(even=False, shuffle=False))) == list(range(10))
    dropped = np.concatenate(of_ranks(drop_last=True))
    assert len(set(dropped)) == len(dropped)


def test_more_ranks_than_samples():
    parts = [np.concatenate(list(SeededSampler(2, 2, 0, rank, 5))) for rank in range(5)]
    assert [len(part) for part in parts] == [1] * 5
    with pytest.raises(UserError, match="fill no batch"):
        SeededSampler(3, 4, drop_last=True)


def test_every_word_is_read_once_by_one_of_the_ranks(dataset):
    loaders = [reading_loader(dataset, 4, rank=rank, world_size=3) for rank in range(3)]
    seen = [[int(index) for batch in loader for index in batch.indices] for loader in loaders]
    assert all(part == sorted(part) for part in seen)
    assert sorted(index for part in seen for index in part) == [index for index in range(50) if index not in (7, 31)]
    assert sum(len(loader.bad) for loader in loaders) == 2
    idle = reading_loader(dataset, 4, workers=2, rank=50, world_size=51)
    assert len(idle) == 0 and list(idle) == []


def test_state_is_plain_and_exact():
    sampler = SeededSampler(23, 4, seed=9)
    batches = [next(iter(sampler)).tolist() for _ in range(15)]
    for taken in range(15):
        before = SeededSampler(23, 4, seed=9)
        for _ in range(taken):
            next(iter(before))
        after = SeededSampler(23, 4, seed=9)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert [next(iter(after)).tolist() for _ in range(15 - taken)] == batches[taken:]


@pytest.mark.parametrize("change", [{"n": 24}, {"batch_size": 5}, {"seed": 1}, {"world_size": 2}, {"shuffle": False}])
def test_state_of_another_run_is_refused(change):
    state = SeededSampler(23, 4).state_dict()
    with pytest.raises(UserError, match=f"sampler {next(iter(change))} was"):
        SeededSampler(**({"n": 23, "batch_size": 4} | change)).load_state_dict(state)


def test_workers_and_start_method_change_nothing(dataset):
    expected = run(dataset, SeededSampler(len(dataset), 6, seed=2), 20)
    assert {len(batch[1]) for batch in expected} >= {5, 6}  # a bad sample makes its batch shorter
    for workers, method in ((1, "fork"), (3, "fork"), (2, "spawn")):
        sampler = SeededSampler(len(dataset), 6, seed=2)
        same(expected, run(dataset, sampler, 20, workers, start_method=method), f"{workers} {method}")


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch_is_exact(dataset, workers):
    expected = run(dataset, SeededSampler(len(dataset), 6, seed=2), 25)
    sampler = SeededSampler(len(dataset), 6, seed=2)
    head = run(dataset, sampler, 11, workers)
    resumed = SeededSampler(len(dataset), 6, seed=2)
    resumed.load_state_dict(sampler.state_dict())
    assert (resumed.epoch, resumed.position) == (1, 2)
    same(expected, head + run(dataset, resumed, 14, workers))


def test_epoch_by_epoch_equals_endless(dataset):
    sampler = SeededSampler(len(dataset), 6, seed=2)
    loader = word_loader(dataset, sampler, 1, bad=BadSamples(50, limit=1.0))
    seen = [(b.images.clone(), b.labels, b.indices.tolist()) for _ in range(2) for b in loader]
    assert len(loader) == 9 and sampler.epoch == 2
    same(seen, run(dataset, SeededSampler(len(dataset), 6, seed=2), len(seen)))


def test_torch_random_state_is_untouched(dataset):
    before = torch.random.get_rng_state()
    run(dataset, SeededSampler(len(dataset), 6), 3)
    run(dataset, SeededSampler(len(dataset), 6), 3, 1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_batch_of_nothing_but_bad_samples_is_passed_over(dataset, tmp_path):
    path = write_words(tmp_path / "x", list("abcdef"), broken=[2, 3])
    loader = word_loader(WordDataset([path]), SeededSampler(6, 2, shuffle=False), bad=BadSamples(6, limit=1.0))
    assert [batch.labels for batch in loader] == [["a", "b"], ["e", "f"]]
    assert [bad.number for bad in loader.bad.rows()] == [3, 4] and loader.sampler.epoch == 1


def test_too_many_bad_samples_stop(dataset):
    loader = word_loader(dataset, SeededSampler(len(dataset), 10), workers=1)
    with pytest.raises(UserError, match=r"of 50 samples cannot be read, more than 1.0%"):
        list(loader)


def test_user_errors_of_workers_stay_one_line(tmp_path):
    path = write_words(tmp_path / "x", list("abcd"))
    dataset = WordDataset([path])
    path.joinpath("data.mdb").unlink()
    for words in dataset.lmdbs:
        words.close()
    with pytest.raises(UserError, match=r"no data\.mdb") as caught:
        list(word_loader(dataset, SeededSampler(4, 2), workers=1))
    assert "\n" not in str(caught.value)


def test_ratio_mix_shares_and_order():
    mix = RatioMix([30, 20, 5], [0.5, 0.45, 0.001], 10, seed=3)
    assert mix.shares == [5, 4, 1] and mix.batch_size == 10  # round(4.5) is 4: banker's rounding
    batches = [next(iter(mix)) for _ in range(30)]
    for batch in batches:
        assert ((batch < 30) == (np.arange(10) < 5)).all() and batch[-1] >= 50
    first = np.concatenate([batch[:5] for batch in batches[:6]])
    second = np.concatenate([batch[:5] for batch in batches[6:12]])
    assert sorted(first) == sorted(second) == list(range(30)) and first.tolist() != second.tolist()
    for sizes, ratios in (([3], [0.5, 0.5]), ([3, 0], [0.5, 0.5])):
        with pytest.raises(UserError):
            RatioMix(sizes, ratios, 4)


def test_ratio_mix_resumes_and_uses_part(dataset):
    expected = run(dataset, RatioMix([30, 20], [0.5, 0.5], 8, seed=1, usage=0.5), 30)
    assert all(i < 15 or 30 <= i < 40 for batch in expected for i in batch[2])
    mix = RatioMix([30, 20], [0.5, 0.5], 8, seed=1, usage=0.5)
    head = run(dataset, mix, 13, 2)
    again = RatioMix([30, 20], [0.5, 0.5], 8, seed=1, usage=0.5)
    again.load_state_dict(mix.state_dict())
    same(expected, head + run(dataset, again, 17, 1))
    with pytest.raises(ValueError, match="no end"):
        list(mix.requests(endless=False))
