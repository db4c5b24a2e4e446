// Entries of rms_norm; see norm.h.
#pragma once

#include "norm.h"

namespace roots {

ROOTS_LAUNCHER(rms_norm_forward, NormForward)
ROOTS_LAUNCHER(rms_norm_backward, NormBackward)

}  // namespace roots
