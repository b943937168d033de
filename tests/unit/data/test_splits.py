import os

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparing import clusters_of

from fer_ray.data import duplicates, faces, leaks, splits
from fer_ray.data.drawn_face import render_face
from fer_ray.data.manifest import EXPRESSIONS, DataError

FRACTIONS = (0.8, 0.1, 0.1)
# Of people of two sources; with 100 it takes a minute: `SEEDS=100 pytest tests/unit/data/test_splits.py -k each_source`
SEEDS = int(os.environ.get("SEEDS", "10"))


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
            "dataset": "faces",
        }
        for subject in range(num_subjects)
        for number in range(rng.integers(1, max_images + 1))
    ]
    hashes = rng.integers(0, 2**63, (len(rows), len(duplicates.HASHES)), dtype=np.uint64)  # nobody looks like another
    thumbnails = [rng.integers(0, 256, duplicates.THUMBNAIL_SIDE**2, dtype=np.uint8).tobytes() for _ in rows]
    return pd.DataFrame(rows).assign(**dict(zip(duplicates.HASHES, hashes.T, strict=True)), face_thumbnail=thumbnails,
                                     picture_thumbnail=thumbnails, digest=range(len(rows)), official=None,
                                     cluster=range(len(rows)))


def linked(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the clusters of their looks."""
    return rows.assign(cluster=clusters_of(rows))


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


def joined(labelled: int, stills: int, seed: int, drawn: bool = False) -> pd.DataFrame:
    """Rows of `labelled` people with up to six sequences (CK+) and of `stills` people with stills (JAFFE).

    `drawn`: with three sequences each, as the drawn sample has them.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(labelled):
        cycle = [EXPRESSIONS[1 + (3 * person + k) % 7] for k in range(3)]
        for expression in cycle if drawn else rng.choice(EXPRESSIONS[1:], rng.integers(1, 7), replace=False):
            frames = ["neutral"] * rng.integers(2, 4) + [expression] * rng.integers(4, 8 if drawn else 16)
            rows += [("CK+", f"S{person:03}", shown) for shown in frames]
    rows += [("JAFFE", f"J{person}", shown) for person in range(stills) for shown in EXPRESSIONS
             for _ in range(2 if drawn else rng.integers(2, 5)) if shown != "contempt"]
    table = pd.DataFrame(rows, columns=["dataset", "subject", "expression"])
    return table.assign(image=[f"{number:05}.png" for number in range(len(rows))], cluster=range(len(rows)))


@pytest.mark.parametrize("people", [(40, 6), (118, 10), (118, 3)])  # the quickstart's; CK+ and JAFFE; few of JAFFE
def test_each_source_has_a_person_in_each_split(people):
    for seed in range(SEEDS):
        rows = joined(*people, seed, drawn=people[0] == 40)
        rows["split"] = splits.assign(rows, seed=seed)
        assert (rows.groupby("dataset")["split"].nunique() == 3).all()
        assert rows.groupby("subject")["split"].nunique().max() == 1
        np.testing.assert_allclose(shares(rows["split"]), FRACTIONS, atol=0.03)


def test_small_sources_never_take_much_from_training():
    few = joined(118, 3, 0)
    stills = few[few["dataset"] == "JAFFE"]
    rows = pd.concat([stills.assign(dataset=name, subject=stills.subject + name, image=stills.image + name)
                      for name in "abcd"], ignore_index=True).assign(cluster=lambda rows: range(len(rows)))
    rows["split"] = splits.assign(rows)
    assert max(shares(rows["split"])[1:]) < 0.2
    assert [line.split(" is of ")[0] for line in splits.unseen(rows)] == ["No image in val", "No image in test"]
    assert splits.unseen(rows.assign(split="test")) == []


def test_another_seed_gives_another_split():
    rows = people(40, 0)
    assert (splits.assign(rows, seed=0) != splits.assign(rows, seed=1)).any()


@pytest.mark.filterwarnings("error")
def test_rare_classes_give_no_warnings():
    rows = people(30, 0)
    rows.loc[0, "expression"] = "contempt"
    splits.assign(rows)


def test_images_of_nobody_in_particular_stay_with_their_near_duplicates():
    rows = people(8, 0).assign(subject=None)
    copy = rows.iloc[[0]].assign(image="copy.png", subject="S001", face_hash=rows.face_hash[0] ^ np.uint64(5))
    rows = linked(pd.concat([rows, copy], ignore_index=True))
    assigned = splits.assign(rows)
    assert assigned[0] == assigned[-1]
    assert "do not say who they show" in splits.remarks(rows, "subject")[0]


def test_one_person_under_two_names_stays_together():
    rows = people(20, 0)
    for seed in range(5):
        twin = rows.copy()
        looks = twin.loc[twin.subject == "S000", duplicates.LOOKS].iloc[0].values
        twin.loc[twin.subject == "S019", duplicates.LOOKS] = looks
        split = splits.assign(linked(twin), seed=seed)
        assert len(set(split[twin.subject.isin(["S000", "S019"])])) == 1


@given(st.integers(10, 40), st.integers(0, 1000))
def test_ten_folds_by_subject_never_overlap_and_cover_everything(num_subjects, seed):
    rows = people(num_subjects, seed)
    fold = splits.folds(rows, "subject", 10, seed)
    assert set(fold) == set(range(10))
    assert rows.assign(fold=fold).groupby("subject")["fold"].nunique().max() == 1
    tested = np.zeros(len(rows), int)
    for k in range(10):
        split = splits.of_fold(rows, "subject", fold, k, seed)
        tested += split == "test"
        by_split = {s: set(rows.subject[split == s]) for s in splits.SPLITS}
        assert not by_split["train"] & by_split["test"] and not by_split["val"] & by_split["test"]
        assert all(by_split.values())
    assert (tested == 1).all()


@pytest.mark.parametrize(("num_folds", "num_people", "val"), [
    (3, 60, 1 / 9), (5, 60, 0.1), (10, 60, 0.1), (20, 60, 0.05),  # a fold is a twentieth, and no more than one is val
    (5, 5, 0.2)])  # a fold is one person, whom nothing parts
def test_val_is_a_tenth_however_many_folds_and_train_has_the_rest(num_folds, num_people, val):
    rows = people(num_people, 1).assign(expression="fear")
    fold = splits.folds(rows, "subject", num_folds)
    for k in range(num_folds):
        split = pd.Series(splits.of_fold(rows, "subject", fold, k))
        of_person = rows.assign(split=split).groupby("subject")["split"]
        assert of_person.nunique().max() == 1
        assert (of_person.first() == "val").mean() == pytest.approx(val, abs=0.06)
        assert set(split[fold != k]) == {"train", "val"} and (split[fold == k] == "test").all()
        assert set(fold[split == "val"]) == {(k + 1) % num_folds}


@given(st.integers(8, 40), st.integers(0, 1000))
def test_order_of_rows_does_not_matter_to_the_splits_of_a_fold(num_subjects, seed):
    rows = people(num_subjects, seed)
    shuffled = rows.sample(frac=1, random_state=seed)

    def split(table: pd.DataFrame) -> pd.Series:
        fold = splits.folds(table, "subject", 4, 1)
        return pd.Series(splits.of_fold(table, "subject", fold, 2, 1), index=table.index)

    assert (split(shuffled).sort_index() == split(rows)).all()


def test_the_official_split_is_kept_and_completed():
    rows = people(30, 0)
    rows["official"] = np.where(rows.subject < "S020", "train", np.where(rows.subject < "S025", "val", "test"))
    assert (splits.assign(rows, by="official") == rows.official).all() and not splits.remarks(rows, "official")
    no_val = rows.assign(official=rows.official.replace("val", "train"))
    split = splits.assign(no_val, by="official")
    assert ((split == "test") == (rows.official == "test")).all() and 0.05 < (split == "val").mean() < 0.25
    assert rows.assign(split=split).groupby("subject")["split"].nunique().max() == 1
    no_test = rows.assign(official=rows.official.replace("test", "val"))
    assert ((splits.assign(no_test, by="official") == "test") == (no_test.official == "val")).all()
    assert "no official test split" in splits.remarks(no_test, "official")[0]
    with pytest.raises(DataError, match="1 of .* without a split"):
        splits.assign(rows.assign(official=rows.official.where(rows.index > 0)), by="official")


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


def reencoded(image: np.ndarray):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_GRAYSCALE)


