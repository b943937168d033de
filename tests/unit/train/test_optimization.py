"""What a step of the optimiser is made of: learning rate, class weights, micro-batches, weight decay."""

import contextlib
import copy

import numpy as np
import pytest
import torch

from fer_ray.config import TrainConfig
from fer_ray.model import augment, backbones
from fer_ray.train import averaging, batches, loop, schedule


def test_the_learning_rate_follows_its_schedule():
    assert schedule.lr_at(5, TrainConfig(lr=0.2, schedule="cosine", epochs=10, warmup_epochs=0)) == pytest.approx(0.1)
    warm = TrainConfig(lr=0.4, warmup_epochs=3, epochs=13, schedule="step", step_epochs=5)
    assert [schedule.lr_at(e, warm) for e in (0, 1, 2, 3, 7, 8)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.04])
    assert schedule.peak_lr(TrainConfig(lr=0.1, batch_size=64, lr_per_256=True)) == pytest.approx(0.025)


def test_class_weights_balance_the_loss_and_average_one():
    labels = np.array([0] * 6 + [1] * 2)
    weights = loop.loss_weights(labels, "balanced")
    assert weights[1] == pytest.approx(3 * weights[0]) and weights[2] == 0
    assert weights[labels].mean() == pytest.approx(1)


def test_smoothing_is_alike_for_all_classes_whatever_they_weigh():
    model = torch.nn.Linear(1, 8)
    torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
    settings, optimizer = TrainConfig(label_smoothing=0.4), torch.optim.SGD(model.parameters(), lr=1.0)
    loop.train_step(model, optimizer, torch.ones(1, 1), torch.tensor([2]), torch.arange(1.0, 9.0), 1, settings,
                    contextlib.nullcontext())
    target = torch.full((8,), 0.05)
    target[2] += 0.6
    assert torch.allclose(model.bias, 3 * (target - 1 / 8), atol=1e-6)


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 64, 64), torch.tensor([0, 1, 2, 3, 4, 5])
    ended = []
    for parts in (1, 3):
        torch.manual_seed(1)
        model = backbones.build("timm:test_convnext")
        t = TrainConfig(backbone="timm:test_convnext", lr=0.1, micro_batches=parts, clip_norm=0.5, nesterov=True,
                        weight_decay=0.1)
        loop.train_step(model, loop.sgd(model, t), images, labels, torch.ones(8), 6, t,
                        contextlib.nullcontext())
        ended.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*ended, atol=1e-6)


def test_weight_decay_spares_biases_and_norms():
    groups = loop.sgd(backbones.build("resnet18"), TrainConfig(backbone="resnet18", weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1 * (group["params"][0].ndim > 1) for group in groups]
    assert all(len({p.ndim > 1 for p in group["params"]}) == 1 for group in groups)


def test_the_body_learns_at_its_part_of_the_learning_rate():
    groups = loop.sgd(backbones.build("resnet18"), TrainConfig(backbone="resnet18", body_lr=0.2)).param_groups
    shares = {tuple(p.shape): group["lr_share"] for group in groups for p in group["params"]}
    assert shares[(8, 512)] == 1 and shares[(8,)] == 1 and shares[(64, 3, 7, 7)] == 0.2


def test_the_average_takes_in_every_fourth_step_and_an_epochs_last_one():
    networks = [torch.nn.Linear(1, 1)]
    averages = [averaging.Average(networks[0], decay=0.9)]
    for step in range(6):
        for network, average in zip(networks, averages, strict=True):
            torch.nn.init.constant_(network.weight, step)
            average.after_step(step, num_steps=6)
        if step == 4:  # the run dies and goes on from here
            networks.append(copy.deepcopy(averages[0].network))
            averages.append(averaging.Average(networks[1], 0.9, averages[0].state()["averaged_steps"]))
    expected = [3 * (5 / 14) ** 2 + 5 * (1 - (5 / 14) ** 2)]  # after step 3 it is the network, then two steps are new
    weights = [float(average.network.state_dict()["weight"]) for average in averages]
    assert weights == pytest.approx(expected * 2)
    assert [average.state()["averaged_steps"] for average in averages] == [6, 6]


@pytest.mark.parametrize("backbone", ["alexnet@64", "vgg19@64", "resnet152@64"])
def test_the_papers_networks_train_with_all_levers(backbone):
    settings = TrainConfig(backbone=backbone, augmentation="strong", average=0.9, label_smoothing=0.1, body_lr=0.3,
                           weight_decay=5e-4, lr=0.001)
    model = backbones.build(backbone)
    average, optimizer = averaging.Average(model, settings.average), loop.sgd(model, settings)
    crops = batches.Crops([np.full((256, 256), 30 * i, np.uint8) for i in range(4)], np.arange(4), np.arange(4),
                          np.zeros(4, int))
    (images, labels), = batches.Cached(crops, settings.augmentation, 0, 0, 1).train_steps(0, 4, 0, "natural")
    first = backbones.head(average.network, backbone).weight.clone()
    for step in range(6):
        loss = loop.train_step(model, optimizer, augment.to_tensor(images), torch.from_numpy(labels), torch.ones(8), 4,
                               settings, contextlib.nullcontext())
        average.after_step(step, num_steps=6)
    trained, averaged = (backbones.head(network, backbone).weight for network in (model, average.network))
    assert loss.isfinite() and (averaged != first).any() and (averaged != trained).any()
    assert average.network.eval()(torch.zeros(1, 3, 224, 224)).isfinite().all()
