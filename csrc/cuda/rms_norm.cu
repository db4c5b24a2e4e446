// rms_norm on a GPU; the kernels: norm_forward.cuh and norm_backward.cuh.

#include "../ops/rms_norm.h"
#include "norm_backward.cuh"
#include "norm_forward.cuh"

namespace roots {

Status rms_norm_forward(const NormForward& args, Stream stream) {
  return norm_forward<false>(args, stream);
}

Status rms_norm_backward(const NormBackward& args, Stream stream) {
  return norm_backward<false>(args, stream);
}

}  // namespace roots
