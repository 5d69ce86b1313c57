"""The launch of a loss: its plan, options and kernels."""

from functools import cache
from types import SimpleNamespace

from .. import _arrays, _device, _launch
from .._loss import grad_loss_fields, number_fields, sum_losses
from .columns import columns_kernel_of
from .formulas import LABELS, PROBABILITIES, LossOptions
from .rows import dense_rows_kernel_of, rows_kernel_of
from .tiles import tiles_kernel_of

NO_TRANSFORM = (0.0, 0.0, 0.0, 0.0, 0.0)  # alpha, gamma, q, epsilon, beta


def run(
    mode, logits, target, weight, loss, grad, *, denominator, ignore_index,
    label_smoothing=0.0, z_loss=0.0, lse=None, grad_loss=None, transform=NO_TRANSFORM,
):  # fmt: skip
    """Compute on all rows, and sum their losses where `loss` is one number."""
    label_smoothing = float(label_smoothing)
    outer, n, inner = logits.shape
    stats = 0
    if isinstance(denominator, _arrays.View):  # on the GPU, for which the host does not wait
        denominator, stats = 1.0, denominator.address
    denominator = float(denominator)
    plan = _launch.plan_for(
        logits,
        keeps=1 if mode in LABELS else 0,
        tiled=2 if mode in PROBABILITIES else 1,
        splits=mode in LABELS,
        most_lanes=_launch.TRANSFORMED if mode in ("transform", "entropy") else 1024,
    )
    is_summed = loss is not None and loss.shape == (1, 1)
    sums = 0
    if is_summed:
        buffer = _device.allocate(8 * plan.units, logits.stream, logits.device)
        sums = _device.address(buffer)
    nothing = _arrays.View(0, (), 0, logits.dtype, 0, 0)
    options = LossOptions(
        0 if mode in PROBABILITIES or target is None else target.code,
        *number_fields(weight),
        0 if lse is None else lse.address,
        0 if loss is None or is_summed else loss.address,
        sums,
        *grad_loss_fields(grad_loss),
        denominator,
        stats,
        ignore_index,
        0.0 if target is None else 1.0 - label_smoothing,
        label_smoothing / n if n else 0.0,
        float(z_loss),
        *transform,
    )
    _launch.run(
        kernels_of(logits.dtype, mode, grad is not None),
        plan,
        logits,
        (logits, target or nothing, grad or nothing),
        (options,),
        maps=grad is not None,
    )
    if is_summed:
        count = plan.units if outer * inner else 0
        sum_losses(sums, count, loss, denominator, stats, logits)


@cache
def kernels_of(name, mode, grads):
    """The kernels for one dtype and mode, with gradient or without."""
    dense = mode in ("smooth", *PROBABILITIES, "entropy")
    rows = dense_rows_kernel_of if dense else rows_kernel_of
    return SimpleNamespace(
        rows=rows(name, mode, grads),
        tiles=tiles_kernel_of(name, mode, grads),
        columns=columns_kernel_of(name, mode, grads),
    )
