"""Evaluation: exact figures over every image, whatever the batches; and the averaged weights are an average."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vit24h.engine.ema import WeightAverage
from vit24h.engine.evaluate import evaluate


class _Fixed(nn.Module):
    """Gives the logits that its images hold."""

    def forward(self, images):
        return images.flatten(1)


def batches(logits, labels, size):
    images = logits[:, :, None, None]
    return [(images[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_accuracy_is_exact_for_any_batch_size(batch_size):
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 10), torch.randint(10, (50,))
    result = evaluate({"raw": _Fixed()}, batches(logits, labels, batch_size), lambda x: x, Accelerator(cpu=True))["raw"]
    ranks = logits.argsort(dim=1, descending=True)
    assert result["images"] == 50
    assert result["top1"] == pytest.approx(100 * (ranks[:, 0] == labels).float().mean().item())
    assert result["top5"] == pytest.approx(100 * (ranks[:, :5] == labels[:, None]).any(1).float().mean().item())
    assert result["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_fewer_than_five_classes_are_all_within_the_top_five():
    logits, labels = torch.randn(8, 3), torch.randint(3, (8,))
    result = evaluate({"raw": _Fixed()}, batches(logits, labels, 4), lambda x: x, Accelerator(cpu=True))["raw"]
    assert result["top5"] == 100


def test_a_stop_ends_it_without_a_figure_and_leaves_the_model_training():
    model = nn.Sequential(_Fixed()).train()
    given = batches(torch.randn(8, 3), torch.randint(3, (8,)), 4)
    assert evaluate({"raw": model}, given, lambda x: x, Accelerator(cpu=True), stopped=lambda: True) is None
    assert model.training


def test_the_average_follows_the_weights_and_copies_buffers():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(model[0].weight, 1.0)
    average = WeightAverage(model, decay=0.9)
    nn.init.constant_(model[0].weight, 2.0)
    model[1].running_mean.fill_(5.0)
    average.update(model)
    average.update(model)
    assert average.model[0].weight.item() == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 2)
    assert average.model[1].running_mean.item() == 5.0
    assert not average.model[0].weight.requires_grad
