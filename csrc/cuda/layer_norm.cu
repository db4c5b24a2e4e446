// layer_norm on a GPU; the kernels: norm_forward.cuh and norm_backward.cuh.

#include "../ops/layer_norm.h"
#include "norm_backward.cuh"
#include "norm_forward.cuh"

namespace roots {

Status layer_norm_forward(const NormForward& args, Stream stream) {
  return norm_forward<true>(args, stream);
}

Status layer_norm_backward(const NormBackward& args, Stream stream) {
  return norm_backward<true>(args, stream);
}

}  // namespace roots
