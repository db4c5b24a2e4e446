"""The feed-forward network of a block.

Legend: B micro-batch, T tokens, H hidden; f this tensor rank's share of the inner width.
"""

from __future__ import annotations

from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.options import BuildOptions
from roots.ops import bias_gelu, swiglu
from roots.parallel.linear import ColumnParallelLinear, RowParallelLinear
from roots.parallel.mesh import Axis


class MLP(nn.Module):
    """y_BTH = gelu(x W_up^T + b) W_down^T, or (silu(x W_gate^T) * x W_up^T) W_down^T.

    For swiglu (Shazeer, arXiv:2002.05202) gate and up are the two halves of one matrix. No matrix
    product adds a bias: that of W_up goes with the activation, where its gradient is summed in the
    same pass, and that of W_down is handed to the caller.

    Communication: forward all-reduce of y; backward all-reduce of dx.
    """

    def __init__(self, model: ModelConfig, *, name: str, axis: Axis, options: BuildOptions) -> None:
        super().__init__()
        self.gated = model.activation == "swiglu"
        self.approximate = "tanh" if model.activation == "gelu_tanh" else "none"
        self.ops = options.ops
        chunks = [model.ffn_size] * (2 if self.gated else 1)
        self.up = ColumnParallelLinear(
            model.hidden_size,
            sum(chunks),
            name=f"{name}.up",
            axis=axis,
            bias=model.bias,
            chunks=chunks,
            skip_bias=True,
            device=options.device,
            dtype=options.dtype,
        )
        self.down = RowParallelLinear(
            model.ffn_size,
            model.hidden_size,
            name=f"{name}.down",
            axis=axis,
            bias=model.bias,
            skip_bias=True,
            device=options.device,
            dtype=options.dtype,
        )

    def forward(self, x_BTH: Tensor) -> tuple[Tensor, Tensor | None]:
        """x_BTH -> y_BTH and the bias [H] that is still to be added to it, if there is one."""
        z_BTf, bias_f = self.up(x_BTH)
        if self.gated:
            a_BTf = swiglu(z_BTf, bias_f, implementation=self.ops.swiglu)
        else:
            a_BTf = bias_gelu(z_BTf, bias_f, self.approximate, implementation=self.ops.bias_gelu)
        y_BTH, bias_H = self.down(a_BTf)
        return y_BTH, bias_H
