"""What channels_last and glibc's keeping of freed memory are worth for training on a CPU. Run by hand.

    python tests/benchmarks/cpu_memory.py

Each case runs in a process of its own, for the allocator's setting holds for a whole process.
"""

import subprocess
import sys
import time

CASES = {"plain": (False, False), "channels_last": (True, False), "keep memory": (False, True), "both": (True, True)}


def measure(
    channels_last: bool, keep: bool, name: str = "tf_efficientnet_lite0", size: int = 128, batch: int = 64
) -> None:
    import timm
    import torch

    from idml_zoo.training.cpu import keep_memory

    if keep:
        keep_memory()
    model, images = timm.create_model(name, num_classes=0).eval(), torch.randn(batch, 3, size, size)
    if channels_last:
        model, images = (
            model.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
    rates = []
    for train in (False, True):
        best = 0.0
        with torch.set_grad_enabled(train):
            for _ in range(4):
                start = time.perf_counter()
                out = model(images)
                if train:
                    out.sum().backward()
                best = max(best, batch / (time.perf_counter() - start))
        rates.append(best)
    print(f"{rates[0]:.0f} {rates[1]:.0f}")


def main() -> None:
    base = None
    for name, (channels_last, keep) in CASES.items():
        command = [sys.executable, __file__, str(int(channels_last)), str(int(keep))]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        forward, train = map(float, out)
        base = base or (forward, train)
        ratios = f"{forward / base[0]:.2f}x, {train / base[1]:.2f}x"
        print(f"{name:<14} forward {forward:4.0f} images/s, training {train:4.0f} images/s  ({ratios})", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(bool(int(sys.argv[1])), bool(int(sys.argv[2])))
    else:
        main()
