// Defines the operators of csrc/schemas.h in the namespace of this library.

#include "../schemas.h"

#include "binding.h"

#define ROOTS_DEFINE(schema) m.def(schema);

#if defined(ROOTS_BACKEND_SIMULATOR)
STABLE_TORCH_LIBRARY(roots_simulator, m){ROOTS_SCHEMAS(ROOTS_DEFINE)}
#else
STABLE_TORCH_LIBRARY(roots, m) { ROOTS_SCHEMAS(ROOTS_DEFINE) }
#endif
