// Memory of ours as a numpy array.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <initializer_list>
#include <memory>

namespace arcflow::python {

// An array that frees `data` when Python has done with it.
template <class T>
nanobind::object array(std::unique_ptr<T[]> data, std::initializer_list<std::size_t> shape) {
  T* const pointer = data.get();
  nanobind::capsule owner(pointer, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  data.release();
  return nanobind::cast(nanobind::ndarray<nanobind::numpy, T>(pointer, shape, owner));
}

}  // namespace arcflow::python
