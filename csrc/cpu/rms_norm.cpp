// rms_norm on a CPU: see norm.h.

#include "../ops/rms_norm.h"

#include "norm.h"

namespace roots {
namespace ROOTS_CAPABILITY {

Status rms_norm_forward(const NormForward& args, Stream) {
  norm_forward<false>(args);
  return 0;
}

Status rms_norm_backward(const NormBackward& args, Stream) {
  norm_backward<false>(args);
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(rms_norm_forward, NormForward)
ROOTS_CPU_LAUNCHER(rms_norm_backward, NormBackward)
