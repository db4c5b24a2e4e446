// How Python calls the kernels beside this file: a function that returns "", or what went wrong.
#pragma once

#include <exception>
#include <string>

#include "cuda/device.cuh"

#define ROOTS_ENTRY extern "C" __attribute__((visibility("default"))) const char*

namespace roots {

template <class Run>
inline const char* report(const Run& run) {
  static thread_local std::string text;
  try {
    const Status status = run();
    text = status == 0 ? "" : "refused: " + std::string(cudaGetErrorString(cudaGetLastError()));
  } catch (const std::exception& error) {
    text = error.what();
  }
  return text.c_str();
}

}  // namespace roots
