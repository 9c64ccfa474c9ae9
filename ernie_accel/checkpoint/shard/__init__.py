"""A checkpoint divided among ranks that compute it together (tensor and expert parallel), and put together again.

``split`` writes a directory for each rank, ``merge`` makes the checkpoint of them again, ``verify`` compares them with
their hashes. Which part of a tensor a rank holds is said in ``ernie_accel/architecture/split.py``.
"""

from __future__ import annotations

from ernie_accel.checkpoint.shard.merging import merge, verify
from ernie_accel.checkpoint.shard.splitting import SplitReport, split

__all__ = ["SplitReport", "merge", "split", "verify"]
