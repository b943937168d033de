"""Images in, probabilities out (Ray Data). Evaluation uses this same path."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import torch

from fer_ray import augment, backbones, checkpoints, prepare


class Predictor:
    """A network on one process: crops in, class probabilities or features out. Ray Data keeps one per actor."""

    def __init__(self, checkpoint: str = "", backbone: str = "", threads: int = 1):
        """`checkpoint`: gives softmax probabilities [N, 8]. Else the frozen ImageNet features [N, D] of `backbone`."""
        torch.set_num_threads(threads)
        if checkpoint:
            self.model, self.features = checkpoints.load_model(checkpoint)[0], False
        else:
            model = backbones.build(backbone)
            model.load_state_dict(backbones.initial_state(backbone, "imagenet", seed=0))
            self.model, self.features = backbones.strip_head(model, backbone).eval(), True
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(self, crops: list[np.ndarray]) -> np.ndarray:
        """uint8 [256, 256(, 3)] crops -> float32 [N, 8] or [N, D]."""
        outputs = self.model(augment.to_tensor(np.stack([augment.eval_transform(c) for c in crops]), self.device))
        return (outputs if self.features else outputs.softmax(1)).float().cpu().numpy()

    def __call__(self, batch: dict) -> dict:
        outputs = self.predict([prepare.decode_crop(c) for c in batch["crop"]])
        return {"row": batch["row"], "output": outputs}


def predict(prepared: str, index: pd.DataFrame, batch_size: int, checkpoint: str = "", backbone: str = "",
            use_gpu: bool = False) -> np.ndarray:
    """Outputs of a `Predictor` for these index rows of a prepared set; float32 [N, 8 or D], in their order."""
    import ray
    import ray.data

    parts = [{"part": int(p), "rows": rows["row"].tolist()} for p, rows in index.groupby("part")]
    # a CPU stays free for the tasks that read: one actor that held them all would wait for ever
    cpus = 0.5 if ray.cluster_resources().get("CPU", 2) < 2 else 1
    found = (ray.data.from_items(parts)
             .map_batches(_read_crops, fn_kwargs={"prepared": prepared}, batch_size=1)
             .map_batches(Predictor, batch_size=batch_size, num_cpus=cpus, num_gpus=int(use_gpu),
                          compute=ray.data.ActorPoolStrategy(size=1), max_restarts=0,  # a restart warns on the terminal
                          fn_constructor_kwargs={"checkpoint": checkpoint, "backbone": backbone,
                                                 "threads": os.cpu_count() or 1})
             .take_all())
    outputs = {int(r["row"]): r["output"] for r in found}
    return np.stack([outputs[r] for r in index["row"]])


def _read_crops(batch: dict, prepared: str) -> dict:
    found = []
    for part, rows in zip(batch["part"], batch["rows"], strict=True):
        encoded = prepare.read_part(prepared, int(part))
        found += [(int(r), encoded[int(r)]) for r in rows]
    numbers, crops = zip(*found, strict=True)
    return {"row": np.array(numbers), "crop": np.array(crops, object)}
