"""The training loop: from a data set to a checkpoint, one epoch at a time.

Owns optimisation, schedule, moving average, progress and resuming; knows nothing of files of pictures or of ONNX.
All randomness of an epoch comes from (seed, epoch), so a resumed run continues exactly as an undisturbed one.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from attnserve.datasets import Dataset
from attnserve.errors import ConfigError
from attnserve.export.augment import Augmentation
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.network import build
from attnserve.export.servable import Normalise
from attnserve.measure import Classifier, accuracy


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        optimizer: `sgd` (Nesterov momentum 0.9) or `adamw`.
        learning_rate: Peak, reached after `warmup_epochs` and then annealed to zero along a cosine.
        weight_decay: Not applied to biases and normalisation.
        ema_decay: Per step, of the moving average of the weights that are evaluated and served; 0 keeps the last.
        amp: `off`, or `bf16` to compute in bfloat16 where torch's autocast sees fit.
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    warmup_epochs: float = 2.0
    label_smoothing: float = 0.1
    ema_decay: float = 0.999
    seed: int = 0
    device: str = "cpu"
    amp: str = "off"
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigError("training: needs at least one epoch and two pictures a batch")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf and self.warmup_epochs >= 0):
            raise ConfigError("training: learning_rate must be positive, weight_decay and warmup_epochs not negative")
        for name in ("ema_decay", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"training: {name} must be within 0..1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"training: seed must not be negative, got {self.seed}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("training: no CUDA device is available to torch")

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate after `progress` epochs."""
        if progress < self.warmup_epochs:
            return self.learning_rate * progress / self.warmup_epochs
        rest = (progress - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))