CHANGES = {
    "identical": lambda image: image,
    "re-encoded": reencoded,
    "brightened": lambda image: cv2.add(image, 25),
    "rescaled": lambda image: cv2.resize(image, (180, 180), interpolation=cv2.INTER_AREA),
    "in colour": lambda image: cv2.cvtColor(image, cv2.COLOR_GRAY2RGB),
    "mirrored": lambda image: image[:, ::-1],
    "mirrored and re-encoded": lambda image: reencoded(np.ascontiguousarray(image[:, ::-1])),
}


def gallery(crops: list[np.ndarray], split: list[str]) -> pd.DataFrame:
    """Rows of different people, one crop each."""
    return linked(pd.DataFrame([duplicates.looks_of(crop, crop) for crop in crops])).assign(
        image=[f"{number:04}.png" for number in range(len(crops))],
        subject=[f"S{number}" for number in range(len(crops))],
        expression="fear", dataset="faces", sequence=None, split=split,
        digest=[crop.tobytes().hex()[:2000] for crop in crops])


def thumbnails(crops: list[np.ndarray]):
    """Those of some rows of a gallery by image, as `leaks.conflicts` asks for them."""
    return lambda some: {image: duplicates.thumbnail(crops[int(image[:4])]) for image in some.image}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", [0, 5])
