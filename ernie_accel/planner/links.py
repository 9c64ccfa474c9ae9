"""What an exchange between devices costs: a fixed time and a time for its bytes (the alpha-beta model)."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LINKS", "Link"]


@dataclass(frozen=True)
class Link:
    """How the devices of one machine are joined.

    Attributes:
        name: Of the kind of link.
        alpha: Seconds of an all-reduce of few bytes between two devices.
        doubling: Seconds that it takes more each time the number of devices doubles.
        bandwidth: Bytes a second that one device sends while it receives as many.
    """

    name: str
    alpha: float
    doubling: float
    bandwidth: float

    def all_reduce(self, payload: float, ranks: int) -> float:
        """Return the seconds of an all-reduce: a ring sends 2 (n - 1) / n of the payload over every link."""
        if ranks < 2:
            return 0.0
        fixed = self.alpha + self.doubling * math.log2(ranks / 2)
        return fixed + 2 * (ranks - 1) / ranks * payload / self.bandwidth


LINKS = {
    # nvlink3: fitted to gpt-fast's Llama-2-7B on 1, 2, 4 and 8 A100 (105, 169, 254, 328 tokens/s).
    # nvlink4: about 6 us for a pair with NVLS, 7 to 10 us for four (nccl#1259). pcie4: 45 to 57 us for 8 to 16 KB on
    # eight A800 (vllm#50576). The others by analogy. Bandwidths are half of what the makers give for both directions.
    # memory: fitted to Paddle's two processes on two cores, 0.3B in fp32, 92 ms a step where one process takes 40;
    # that four processes take twice as long for a sum is a guess.
    "nvlink5": Link("NVLink 5", 5.5e-6, 1.5e-6, 900e9),
    "nvlink4": Link("NVLink 4", 6e-6, 1.75e-6, 450e9),
    "nvlink4-400": Link("NVLink 4, 400 GB/s", 6e-6, 1.75e-6, 200e9),
    "nvlink3": Link("NVLink 3", 10.8e-6, 2.75e-6, 300e9),
    "nvlink3-400": Link("NVLink 3, 400 GB/s", 10.8e-6, 2.75e-6, 200e9),
    "pcie4": Link("PCIe 4", 24e-6, 13e-6, 25e9),
    "pcie3": Link("PCIe 3", 30e-6, 15e-6, 12e9),
    "memory": Link("gloo between processes of one machine", 1.6e-3, 1.6e-3, 0.35e9),
    "network": Link("network between machines", 40e-6, 20e-6, 25e9),
}
