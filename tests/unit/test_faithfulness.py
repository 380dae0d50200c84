"""The measures of faithfulness, on classifiers that look at known pixels, and against plain rewritings of papers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from attnserve.faithfulness import bootstrap, confidence, curves, report, road
from attnserve.faithfulness.foreground import NotPlainError, energy_share, foreground, largest_component, otsu
from attnserve.faithfulness.ranking import ranked
from attnserve.faithfulness.references import centred_gaussian, random_map
from attnserve.faithfulness.study import Protocol, Study, Subject, studied

SIDE = 16
SEEN = np.zeros((SIDE, SIDE), bool)
SEEN[2:6, 9:14] = True  # what the classifier below looks at
PROTOCOL = Protocol((0.5, 0.5, 0.5), steps=16, seed=3)


def picture(seed: int = 0) -> np.ndarray:
    """Dark, with bright noise where the classifier looks."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 100, (SIDE, SIDE, 3), np.uint8)
    pixels[SEEN] = rng.integers(230, 256, (SEEN.sum(), 3), np.uint8)
    return pixels


def looks(images: np.ndarray) -> np.ndarray:
    """The probability is how bright the pixels are that it looks at."""
    return images[:, SEEN].mean((1, 2)) / 255


def study_of(maps: dict[str, np.ndarray], index: int = 0, thing: np.ndarray | None = SEEN) -> Study:
    return studied(Subject(picture(), looks, thing), maps, PROTOCOL, index)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_pixels_come_from_the_greatest_to_the_least_and_equal_ones_in_random_order() -> None:
    assert ranked(np.array([[0.1, 0.9], [0.5, 0.2]]), rng()).tolist() == [1, 2, 3, 0]
    orders = {tuple(ranked(np.zeros((2, 2)), np.random.default_rng(seed)).tolist()) for seed in range(200)}
    assert len(orders) == 24


def test_a_transition_takes_equal_shares_of_the_pixels_in_order() -> None:
    start, end = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 7, np.uint8)
    found = curves.transition(start, end, np.array([3, 0, 1, 2]), 2)
    assert found[..., 0].reshape(3, 4).tolist() == [[0, 0, 0, 0], [7, 0, 0, 7], [7, 7, 7, 7]]


