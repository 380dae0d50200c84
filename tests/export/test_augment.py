"""The variations of training pictures: bounded, seeded, and none where none was asked for."""

from __future__ import annotations

import pytest
import torch

from attnserve.errors import ConfigError
from attnserve.export.augment import Augmentation

ALL = Augmentation(flip=True, shift=0.1, rotate=15, scale=0.2, jitter=0.4, erase=0.8)


def pictures() -> torch.Tensor:
    return torch.rand(16, 3, 20, 28, generator=torch.Generator().manual_seed(0))


def varied(augmentation: Augmentation, seed: int = 1) -> torch.Tensor:
    return augmentation(pictures(), torch.Generator().manual_seed(seed))


def test_all_zeros_change_nothing() -> None:
    assert torch.equal(varied(Augmentation()), pictures())


def test_the_generator_decides_everything() -> None:
    assert torch.equal(varied(ALL), varied(ALL))
    assert not torch.equal(varied(ALL), varied(ALL, seed=2))


def test_pictures_stay_in_range_and_differ_from_each_other() -> None:
    same = pictures()[:1].expand(16, -1, -1, -1)
    out = ALL(same, torch.Generator().manual_seed(1))
    assert out.min() >= 0
    assert out.max() <= 1
    assert len({tuple(picture.flatten().tolist()) for picture in out}) == 16


def test_a_flip_mirrors_some_pictures_exactly() -> None:
    out, before = varied(Augmentation(flip=True)), pictures()
    mirrored = [torch.allclose(a, b.flip(2), atol=1e-4) for a, b in zip(out, before, strict=True)]
    kept = [torch.allclose(a, b, atol=1e-4) for a, b in zip(out, before, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert any(mirrored)
    assert any(kept)


def test_a_shift_alone_moves_whole_pixels() -> None:
    out, before = varied(Augmentation(shift=0.15)), pictures()
    for after, picture in zip(out, before, strict=True):
        padded = torch.nn.functional.pad(picture[None], (5, 5, 3, 3), mode="replicate")[0]
        windows = [padded[:, y : y + 20, x : x + 28] for y in range(7) for x in range(11)]
        assert min(float((after - window).abs().max()) for window in windows) < 1e-5


def test_erasing_replaces_one_rectangle() -> None:
    changed = (varied(Augmentation(erase=1.0)) != pictures()).any(1)  # (N, H, W)
    for mask in changed:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert 0.01 < mask.float().mean() < 0.3
        assert mask.sum() >= 0.99 * rows * columns


def test_an_excessive_variation_is_refused() -> None:
    with pytest.raises(ConfigError, match="jitter"):
        Augmentation(jitter=1.5)
