import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_ray import splits
from fer_ray.manifest import EXPRESSIONS, DataError

FRACTIONS = (0.8, 0.1, 0.1)


def people(num_subjects: int, seed: int, max_images: int = 12) -> pd.DataFrame:
    """Rows of people with different numbers of images, in sequences of three, expressions unequally common."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(len(EXPRESSIONS)))
    rows = [
        {
            "image": f"s{subject:03}/{number:03}.png",
            "expression": rng.choice(EXPRESSIONS, p=weights),
            "subject": f"S{subject:03}",
            "sequence": f"S{subject:03}/{number // 3}",
        }
        for subject in range(num_subjects)
        for number in range(rng.integers(1, max_images + 1))
    ]
    return pd.DataFrame(rows)


def shares(assigned: np.ndarray) -> list[float]:
    return [float((assigned == split).mean()) for split in splits.SPLITS]


@given(st.integers(3, 40), st.integers(0, 10_000), st.sampled_from(["subject", "sequence"]))
def test_no_group_is_in_two_splits_and_no_split_is_empty(num_subjects, seed, by):
    rows = people(num_subjects, seed)
    assigned = splits.assign(rows, by=by, seed=seed)
    assert rows.assign(split=assigned).groupby(by)["split"].nunique().max() == 1
    assert set(assigned) == set(splits.SPLITS)


@given(st.integers(3, 30), st.integers(0, 10_000), st.sampled_from(["subject", "sequence", "image"]))
def test_order_of_rows_does_not_matter(num_subjects, seed, by):
    rows = people(num_subjects, seed)
    shuffled = rows.sample(frac=1, random_state=seed)
    again = pd.Series(splits.assign(shuffled, by=by, seed=1), index=shuffled.index)
    assert (again.sort_index().to_numpy() == splits.assign(rows, by=by, seed=1)).all()


@given(st.integers(40, 80), st.integers(0, 10_000))
def test_fractions_are_roughly_kept_by_subject(num_subjects, seed):
    assigned = splits.assign(people(num_subjects, seed), by="subject")
    np.testing.assert_allclose(shares(assigned), FRACTIONS, atol=0.08)


@given(st.integers(40, 60), st.integers(0, 10_000))
def test_by_image_is_stratified(num_subjects, seed):
    rows = people(num_subjects, seed)
    assigned = splits.assign(rows, by="image")
    np.testing.assert_allclose(shares(assigned), FRACTIONS, atol=0.02)
    for _, of_class in rows.assign(split=assigned).groupby("expression"):
        assert abs((of_class["split"] == "test").sum() - 0.1 * len(of_class)) <= 2


@given(st.integers(3, 40), st.integers(0, 10_000), st.sampled_from([FRACTIONS, (0.4, 0.3, 0.3), (0.7, 0.15, 0.15)]))
def test_train_sees_every_class_that_three_people_show(num_subjects, seed, fractions):
    rows = people(num_subjects, seed)
    assigned = splits.assign(rows, by="subject", fractions=fractions)
    common = rows.groupby("expression")["subject"].nunique() >= 3
    assert set(common.index[common]) <= set(rows["expression"][assigned == "train"])
    assert set(assigned) == set(splits.SPLITS)


def test_another_seed_gives_another_split():
    rows = people(40, 0)
    assert (splits.assign(rows, seed=0) != splits.assign(rows, seed=1)).any()


@pytest.mark.filterwarnings("error")
def test_rare_classes_give_no_warnings():
    rows = people(30, 0)
    rows.loc[0, "expression"] = "contempt"
    splits.assign(rows)


def test_a_missing_subject_names_the_way_out():
    rows = people(5, 0)
    rows.loc[2, "subject"] = None
    with pytest.raises(DataError, match="1 of .* by=image"):
        splits.assign(rows)
    assert len(splits.assign(rows, by="image")) == len(rows)


def test_stills_without_sequence_are_shared_out_one_by_one():
    rows = people(20, 0).assign(sequence=None)
    np.testing.assert_allclose(shares(splits.assign(rows, by="sequence")), FRACTIONS, atol=0.03)


def test_two_people_are_too_few():
    with pytest.raises(DataError, match="2 subject"):
        splits.assign(people(2, 0))


@pytest.mark.parametrize("arguments", [{"by": "face"}, {"fractions": (0.5, 0.5, 0.5)}, {"fractions": (1, 0, 0)}])
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match="expected"):
        splits.assign(people(5, 0), **arguments)


# --- audit ---------------------------------------------------------------------------------------------


def picture(seed: int, side: int = 256) -> np.ndarray:
    """Smooth random shapes, uint8 side x side, with the low frequencies that photographs have."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 12)
    return cv2.normalize(smooth, None, 30, 200, cv2.NORM_MINMAX).astype(np.uint8)


