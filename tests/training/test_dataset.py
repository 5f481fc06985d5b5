"""The mix of sources as batches: determinism, resumption, ratios, errors."""

import numpy as np
import pytest
import torch

from ostrack_fast.data.images import BadImage
from ostrack_fast.training.augment import AugmentConfig
from ostrack_fast.training.crops import CropConfig, Pair
from ostrack_fast.training.dataset import DataConfig, PairDataset, make_loader

from .painted import PLAIN
from .test_composer import clean_composer


def test_sample_depends_on_seed_and_index_only(composer_parts):
    source = clean_composer(*composer_parts)
    config = DataConfig(augment=AugmentConfig.robust(), length=24)
    dataset = PairDataset([(source, 1)], config)
    expected = [dataset[i] for i in range(24)]
    for i in (5, 0, 23):
        again = PairDataset([(source, 1)], config)[i]
        assert all(torch.equal(again[key], expected[i][key]) for key in again)
    other = PairDataset([(source, 1)], DataConfig(augment=config.augment, seed=1, length=24))
    assert not torch.equal(other[0]["search"], expected[0]["search"])
    for workers, start in ((0, 0), (2, 0), (1, 8)):
        batches = list(make_loader(dataset, 4, workers, start))
        assert len(batches) == (24 - start) // 4
        for key in expected[0]:
            flat = torch.cat([batch[key] for batch in batches])
            assert torch.equal(flat, torch.stack([item[key] for item in expected[start:]])), (workers, start, key)


class Numbered:
    """A source of one gray level."""

    def __init__(self, level):
        self.level = level

    def sample(self, rng, crops):
        image, box = np.full((32, 32, 3), self.level, dtype=np.uint8), np.array([0.4, 0.4, 0.2, 0.2], dtype=np.float32)
        return Pair(image, box, image, box)


class Never:
    def sample(self, rng, crops):
        return None


def test_sources_are_mixed_by_ratio_and_redrawn():
    dataset = PairDataset([(Numbered(10), 3), (Numbered(20), 1), (Never(), 4)], DataConfig(augment=PLAIN))
    levels = [int(dataset[i]["search"][0, 0, 0]) for i in range(800)]
    assert abs(levels.count(10) / 800 - 0.75) < 0.05 and set(levels) == {10, 20}


class Broken(Numbered):
    """Every fifth draw meets one of `count` images that cannot be read."""

    def __init__(self, count):
        super().__init__(7)
        self.count = count

    def sample(self, rng, crops):
        number = int(rng.integers(5 * self.count))
        if number < self.count:
            raise BadImage(f"{number}.jpg is damaged")
        return super().sample(rng, crops)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_are_skipped_counted_and_told(workers, capsys):
    config = DataConfig(augment=PLAIN, length=400, bad_images=8)
    loader = make_loader(PairDataset([(Broken(8), 1)], config), 4, workers)
    batches = list(loader)
    assert len(batches) == 100 and all(set(batch) == set(batches[0]) for batch in batches)
    assert len(loader.bad) > 5 and sum(loader.bad.values()) > len(loader.bad)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 5 and all("jpg is damaged: skipped" in line for line in told)
    assert told[-1].endswith("further ones are only counted")


def test_too_many_images_that_cannot_be_read_end_the_run(capsys):
    config = DataConfig(augment=PLAIN, length=80, bad_images=3)
    with pytest.raises(ValueError, match=r"4 images cannot be read, bad_images allows 3; the last: \d\.jpg is damaged"):
        list(make_loader(PairDataset([(Broken(8), 1)], config), 4))
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_dataset_errors():
    with pytest.raises(ValueError, match="at least one"):
        PairDataset([])
    with pytest.raises(ValueError, match="ratios must be positive"):
        PairDataset([(Numbered(0), 0)])
    with pytest.raises(ValueError, match="no usable pair"):
        PairDataset([(Never(), 1)])[0]
    dataset = PairDataset([(Numbered(0), 1)], DataConfig(length=8))
    with pytest.raises(IndexError):
        dataset[8]
    with pytest.raises(ValueError, match="start=9"):
        make_loader(dataset, 2, start=9)
    with pytest.raises(ValueError, match="at least 16"):
        CropConfig(template_size=8)
    with pytest.raises(ValueError, match="gray"):
        AugmentConfig(gray=2)
