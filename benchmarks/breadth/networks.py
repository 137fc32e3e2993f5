"""Torch networks of the breadth benchmark: MobileNetV2 for its published weights, three nets with random, well-scaled weights.

Random weights are drawn with fixed seeds and scaled to keep variance (He et al. 2015); batch statistics are then measured on
smooth random images, so that every activation stays of the order of one and an error anywhere in the network reaches the output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_norm(
    cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Convolution that keeps the grid (up to its stride), batch norm and activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*layers, *([act()] if act is not None else []))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project without activation (Sandler et al. 2018)."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        layers: list[nn.Module] = [conv_norm(cin, hidden, 1, act=nn.ReLU6)] if expand != 1 else []
        layers.append(conv_norm(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6))
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """[n, cin, h, w] -> [n, cout, h / stride, w / stride]."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 of 224 x 224 images; parameters are named as in the published ImageNet weights."""

    # expansion, channels, blocks, stride of the first (table 2 of the paper)
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [conv_norm(3, 32, 3, 2, act=nn.ReLU6)]
        channels = 32
        for expand, cout, blocks, stride in self.STAGES:
            for block in range(blocks):
                features.append(InvertedResidual(channels, cout, stride if block == 0 else 1, expand))
                channels = cout
        self.features = nn.Sequential(*features, conv_norm(channels, 1280, 1, act=nn.ReLU6))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, image: Tensor) -> Tensor:
        """[n, 3, 224, 224], normalized with ImageNet's mean and deviation -> logits [n, 1000]."""
        return self.classifier(self.features(image).mean((2, 3)))


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions (He et al. 2016)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(cin, cout, 3, stride), conv_norm(cout, cout, 3, act=None))
        self.skip = conv_norm(cin, cout, 1, stride, act=None) if stride != 1 or cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[n, cin, h, w] -> [n, cout, h / stride, w / stride]."""
        return functional.relu(self.body(x) + self.skip(x))


class ResNet18(nn.Module):
    """ResNet-18 of 224 x 224 images."""

    def __init__(self) -> None:
        super().__init__()
        stages = [BasicBlock(64, 64, 1), BasicBlock(64, 64, 1)]
        for cin, cout in ((64, 128), (128, 256), (256, 512)):
            stages += [BasicBlock(cin, cout, 2), BasicBlock(cout, cout, 1)]
        self.features = nn.Sequential(conv_norm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), *stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """[n, 3, 224, 224] -> logits [n, 1000]."""
        return self.classifier(torch.flatten(self.pool(self.features(image)), 1))


class C2f(nn.Module):
    """A cross-stage block: half of the channels run through bottlenecks, and every intermediate result is kept."""

    def __init__(self, cin: int, cout: int, blocks: int, residual: bool) -> None:
        super().__init__()
        half = cout // 2
        self.enter = conv_norm(cin, cout, 1, act=nn.SiLU)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_norm(half, half, 3, act=nn.SiLU), conv_norm(half, half, 3, act=nn.SiLU)) for _ in range(blocks)
        )
        self.leave = conv_norm((2 + blocks) * half, cout, 1, act=nn.SiLU)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[n, cin, h, w] -> [n, cout, h, w]."""
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]) if self.residual else block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class SpatialPyramid(nn.Module):
    """Three 5x5 max pools in a row, each of them kept (SPPF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = conv_norm(channels, channels // 2, 1, act=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = conv_norm(channels * 2, channels, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> the same."""
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Detector(nn.Module):
    """A one-stage, anchor-free detector in the style of YOLOv8-n: C2f backbone, two-way feature pyramid, decoupled heads.

    Box sides are expected values of distributions over 16 distances (generalized focal loss, Li et al. 2020).
    """

    CLASSES, BINS, SIZE = 80, 16, 320

    def __init__(self) -> None:
        super().__init__()
        silu = nn.SiLU
        self.stem = nn.Sequential(conv_norm(3, 16, 3, 2, act=silu), conv_norm(16, 32, 3, 2, act=silu), C2f(32, 32, 1, True))
        self.stage8 = nn.Sequential(conv_norm(32, 64, 3, 2, act=silu), C2f(64, 64, 2, True))
        self.stage16 = nn.Sequential(conv_norm(64, 128, 3, 2, act=silu), C2f(128, 128, 2, True))
        self.stage32 = nn.Sequential(conv_norm(128, 256, 3, 2, act=silu), C2f(256, 256, 1, True), SpatialPyramid(256))
        self.up16, self.up8 = C2f(384, 128, 1, False), C2f(192, 64, 1, False)
        self.down16, self.down32 = conv_norm(64, 64, 3, 2, act=silu), conv_norm(128, 128, 3, 2, act=silu)
        self.out16, self.out32 = C2f(192, 128, 1, False), C2f(384, 256, 1, False)
        self.boxes = nn.ModuleList(self._head(c, 64, 4 * self.BINS) for c in (64, 128, 256))
        self.classes = nn.ModuleList(self._head(c, 80, self.CLASSES) for c in (64, 128, 256))
        self.register_buffer("bins", torch.arange(self.BINS, dtype=torch.float32).view(1, self.BINS, 1, 1))
        centres, strides = [], []
        for stride in (8, 16, 32):
            grid = torch.arange(self.SIZE // stride) + 0.5
            y, x = torch.meshgrid(grid, grid, indexing="ij")
            centres.append(torch.stack((x.flatten(), y.flatten())))
            strides.append(torch.full((x.numel(),), float(stride)))
        self.register_buffer("centres", torch.cat(centres, 1)[None])
        self.register_buffer("strides", torch.cat(strides)[None, None])

    @staticmethod
    def _head(cin: int, width: int, cout: int) -> nn.Sequential:
        return nn.Sequential(
            conv_norm(cin, width, 3, act=nn.SiLU), conv_norm(width, width, 3, act=nn.SiLU), nn.Conv2d(width, cout, 1)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[n, 3, 320, 320] in 0..1 -> boxes [n, 4, 2100] (centre x, y, width, height in pixels), scores [n, 80, 2100]."""
        c8 = self.stage8(self.stem(image))
        c16 = self.stage16(c8)
        c32 = self.stage32(c16)
        p16 = self.up16(torch.cat((functional.interpolate(c32, scale_factor=2.0, mode="nearest"), c16), 1))
        p8 = self.up8(torch.cat((functional.interpolate(p16, scale_factor=2.0, mode="nearest"), c8), 1))
        n16 = self.out16(torch.cat((self.down16(p8), p16), 1))
        n32 = self.out32(torch.cat((self.down32(n16), c32), 1))
        levels = (p8, n16, n32)
        sides = torch.cat([head(x).flatten(2) for head, x in zip(self.boxes, levels, strict=True)], 2)
        scores = torch.cat([head(x).flatten(2) for head, x in zip(self.classes, levels, strict=True)], 2)
        n, _, anchors = sides.shape
        likely = sides.view(n, 4, self.BINS, anchors).transpose(1, 2).softmax(1)
        distance = functional.conv2d(likely, self.bins).view(n, 4, anchors)
        before, after = distance.chunk(2, 1)
        low, high = self.centres - before, self.centres + after
        return torch.cat(((low + high) / 2, high - low), 1) * self.strides, scores.sigmoid()


class UNet(nn.Module):
    """A segmentation net: four levels, skips by concatenation, transposed convolutions upwards (Ronneberger et al. 2015)."""

    WIDTHS = (16, 32, 64, 128)

    def __init__(self) -> None:
        super().__init__()
        cin = 3
        self.down, self.up, self.merge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for width in self.WIDTHS:
            self.down.append(nn.Sequential(conv_norm(cin, width, 3), conv_norm(width, width, 3)))
            cin = width
        for width in reversed(self.WIDTHS[:-1]):
            self.up.append(nn.ConvTranspose2d(cin, width, 2, 2))
            self.merge.append(nn.Sequential(conv_norm(2 * width, width, 3), conv_norm(width, width, 3)))
            cin = width
        self.head = nn.Conv2d(cin, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[n, 3, 128, 128] -> logits [n, 4, 128, 128]."""
        skips: list[Tensor] = []
        for index, stage in enumerate(self.down):
            image = stage(functional.max_pool2d(image, 2) if index else image)
            skips.append(image)
        for up, merge in zip(self.up, self.merge, strict=True):
            skips.pop()
            image = merge(torch.cat((up(image), skips[-1]), 1))
        return self.head(image)


def smooth_images(count: int, size: int, seed: int) -> Tensor:
    """[count, 3, size, size] of about zero mean and unit deviation: octaves of noise, so that neighbours resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, size, size)
    for cells in (4, 16, size):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        images += functional.interpolate(noise, (size, size), mode="bicubic") / 3**0.5
    return images


def well_scaled(build: Callable[[], nn.Module], size: int, seed: int) -> nn.Module:
    """A network with random weights whose activations are of the order of one on `smooth_images`.

    Affine parameters of batch norms are random too, so that no folded layer is trivial. Their offsets are mostly positive: with
    none, depth amplifies rounding errors by a fifth per layer (Yang et al. 2019), which trained networks do not do.
    """
    torch.manual_seed(seed)
    network = build()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if isinstance(module, nn.Linear) else "relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.5, 0.3)
            module.momentum = None  # plain average over the batches below
    with torch.no_grad():
        for batch in range(4):
            network.train()(smooth_images(8, size, seed + 1 + batch))
    return network.eval()
