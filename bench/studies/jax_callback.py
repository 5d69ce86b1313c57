"""Why there is no `fastce.jax`: cross-entropy through `jax.pure_callback` against XLA's own.

    python bench/studies/jax_callback.py

The callback has a custom VJP whose forward computes loss and gradient in one call of fastce. The
calls alternate; the table holds XLA's median time divided by that of the callback, over 7 calls of
each.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import fastce

ROUNDS = 7


def shape_of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@jax.custom_vjp
def through_callback(x, target):
    def loss(x, target):
        return np.asarray(fastce.cross_entropy(np.asarray(x), np.asarray(target)))

    return jax.pure_callback(loss, shape_of(), x, target)


def _forward(x, target):
    def both(x, target):
        loss, grad = fastce.cross_entropy_with_grad(np.asarray(x), np.asarray(target))
        return np.asarray(loss), grad

    return jax.pure_callback(both, (shape_of(), shape_of(*x.shape)), x, target)


through_callback.defvjp(_forward, lambda grad, factor: (factor * grad, None))


def of_xla(x, target):
    lse = jax.nn.logsumexp(x, axis=-1)
    return (lse - jnp.take_along_axis(x, target[:, None], 1)[:, 0]).mean()


def main():
    print(f"JAX {jax.__version__}, {fastce.get_num_threads()} threads of fastce")
    for rows, classes in (4096, 32000), (65536, 1000):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((rows, classes), dtype=np.float32))
        target = jnp.asarray(rng.integers(0, classes, rows))
        for what, transform in (("loss", jax.jit), ("with gradient", jax.value_and_grad)):
            calls = [jax.jit(transform(f)) for f in (through_callback, of_xla)]
            taken = [[], []]
            for number in range(ROUNDS + 1):
                for call, times in zip(calls, taken, strict=True):
                    start = time.perf_counter()
                    jax.block_until_ready(call(x, target))
                    if number:  # the first one compiles
                        times.append(time.perf_counter() - start)
            mine, peer = map(statistics.median, taken)
            print(f"({rows}, {classes}) {what:14} {peer / mine:.2f}x ({mine * 1e3:.0f} ms)")


if __name__ == "__main__":
    main()
