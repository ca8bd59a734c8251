"""Time and memory of the Gram loss, forward and backward, against its plain form and iREPA's loss.

Batch 4 of N tokens of 768 channels. ``gram``: the form that is chosen for N, own backward, with what belongs to the
reference kept (it depends on no parameter). ``direct``: mse_loss of both N x N matrices through autograd; ``direct
cached``: the same with the reference's matrix kept. ``irepa``: z-score of the reference and mean cosine. Ratios of
interleaved runs, medians with bootstrap intervals. ``memory_ratio``: bytes allocated at the peak beyond inputs and
reference, gram over direct; on a CPU from torch's profiler.

    python benchmarks/gram.py [--quick] [--device cuda]
"""

import argparse
import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from interleaved import median, ratio, seconds
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from flowgrain.align.gram import GramTarget, gram_loss
from flowgrain.align.patches import cosine_alignment, spatial_z_score

CHANNELS = 768
TOKENS = (256, 1024, 4096)


class Contest:
    """The losses on the same features."""

    def __init__(self, tokens: int, batch: int, device: str):
        generator = torch.Generator().manual_seed(0)
        shape = (batch, tokens, CHANNELS)
        self.own, self.reference = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
        self.own.requires_grad_()
        self.target = GramTarget.of(self.reference, CHANNELS)
        rows = F.normalize(self.reference, dim=-1)
        self.reference_gram = rows @ rows.mT
        self.device = device

    def gram(self) -> None:
        """Ours."""
        self._finish(gram_loss(self.own, self.target))

    def direct(self) -> None:
        """The definition."""
        rows, other = F.normalize(self.own, dim=-1), F.normalize(self.reference, dim=-1)
        self._finish(F.mse_loss(rows @ rows.mT, other @ other.mT))

    def direct_cached(self) -> None:
        """The definition, the reference's matrix kept."""
        rows = F.normalize(self.own, dim=-1)
        self._finish(F.mse_loss(rows @ rows.mT, self.reference_gram))

    def irepa(self) -> None:
        """iREPA's loss."""
        self._finish(cosine_alignment(self.own, spatial_z_score(self.reference)))

    def _finish(self, loss: Tensor) -> None:
        self.own.grad = None
        loss.sum().backward()
        if self.device == "cuda":
            torch.cuda.synchronize()


def peak_bytes(work: Callable[[], None], device: str) -> int:
    """Bytes allocated at the peak of a call beyond what was there before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description="Time and memory of the Gram loss.")
    parser.add_argument("--quick", action="store_true", help="few pairs, one sample a batch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    batch, pairs = (1, 5) if options.quick else (4, 15)
    speed, cached, irepa, memory, forms, milliseconds = {}, {}, {}, {}, {}, {}
    for tokens in TOKENS:
        contest = Contest(tokens, batch, options.device)
        rows = {
            "direct / gram": ratio(contest.direct, contest.gram, pairs),
            "direct cached / gram": ratio(contest.direct_cached, contest.gram, pairs),
            "iREPA / gram": ratio(contest.irepa, contest.gram, pairs),
        }
        for name, (value, low, high) in rows.items():
            print(f"N {tokens:5d}  {name:22s} {value:6.2f}  [{low:.2f}, {high:.2f}]")
        speed[tokens], cached[tokens], irepa[tokens] = (round(value[0], 3) for value in rows.values())
        milliseconds[tokens] = round(1000 * median([seconds(contest.gram) for _ in range(pairs)])[0], 2)
        memory[tokens] = round(peak_bytes(contest.gram, options.device) / peak_bytes(contest.direct, options.device), 4)
        forms[tokens] = contest.target.form
        print(f"N {tokens:5d}  {forms[tokens]}, {milliseconds[tokens]} ms; memory over direct's {memory[tokens]}")
    print(
        json.dumps(
            {"benchmark": "gram", "device": options.device, "batch": batch, "speedup": speed, "speedup_cached": cached,
             "irepa_over_gram": irepa, "memory_ratio": memory, "form": forms, "gram_ms": milliseconds}
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
