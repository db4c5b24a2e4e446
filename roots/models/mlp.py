"""The feed-forward network of a block.

Legend: B micro-batch, T tokens, H hidden; f this tensor rank's share of the inner width, z = 2f for
a gated one.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from roots.config.model import ModelConfig
from roots.models.options import BuildOptions
from roots.ops import bias_gelu, swiglu
from roots.parallel.linear import ColumnParallelLinear, RowParallelLinear
from roots.parallel.mesh import Axis


class MLP(nn.Module):
    """y_BTH = act(x W_up^T + b) W_down^T, or (act(x W_gate^T) * x W_up^T) W_down^T.

    For gated activations (Shazeer, arXiv:2002.05202) gate and up are the two halves of one matrix.
    No matrix product adds a bias: that of W_up goes with the activation, where its gradient is
    summed in the same pass, and that of W_down is handed to the caller.

    Communication: that of the two linear layers (see roots.parallel.linear).
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        name: str,
        axis: Axis,
        options: BuildOptions,
        width: int | None = None,
        partial: bool = False,
    ) -> None:
        """`width`: the inner width, None for model.ffn_size; `partial`: that of `down`."""
        super().__init__()
        self.activate = Activation(model, options)
        ffn_size = model.ffn_size if width is None else width
        chunks = [ffn_size] * (2 if model.gated else 1)
        self.up = ColumnParallelLinear(
            model.hidden_size,
            sum(chunks),
            name=f"{name}.up",
            axis=axis,
            bias=model.bias,
            chunks=chunks,
            skip_bias=True,
            sequence_dim=options.sequence_dim,
            device=options.device,
            dtype=options.dtype,
        )
        self.down = RowParallelLinear(
            ffn_size,
            model.hidden_size,
            name=f"{name}.down",
            axis=axis,
            bias=model.bias,
            skip_bias=True,
            partial=partial,
            sequence_dim=options.sequence_dim,
            device=options.device,
            dtype=options.dtype,
        )

    def forward(self, x_BTH: Tensor) -> tuple[Tensor, Tensor | None]:
        """x_BTH -> y_BTH and the bias [H] that is still to be added to it, if there is one."""
        z_BTz, bias_z = self.up(x_BTH)
        y_BTH, bias_H = self.down(self.activate(z_BTz, bias_z))
        return y_BTH, bias_H


class Activation(nn.Module):
    """act(z + bias), or act(gate + its bias) * (up + its bias) of the halves of z."""

    def __init__(self, model: ModelConfig, options: BuildOptions) -> None:
        super().__init__()
        self.kind = model.activation
        self.approximate = "tanh" if model.activation.endswith("_tanh") else "none"
        self.ops = options.ops

    def forward(self, z_BTz: Tensor, bias_z: Tensor | None) -> Tensor:
        """z_BTz and bias [z] or None -> a_BTf."""
        if self.kind == "swiglu":
            return swiglu(z_BTz, bias_z, implementation=self.ops.swiglu)
        if self.kind == "relu":
            return functional.relu(z_BTz if bias_z is None else z_BTz + bias_z)
        if self.kind in ("gelu", "gelu_tanh"):
            return self._gelu(z_BTz, bias_z)
        gate_BTf, up_BTf = z_BTz.chunk(2, dim=-1)
        if bias_z is None:
            return self._gelu(gate_BTf, None) * up_BTf
        gate_bias_f, up_bias_f = bias_z.chunk(2)
        return self._gelu(gate_BTf, gate_bias_f) * (up_BTf + up_bias_f)

    def _gelu(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return bias_gelu(x, bias, self.approximate, implementation=self.ops.bias_gelu)
