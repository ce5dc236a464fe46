"""Counter-based random draws: a pure function of (seed, stream, index), so a resumed run draws what it would have
drawn.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) takes a key and a counter. The key comes
from the seed and the name of the stream, the counter's high word from the index (a step, an epoch, a generation);
streams and indices therefore never overlap.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """Return the generator for draw `index` (0 to 2**63 - 1) of a named `stream`."""
    if not 0 <= index < 2**63:
        raise ValueError(f"index = {index!r}: expected an integer in [0, 2**63)")
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64), counter=[0, 0, 0, index]))


def torch_seed(seed: int, stream: str, index: int = 0) -> int:
    """Return a seed for `torch.manual_seed`, for layers that draw from torch's own generator, such as dropout."""
    return int(generator(seed, stream, index).integers(2**63))
