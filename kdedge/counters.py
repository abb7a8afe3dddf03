"""Random numbers from counters: what is drawn depends on a seed and words alone, not on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, *words: object) -> torch.Generator:
    """A generator whose stream depends on the seed and the words alone."""
    digest = hashlib.sha256(repr((seed, *words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