def test_the_area_is_by_trapezoids() -> None:
    assert curves.area_under(np.array([1.0, 0.5, 0.0])) == pytest.approx(0.5)
    assert curves.area_under(np.array([1.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert curves.area_under(np.ones(21)) == pytest.approx(1)


def test_the_plain_picture_has_the_mean_colour_and_the_blurred_one_keeps_the_mean_of_a_flat_one() -> None:
    assert curves.plain(picture(), (0.0, 0.5, 1.0))[3, 4].tolist() == [0, 128, 255]
    flat = np.full((9, 12, 3), (3, 77, 250), np.uint8)
    np.testing.assert_array_equal(curves.blurred(flat), flat)
    checks = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    soft = curves.blurred(np.repeat(checks[..., None], 3, axis=2)).astype(int)
    assert np.abs(soft - 127.5).max() < 12  # nothing is left of the pattern but a trace at the edge


def test_the_blur_is_a_gaussian_of_an_eighth_of_the_shorter_side() -> None:
    point = np.zeros((65, 64, 3), np.uint8)
    point[:, 32] = 255  # a line: its profile is the kernel
    profile = curves.blurred(point)[32, :, 0].astype(float)
    expected = 255 * np.exp(-((np.arange(64) - 32) ** 2) / (2 * 8.0**2)) / (8 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(profile[8:56], expected[8:56], atol=0.6)  # further out the edge is near


def test_drop_and_increase_by_hand() -> None:
    assert confidence.drop(0.8, 0.6) == pytest.approx(0.25)
    assert confidence.drop(0.8, 0.9) == 0
    assert [confidence.increase(0.8, seen) for seen in (0.9, 0.8, 0.1)] == [1, 0, 0]
    seen = confidence.seen_through(np.full((1, 2, 3), 200, np.uint8), np.array([[0.25, 1]], np.float32))
    assert seen[0, :, 0].tolist() == [50, 200]


def test_road_removes_the_percentiles_from_either_end() -> None:
    order = rng().permutation(100)
    most, least = (f(order, (10, 10)).reshape(9, 100) for f in (road.most_relevant, road.least_relevant))
    assert most.sum(1).tolist() == least.sum(1).tolist() == list(range(10, 100, 10))
    for removed, kept in zip(most, least[::-1], strict=True):
        np.testing.assert_array_equal(removed, ~kept)
    assert set(np.flatnonzero(most[0])) == set(order[:10])


def dense(pixels: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The paper's system written out pixel by pixel and solved directly."""
    places = [tuple(place) for place in np.argwhere(removed)]
    index = {place: i for i, place in enumerate(places)}
    matrix, right = np.zeros((len(places), len(places))), np.zeros((len(places), 3))
    for i, (y, x) in enumerate(places):
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            other, weight = (y + dy, x + dx), 1 / 6 if dy * dx == 0 else 1 / 12
            if (dy, dx) == (0, 0) or not (0 <= other[0] < removed.shape[0] and 0 <= other[1] < removed.shape[1]):
                continue
            matrix[i, i] += weight
            if other in index:
                matrix[i, index[other]] -= weight
            else:
                right[i] += weight * pixels[other]
    filled = pixels.astype(float)
    filled[removed] = np.linalg.solve(matrix, right)
    return filled


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_imputation_solves_the_system_within_a_grey_level(share: float) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (19, 22, 3), np.uint8)
    scattered = np.random.default_rng(2).random((19, 22)) < share
    ranks = ranked(centred_gaussian(19, 22), rng())
    blob = np.zeros(19 * 22, bool)
    blob[ranks[: round(share * blob.size)]] = True
    for removed in (scattered, blob.reshape(19, 22)):
        found = road.imputed(pixels, removed, rng(), noise=0)
        np.testing.assert_array_equal(found[~removed], pixels[~removed])
        np.testing.assert_allclose(found, dense(pixels, removed), atol=1)


def test_the_noise_is_on_the_removed_pixels_only_and_as_large_as_said() -> None:
    pixels, removed = np.full((40, 40, 3), 100, np.uint8), np.random.default_rng(2).random((40, 40)) < 0.5
    found = road.imputed(pixels, removed, rng())
    np.testing.assert_array_equal(found[~removed], 100)
    assert found[removed].std() == pytest.approx(road.NOISE, rel=0.1)


def test_nothing_can_be_imputed_from_nothing() -> None:
    with pytest.raises(ValueError, match="nothing is left"):
        road.imputed(picture(), np.ones((SIDE, SIDE), bool), rng())


def test_the_map_of_what_is_looked_at_is_best_its_inverse_worst_and_a_random_one_between() -> None:
    right = SEEN.astype(np.float32)
    found = study_of({"right": right, "wrong": 1 - right})
    by = found.values
    chance = found.random["right"]
    assert chance == found.random["wrong"] == "random/16x16"
    for measure in ("insertion", "road", "road_lerf", "energy"):
        assert by["right"][measure] > by[chance][measure] + 0.05, measure
        assert by["wrong"][measure] < by[chance][measure] - 0.05, measure
    for measure in ("deletion", "road_morf", "average_drop"):
        assert by["right"][measure] < by[chance][measure] - 0.05, measure
        assert by["wrong"][measure] > by[chance][measure] + 0.05, measure
    assert by["right"]["energy"] == pytest.approx(1)
    assert by["right"]["average_drop"] == pytest.approx(0, abs=1e-6)
    assert by["wrong"]["average_drop"] == pytest.approx(1)


def test_the_curves_of_a_perfect_map_are_those_by_hand() -> None:
    """20 of 256 pixels, all gone after the second of 16 steps of 16, so after one step 4 of the 20 are left."""
    pixels = picture()
    pixels[SEEN] = 255
    found = studied(Subject(pixels, looks), {"right": SEEN.astype(np.float32)}, PROTOCOL, 0)
    grey = 128 / 255
    deletion = (1 / 2 + (4 + 16 * grey) / 20 + 14 * grey + grey / 2) / 16
    assert found.values["right"]["deletion"] == pytest.approx(deletion, abs=1e-3)
    assert found.baselines["full"] == 1
    assert found.baselines["plain"] == pytest.approx(grey)
    soft = found.baselines["blurred"]
    assert found.values["right"]["insertion"] > (soft / 2 + (16 + 4 * soft) / 20 + 14 + 1 / 2) / 16 - 0.02


def test_a_map_without_content_is_named_and_ranks_like_a_random_one() -> None:
    found = study_of({"empty": np.zeros((4, 4), np.float32), "flat": np.full((4, 4), 0.7, np.float32)})
    assert found.empty == {"empty", "flat"}
    assert np.isnan(found.values["empty"]["energy"])
    assert abs(found.values["empty"]["road"]) < 0.1
    assert found.values["empty"]["average_drop"] == 1  # nothing shines through
    assert found.values["empty"] == pytest.approx(found.values["flat"], nan_ok=True)


def test_a_study_depends_on_the_seed_and_the_picture_and_not_on_other_maps() -> None:
    maps = {"one": random_map(4, 4, rng()), "two": random_map(8, 8, rng())}
    whole, again, alone = study_of(maps), study_of(maps), study_of({"one": maps["one"]})
    assert whole == again
    assert alone.values["one"] == whole.values["one"]
    assert alone.values["random/4x4"] == whole.values["random/4x4"]
    assert study_of(maps, index=1).values["random/4x4"] != whole.values["random/4x4"]


def test_every_map_goes_with_a_random_one_of_its_grid_and_the_gaussian_with_the_coarsest() -> None:
    found = study_of({"fine": random_map(8, 8, rng()), "coarse": random_map(4, 4, rng())})
    assert found.random == {"fine": "random/8x8", "coarse": "random/4x4", "gaussian": "random/4x4"}
    assert set(found.values) == {"fine", "coarse", "random/4x4", "random/8x8", "gaussian"}


def test_a_thing_that_is_not_known_has_no_share() -> None:
    assert "energy" not in study_of({"right": SEEN.astype(np.float32)}, thing=None).values["right"]


@pytest.mark.parametrize("changes", [{"steps": 1}, {"seed": -1}])
def test_an_impossible_protocol_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Protocol((0, 0, 0), **changes)


def test_the_intervals_cover_the_truth_as_often_as_they_say() -> None:
    draws = np.random.default_rng(5).exponential(1.0, (200, 60))
    found = [bootstrap.estimate(values, seed) for seed, values in enumerate(draws)]
    covered = np.mean([each.low <= 1 <= each.high for each in found])
    assert 0.88 <= covered <= 0.99
    assert found[0] == bootstrap.estimate(draws[0], 0)
    assert found[0] != bootstrap.estimate(draws[0], 1)


def test_an_interval_is_about_two_standard_errors_to_either_side() -> None:
    values = np.random.default_rng(5).normal(3, 2, 400)
    found = bootstrap.estimate(values, 0)
    error = values.std() / 20
    assert (found.mean, found.images) == (pytest.approx(values.mean()), 400)
    assert (found.low, found.high) == (
        pytest.approx(found.mean - 1.96 * error, abs=0.15 * error),
        pytest.approx(found.mean + 1.96 * error, abs=0.15 * error),
    )


def test_pictures_without_a_value_do_not_count() -> None:
    assert bootstrap.estimate(np.array([1, np.nan, 1]), 0) == bootstrap.Estimate(1, 1, 1, 2)
    assert bootstrap.estimate(np.array([np.nan]), 0) is None


def test_the_record_pairs_each_map_with_its_random_one_picture_by_picture() -> None:
    """Two pictures, far apart, on each of which the map is 0.1 better: so surely 0.1 better."""
    pictures = [
        Study(
            {"full": full, "plain": 0.0, "blurred": 0.5},
            {"map": {"deletion": level, "energy": 0.5}, "random/2x2": {"deletion": level + 0.1}},
            {"map": "random/2x2"},
            frozenset(empty),
        )
        for level, full, empty in ((0.1, 1.0, ()), (0.8, 0.8, ("map",)))
    ]
    found = report.record(pictures, PROTOCOL)
    assert found["baselines"] == {"full": 0.9, "plain": 0.0, "blurred": 0.5}
    assert (found["images"], found["steps"], found["seed"]) == (2, 16, 3)
    map_row = found["sources"]["map"]
    assert map_row["empty"] == 1
    assert map_row["deletion"]["mean"] == pytest.approx(0.45)
    assert map_row["deletion"]["high"] - map_row["deletion"]["low"] > 0.5
    assert map_row["random"] == "random/2x2"
    assert map_row["minus_random"] == {"deletion": {"mean": -0.1, "low": -0.1, "high": -0.1, "images": 2}}
    assert "minus_random" not in found["sources"]["random/2x2"]


def hand_on_wall(light: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """An arm of skin's colour from below on a grey wall that darkens to `light` at the sides, a shadow, and a speck."""
    fall = np.linspace(1, light, 48)[None, :, None]
    pixels = np.array([190, 190, 195]) * np.ones((48, 48, 1)) * fall
    pixels[10:40, 30:33] *= 0.7  # a shadow
    hand = np.zeros((48, 48), bool)
    hand[12:, 16:28] = True
    pixels[hand] = [200, 150, 110]
    pixels[3:5, 40:42] = [200, 150, 110]
    noise = np.random.default_rng(0).normal(0, 1, pixels.shape)
    return np.rint(pixels + noise).clip(0, 255).astype(np.uint8), hand


def test_the_thing_is_what_differs_in_hue_from_the_wall_whatever_the_light() -> None:
    pixels, hand = hand_on_wall()
    np.testing.assert_array_equal(foreground(pixels), hand)


def test_a_border_of_many_colours_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    with pytest.raises(NotPlainError, match=r"border is not plain: \d+% of it"):
        foreground(noise)


def test_before_a_black_wall_the_thing_is_what_is_not_black() -> None:
    pixels = np.random.default_rng(0).integers(0, 4, (28, 28, 3), np.uint8)
    pixels[8:20, 5:28] = 90
    np.testing.assert_array_equal(foreground(pixels), pixels[..., 0] == 90)


@pytest.mark.parametrize("level", [0, 130])
def test_a_wall_with_nothing_on_it_is_refused(level: int) -> None:
    with pytest.raises(NotPlainError, match="nothing stands out"):
        foreground(np.full((48, 48, 3), level, np.uint8))


def test_the_largest_component_touches_by_sides() -> None:
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], bool)
    assert largest_component(mask).astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert not largest_component(np.zeros((2, 2), bool)).any()


def test_otsu_parts_two_heaps() -> None:
    heaps = np.concatenate([np.random.default_rng(0).normal(5, 1, 900), np.random.default_rng(1).normal(40, 3, 100)])
    assert ((heaps > otsu(heaps.clip(0))) == (np.arange(1000) >= 900)).all()


def test_the_share_of_energy_is_the_share_of_the_sum() -> None:
    values = np.array([[1, 0.5], [0.25, 0.25]], np.float32)
    assert energy_share(values, np.array([[True, False], [True, False]])) == pytest.approx(1.25 / 2)


def test_the_gaussian_is_centred_and_falls_by_a_quarter_of_the_side() -> None:
    bell = centred_gaussian(9, 13)
    assert bell.shape == (9, 13)
    np.testing.assert_allclose(bell, bell[::-1, ::-1])
    assert bell[4, 6] == 1
    assert bell[4, 6 + 3] == pytest.approx(np.exp(-(3**2) / (2 * 3.25**2)))