def test_planted_near_duplicates_are_found_and_nothing_else(change, seed):
    crops = [picture(100 * seed + number) for number in range(30)]
    rows = gallery([*crops, CHANGES[change](crops[7])], ["train"] * 30 + ["test"])
    found = leaks.audit(rows)
    kind = "identical" if change == "identical" else "near_duplicate"
    assert leaks.summarize(found) == dict.fromkeys(leaks.LEAK_KINDS, 0) | {kind: 1}
    leak = found.iloc[0]
    assert (leak.splits, leak.images) == ("train,test", 2)
    assert {leak.example_a, leak.example_b} == {"0007.png", "0030.png"}
    assert leaks.audit(rows.assign(split=splits.assign(rows))).empty


def test_a_face_found_elsewhere_in_a_copy_is_still_a_near_duplicate():
    crops = [picture(number) for number in range(30)]
    rows = gallery(crops, ["train"] * 29 + ["test"])
    whole = ["picture_hash", "picture_hash_flipped", "picture_thumbnail"]
    rows.loc[29, whole] = rows.loc[3, whole]
    assert leaks.audit(linked(rows)).empty  # the same background with another face is another person
    rows.loc[29, "face_hash"] = rows.loc[3, "face_hash"] ^ np.uint64(0b1111_1111_1111)
    assert list(leaks.audit(linked(rows)).kind) == ["near_duplicate"]


def test_the_same_picture_with_two_expressions_is_a_conflict_unless_it_is_a_video():
    crop = picture(0)
    rows = gallery([crop, reencoded(crop), picture(1)], ["train"] * 3).assign(expression=["fear", "sadness", "fear"])
    found = leaks.conflicts(rows, thumbnails([crop, reencoded(crop), picture(1)]))
    assert list(found.expressions) == ["fear,sadness"] and found.images[0] == 2
    assert (found.example_a[0], found.example_b[0]) == ("0000.png", "0001.png")
    assert leaks.conflicts(rows.assign(sequence="S1/1"), thumbnails([])).empty


@pytest.mark.parametrize("first", ["anger", "contempt", "sadness"])
def test_two_moments_of_one_person_are_no_conflict(first):
    """The faces correlate by more than 0.99, but the mouth is another one."""
    drawn = [render_face(np.random.default_rng(8), expression, intensity, np.random.default_rng(2), (320, 320), 110)
             for expression, intensity in (("neutral", 0), (first, 0.5))]
    crops = [faces.cut(picture, (70, 60, 180, 180), 0.2) for picture in drawn]
    rows = gallery(crops, ["train"] * 2).assign(expression=["neutral", first], cluster=0, digest=["a", "b"])
    rows[duplicates.HASHES] = rows[duplicates.HASHES].iloc[[0, 0]].to_numpy(np.uint64)  # as alike as hashes can say
    assert leaks.conflicts(rows, thumbnails(crops)).empty
    copies = [crops[0], reencoded(np.ascontiguousarray(crops[0][:, ::-1]))]
    assert len(leaks.conflicts(rows, thumbnails(copies))) == 1


@pytest.mark.parametrize("change", CHANGES)
def test_every_kind_of_copy_is_the_same_picture(change):
    crop = picture(3)
    assert duplicates.is_same_picture(crop, CHANGES[change](crop))
    assert not duplicates.is_same_picture(crop, picture(4))


def test_near_duplicates_inside_one_split_are_no_leak():
    crop = picture(0)
    rows = gallery([crop, reencoded(crop), picture(1)], ["train", "train", "test"])
    assert leaks.audit(rows).empty


def test_subjects_and_sequences_in_two_splits():
    rows = people(10, 0)
    rows["split"] = splits.assign(rows, by="subject")
    assert leaks.audit(rows).empty
    victim = rows["sequence"].value_counts().index[0]
    members = rows.index[rows["sequence"] == victim]
    rows.loc[members, "split"] = ["train", "val", "test"]
    found = leaks.audit(rows)
    assert list(found["kind"]) == ["subject", "sequence"]
    assert found.iloc[1]["key"] == victim
    assert found.iloc[1]["splits"] == "train,val,test"
    assert found.iloc[1]["images"] == 3
    assert leaks.audit(rows.sample(frac=1, random_state=0)).equals(found)


def test_empty_pictures_are_alike():
    rows = gallery([np.full((64, 64), v, np.uint8) for v in (0, 0, 255)] + [picture(0)], ["train"] * 4)
    assert len(set(clusters_of(rows)[:3])) == 1
