"""One epoch of fine-tuning, with validation on the way, and how a recogniser is built from the flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import Tensor, nn

from common.augment.abinet import AbinetAugment, published_strengths
from common.augment.views import ContrastiveView
from common.data.loader import Batch
from common.train.ema import Ema
from common.train.optim import accumulating
from common.train.progress import EpochLog
from projects.dig import data, text
from projects.dig.evaluate import Evaluator, SetResult
from projects.dig.model.losses import sequence_loss
from projects.dig.model.recogniser import Recogniser, build_recogniser
from projects.dig.trainer import Trainer


def build_model(options: argparse.Namespace) -> Recogniser:
    """The recogniser that the flags ask for, with the dropout of training."""
    return build_recogniser(
        options.model,
        **build_options(options),
        drop=options.drop,
        attention_drop=options.attn_drop_rate,
        drop_path=options.drop_path,
    )


def build_options(options: argparse.Namespace) -> dict:
    """What decides the form of the weights, also kept in the checkpoints' cards."""
    return {
        "decoder_type": options.decoder_type,
        "decoder_name": options.decoder_name,
        "classes": options.nb_classes,
        "max_len": options.max_len,
        "conditioned": options.text_cond_vis,
        "one_row": options.use_1d_attdec,
        "image_size": (options.input_h, options.input_w),
    }


class HostModel:
    """A model's weights as the host's copies, for an averaged copy that must not take the device's memory."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """Names and tensors, in the host's memory."""
        return {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}


class HostEma(Ema):
    """`--model_ema_force_cpu`: the averaged copy lives in the host's memory."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(HostModel(model), decay)

    def update(self, model: nn.Module, decay: float | None = None) -> None:
        """Move towards the model's present values."""
        super().update(HostModel(model), decay)


def build_ema(options: argparse.Namespace, model: nn.Module) -> Ema | None:
    """The averaged copy of `--model_ema`, None without the flag."""
    if not options.model_ema:
        return None
    return (HostEma if options.model_ema_force_cpu else Ema)(model, options.model_ema_decay)


class FineTuning:
    """The training loop: steps, validation, best checkpoint."""

    def __init__(self, trainer: Trainer, evaluator: Evaluator | None) -> None:
        self.trainer, self.evaluator = trainer, evaluator
        options = trainer.options
        self.codec = text.codec(options.voc_type, options.max_len)

    def loss(self, batch: Batch) -> tuple[Tensor, float]:
        """Loss of a micro-batch and the share of its words that the teacher-forced decoder reads right."""
        options, device = self.trainer.options, self.trainer.dist.device
        images = data.normalise(batch.images.to(device, non_blocking=True))
        # a compiled model wants one shape, and the faulty smoothing counts every column
        targets, lengths = data.targets(
            self.codec, batch.labels, device, trim=not (options.compile or options.legacy_smoothing)
        )
        with self.trainer.amp.autocast():
            logits = self.trainer.model(images, targets, lengths).scores
        loss = sequence_loss(logits, targets, lengths, options.smoothing, options.legacy_smoothing)
        return loss, text.equal_words(logits.detach().argmax(-1), targets, self.codec).float().mean()

    def train_one_epoch(self, epoch: int) -> dict[str, float]:
        """Run the steps left in the epoch; returns the mean of each meter over all ranks."""
        trainer = self.trainer
        log = EpochLog(f"Epoch: [{epoch}]", every=100, stamp=True)
        trainer.model.train()
        for batches in trainer.steps(log):
            total = accuracy = 0.0
            for number, batch in enumerate(batches):
                with accumulating(trainer.model, last=number == len(batches) - 1):
                    loss, right = self.loss(batch)
                    trainer.backward(loss, batch)
                total, accuracy = total + loss.detach() / len(batches), accuracy + right / len(batches)
            norm = trainer.optimise()
            trainer.record(log, {"loss": total, "class_acc": accuracy}, norm, sum(len(b) for b in batches))
            self._between(epoch, trainer.step % trainer.per_epoch)
        return log.averages(trainer.dist)

    def _between(self, epoch: int, done: int) -> None:
        """Validation and checkpoints inside an epoch, after `done` of its steps."""
        options = self.trainer.options
        if done and done % options.eval_freq == 0:
            self.validate(epoch)
            if options.save_ckpt and done % (10 * options.eval_freq) == 0:
                self.trainer.save_checkpoint(f"{epoch}_{done}", f"{epoch}_{done}")

    def validate(self, epoch: int) -> SetResult | None:
        """Read the validation set; a strictly better accuracy writes `checkpoint-best.pth`. None without evaluation."""
        trainer = self.trainer
        if self.evaluator is None:
            return None
        result = self.evaluator.evaluate(trainer.bare, trainer.options.eval_data_path)
        if trainer.extra["max_accuracy"] < result.accuracy:
            trainer.extra["max_accuracy"] = result.accuracy
            if trainer.options.save_ckpt:
                trainer.save_checkpoint("best", epoch)
        print(f"Max accuracy: {trainer.extra['max_accuracy']:.2%}")
        trainer.metrics.write(step=trainer.step, epoch=epoch, accuracy=100 * result.accuracy, val_loss=result.loss)
        trainer.board.scalar("perf/test_acc", result.accuracy, epoch)
        trainer.board.scalar("perf/test_loss", result.loss, epoch)
        return result


def augmentation(options: argparse.Namespace, rank: int) -> Callable | list[Callable] | None:
    """What `--num_view` and `--use_abi_aug` ask for: nothing, ABINet's, or SeqCLR's distortions.

    `--legacy-frozen-augment` gives one for each LMDB, whose kind and strength depend on seed + `rank`.
    """
    if options.num_view <= 1:
        return None
    if not options.use_abi_aug:
        return ContrastiveView(size=(options.input_h, options.input_w))
    if options.legacy_frozen_augment:
        return [AbinetAugment(one) for one in published_strengths(options.seed + rank, len(options.data_path))]
    return AbinetAugment()
