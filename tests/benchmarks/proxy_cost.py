"""What introspection costs at SOP's size: 11,318 proxies × 512, batch 120, forward and backward. Run by hand.

    python tests/benchmarks/proxy_cost.py [--device cuda]

Each round times every case once, so that a busy machine slows all of them; the ratio is of medians. Memory is the
highest point of what one step allocates, gradients included (on a GPU as torch counts it, on a CPU by its profiler).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from idml_zoo.losses import ProxyLoss
from idml_zoo.types import Embedding

CASES = {
    "plain Proxy Anchor": ("cosine", "zero"),
    "introspective, u_p = 0": ("introspective", "zero"),
    "introspective, u_p learned": ("introspective", "learned"),
}


def step(loss: ProxyLoss, vector: torch.Tensor, u: torch.Tensor, labels: torch.Tensor) -> None:
    """One forward and backward through normalisation and loss, as in training."""
    loss.zero_grad(set_to_none=True)
    vector.grad = u.grad = None
    loss(Embedding(F.normalize(vector), u), labels).backward()


def peak_memory(loss: ProxyLoss, *args: torch.Tensor) -> float:
    """MiB at the highest point of a step."""
    if args[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, *args)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    step(loss, *args)
    loss.zero_grad(set_to_none=True)  # gradients that are there would be counted as given back
    for a in args:
        a.grad = None
    with torch.profiler.profile(profile_memory=True) as profiler:
        step(loss, *args)
    current = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--proxies", type=int, default=11_318)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    labels = torch.randint(0, args.proxies, (args.batch,), device=args.device)
    losses, times = {}, {name: [] for name in CASES}  # type: ignore[var-annotated]
    for name, (similarity, uncertainty) in CASES.items():
        losses[name] = ProxyLoss(args.proxies, args.dim, similarity, proxy_uncertainty=uncertainty).to(args.device)
    vector = torch.randn(args.batch, args.dim, device=args.device, requires_grad=True)
    u = (0.1 * torch.randn(args.batch, args.dim, device=args.device) / args.dim**0.5).requires_grad_()
    for _ in range(args.rounds + 2):
        for name, loss in losses.items():
            if args.device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step(loss, vector, u, labels)
            if args.device != "cpu":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    base_time = statistics.median(times["plain Proxy Anchor"][2:])
    base_memory = peak_memory(losses["plain Proxy Anchor"], vector, u, labels)
    for name, loss in losses.items():
        seconds, memory = statistics.median(times[name][2:]), peak_memory(loss, vector, u, labels)
        print(
            f"{name:<28} {1000 * seconds:7.1f} ms ({seconds / base_time:.2f}x)   "
            f"{memory:7.1f} MiB ({memory / base_memory:.2f}x)"
        )


if __name__ == "__main__":
    main()
