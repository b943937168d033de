"""Pictures that explain a network: the mistakes it was surest of, what it looks at, and what it mixes up.

Grad-CAM: Selvaraju et al. 2017 (captum). Look-alikes: the paper's Fig 15, nearest images in the space of the features
that enter the last layer.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from fer_ray.data import prepared_set
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import augment, checkpoints, predictor

MISTAKES = 8  # pictures of mistakes
PAIRS, EACH = 3, 3  # pairs of classes that are mixed up most, and pictures of each pair
# Images of such a pair that are compared with each other: the mistaken ones, and training images of the class that
# they were taken for. More would take minutes on a CPU.
QUERIES, REFERENCES = 40, 200


def choose(rows: pd.DataFrame, probabilities: np.ndarray) -> dict[str, pd.DataFrame]:
    """Which images to show.

    Args:
        rows: N rows of an index.
        probabilities: float [N, 8].

    Returns: rows, each with its `guess` and `probability`. `mistakes`: those that the network is surest of, one of each
        person. `typical`: of each class the right answer that it is surest of. `confused`: the mistakes of the
        `PAIRS` pairs of classes that are mixed up most often.
    """
    rows = rows.assign(guess=[EXPRESSIONS[i] for i in probabilities.argmax(1)], probability=probabilities.max(1))
    rows = rows.sort_values("probability", ascending=False, kind="stable")
    wrong, right = rows[rows["guess"] != rows["expression"]], rows[rows["guess"] == rows["expression"]]
    once = wrong[~wrong.duplicated("subject") | wrong["subject"].isna()]
    worst = list(wrong.groupby(["expression", "guess"]).size().nlargest(PAIRS).index)
    pair = pd.Series(list(zip(wrong["expression"], wrong["guess"], strict=True)), wrong.index, dtype=object)
    return {"mistakes": once.head(MISTAKES), "typical": right.drop_duplicates("expression").sort_values("expression"),
            "confused": wrong[pair.isin(worst)].groupby(["expression", "guess"]).head(QUERIES)}


def explain(prepared: str, checkpoint: str, rows: pd.DataFrame, probabilities: np.ndarray,
            seed: int) -> dict[str, list[dict]]:
    """Pictures of the images that `choose` chooses. Needs the network: to be called on a worker.

    Args:
        prepared: URI of the prepared set.
        checkpoint: URI.
        rows: N rows of its index, not trained on.
        probabilities: float [N, 8].
        seed: of the training images that mistakes are compared with.

    Returns: `mistakes` and `typical`: dicts of `image`, `expression`, `guess`, `probability`, `crop` (uint8 [224, 224,
    3]), `heat` (float32 [224, 224], 0..1, or None for a network without feature maps). `lookalikes`: dicts of `image`,
    `expression`, `guess`, `nearest` (the training image of the guessed class nearest to it), `distance`, `crop`,
    `nearest_crop`.
    """
    chosen = choose(rows, probabilities)
    model, description = checkpoints.load_model(checkpoint)
    shown = {}
    for kind in ("mistakes", "typical"):
        crops = _crops(prepared, chosen[kind])
        heat = heat_maps(model, crops, [EXPRESSIONS.index(g) for g in chosen[kind]["guess"]])
        shown[kind] = [_caption(row) | {"crop": crop, "heat": heat_map}
                       for row, crop, heat_map in zip(chosen[kind].to_dict("records"), crops, heat, strict=True)]
    train = prepared_set.read_index(prepared)
    train = train[train["split"] == "train"]
    network = predictor.Predictor(model, description["backbone"])
    shown["lookalikes"] = []
    for _, mistaken in chosen["confused"].groupby(["expression", "guess"], sort=False):
        known = train[train["expression"] == mistaken["guess"].iloc[0]]
        known = known.sample(min(len(known), REFERENCES), random_state=seed)
        if len(known):
            shown["lookalikes"] += _nearest(network, prepared, mistaken, known)
    return shown


def heat_maps(model: torch.nn.Module, crops: list[np.ndarray], targets: list[int]) -> list[np.ndarray | None]:
    """Grad-CAM: how much each place of a crop speaks for a class.

    Args:
        model: in evaluation mode, on the CPU.
        crops: N of uint8 [224, 224, 3].
        targets: class number for each.

    Returns: float32 [224, 224] in 0..1 each; None for a network without feature maps.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    layer = _last_map(model)
    if not crops or layer is None:
        return [None] * len(crops)
    maps = LayerGradCam(model, layer).attribute(augment.to_tensor(np.stack(crops)), target=torch.tensor(targets),
                                                relu_attributions=True)
    large = LayerAttribution.interpolate(maps, (augment.CROP, augment.CROP), "bilinear")[:, 0].detach().numpy()
    return list(large / np.maximum(large.max((1, 2), keepdims=True), 1e-12))


def _last_map(model: torch.nn.Module) -> torch.nn.Module | None:
    """The last layer whose output is a feature map [N, C, H, W] with W > 1; None if there is none."""
    found: list[torch.nn.Module] = []

    def remember(layer, _inputs, output) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            found.append(layer)

    hooks = [layer.register_forward_hook(remember) for layer in model.modules() if layer is not model]
    with torch.no_grad():
        model(torch.zeros(1, 3, augment.CROP, augment.CROP))
    for hook in hooks:
        hook.remove()
    return found[-1] if found else None


def _nearest(network: predictor.Predictor, prepared: str, mistaken: pd.DataFrame, known: pd.DataFrame) -> list[dict]:
    """The mistaken images that lie nearest to a training image of the class they were taken for, each with it."""
    from sklearn.metrics.pairwise import cosine_distances

    crops, references = _crops(prepared, mistaken), _crops(prepared, known)
    distance = cosine_distances(network.features(crops), network.features(references))
    nearest = distance.argmin(1)
    best = distance.min(1).argsort(kind="stable")[:EACH]
    rows, images = mistaken.to_dict("records"), known["image"].tolist()
    return [_caption(rows[i]) | {"nearest": images[nearest[i]], "distance": float(distance[i].min()), "crop": crops[i],
                              "nearest_crop": references[nearest[i]]} for i in best]


def _crops(prepared: str, rows: pd.DataFrame) -> list[np.ndarray]:
    crops = prepared_set.read_crops(prepared, rows)
    return [augment.eval_transform(crops[image]) for image in rows["image"]]


def _caption(row: dict) -> dict:
    return {key: row[key] for key in ("image", "expression", "guess", "probability")}
