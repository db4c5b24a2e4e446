// check_finite: checks, the list of tensors, and registration; see csrc/schemas.h.

#include "../ops/check_finite.h"

#include <algorithm>
#include <utility>

#include "binding.h"

namespace roots {
namespace {

// Whether the elements fill their storage from the first to the last without gap or overlap, in
// whatever order of the dims.
bool is_dense(const Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    if (tensor.size(dim) > 1) dims.emplace_back(tensor.stride(dim), tensor.size(dim));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

Tensor first_non_finite(const std::vector<Tensor>& tensors) {
  check(!tensors.empty(), "check_finite needs at least one tensor.");
  std::vector<Tensor> held;
  std::vector<CheckedTensor> list;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string name = "tensor " + std::to_string(i);
    const DType dtype = dtype_of(tensors[i], name.c_str());
    check_same_device(tensors[i], name.c_str(), tensors[0], "tensor 0");
    if (tensors[i].numel() == 0) continue;
    held.push_back(is_dense(tensors[i]) ? tensors[i] : torch::stable::contiguous(tensors[i]));
    list.push_back(
        {held.back().const_data_ptr(), held.back().numel(), static_cast<int64_t>(i), dtype});
  }
  const Scope scope(tensors[0]);
  Tensor first = empty(tensors[0], {1}, ScalarType::Long);
  torch::stable::fill_(first, -1);
  CheckFinite arguments{};
  arguments.tensors = list.data();
  arguments.count = static_cast<int64_t>(list.size());
  arguments.first = static_cast<int64_t*>(first.mutable_data_ptr());
  if (!list.empty()) check_launch(check_finite(arguments, scope.stream()), "check_finite");
  return first;
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) { m.impl("check_finite", TORCH_BOX(&roots::first_non_finite)); }
