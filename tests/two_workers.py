"""The training loop as one of two workers runs it, without Ray: for a process of its own."""

from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from fer_ray.model import checkpoints
from fer_ray.train import batches, loop
from fer_ray.train.job import TrainJob
from fer_ray.train.workers import SingleWorker


def work(rank: int, job: TrainJob, folder: Path) -> None:
    """Train, and write what this worker validated and compiled to `RANK.pt`. The two meet by a file in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    validated, compiled, sizes = [], [], []
    real, real_eval = loop.validate, batches.Cached.eval_batches

    class Worker(SingleWorker):
        world = 2

        def __init__(self):
            super().__init__(job)
            self.rank = rank

        def wrap(self, model):
            return torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)

        def report(self, numbers, checkpoint):
            if checkpoint:
                super().report(numbers, checkpoint)

    def validate(model, *arguments):
        if len(arguments) == 5:  # not the batches before the first epoch
            validated.append({name: values.clone() for name, values in model.named_buffers()})
        return real(model, *arguments)

    def eval_batches(self, batch_size):
        sizes.append(batch_size)
        return real_eval(self, batch_size)

    def compile(model):
        compiled.append(type(model).__name__)
        return model

    with (mock.patch.object(loop, "validate", validate),
          mock.patch.object(batches.Cached, "eval_batches", eval_batches),
          mock.patch.object(torch, "compile", compile),
          mock.patch("ray.get", lambda reference: reference),
          # rank 1 asks rank 0, and not the storage
          mock.patch.object(checkpoints, "find_latest", None if rank else checkpoints.find_latest)):
        worker = Worker()
        loop.fit(job, worker)
        worker.finish()
    torch.save({"buffers": validated, "compiled": compiled, "sizes": sizes}, folder / f"{rank}.pt")
