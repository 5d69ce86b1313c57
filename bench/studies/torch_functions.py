"""`fastce.torch` against `torch.nn.functional`: forward and backward through autograd, on CPU.

    python bench/studies/torch_functions.py

Their calls alternate; the table holds the ratio of the medians of 7 calls of each, PyTorch's time
divided by fastce's. The linear layer is PyTorch's own `linear` and `cross_entropy`, which is faster
than its `linear_cross_entropy`, in the peer's column.
"""

import statistics
import time

import torch
import torch.nn.functional as F

import fastce.torch as ft

ROUNDS = 7


def seconds(call, inputs):
    """Of a call and of the gradients of what it gives."""
    start = time.perf_counter()
    result = call(*inputs)
    torch.autograd.grad(result if result.ndim == 0 else result.sum(), inputs)
    return time.perf_counter() - start


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float32).to(dtype).requires_grad_()


def cases():
    for dtype in torch.float32, torch.bfloat16:
        x, target = leaf(4096, 32000, dtype=dtype), torch.randint(0, 32000, (4096,))
        yield (
            f"cross_entropy (4096, 32000), {dtype}",
            [x],
            lambda x, t=target: ft.cross_entropy(x, t),
            lambda x, t=target: F.cross_entropy(x, t),
        )
        yield (
            f"log_softmax (4096, 32000), {dtype}",
            [x],
            lambda x: ft.log_softmax(x),
            lambda x: F.log_softmax(x, -1),
        )
        q = [leaf(1, 8, 2048, 64, dtype=dtype) for _ in range(3)]
        yield (
            f"scaled_dot_product_attention (1, 8, 2048, 64), causal, {dtype}",
            q,
            lambda q, k, v: ft.scaled_dot_product_attention(q, k, v, is_causal=True),
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        )
        layer = [leaf(2048, 1024, dtype=dtype), leaf(32000, 1024, dtype=dtype)]
        yield (
            f"linear_cross_entropy 2048 x 1024 -> 32000, {dtype}",
            layer,
            lambda x, w, t=target: ft.linear_cross_entropy(x, w, t[:2048]),
            lambda x, w, t=target: F.cross_entropy(F.linear(x, w), t[:2048]),
        )


def main():
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, inputs, ours, theirs in cases():
        times = {ours: [], theirs: []}
        for call in times:
            seconds(call, inputs)
        for _ in range(ROUNDS):
            for call in times:
                times[call].append(seconds(call, inputs))
        mine, peer = (statistics.median(taken) for taken in times.values())
        print(f"{name:75} {peer / mine:5.2f}x  ({mine * 1e3:.0f} ms)", flush=True)


if __name__ == "__main__":
    main()
