"""TRBA and TRBC (Baek et al., ICCV 2019): TPS, a ResNet, two BiLSTMs, then attention or CTC."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from common.models.attention import AttentionDecoder, BidirectionalLSTM
from common.models.resnet import residual_stage
from common.models.tps import Tps
from projects.ssm.model.crnn import CTCRecogniser
from projects.ssm.model.layers import decoding_steps, init_weights


class ConvNet(nn.Module):
    """The 29-layer network of FAN: `[B, 3, 32, 128]` -> `[B, channels, 1, 33]`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        widths = [channels // 4, channels // 2, channels, channels]
        depths = (1, 2, 5, 3)
        self.conv0_1, self.bn0_1 = conv_norm(in_channels, channels // 16, 3, padding=1)
        self.conv0_2, self.bn0_2 = conv_norm(channels // 16, channels // 8, 3, padding=1)
        self.maxpool1, self.maxpool2 = nn.MaxPool2d(2, 2), nn.MaxPool2d(2, 2)
        self.maxpool3 = nn.MaxPool2d(2, (2, 1), (0, 1))  # from here on the width stays: 8 x 32 -> 4 x 33
        width = channels // 8
        for index, (wider, depth) in enumerate(zip(widths[:3], depths[:3]), start=1):
            setattr(self, f"layer{index}", residual_stage(width, wider, depth, first_kernel=3))
            conv, norm = conv_norm(wider, wider, 3, padding=1)
            setattr(self, f"conv{index}", conv)
            setattr(self, f"bn{index}", norm)
            width = wider
        self.layer4 = residual_stage(width, widths[3], depths[3], first_kernel=3)
        self.conv4_1, self.bn4_1 = conv_norm(widths[3], widths[3], 2, stride=(2, 1), padding=(0, 1))
        self.conv4_2, self.bn4_2 = conv_norm(widths[3], widths[3], 2)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn0_1(self.conv0_1(images)))
        x = F.relu(self.bn0_2(self.conv0_2(x)))
        x = F.relu(self.bn1(self.conv1(self.layer1(self.maxpool1(x)))))
        x = F.relu(self.bn2(self.conv2(self.layer2(self.maxpool2(x)))))
        x = F.relu(self.bn3(self.conv3(self.layer3(self.maxpool3(x)))))
        x = F.relu(self.bn4_1(self.conv4_1(self.layer4(x))))
        return F.relu(self.bn4_2(self.conv4_2(x)))


def conv_norm(width_in: int, width_out: int, kernel: int, **options) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(width_in, width_out, kernel, bias=False, **options), nn.BatchNorm2d(width_out)


class TRBABackbone(nn.Module):
    """TPS, `FeatureExtraction.ConvNet`, `SequenceModeling` and a `Prediction` head given by the caller."""

    def __init__(
        self, img_size: tuple[int, int], num_fiducial: int, channels: int, hidden_size: int, prediction: nn.Module
    ) -> None:
        super().__init__()
        self.Transformation = Tps(tuple(img_size), num_fiducial, persistent=True)
        self.FeatureExtraction = nn.ModuleDict({"ConvNet": ConvNet(3, channels)})
        self.SequenceModeling = nn.Sequential(
            BidirectionalLSTM(channels, hidden_size, hidden_size),
            BidirectionalLSTM(hidden_size, hidden_size, hidden_size),
        )
        self.Prediction = prediction

    def encode(self, images: Tensor) -> Tensor:
        """`[B, 33, hidden]` for 32x128 crops: one column a step, the height averaged."""
        maps = self.FeatureExtraction["ConvNet"](self.Transformation(images))
        return self.SequenceModeling(maps.mean(2).transpose(1, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.Prediction(self.encode(images))


class TRBA(nn.Module):
    """Attention reader: logits `[B, max_length + 1, C + 3]` (BOS and PAD are classes here too), no early stop."""

    def __init__(
        self,
        charset_size: int,
        max_label_length: int = 25,
        img_size: tuple[int, int] = (32, 128),
        *,
        num_fiducial: int = 20,
        output_channel: int = 512,
        hidden_size: int = 256,
    ) -> None:
        super().__init__()
        self.max_label_length = max_label_length
        self.bos_id, self.pad_id = charset_size + 1, charset_size + 2
        classes = charset_size + 3
        decoder = AttentionDecoder(hidden_size, hidden_size, classes, embedding_rows=classes)
        self.model = TRBABackbone(img_size, num_fiducial, output_channel, hidden_size, decoder)
        initialise(self.model)

    def no_weight_decay(self) -> set[str]:
        """Parameter names that weight decay leaves alone."""
        return {"model.Prediction.char_embeddings.weight"}

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, teacher forced along `targets` `[B, L]` (BOS, characters, EOS, PAD); padding ignored."""
        logits = self.model.Prediction(self.model.encode(images), targets[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=self.pad_id)

    def forward(self, images: Tensor, max_length: int | None = None) -> Tensor:
        steps = decoding_steps(self.max_label_length, max_length)
        return self.model.Prediction(self.model.encode(images), start=self.bos_id, steps=steps).logits


class TRBC(CTCRecogniser):
    """The same features read by one Linear layer and CTC: logits `[B, 33, C + 1]`."""

    def __init__(
        self,
        charset_size: int,
        max_label_length: int = 25,
        img_size: tuple[int, int] = (32, 128),
        *,
        num_fiducial: int = 20,
        output_channel: int = 512,
        hidden_size: int = 256,
    ) -> None:
        super().__init__()
        head = nn.Linear(hidden_size, charset_size + 1)
        self.model = TRBABackbone(img_size, num_fiducial, output_channel, hidden_size, head)
        initialise(self.model)


def initialise(model: nn.Module) -> None:
    """The published start of all layers but the localisation's last, which keeps RARE's."""
    for name, module in model.named_modules():
        if name != "Transformation.LocalizationNetwork.localization_fc2":
            init_weights(module)
