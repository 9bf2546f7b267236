"""Discovery, filters, masks, augmentation, bad samples of word data sets."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from common.data.bad import BadSample, BadSamples
from common.data.decode import BadImage, resize_bicubic
from common.data.masks import MaskSource, Mirrored, Replaced, StoredMasks
from common.data.words import RESIZED, Request, WordDataset, discover, discover_groups
from common.errors import UserError
from common.text.charset import CHARSET_36
from common.text.normalise import Normaliser
from tests.common.lmdbs import encoded, noise, put, write_words

LOWER = Normaliser(CHARSET_36, lower=True)


def roll(image, rng, mask=None):
    """A toy augmenter: the same random shift for picture and mask."""
    shift = int(rng.integers(1, 20))
    image = np.roll(image, shift, axis=1)
    return image if mask is None else (image, np.roll(mask, shift, axis=1))


def dark(image):
    return (image[..., 0] < 128).astype(np.uint8)


@pytest.fixture
def tree(tmp_path):
    for name in ("MJ/MJ_train", "MJ/MJ_test", "ST", "STR/other"):
        write_words(tmp_path / "root" / "training" / name, [f"{name}-{i}" for i in range(3)])
    return tmp_path / "root"


def test_discovery_goes_by_components(tree):
    training = tree / "training"
    names = [path.relative_to(training).as_posix() for path in discover(tree)]
    assert names == ["MJ/MJ_test", "MJ/MJ_train", "ST", "STR/other"]
    assert [path.name for path in discover(training, ["ST"])] == ["ST"]
    assert [path.name for path in discover(training, ["MJ/MJ_train", "ST"])] == ["MJ_train", "ST"]
    assert len(discover(training, ["/"])) == 4 and len(discover(training / "MJ", ["MJ"])) == 2
    assert [len(group) for group in discover_groups(training, ["ST", "MJ"])] == [1, 2]
    assert discover(training / "ST") == [training / "ST"]


def test_discovery_says_what_is_there(tree, tmp_path):
    with pytest.raises(UserError, match=r"no LMDB named SVT; found: .*MJ_train"):
        discover(tree, ["SVT"])
    with pytest.raises(UserError, match="no such folder"):
        discover(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no LMDB"):
        discover(tmp_path / "empty")


def test_links_are_followed_once_and_leftovers_are_not(tree, tmp_path):
    """A data set that is linked in, a link that leads back, the same folder twice, and what a killed writer left."""
    write_words(tmp_path / "disk" / "Uber", ["u"])
    (tree / "training" / "Uber").symlink_to(tmp_path / "disk" / "Uber", target_is_directory=True)
    (tree / "training" / "ST" / "back").symlink_to(tree, target_is_directory=True)
    (tree / "training" / "A_twin").symlink_to(tree / "training" / "ST", target_is_directory=True)
    (tree / "training" / "gone").symlink_to(tmp_path / "nowhere")
    write_words(tree / "training" / ".half.4711.tmp", ["h"])
    names = [path.relative_to(tree).as_posix() for path in discover(tree)]
    assert names == [f"training/{name}" for name in ("MJ/MJ_test", "MJ/MJ_train", "ST", "STR/other", "Uber")]
    assert discover(tree / "training" / "Uber") == [tree / "training" / "Uber"]
    assert WordDataset(discover(tree, ["Uber"]))[0].label == "u"


def test_filters_are_counted(tmp_path):
    path = write_words(tmp_path / "x", ["Hello", "a" * 26, "!!!", "100%", "b" * 25, ""])
    plain = WordDataset([path], keep=LOWER)
    assert [plain.label(i) for i in range(len(plain))] == ["hello", "100", "b" * 25]
    assert plain.counts == {"stored": 6, "kept": 3, "too_long": 1, "empty": 2, "unsupported": 0, "bad": 0}
    assert len(WordDataset([path], keep=LOWER, drop_empty=False)) == 5
    assert len(WordDataset([path], max_length=None, drop_empty=False)) == 6
    skipping = WordDataset([path], keep=str.lower, charset=CHARSET_36, on_unsupported="skip")
    assert [skipping.label(i) for i in range(len(skipping))] == ["hello", "b" * 25] and skipping.counts[
        "unsupported"
    ] == 2
    with pytest.raises(UserError, match="outside the charset: '!' x 3, '%' x 1"):
        WordDataset([path], keep=str.lower, charset=CHARSET_36, on_unsupported="error")
    with pytest.raises(UserError, match="no usable sample"):
        WordDataset([path], max_length=None, charset="x", on_unsupported="skip", drop_empty=True)


def test_length_may_be_measured_after_folding(tmp_path):
    path = write_words(tmp_path / "x", ["a b " * 10, "ab" * 13])
    step = Normaliser(CHARSET_36, whitespace=True, adapt=True)
    with pytest.raises(UserError, match="2 too_long"):
        WordDataset([path], keep=step)
    dataset = WordDataset([path], keep=step, measure=step.prepare)
    assert [dataset.label(i) for i in range(len(dataset))] == ["ab" * 10]


def test_usage_and_concatenation(tree):
    paths = discover(tree)
    assert WordDataset(paths).sizes == [3, 3, 3, 3]
    assert WordDataset(paths, usage=0.4).sizes == [1, 1, 1, 1]
    assert WordDataset(paths, usage=5).sizes == [3, 2, 0, 0]
    dataset = WordDataset(paths)
    words, number = dataset.location(7)
    assert words.path == paths[2] and number == 1 and dataset.label(7) == "ST-1"


def test_labels_may_be_ignored(tmp_path):
    path = write_words(tmp_path / "x", ["a" * 50, "b"])
    put(path, (b"label-000000002", None))
    assert len(WordDataset([path], labels=False)) == 2
    filled = WordDataset([path], missing_label="text")
    assert [filled.label(i) for i in range(len(filled))] == ["text"] and not filled.index_bad


def test_items_are_pillow_pixels(tmp_path):
    dataset = WordDataset([write_words(tmp_path / "x", ["a", "b", "c"])], image_size=(8, 20))
    for i in range(3):
        np.testing.assert_array_equal(dataset[i].image, resize_bicubic(noise(i), (8, 20)))
    batch = dataset.__getitems__([2, 0, 2])
    assert (
        batch.images.shape == (3, 8, 20, 3) and batch.labels == ["c", "a", "c"] and batch.indices.tolist() == [2, 0, 2]
    )
    np.testing.assert_array_equal(batch.images[0], dataset[2].image)
    assert dataset[-1].label == "c"
    with pytest.raises(IndexError):
        dataset[3]


def test_bad_samples_are_left_out_and_named(tmp_path):
    path = write_words(tmp_path / "x", list("abcdef"), broken=[2])
    put(path, (b"image-000000005", None), (b"label-000000006", None), (b"label-000000001", b"\xff"))
    dataset = WordDataset([path])
    assert len(dataset) == 4
    assert dataset.index_bad == [
        BadSample(str(path), 1, "label is not UTF-8"),
        BadSample(str(path), 6, "no label-000000006"),
    ]
    batch = dataset.__getitems__([0, 1, 2, 3])
    assert batch.labels == ["b", "d"] and len(batch.images) == 2
    assert [(bad.number, bad.reason) for bad in batch.bad] == [
        (3, "not an image (10 bytes)"),
        (5, f"no image-000000005 in {path}"),
    ]
    with pytest.raises(BadImage):
        dataset[1]


def test_register_writes_a_list_and_stops(tmp_path):
    file = tmp_path / "out" / "bad_samples.csv"
    register = BadSamples(300, file=file)
    assert register.add([BadSample("b", 2, "x, y"), BadSample("a", 9, "z")]) == 2
    assert register.add([BadSample("b", 2, "again")]) == 0
    assert file.read_text() == 'path,number,reason\na,9,z\nb,2,"x, y"\n'
    register.add([BadSample("c", 1, "")])
    with pytest.raises(UserError, match=r"4 of 300 samples cannot be read, more than 1.0% .*bad_samples\.csv"):
        register.add([BadSample("c", 2, "")])
    assert len(file.read_text().splitlines()) == 5


@pytest.mark.parametrize("place", ["native", RESIZED])
def test_augmentation_depends_on_seed_epoch_index_alone(tmp_path, place):
    dataset = WordDataset([write_words(tmp_path / "x", list("abcd"))], augment=roll, augment_at=place)
    once = dataset.__getitems__(Request(np.array([0, 1, 2]), np.array([4, 4, 4]), 7))
    again = pickle.loads(pickle.dumps(dataset)).__getitems__(Request(np.array([2, 3, 0]), np.array([4, 4, 4]), 7))
    np.testing.assert_array_equal(once.images[0], again.images[2])
    np.testing.assert_array_equal(once.images[2], again.images[0])
    other = dataset.__getitems__(Request(np.array([0, 1, 2]), np.array([4, 5, 4]), 8))
    assert not np.array_equal(once.images, other.images)


def test_masks_in_the_same_lmdb_follow_the_augmentation(tmp_path):
    path = write_words(tmp_path / "x", list("ab"), masks=True)
    plain = WordDataset([path], image_size=(16, 40), masks=StoredMasks())
    moved = WordDataset([path], image_size=(16, 40), masks=StoredMasks(), augment=roll)
    for i in range(2):
        sample, shifted = plain[i], moved[i]
        np.testing.assert_array_equal(sample.mask, noise(i)[..., 0] > 128)
        shift = next(s for s in range(20) if np.array_equal(np.roll(sample.image, s, 1), shifted.image))
        assert shift and np.array_equal(np.roll(sample.mask, shift, 1), shifted.mask)
    assert moved.__getitems__([0, 1]).masks.shape == (2, 16, 40)


def test_mirrored_masks_and_what_is_missing(tmp_path):
    training = write_words(tmp_path / "training" / "label" / "MJ", list("abc"))
    mirrored = write_words(tmp_path / "masks" / "label" / "MJ", list("abc"), masks=True)
    put(mirrored, (b"mask-000000002", None))
    source = StoredMasks(Mirrored(tmp_path / "masks"))
    dataset = WordDataset([training], image_size=(16, 40), masks=source)
    source.check(dataset.lmdbs)
    assert dataset[0].mask.any() and not dataset[1].mask.any() and source.missing == 1
    making = WordDataset([training], image_size=(16, 40), masks=StoredMasks(Mirrored(tmp_path / "masks"), maker=dark))
    np.testing.assert_array_equal(making[1].mask, dark(noise(1)))
    assert Replaced("training", "Mask")(training) == tmp_path / "Mask" / "label" / "MJ"
    for words, wrong in (("a", "no masks up to number 3"), ("abcd", "masks beyond number 3")):
        other = write_words(tmp_path / words / "label" / "MJ", list(words), masks=True)
        with pytest.raises(UserError, match=f"{other}: {wrong}, the last picture of {training}"):
            StoredMasks(Mirrored(tmp_path / words)).check(dataset.lmdbs)
    with pytest.raises(UserError, match="no folder 'training'"):
        Mirrored(tmp_path)(tmp_path / "elsewhere")


def test_masks_made_online_before_or_after_the_resize(tmp_path):
    path = write_words(tmp_path / "x", list("a"))
    native = WordDataset([path], masks=MaskSource(dark), augment=roll)[0]
    resized = WordDataset([path], masks=MaskSource(dark, at=RESIZED), augment=roll, augment_at=RESIZED)[0]
    assert native.mask.shape == resized.mask.shape == (32, 128)
    np.testing.assert_array_equal(resized.mask, dark(resized.image))


def test_raw_masks(tmp_path):
    path = write_words(tmp_path / "x", list("ab"))
    put(path, (b"mask-000000001", dark(noise(0)).tobytes()), (b"mask-000000002", b"short"))
    dataset = WordDataset([path], image_size=(16, 40), masks=StoredMasks(raw=True))
    np.testing.assert_array_equal(dataset[0].mask, dark(noise(0)))
    assert not dataset[1].mask.any()


def test_truncated_pictures_on_request(tmp_path):
    path = write_words(tmp_path / "x", ["a"])
    jpeg = encoded(noise(3, 34, 100), "JPEG")
    put(path, (b"image-000000001", jpeg[: len(jpeg) // 2]))
    assert WordDataset([path], decode_truncated=True)[0].image.shape == (32, 128, 3)
    assert WordDataset([path]).__getitems__([0]).labels == []


def test_pad_keeps_the_ratio_and_only_the_picture_is_augmented(tmp_path) -> None:
    options = {"max_length": 25, "image_size": (32, 128), "pad": True}
    words = write_words(tmp_path / "a", ["ab"])  # 40 x 16 pixels
    plain = WordDataset([words], **options)[0].image
    assert np.array_equal(plain[:, :80], resize_bicubic(noise(0), (32, 80))) and not plain[:, 80:].any()
    inverted = WordDataset([words], augment=lambda image, rng: 255 - image, augment_at=RESIZED, **options)[0].image
    assert np.array_equal(inverted[:, :80], 255 - plain[:, :80]) and not inverted[:, 80:].any()


def test_sources_with_a_hyphen_in_their_name_stay_whole(tmp_path) -> None:
    from common.data.words import source_names

    assert source_names(tmp_path / "missing", "MJ-ST") == ["MJ", "ST"]
    for name in ("MJ", "ST", "my-data", "Union14M-L", "my-data-2/part"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "data.mdb").write_bytes(b"")
    assert source_names(tmp_path, "my-data") == ["my-data"]
    assert source_names(tmp_path, "MJ-ST-Union14M-L") == ["MJ", "ST", "Union14M-L"]
    assert source_names(tmp_path, "my-data-2-MJ") == ["my-data-2", "MJ"]  # the longest name wins
    assert source_names(tmp_path, "MJ-none-ST") == ["MJ", "none", "ST"]
    assert source_names(tmp_path, "/") == ["/"]
