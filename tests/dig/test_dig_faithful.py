"""What DiG's goldens do not see: accuracy meter, draws of the frozen augmentation, names of published files, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.infer.recognizer import open_recognizer
from common.metrics.papers import dig_scores
from common.models.weights import add_prefix
from common.reproduce import recipe
from common.train.checkpoint import load
from projects.dig import flags_finetune, flags_pretrain, run_class_finetuning
from projects.dig.data import PairDataset
from projects.dig.finetune_method import augmentation
from projects.dig.model.recogniser import build_recogniser
from projects.dig.text import codec, equal_words
from tests.common.lmdbs import noise, write_words
from tests.dig.runs import finetune, write_corpus

MODEL = "simmim_vit_micro_patch8_32x128"


def test_class_acc_is_the_published_word_accuracy() -> None:
    """Case and symbols do not count, nor what follows the end; one wrong letter makes the whole word wrong."""
    words = codec("ALLCASES_SYMBOLS", 12)
    truth = ["Hello", "x-2!", "abc", "!", "ab", "ab"]
    reads = ["hELLo", "X2", "abd", "", "abc", "a"]
    wanted, found = torch.from_numpy(words.encode(truth)[0]), torch.from_numpy(words.encode(reads)[0])
    found[0, 7:] = 3  # after the end
    found[1, 3:], found[1, 2] = words.unknown, words.end
    found[5, 1:] = words.unknown  # "a" without an end, then nothing that counts
    equal = equal_words(found, wanted, words)
    assert equal.tolist() == [True, True, False, True, False, False]
    decoded = [row.text for row in words.decode(found.numpy())]
    assert float(equal.float().mean()) == pytest.approx(dig_scores(decoded, truth).accuracy)


def test_class_acc_agrees_with_the_decoded_strings_on_random_ids() -> None:
    words = codec("ALLCASES_SYMBOLS", 6)
    generator = torch.Generator().manual_seed(0)
    pool = torch.tensor([0, 10, 36, 62, 63, words.end, words.pad, words.unknown])  # 0 a A ! "
    found, wanted = (pool[torch.randint(len(pool), (4000, 6), generator=generator)] for _ in range(2))
    texts = [[row.text for row in words.decode(ids.numpy())] for ids in (found, wanted)]
    expected = [dig_scores([left], [right]).accuracy for left, right in zip(*texts)]
    assert equal_words(found, wanted, words).float().tolist() == expected and 0 < sum(expected) < 4000


def test_frozen_augmentation_depends_on_rank_and_lmdb(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    more = {"abinet": True, "seed": 0, "lmdbs": 2}
    frozen = [augmentation((32, 128), frozen=True, rank=rank, **more) for rank in range(8)]
    assert "".join(first.strength.geometry[0] for first, _ in frozen) == "prprrapr"
    assert all(first.strength != second.strength for first, second in frozen)
    assert augmentation((32, 128), frozen=False, rank=0, **more).strength is None
    assert (
        run_class_finetuning.main(finetune(corpus, tmp_path / "out", "--legacy-frozen-augment", "--max_steps", 2)) == 0
    )


@pytest.mark.parametrize("number", [1, 3, 99])
def test_number_of_unlabelled_images(number: int, tmp_path: Path) -> None:
    """`--aloneimage_num_samples N` takes min(n, N) of each LMDB; 1 means one."""
    paths = [write_words(tmp_path / name, ["a"] * count) for name, count in (("one", 5), ("two", 2))]
    dataset = PairDataset(paths, lambda image, rng: np.zeros((32, 128, 3), np.uint8), per_lmdb=number)
    assert dataset.sizes == [min(5, number), min(2, number)]


def test_files_with_module_names_are_read_and_evaluated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_recogniser(MODEL, decoder_name="micro_tf_decoder")
    plain, wrapped = tmp_path / "plain.pth", tmp_path / "wrapped.pth"
    torch.save({"model": model.state_dict()}, plain)
    torch.save({"model": add_prefix(model.state_dict())}, wrapped)
    readers = [open_recognizer(path, model=f"dig/{MODEL}", device="cpu") for path in (plain, wrapped)]
    first, second = (reader([noise(0), noise(1)]) for reader in readers)
    assert [word.text for word in first] == [word.text for word in second]
    corpus, out = write_corpus(tmp_path), tmp_path / "out"
    assert run_class_finetuning.main(finetune(corpus, out, "--eval", "--resume", wrapped)) == 0
    assert run_class_finetuning.main(finetune(corpus, out, "--finetune", wrapped, "--max_steps", 1)) == 0
    assert load(out / "training_state.pth")["step"] == 1


def test_every_published_size_has_its_paper_scale() -> None:
    """The commands of each scale are ones that the scripts take, for the size that the scale names."""
    parsers = {
        "pretrain": flags_pretrain.TABLE.parser("pretrain", ""),
        "finetune": flags_finetune.TABLE.parser("finetune", ""),
    }
    for scale, size in (("paper", "small"), ("paper-tiny", "tiny"), ("paper-base", "base")):
        chosen = recipe.load("dig").scale(scale)
        assert chosen.model == f"dig/simmim_vit_{size}_patch4_32x128"
        for step in chosen.steps:
            if step.name in parsers:
                words = step.run.split(".py", 1)[1].split()
                options = parsers[step.name].parse_args(words)
                assert f"_vit_{size}_" in options.model and options.epochs == 10
