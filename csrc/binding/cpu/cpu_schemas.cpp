// Defines the operators of csrc/cpu/schemas.h beside those of csrc/schemas.h.

#include "../../cpu/schemas.h"

#include "../binding.h"

#define ROOTS_DEFINE(schema) m.def(schema);

STABLE_TORCH_LIBRARY_FRAGMENT(roots, m) { ROOTS_CPU_SCHEMAS(ROOTS_DEFINE) }
