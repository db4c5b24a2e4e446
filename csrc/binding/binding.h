// What the bindings share: registration, checks, device guard and stream, dtypes, allocation.
//
// A binding is compiled once for each library. It sees tensors through torch's stable ABI alone, so
// that one library serves every Python and every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../common.h"

// ROOTS_REGISTER(m) { m.impl("name", TORCH_BOX(&function)); } ends every binding.
#if defined(ROOTS_BACKEND_CPU)
#define ROOTS_NAMESPACE roots
#define ROOTS_REGISTER(m) STABLE_TORCH_LIBRARY_IMPL(roots, CPU, m)
#elif defined(ROOTS_BACKEND_CUDA)
#define ROOTS_NAMESPACE roots
#define ROOTS_REGISTER(m) STABLE_TORCH_LIBRARY_IMPL(roots, CUDA, m)
#elif defined(ROOTS_BACKEND_SIMULATOR)
#define ROOTS_NAMESPACE roots_simulator
#define ROOTS_REGISTER(m) STABLE_TORCH_LIBRARY_IMPL(roots_simulator, CPU, m)
#else
#error "define ROOTS_BACKEND_CPU, ROOTS_BACKEND_CUDA or ROOTS_BACKEND_SIMULATOR"
#endif

#if defined(ROOTS_BACKEND_CUDA)
// Null in a libtorch without CUDA, where this library can be loaded but not run.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace roots {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] void raise(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// check(condition, "x has ", n, " dims; it must have 3"): a full sentence with the sizes.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) raise(parts...);
}

// "[2, 3]", for messages.
inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) text << (dim ? ", " : "") << tensor.size(dim);
  text << ']';
  return text.str();
}

inline bool is_kernel_dtype(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16;
}

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      raise(name, " must be float32, float16 or bfloat16.");
  }
}

inline void check_same_dtype(const Tensor& tensor, const char* name, const Tensor& other,
                             const char* other_name) {
  check(tensor.scalar_type() == other.scalar_type(), name, " and ", other_name,
        " must have the same dtype.");
}

inline void check_same_shape(const Tensor& tensor, const char* name, const Tensor& other,
                             const char* other_name) {
  bool same = tensor.dim() == other.dim();
  for (int64_t dim = 0; same && dim < tensor.dim(); ++dim) {
    same = tensor.size(dim) == other.size(dim);
  }
  check(same, name, " ", shape_of(tensor), " must have the shape of ", other_name, " ",
        shape_of(other), ".");
}

// The operands of a kernel are on one device: that of `first`, which chose this library.
inline void check_same_device(const Tensor& tensor, const char* name, const Tensor& first,
                              const char* first_name) {
  check(tensor.is_cuda() == first.is_cuda() &&
            (!tensor.is_cuda() || tensor.get_device_index() == first.get_device_index()),
        name, " must be on the device of ", first_name, ".");
}

// Makes the device of a tensor current and knows its stream, for as long as it lives.
class Scope {
 public:
#if defined(ROOTS_BACKEND_CUDA)
  explicit Scope(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    check(aoti_torch_get_current_cuda_stream != nullptr,
          "this libtorch was built without CUDA; install a CUDA build of torch.");
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
#else
  explicit Scope(const Tensor&) {}
  Stream stream() const { return nullptr; }
#endif
};

// Whether a launch succeeded; `status` is 0 or a cudaError_t.
inline void check_launch(Status status, const char* name) {
  check(status == 0, name, " could not be launched: CUDA error ", status, ".");
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  std::vector<int64_t> sizes(shape);
  return torch::stable::new_empty(like, sizes, type);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline OptionalTensor as_contiguous(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(as_contiguous(*tensor)) : std::nullopt;
}

inline const void* data_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

inline float* float_data(const Tensor& tensor) {
  return static_cast<float*>(tensor.mutable_data_ptr());
}

inline const float* const_float_data(const Tensor& tensor) {
  return static_cast<const float*>(tensor.const_data_ptr());
}

}  // namespace roots
