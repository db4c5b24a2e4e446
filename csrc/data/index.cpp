// Index arrays of the data pipeline: in which order documents and samples come.
//
// Pure functions on numpy arrays, 64-bit throughout, with the GIL released while they count.
// All randomness is counter-based (SplitMix64 over a key and a counter) and implemented here, so
// the same seed gives the same order on every platform, compiler and library version.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

using Int64Array = py::array_t<int64_t, py::array::c_style>;
using DoubleArray = py::array_t<double, py::array::c_style>;

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

// SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014) at position `counter` of stream `key`.
uint64_t random_bits(uint64_t key, uint64_t counter) {
  uint64_t state = key + (counter + 1) * 0x9E3779B97F4A7C15ULL;
  state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ULL;
  state = (state ^ (state >> 27)) * 0x94D049BB133111EBULL;
  return state ^ (state >> 31);
}

// High 64 bits of a 64 x 64 bit product, in portable C++ (128-bit integers are an extension).
uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t a_low = a & 0xFFFFFFFFULL, a_high = a >> 32;
  const uint64_t b_low = b & 0xFFFFFFFFULL, b_high = b >> 32;
  const uint64_t middle = a_high * b_low + ((a_low * b_low) >> 32);
  const uint64_t carry = a_low * b_high + (middle & 0xFFFFFFFFULL);
  return a_high * b_high + (middle >> 32) + (carry >> 32);
}

// Fisher-Yates, in place. The index below the bound is the high word of bits * bound (Lemire's
// method without rejection): its bias is below bound / 2^64, and it costs exactly one draw.
void permute(int64_t* values, int64_t count, uint64_t key) {
  for (int64_t i = count - 1; i > 0; --i) {
    const uint64_t bound = static_cast<uint64_t>(i) + 1;
    const uint64_t j = multiply_high(random_bits(key, static_cast<uint64_t>(i)), bound);
    std::swap(values[i], values[j]);
  }
}

// Documents 0 to documents - 1 once per epoch, each epoch in its own order. A longer run extends
// the array and leaves its beginning unchanged; what is epoch e under key k is epoch 0 under
// k + e * 0x9E3779B97F4A7C15, by the definition of random_bits.
Int64Array document_order(int64_t documents, int64_t epochs, int64_t key) {
  require(documents > 0, "document_order: needs at least one document");
  require(epochs > 0, "document_order: needs at least one epoch");
  require(epochs <= INT64_MAX / 16 / documents, "document_order: epochs * documents is too large");
  Int64Array order(documents * epochs);
  int64_t* out = order.mutable_data();
  py::gil_scoped_release nogil;
  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    int64_t* begin = out + epoch * documents;
    std::iota(begin, begin + documents, int64_t{0});
    permute(begin, documents,
            random_bits(static_cast<uint64_t>(key), static_cast<uint64_t>(epoch)));
  }
  return order;
}

// Samples [bounds[e], bounds[e + 1]) of epoch e are shuffled among themselves.
Int64Array shuffle_index(const Int64Array& bounds, int64_t key) {
  require(bounds.ndim() == 1 && bounds.shape(0) >= 2, "shuffle_index: needs two bounds or more");
  const int64_t* bound = bounds.data();
  const int64_t epochs = bounds.shape(0) - 1;
  require(bound[0] == 0, "shuffle_index: the first bound must be 0");
  for (int64_t epoch = 0; epoch < epochs; ++epoch)
    require(bound[epoch] <= bound[epoch + 1], "shuffle_index: bounds must not decrease");
  Int64Array shuffled(bound[epochs]);
  int64_t* out = shuffled.mutable_data();
  py::gil_scoped_release nogil;
  std::iota(out, out + bound[epochs], int64_t{0});
  for (int64_t epoch = 0; epoch < epochs; ++epoch)
    permute(out + bound[epoch], bound[epoch + 1] - bound[epoch],
            random_bits(static_cast<uint64_t>(key), static_cast<uint64_t>(epoch)));
  return shuffled;
}

// Greedy blend: the next sample comes from the dataset that is furthest behind its share, the
// first one on a tie. Shares are weights / sum(weights); the shortfall of dataset d before sample
// n is share[d] * max(n, 1) - taken[d]. A longer blend starts with the shorter one.
py::tuple blend_index(const DoubleArray& weights, int64_t num_samples) {
  require(weights.ndim() == 1 && weights.shape(0) > 0, "blend_index: needs at least one weight");
  require(weights.shape(0) <= INT32_MAX, "blend_index: too many datasets");
  require(num_samples >= 0, "blend_index: num_samples must not be negative");
  const int64_t datasets = weights.shape(0);
  std::vector<double> share(weights.data(), weights.data() + datasets);
  double total = 0.0;
  for (double weight : share) {
    require(weight > 0.0 && weight < 1e300, "blend_index: weights must be positive and finite");
    total += weight;
  }
  for (double& weight : share) weight /= total;
  py::array_t<int32_t> dataset_of(num_samples);
  Int64Array sample_of(num_samples);
  int32_t* dataset_out = dataset_of.mutable_data();
  int64_t* sample_out = sample_of.mutable_data();
  {
    py::gil_scoped_release nogil;
    std::vector<int64_t> taken(datasets, 0);
    for (int64_t sample = 0; sample < num_samples; ++sample) {
      const double due = static_cast<double>(std::max<int64_t>(sample, 1));
      int64_t neediest = 0;
      double largest = share[0] * due - static_cast<double>(taken[0]);
      for (int64_t dataset = 1; dataset < datasets; ++dataset) {
        const double shortfall = share[dataset] * due - static_cast<double>(taken[dataset]);
        if (shortfall > largest) {
          largest = shortfall;
          neediest = dataset;
        }
      }
      dataset_out[sample] = static_cast<int32_t>(neediest);
      sample_out[sample] = taken[neediest]++;
    }
  }
  return py::make_tuple(dataset_of, sample_of);
}

}  // namespace

PYBIND11_MODULE(_index, module) {
  module.doc() = "Document, shuffle and blend indices (csrc/data/index.cpp).";
  module.def("document_order", &document_order, py::arg("documents"), py::arg("epochs"),
             py::arg("key"));
  module.def("shuffle_index", &shuffle_index, py::arg("bounds").noconvert(), py::arg("key"));
  module.def("blend_index", &blend_index, py::arg("weights").noconvert(), py::arg("num_samples"));
}
