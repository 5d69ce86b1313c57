"""A training step of `character_gpt.py` in PyTorch, from the same parameters, and its time."""

import statistics
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from self_attention import SelfAttention
from training import Adam

ROUNDS, STEPS = 4, 5


def loss_of(model: Any, parameters: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> Any:
    """The loss of the GPT `model`, whose numbers are in `parameters`."""
    tokens, positions, last, *rest = parameters
    h = tokens[x] + positions[: x.shape[1]]
    norm = (h.shape[-1],)
    for layer in model.layers:
        here, rest = rest[: len(layer.parameters)], rest[len(layer.parameters) :]
        n = F.rms_norm(h, norm, eps=1e-6)
        if isinstance(layer, SelfAttention):
            q, k, v = ((n @ w).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for w in here[:3])
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + mixed.transpose(1, 2).flatten(2) @ here[3]
        else:
            h = h + F.relu(n @ here[0]) @ here[1]
    logits = F.rms_norm(h, norm, eps=1e-6) @ last.T
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def compare(model: Any, x: np.ndarray, following: np.ndarray) -> str:
    """Alternating groups of steps, from the same parameters; the first losses must agree."""
    there = [torch.tensor(p, requires_grad=True) for p in model.parameters]
    torch_adam = torch.optim.Adam(there, 1e-4)
    given = torch.tensor(x), torch.tensor(following)
    adam = Adam(model.parameters, 1e-4)

    def torch_step() -> float:
        torch_adam.zero_grad()
        loss = loss_of(model, there, *given)
        loss.backward()
        torch_adam.step()
        return loss.item()

    def step() -> float:
        loss, gradients = model.loss_and_gradients(x, following)
        adam.step(gradients)
        return loss

    kept = [p.copy() for p in model.parameters]
    seconds: dict[Any, list[float]] = {step: [], torch_step: []}
    np.testing.assert_allclose(step(), torch_step(), rtol=1e-4)
    for _ in range(ROUNDS):
        for call, taken in seconds.items():
            for _ in range(STEPS):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
    for parameter, before in zip(model.parameters, kept, strict=True):
        parameter[...] = before
    mine, peer = (statistics.median(taken) for taken in seconds.values())
    return (
        f"a step in NumPy and fastce: {mine * 1e3:.0f} ms, in PyTorch: {peer * 1e3:.0f} ms "
        f"({peer / mine:.2f} times as long)"
    )