def reencoded(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_GRAYSCALE)


CHANGES = {
    "identical": lambda image: image,
    "re-encoded": reencoded,
    "brightened": lambda image: cv2.add(image, 25),
    "rescaled": lambda image: cv2.resize(image, (180, 180), interpolation=cv2.INTER_AREA),
    "in colour": lambda image: cv2.cvtColor(image, cv2.COLOR_GRAY2RGB),
}


def gallery(crops: list[np.ndarray], split: list[str]) -> pd.DataFrame:
    """Rows of different people, one crop each."""
    return pd.DataFrame(
        {
            "image": [f"{number:04}.png" for number in range(len(crops))],
            "subject": [f"S{number}" for number in range(len(crops))],
            "sequence": None,
            "phash": pd.array([splits.perceptual_hash(crop) for crop in crops], dtype="UInt64"),
            "split": split,
        }
    )


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", [0, 5])
def test_planted_near_duplicates_are_found_and_nothing_else(change, seed):
    crops = [picture(100 * seed + number) for number in range(30)]
    rows = gallery([*crops, CHANGES[change](crops[7])], ["train"] * 30 + ["test"])
    leaks = splits.audit(rows)
    assert splits.summarize(leaks) == {"subject": 0, "sequence": 0, "near_duplicate": 1}
    leak = leaks.iloc[0]
    assert (leak.splits, leak.images) == ("train,test", 2)
    assert {leak.example_a, leak.example_b} == {"0007.png", "0030.png"}


def test_near_duplicates_inside_one_split_are_no_leak():
    crop = picture(0)
    rows = gallery([crop, reencoded(crop), picture(1)], ["train", "train", "test"])
    assert splits.audit(rows).empty


def test_subjects_and_sequences_in_two_splits():
    rows = people(10, 0).assign(phash=None)
    rows["split"] = splits.assign(rows, by="subject")
    assert splits.audit(rows).empty
    victim = rows["sequence"].value_counts().index[0]
    members = rows.index[rows["sequence"] == victim]
    rows.loc[members, "split"] = ["train", "val", "test"]
    leaks = splits.audit(rows)
    assert list(leaks["kind"]) == ["subject", "sequence"]
    assert leaks.iloc[1]["key"] == victim
    assert leaks.iloc[1]["splits"] == "train,val,test"
    assert leaks.iloc[1]["images"] == 3
    assert splits.audit(rows.sample(frac=1, random_state=0)).equals(leaks)


@given(st.integers(0, 10_000))
def test_pairs_agree_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**63, 8, dtype=np.uint64)
    flips = (np.uint64(1) << rng.integers(0, 64, (8, 7), dtype=np.uint64)).astype(np.uint64)
    hashes = np.concatenate([base, *(np.bitwise_xor.reduce(flips[:, :k], axis=1) ^ base for k in range(1, 8))])
    hashes, held_by = np.unique(hashes), rng.integers(1, 8, len(np.unique(hashes))).astype(np.uint8)
    first, second, bits = splits._close_pairs(hashes, held_by)
    expected = {
        (i, j): int(hashes[i] ^ hashes[j]).bit_count()
        for i in range(len(hashes))
        for j in range(i, len(hashes))
        if int(hashes[i] ^ hashes[j]).bit_count() <= splits.NEAR_DUPLICATE_BITS
        and int(held_by[i] | held_by[j]).bit_count() > 1
    }
    assert dict(zip(zip(first.tolist(), second.tolist(), strict=True), bits.tolist(), strict=True)) == expected


def test_float_hashes_are_refused():
    rows = gallery([picture(0), picture(1)], ["train", "test"]).astype({"phash": "float64"})
    with pytest.raises(TypeError, match="64 bits"):
        splits.audit(rows)