class Trainer:
    """One training: holds the network, its moving average and the optimizer between epochs.

    Args:
        checkpoint: Names architecture, preprocessing and labels; its `resume` state, where there is one, is taken up.
        dataset: Owned by the caller; not changed.
    """

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.checkpoint, self.dataset = recipe, checkpoint, dataset
        self.network = build(checkpoint.architecture).to(recipe.device)
        averaging = moving_average(recipe.ema_decay)
        self.average = AveragedModel(self.network, multi_avg_fn=averaging, use_buffers=True)
        self.normalise = Normalise(checkpoint.preprocessing).to(recipe.device)
        self.optimizer = build_optimizer(recipe, self.network)
        self.epoch, self.minutes = 0, 0.0  # epochs done, wall minutes spent on them
        if checkpoint.resume:
            self._take_up(checkpoint.resume)

    def run(self, output: Path, max_minutes: float | None = None) -> bool:
        """Train to the last epoch, saving to `output` after each.

        False where it stopped before, after the epoch that took this run past `max_minutes`.
        """
        before = self.minutes
        if self.recipe.epochs * self._steps == 1 and self.recipe.warmup_epochs:
            print("one step in all, and the warm-up's first is at a learning rate of 0: nothing will be learnt",
                  file=sys.stderr)  # fmt: skip
        while self.epoch < self.recipe.epochs:
            started = time.monotonic()
            loss, hits = self.train_epoch()
            self.minutes += (time.monotonic() - started) / 60
            self._report(loss, hits)
            if not math.isfinite(loss):
                raise ConfigError(f"training: the loss became {loss}; try a lower --learning-rate")
            if not self._answers():
                raise ConfigError("training: the weights became too large to answer with; try a lower --learning-rate")
            self._save(output)
            if max_minutes is not None and self.minutes - before >= max_minutes and self.epoch < self.recipe.epochs:
                return False
        return True

    def train_epoch(self) -> tuple[float, float]:
        """One pass over the training part; returns mean loss and accuracy on the varied pictures."""
        self.network.train()
        seen, loss_sum, right = 0, 0.0, 0
        with tqdm(total=self._steps, desc=f"epoch {self.epoch + 1}/{self.recipe.epochs}", disable=None) as bar:
            for step, (images, labels) in enumerate(self.batches()):
                loss, hits = self._step(images, labels, self.epoch + step / self._steps)
                seen, loss_sum, right = seen + len(labels), loss_sum + loss * len(labels), right + hits
                bar.set_postfix(loss=f"{loss_sum / seen:.3f}", accuracy=f"{right / seen:.3f}", refresh=False)
                bar.update()
        self.epoch += 1
        return loss_sum / seen, right / seen

    @property
    def _batch_size(self) -> int:
        return min(self.recipe.batch_size, len(self.dataset.train))

    @property
    def _steps(self) -> int:
        """Steps in an epoch; the pictures left over are dropped (batch normalisation needs full batches)."""
        return len(self.dataset.train) // self._batch_size

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's shuffled, varied batches: (N, 3, H, W) float32 in 0..1 and (N,) int64."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.dataset.train), generator=generator).numpy()
        for start in range(0, self._steps * self._batch_size, self._batch_size):
            chosen = order[start : start + self._batch_size]
            # Contiguous: in channels-last order oneDNN's strided 1x1 convolutions of fewer than 8 channels write past
            # their memory on CPUs with no more than AVX2 (its issue 6035).
            images = torch.from_numpy(self.dataset.train.images[chosen]).permute(0, 3, 1, 2).float().contiguous() / 255
            yield self.recipe.augmentation(images, generator), torch.from_numpy(self.dataset.train.labels[chosen])

    def _step(self, images: Tensor, labels: Tensor, progress: float) -> tuple[float, int]:
        """One step of the optimizer; returns loss and number of right answers."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(progress)
        images, labels = images.to(self.recipe.device), labels.to(self.recipe.device)
        with torch.autocast(self.recipe.device, torch.bfloat16, enabled=self.recipe.amp == "bf16"):
            logits = self.network(self.normalise(255 * images)).float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.average.update_parameters(self.network)
        return float(loss.detach()), int((logits.argmax(1) == labels).sum())

    def _report(self, loss: float, hits: float) -> None:
        """One plain line per epoch."""
        line = f"epoch {self.epoch}/{self.recipe.epochs} loss {loss:.4f} accuracy {hits:.4f}"
        if len(self.dataset.validation):
            line += f" validation {accuracy(self.classifier, self.dataset.validation):.4f}"
        left = self.minutes / self.epoch * (self.recipe.epochs - self.epoch)
        print(f"{line} minutes {self.minutes:.1f} left {left:.1f}", file=sys.stderr, flush=True)

    @property
    def classifier(self) -> Classifier:
        """The averaged weights as a function of pictures."""
        return classifier(self.average.module, self.normalise, self.recipe.device)

    def _answers(self) -> bool:
        """Whether the averaged weights give numbers; the loss is from before an epoch's last step and cannot tell."""
        return bool(np.isfinite(self.classifier(self.dataset.train.images[: self._batch_size])).all())

    def _save(self, output: Path) -> None:
        self.checkpoint.state_dict = {
            key: value.cpu().clone() for key, value in self.average.module.state_dict().items()
        }
        self.checkpoint.training |= {"epochs": self.epoch, "wall_minutes": round(self.minutes, 1)}
        self.checkpoint.resume = self._state() if self.epoch < self.recipe.epochs else None
        self.checkpoint.save(output)

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "minutes": self.minutes,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _take_up(self, state: dict[str, Any]) -> None:
        self.epoch, self.minutes = state["epoch"], state["minutes"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def build_optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer, with weight decay on matrices and kernels only."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)


def moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """An update for `AveragedModel` that forgets by `decay` per step, faster at first.

    In step n it forgets by (1 + n) / (10 + n) until that reaches `decay`, so that a short training's average is not
    mostly the weights that it began with.
    """

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], steps: Tensor | int) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight.to(average.dtype), 1 - now) if average.is_floating_point() else average.copy_(weight)

    return update


def classifier(network: nn.Module, normalise: Normalise, device: str) -> Classifier:
    """The network's logits as a function of pictures."""

    def classify(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).float()
        with torch.inference_mode():
            logits: NDArray[np.float32] = network.eval()(normalise(inputs)).cpu().numpy()
        return logits

    return classify
