// layer_norm on a CPU: see norm.h.

#include "../ops/layer_norm.h"

#include "norm.h"

namespace roots {
namespace ROOTS_CAPABILITY {

Status layer_norm_forward(const NormForward& args, Stream) {
  norm_forward<true>(args);
  return 0;
}

Status layer_norm_backward(const NormBackward& args, Stream) {
  norm_backward<true>(args);
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(layer_norm_forward, NormForward)
ROOTS_CPU_LAUNCHER(layer_norm_backward, NormBackward)
