"""Augmentation of batches: what a one-pixel image shows, areas, symmetry, repeatability."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.config import Config, RetrainConfig
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.augment import augmentation, check_augmentation, cutout, random_crop, random_flip
from nni_bayes_nas.experiment.build import validate

shapes = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))


def test_a_one_pixel_image_shows_the_shift() -> None:
    """A pixel in the middle of 5x5 lands on each of the 9 places that a padding of 1 allows, about equally often."""
    x = torch.zeros(1800, 1, 5, 5)
    x[:, :, 2, 2] = 1.0
    torch.manual_seed(0)
    y = random_crop(x, 1)
    assert torch.equal(y.sum((1, 2, 3)), torch.ones(1800))
    counts = y.sum((0, 1))
    assert float(counts[1:4, 1:4].sum()) == 1800
    # 200 are expected on each, with a standard deviation of 13.
    assert float((counts[1:4, 1:4] - 200).abs().max()) < 55


def test_channels_of_an_object_move_together() -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 1, 6, 6).expand(16, 3, 6, 6)
    for step in (lambda z: random_crop(z, 2), random_flip, lambda z: cutout(z, 3)):
        y = step(x)
        assert torch.equal(y[:, 0], y[:, 1]) and torch.equal(y[:, 0], y[:, 2])


@given(shape=shapes, padding=st.integers(0, 3), seed=st.integers(0, 5))
def test_a_crop_is_a_window_of_the_padded_image(shape: tuple[int, ...], padding: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.rand(shape) + 1
    y = random_crop(x, padding)
    padded = torch.nn.functional.pad(x, (padding,) * 4)
    for before, after in zip(padded, y, strict=True):
        windows = before.unfold(1, shape[2], 1).unfold(2, shape[3], 1)
        assert (windows == after[:, None, None]).all(-1).all(-1).all(0).any()


@given(shape=shapes, seed=st.integers(0, 5))
def test_a_flip_is_an_involution(shape: tuple[int, ...], seed: int) -> None:
    x = torch.rand(shape)
    torch.manual_seed(seed)
    once = random_flip(x)
    torch.manual_seed(seed)
    assert torch.equal(random_flip(once), x)
    for before, after in zip(x, once, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))


def test_half_of_the_objects_are_flipped() -> None:
    torch.manual_seed(0)
    x = torch.tensor([0.0, 1.0]).expand(4000, 1, 1, 2)
    flipped = float(random_flip(x)[:, 0, 0, 0].mean())
    assert abs(flipped - 0.5) < 0.032  # 4 standard errors


@given(shape=shapes, size=st.integers(1, 4), seed=st.integers(0, 5))
def test_cutout_removes_one_square(shape: tuple[int, ...], size: int, seed: int) -> None:
    torch.manual_seed(seed)
    y = cutout(torch.ones(shape), size)
    for obj in y:
        gone = obj == 0
        assert torch.equal(gone, gone[:1].expand_as(gone))
        rows, columns = gone[0].any(1), gone[0].any(0)
        assert torch.equal(gone[0], rows[:, None] & columns[None, :])
        for side in (rows, columns):
            places = side.nonzero().flatten().tolist()
            assert places == list(range(places[0], places[0] + len(places)))
            assert len(places) <= size and (len(places) == size or places[0] == 0 or places[-1] == len(side) - 1)


def test_cutout_in_the_middle_has_its_full_area() -> None:
    """Of 30x30 pixels, a square of 4 around a center that is 2 or more from every edge has 16."""
    torch.manual_seed(0)
    areas = (cutout(torch.ones(500, 1, 30, 30), 4) == 0).sum((1, 2, 3))
    assert int(areas.max()) == 16 and int(areas.min()) >= 4
    assert float((areas == 16).float().mean()) > 0.7
    assert torch.equal((cutout(torch.ones(9, 2, 5, 5), 1) == 0).sum((1, 2, 3)), torch.full((9,), 2))


def test_settings_choose_the_steps() -> None:
    assert augmentation(RetrainConfig()) is None
    augment = augmentation(RetrainConfig(crop_padding=1, horizontal_flip=True, cutout=3))
    assert augment is not None
    x = torch.rand(8, 1, 8, 8)
    torch.manual_seed(3)
    expected = cutout(random_flip(random_crop(x, 1)), 3)
    torch.manual_seed(3)
    assert torch.equal(augment(x), expected)
    assert not torch.equal(augment(x), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_images() -> None:
    augment = augmentation(RetrainConfig(crop_padding=2, horizontal_flip=True, cutout=3))
    assert augment is not None
    x = torch.rand(8, 3, 8, 8)
    torch.manual_seed(0)
    expected = augment(x)
    torch.manual_seed(0)
    assert torch.equal(augment(x.cuda()).cpu(), expected)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"cutout": 4}, (13,), "`retrain.cutout` is for images"),
        ({"crop_padding": 1}, (13,), "`retrain.crop_padding` is for images"),
        ({"horizontal_flip": True}, (13,), "`retrain.horizontal_flip` is for images"),
        ({"cutout": 8}, (1, 8, 9), "smaller than the images, got 8 for 8x9"),
        ({"crop_padding": 9}, (1, 9, 8), "smaller than the images, got 9 for 9x8"),
    ],
)
def test_what_does_not_fit_the_objects_is_refused(
    settings: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_augmentation(RetrainConfig(**settings), shape)


def test_validation_refuses_it_before_time_is_spent() -> None:
    with pytest.raises(ConfigError, match="smaller than the images"):
        validate(Config.from_dict({"space": {"name": "chain"}, "retrain": {"cutout": 16}}))
