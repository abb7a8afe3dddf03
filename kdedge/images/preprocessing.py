"""What happens to an image between the file and the net, the same in training, on the host and on the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kdedge.inputs import InputSpec, image_input

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImagePreprocessing:
    """Short side resized, centre crop to ``image_size``, [0, 255] → [0, 1], minus mean, by standard deviation.

    Attributes:
        image_size: (height, width) in pixels.
        channels: 1 or 3 (RGB).
        mean: By channel, of values in [0, 1].
        std: By channel, of values in [0, 1].
        resize: Interpolation.
        short_side: What the short side is resized to before the crop, in pixels; None for ``image_size``.
    """

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "bilinear"
    short_side: int | None = None

    kind: ClassVar[str] = "image"

    def encode(self, part: Any) -> Any:
        """The split as it is: decoding makes it of the right size."""
        return part

    def files(self) -> dict[str, str]:
        """What a bundle keeps in files of its own: nothing."""
        return {}

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """One image."""
        return (image_input(self.channels, self.image_size),)

    def prepare(self, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Images as ``normalise`` takes them -> the net's input, channels_last, which fast convolutions want."""
        import torch

        (images,) = columns
        return (self.normalise(images).contiguous(memory_format=torch.channels_last),)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 or float [N, C, H, W] in [0, 255] -> float32 [N, C, H, W]."""
        import torch

        scale = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1) * 255.0
        shift = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1) * 255.0
        return (images.float() - shift) / scale

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        data = {"kind": self.kind, **asdict(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items() if v is not None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ImagePreprocessing:
        """From ``to_dict``'s values."""
        height, width = data["image_size"]
        return cls(
            (int(height), int(width)),
            int(data["channels"]),
            tuple(map(float, data["mean"])),
            tuple(map(float, data["std"])),
            str(data.get("resize", "bilinear")),
            None if data.get("short_side") is None else int(data["short_side"]),
        )


def measure_preprocessing(images: Tensor) -> ImagePreprocessing:
    """The preprocessing that gives the training images mean 0 and standard deviation 1 by channel.

    Args:
        images: uint8 [N, C, H, W] of the training split alone.
    """
    import torch

    _, channels, height, width = images.shape
    # Histograms count exactly and need no float copy of the whole data set.
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(channels):
        counts = torch.bincount(images[:, channel].reshape(-1).long(), minlength=256).double()
        share = counts / counts.sum()
        centre = float((share * levels).sum())
        mean.append(round(centre, 6))
        std.append(round(max(float((share * (levels - centre) ** 2).sum().sqrt()), 1e-3), 6))
    return ImagePreprocessing((height, width), channels, tuple(mean), tuple(std))
