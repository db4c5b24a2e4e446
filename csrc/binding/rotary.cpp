// rotary: checks, allocation and registration; see csrc/schemas.h.

#include "../ops/rotary.h"

#include "binding.h"

namespace roots {
namespace {

void check_table(const Tensor& table, const char* name, const Tensor& x, bool with_positions) {
  check(table.scalar_type() == ScalarType::Float, name, " must be float32.");
  check_same_device(table, name, x, "x");
  check(2 * table.size(table.dim() - 1) <= x.size(3), name, " ", shape_of(table),
        " must have at most half as many angles as x ", shape_of(x), " has dims in a head.");
  if (with_positions) {
    check(table.dim() == 2, name, " ", shape_of(table),
          " must have 2 dims if there are positions.");
  } else if (table.dim() == 3) {
    check(table.size(0) == x.size(0) && table.size(1) == x.size(1), name, " ", shape_of(table),
          " must have a row for every token of x ", shape_of(x), ".");
  } else {
    check(table.size(0) >= x.size(1), name, " ", shape_of(table),
          " must have at least a row for each of the tokens of x ", shape_of(x), ".");
  }
}

void check_positions(const Tensor& positions, const Tensor& x, int64_t table_rows) {
  check(positions.scalar_type() == ScalarType::Long, "positions must be int64.");
  check(positions.dim() == 2 && positions.size(0) == x.size(0) && positions.size(1) == x.size(1),
        "positions ", shape_of(positions), " must have one number for every token of x ",
        shape_of(x), ".");
  check_same_device(positions, "positions", x, "x");
#if !defined(ROOTS_BACKEND_CUDA)
  // On a GPU the values are not looked at from here; there a token with a bad one becomes NaN.
  const Tensor packed = as_contiguous(positions);
  const int64_t* values = static_cast<const int64_t*>(packed.const_data_ptr());
  for (int64_t i = 0; i < packed.numel(); ++i) {
    check(0 <= values[i] && values[i] < table_rows, "positions hold ", values[i],
          ", but the tables have ", table_rows, " rows.");
  }
#endif
}

void check_operands(const Tensor& x, const Tensor& cos, const Tensor& sin,
                    const OptionalTensor& positions) {
  check(x.dim() == 4, "x ", shape_of(x), " must have 4 dims: rows, tokens, heads, head size.");
  check(cos.dim() == 2 || cos.dim() == 3, "cos ", shape_of(cos), " must have 2 or 3 dims.");
  check_same_shape(sin, "sin", cos, "cos");
  check_table(cos, "cos", x, positions.has_value());
  check_table(sin, "sin", x, positions.has_value());
  if (positions.has_value()) check_positions(*positions, x, cos.size(0));
}

HeadStrides strides_of(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

void rotate(const Tensor& x, const Tensor& y, const Tensor& cos_any, const Tensor& sin_any,
            const OptionalTensor& positions_any, bool interleaved, bool inverse) {
  Rotary arguments{};
  arguments.dtype = dtype_of(x, "x");
  if (x.numel() == 0) return;
  const Scope scope(x);
  const Tensor cos = as_contiguous(cos_any), sin = as_contiguous(sin_any);
  const OptionalTensor positions = as_contiguous(positions_any);
  arguments.x = x.const_data_ptr();
  arguments.y = y.mutable_data_ptr();
  arguments.x_strides = strides_of(x);
  arguments.y_strides = strides_of(y);
  arguments.cos = const_float_data(cos);
  arguments.sin = const_float_data(sin);
  arguments.positions = static_cast<const int64_t*>(data_or_null(positions));
  arguments.table_of_rows = cos.dim() == 3;
  arguments.rows = x.size(0);
  arguments.tokens = x.size(1);
  arguments.heads = x.size(2);
  arguments.head_size = x.size(3);
  arguments.angles = cos.size(cos.dim() - 1);
  arguments.table_rows = cos.dim() == 3 ? cos.size(0) * cos.size(1) : cos.size(0);
  arguments.interleaved = interleaved;
  arguments.inverse = inverse;
  check_launch(rotary(arguments, scope.stream()), "rotary");
}

Tensor out_of_place(const Tensor& x_any, const Tensor& cos, const Tensor& sin,
                    const OptionalTensor& positions, bool interleaved, bool inverse) {
  check_operands(x_any, cos, sin, positions);
  const Tensor x = x_any.stride(3) == 1 ? x_any : torch::stable::contiguous(x_any);
  const Tensor y = empty(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, x.scalar_type());
  rotate(x, y, cos, sin, positions, interleaved, inverse);
  return y;
}

void in_place(const Tensor& x, const Tensor& cos, const Tensor& sin,
              const OptionalTensor& positions, bool interleaved, bool inverse) {
  check_operands(x, cos, sin, positions);
  check(x.stride(3) == 1 || x.size(3) == 1,
        "the dims of a head of x must lie side by side to be rotated in place.");
  for (int64_t dim = 0; dim < 3; ++dim) {
    check(x.stride(dim) != 0 || x.size(dim) <= 1, "x ", shape_of(x), " is expanded along dim ", dim,
          " and cannot be rotated in place.");
  }
  rotate(x, x, cos, sin, positions, interleaved, inverse);
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) {
  m.impl("rotary", TORCH_BOX(&roots::out_of_place));
  m.impl("rotary_", TORCH_BOX(&roots::in_place));
}
