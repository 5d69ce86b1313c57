"""fastce's attention on a GPU beside PyTorch's FLASH_ATTENTION and CUDNN_ATTENTION.

    python bench/studies/gpu_attention.py [--quick] [--warpgroups] [--save figures.json]

Needs PyTorch with CUDA. Calls alternate; medians of device events. The rate of a
multiplication counts two operations; the backward has five products for the forward's two, and
causality halves both. `--warpgroups` also times Hopper's own products, which fastce does not use
yet.
"""

import argparse
import json

import torch
from gpu import milliseconds, show
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

import fastce
from fastce.kernels.cuda.attention import launch

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def by_torch(name, call):
    """`call` with one of PyTorch's backends; None where this PyTorch has it not."""

    def run():
        with sdpa_kernel(BACKENDS[name]):
            return call()

    try:
        run()
    except RuntimeError as error:
        print(f"{name} is left out: {str(error).splitlines()[0]}")
        return None
    return run


def by_warpgroups(call):
    def run():
        launch.WARPGROUPS = True
        try:
            return call()
        finally:
            launch.WARPGROUPS = False

    return run


def prefill(batch, heads, length, width, causal, dtype, warpgroups):
    """Milliseconds and TFLOP/s of forward and backward."""
    q, k, v, g = (
        torch.randn(batch, heads, length, width, device="cuda", dtype=dtype) for _ in range(4)
    )
    leaves = [a.detach().clone().requires_grad_() for a in (q, k, v)]
    out, lse = fastce.scaled_dot_product_attention(q, k, v, is_causal=causal, return_lse=True)

    def ours():
        return fastce.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def our_gradient():
        return fastce.scaled_dot_product_attention_backward(g, q, k, v, out, lse, is_causal=causal)

    forward, backward = {"fastce": ours}, {"fastce": our_gradient}
    if warpgroups:
        forward["fastce, warpgroups"] = by_warpgroups(ours)
        backward["fastce, warpgroups"] = by_warpgroups(our_gradient)
    for name in BACKENDS:
        forward[name] = by_torch(name, lambda: sdpa(q, k, v, is_causal=causal))
        if forward[name] is not None:
            with sdpa_kernel(BACKENDS[name]):
                theirs = sdpa(*leaves, is_causal=causal)

            def gradient(theirs=theirs):
                return torch.autograd.grad(theirs, leaves, g, retain_graph=True)

            backward[name] = gradient
    work = 4 * batch * heads * length * length * width * (0.5 if causal else 1)
    results = {}
    for what, calls, factor in (("forward", forward, 1), ("backward", backward, 2.5)):
        taken = milliseconds({name: call for name, call in calls.items() if call})
        results[what] = {name: (ms, factor * work / ms / 1e9) for name, ms in taken.items()}
    return results


def decode(sequences, heads, kv_heads, keys, width, dtype):
    """Share of the bandwidth of a copy, where every sequence has one query."""
    q = torch.randn(sequences, heads, 1, width, device="cuda", dtype=dtype)
    k, v = (
        torch.randn(sequences, kv_heads, keys, width, device="cuda", dtype=dtype) for _ in range(2)
    )
    k2 = torch.empty_like(k)
    calls = {
        "copy": lambda: k2.copy_(k),
        "fastce": lambda: fastce.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        "flash": by_torch("flash", lambda: sdpa(q, k, v, enable_gqa=True)),
        "cudnn": by_torch("cudnn", lambda: sdpa(q, k, v, enable_gqa=True)),
    }
    taken = milliseconds({name: call for name, call in calls.items() if call})
    return {name: 2 * k.nbytes / ms / 1e6 for name, ms in taken.items()}  # GB/s


def memory(length, width, dtype):
    """Bytes beyond inputs and results, of the forward and the backward."""
    q, k, v, g = (torch.randn(1, 8, length, width, device="cuda", dtype=dtype) for _ in range(4))
    free = torch.cuda.mem_get_info()[0]
    out, lse = fastce.scaled_dot_product_attention(q, k, v, return_lse=True)
    fastce.scaled_dot_product_attention_backward(g, q, k, v, out, lse)
    torch.cuda.synchronize()
    return free - torch.cuda.mem_get_info()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter sequences")
    parser.add_argument("--warpgroups", action="store_true", help="time Hopper's products, too")
    parser.add_argument("--save", help="write the figures to this file, as JSON")
    args = parser.parse_args()
    figures = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    length, dtype = 2048 if args.quick else 8192, torch.bfloat16
    for width in 128, 64:
        for causal in False, True:
            what = f"width {width}{', causal' if causal else ''}"
            figures[what] = prefill(2, 32, length, width, causal, dtype, args.warpgroups)
            for op, taken in figures[what].items():
                ours = taken["fastce"][0]
                show(
                    f"{op}, (2, 32, {length}, {width}) bfloat16{', causal' if causal else ''}",
                    ["", "ms", "TFLOP/s", "fastce is .. times as fast"],
                    [[name, ms, rate, ms / ours] for name, (ms, rate) in taken.items()],
                )
    rates = figures["decode"] = decode(64, 64, 8, length * 2, 128, dtype)
    show(
        f"decode, 64 sequences, 64 heads on 8, {length * 2} keys, bfloat16",
        ["", "GB/s", "share of a copy's"],
        [[name, rate, rate / rates["copy"]] for name, rate in rates.items()],
    )
    figures["memory"] = {n: memory(n, 128, dtype) for n in (length // 4, length)}
    show("bytes beyond inputs and results", ["length", "bytes"], figures["memory"].items())
    if args.save:
        with open(args.save, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
