"""A small vision transformer as a user's own student."""

from __future__ import annotations

from torch import nn


def student(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """For ``student.model = "tests.vit_net:student"``."""
    import kdedge.torchvision_compat  # noqa: F401 - torchvision is imported through it
    from torchvision.models import VisionTransformer

    net: nn.Module = VisionTransformer(
        image_size=shape[1], patch_size=8, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=classes
    )
    return net
