// Entries of layer_norm; see norm.h.
#pragma once

#include "norm.h"

namespace roots {

ROOTS_LAUNCHER(layer_norm_forward, NormForward)
ROOTS_LAUNCHER(layer_norm_backward, NormBackward)

}  // namespace roots
