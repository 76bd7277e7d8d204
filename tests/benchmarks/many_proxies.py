"""A training step against a million proxies: with all of them, and with a sample. Run by hand, ~3 minutes, 8 GB.

    python tests/benchmarks/many_proxies.py [--classes 1000000] [--dim 64] [--batch 120] [--samples 16384]

Loss, backward pass and AdamW of the proxies, for random embeddings; medians, and the peak memory of each process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

import idml_zoo
from idml_zoo.losses import create_criterion


def measure(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    criterion = create_criterion(
        "proxy_anchor", args.classes, args.dim, args.similarity, samples=args.samples or None
    ).to(device)
    optimizer = torch.optim.AdamW(criterion.parameters(), lr=1e-2)
    seconds = []
    for _ in range(args.rounds + 1):
        semantic = torch.nn.functional.normalize(torch.randn(args.batch, args.dim, device=device)).requires_grad_()
        uncertainty = (0.1 * torch.randn(args.batch, args.dim, device=device)).requires_grad_()
        labels = torch.randint(args.classes, (args.batch,), device=device)
        start = time.perf_counter()
        loss = criterion(idml_zoo.Embedding(semantic, uncertainty), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        forward = time.perf_counter() - start
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((forward, time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    loss_s, step_s = (statistics.median(v) for v in zip(*seconds[1:], strict=True))
    print(
        json.dumps(
            {
                "similarity": args.similarity,
                "samples": args.samples or "all",
                "loss and gradient, s": round(loss_s, 3),
                "with AdamW, s": round(step_s, 3),
                "peak GiB": round(peak, 2),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=120)
    parser.add_argument("--samples", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--similarity", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.similarity:
        measure(args)
        return
    common = [f"--{k}={getattr(args, k)}" for k in ("classes", "dim", "batch", "rounds")]
    for similarity in ("cosine", "introspective"):
        for samples in (0, args.samples):
            command = [sys.executable, __file__, *common, f"--similarity={similarity}", f"--samples={samples}"]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
