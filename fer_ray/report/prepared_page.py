"""A prepared set to `prepare.html`: what went in, what was left out, who is in which split, what leaks."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

from fer_ray import storage
from fer_ray.data import pixels, prepared_set
from fer_ray.data.manifest import EXPRESSIONS, NOT_THERE, OUTSIDE
from fer_ray.report import data_figures, figures, pages

PAIRS = 8  # of alike pictures, in each figure
REASONS, EXAMPLES = 6, 6  # why images were left out, and pictures of each reason
MONTAGE = 8  # crops of each class
SUSPECTS = 40  # of each class


def write(prepared: str, name: str) -> str:
    """Write `prepare.html` into the prepared set; its URI. Raises: manifest.DataError if the set is not complete."""
    summary = prepared_set.read_summary(prepared)
    index = prepared_set.read_index(prepared)
    leaks, conflicts, rejected = (prepared_set.read_table(prepared, t) for t in ("leaks", "conflicts", "rejected"))
    within = _within(index)
    pairs = {kind: [(row["example_a"], row["example_b"]) for row in table.to_dict("records")][:PAIRS]
             for kind, table in (("leaks", _worst(leaks)), ("conflicts", conflicts), ("duplicates", within))}
    wanted = {image for chosen in pairs.values() for pair in chosen for image in pair}
    shown = index[index["image"].isin(wanted)]
    crops = prepared_set.read_crops(prepared, shown)
    titles = dict(zip(shown["image"], shown["expression"] + ", " + shown["split"], strict=True))
    pictures = {kind: pages.picture(data_figures.pairs_figure,
                                    [[(crops[image], titles[image]) for image in pair] for pair in chosen])
                for kind, chosen in pairs.items()}
    pictures |= {"crops": pages.picture(data_figures.crops_figure,
                                        montage(prepared, summary["config"]["split"]["seed"])),
                 "bars": pages.picture(data_figures.bars_figure, summary["counts"]["after"]),
                 "sizes": figures.data_uri(figures.png(data_figures.sizes_figure(index))),
                 "rejected": pages.picture(data_figures.examples_figure,
                                           _rejected_examples(rejected) | _unseen_examples(prepared, index))}
    digests = index.set_index("image")["digest"]
    same_pixels = sum(digests[row["example_a"]] == digests[row["example_b"]] for row in conflicts.to_dict("records"))
    page = pages.render_prepared(name, summary, index, leaks.head(20).to_dict("records"), same_pixels, pictures)
    target = storage.join(prepared, "prepare.html")
    storage.write_bytes(target, page.encode())
    return target


def montage(prepared: str, seed: int) -> list[dict]:
    """Crops of each class, different people first: dicts of `crop` (uint8 [256, 256(, 3)]), `expression`, `split`."""
    index = prepared_set.read_index(prepared)
    index["turn"] = index.groupby(["expression", "subject"], dropna=False).cumcount()
    chosen = (index.sample(frac=1, random_state=seed).sort_values("turn", kind="stable")
              .groupby("expression").head(MONTAGE).sort_values(["expression", "turn"]))
    crops = prepared_set.read_crops(prepared, chosen)
    return [{"crop": crops[r["image"]], "expression": r["expression"], "split": r["split"]}
            for r in chosen.to_dict("records")]


def contact_sheets(prepared: str, suspects: pd.DataFrame) -> dict[str, list[dict]]:
    """The first suspects of each class, for `pages.render_labels`.

    Args:
        prepared: URI of the prepared set.
        suspects: ranked, with the columns `image`, `expression` and `reason`.
    """
    shown = suspects.groupby("expression").head(SUSPECTS)
    index = prepared_set.read_index(prepared)
    crops = prepared_set.read_crops(prepared, index[index["image"].isin(shown["image"])])
    return {e: [{"crop": crops[r["image"]][::2, ::2], "title": r["reason"]}
                for r in shown[shown["expression"] == e].to_dict("records")] for e in EXPRESSIONS}


def _worst(leaks: pd.DataFrame) -> pd.DataFrame:
    """Leaks that a reader sees at once come first: copies, then people, then videos."""
    order = {kind: i for i, kind in enumerate(("identical", "near_duplicate", "subject", "sequence"))}
    return leaks.sort_values("kind", key=lambda k: k.map(order), kind="stable")


def _within(index: pd.DataFrame) -> pd.DataFrame:
    """A pair of each cluster of near-duplicates that lies in one split; two frames of one video are no pair."""
    rows = index[~index.duplicated(["cluster", "sequence"]) | index["sequence"].isna()]
    rows = rows[rows.duplicated("cluster", keep=False)]
    rows = rows[rows.groupby("cluster")["split"].transform("nunique") == 1]
    pairs = rows.sort_values("cluster", kind="stable").groupby("cluster").head(2)["image"].to_numpy(object)
    return pd.DataFrame({"example_a": pairs[::2], "example_b": pairs[1::2]})


def _unseen_examples(prepared: str, index: pd.DataFrame) -> dict[str, list[np.ndarray]]:
    """Some pictures that were used whole although no face is seen in them, uint8 [96, 96(, 3)]; none: an empty dict."""
    crops = prepared_set.read_crops(prepared, index[index["search"] == "none"].head(EXAMPLES))
    shown = [cv2.resize(crop, (96, 96), interpolation=cv2.INTER_AREA) for crop in crops.values()]
    return {"used whole: no face is seen": shown} if shown else {}


def _rejected_examples(rejected: pd.DataFrame) -> dict[str, list[np.ndarray]]:
    """Some pictures of the most frequent reasons, uint8 of at most 96 px a side; unreadable ones are left out."""
    found: dict[str, list[np.ndarray]] = {}
    rejected = rejected[~rejected["reason"].isin([NOT_THERE, OUTSIDE])]  # a file of someone else must not be shown
    for reason in rejected["reason"].value_counts().index[:REASONS]:
        shown = []
        for image in rejected.loc[rejected["reason"] == reason, "image"].drop_duplicates().head(EXAMPLES):
            try:
                picture = pixels.load(image)
            except pixels.ImageError:
                continue
            height, width = picture.shape[:2]
            scale = 96 / max(height, width)
            size = (max(1, round(scale * width)), max(1, round(scale * height)))  # a thin strip keeps a pixel
            shown.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        if shown:
            found[reason] = shown
    return found
