// Python's view of the C ABI: ostrack_fast._C. A tensor comes in as (address, dtype, shape, strides), a stream as an
// address. Every kernel runs with the interpreter lock released.
#include <pybind11/pybind11.h>

#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/capability.h"
#include "ostrack_fast.h"

#if defined(OSTF_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

// (address, dtype, shape, strides), or None.
struct TensorArgument {
  ostf_tensor view = {};
  bool present = false;
};

template <>
struct pybind11::detail::type_caster<TensorArgument> {
  PYBIND11_TYPE_CASTER(TensorArgument, const_name("tuple[int, int, Sequence[int], Sequence[int]] | None"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    PyObject* tuple = source.ptr();
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 4) return false;
    PyObject* shape = PyTuple_GET_ITEM(tuple, 2);
    PyObject* stride = PyTuple_GET_ITEM(tuple, 3);
    if (!PyTuple_Check(shape) || !PyTuple_Check(stride)) return false;
    const Py_ssize_t ndim = PyTuple_GET_SIZE(shape);
    if (ndim > 5 || PyTuple_GET_SIZE(stride) != ndim) return false;
    value.present = true;
    value.view.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, 0));
    value.view.dtype = static_cast<int32_t>(PyLong_AsLong(PyTuple_GET_ITEM(tuple, 1)));
    value.view.ndim = static_cast<int32_t>(ndim);
    for (Py_ssize_t i = 0; i < ndim; ++i) {
      value.view.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
      value.view.stride[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(stride, i));
    }
    if (!PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
  }
};

namespace {

// A call's status, with the lock held again: 0, or a Python exception.
void check(int status, const char* function) {
  const std::string name(function);
  switch (status) {
    case OSTF_OK:
      return;
    case OSTF_EINVAL:
      throw py::value_error(name + ": a size or value is outside the range this kernel supports");
    case OSTF_EDTYPE:
      throw py::type_error(name + ": this kernel has no code for the dtype on this machine");
    case OSTF_ENOMEM:
      PyErr_SetString(PyExc_MemoryError, (name + ": no memory for scratch space").c_str());
      throw py::error_already_set();
    default:
      break;
  }
#if defined(OSTF_WITH_CUDA)
  if (status > 0) {
    const auto error = static_cast<cudaError_t>(status);
    throw std::runtime_error(name + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
  }
#endif
  throw std::runtime_error(name + ": unknown status " + std::to_string(status));
}

// An argument as Python passes it: a tensor as above, a stream as an integer, anything else itself.
template <class A>
struct FromPython {
  using Type = A;
  static A convert(const A& value) { return value; }
};
template <class A>
struct FromPython<A*> {
  using Type = uintptr_t;
  static A* convert(const uintptr_t& value) { return reinterpret_cast<A*>(value); }
};
template <>
struct FromPython<const ostf_tensor*> {
  using Type = TensorArgument;
  static const ostf_tensor* convert(const TensorArgument& value) { return value.present ? &value.view : nullptr; }
};

template <class... A>
void define(py::module_& module, const char* name, int (*function)(A...)) {
  module.def(name, [name, function](typename FromPython<A>::Type... arguments) {
    int status;
    {
      const py::gil_scoped_release release;
      status = function(FromPython<A>::convert(arguments)...);
    }
    check(status, name);
  });
}

// Calls of kernels, to be made again without the Python between them.
class Calls {
 public:
  // `value`: the address of what changes from one time to the next.
  explicit Calls(uintptr_t value) : value_(reinterpret_cast<void*>(value)) {}

  template <class... A>
  void add(const char* name, int (*function)(A...), typename FromPython<A>::Type... arguments) {
    const auto kept = std::make_shared<std::tuple<typename FromPython<A>::Type...>>(std::move(arguments)...);
    std::apply([this](auto&... each) { (find_value(each), ...); }, *kept);
    const auto run = [function, kept] {
      return std::apply([function](const auto&... each) { return function(FromPython<A>::convert(each)...); }, *kept);
    };
    calls_.push_back({name, run});
  }

  // Calls all with the value at this address.
  void replay(uintptr_t value) {
    for (ostf_tensor* each : of_value_) each->data = reinterpret_cast<void*>(value);
    int status = OSTF_OK;
    const char* name = "";
    {
      const py::gil_scoped_release release;
      for (auto call = calls_.begin(); call != calls_.end() && status == OSTF_OK; ++call) {
        name = call->name;
        status = call->run();
      }
    }
    check(status, name);
  }

 private:
  struct Call {
    const char* name;
    std::function<int()> run;
  };

  template <class T>
  void find_value(T&) {}
  void find_value(TensorArgument& argument) {
    if (argument.present && argument.view.data == value_) of_value_.push_back(&argument.view);
  }

  const void* value_;
  std::vector<Call> calls_;
  std::vector<ostf_tensor*> of_value_;
};

// A second meaning of a kernel's name: with `Calls` as its first argument it is noted there.
template <class... A>
void define_noted(py::module_& module, const char* name, int (*function)(A...)) {
  module.def(name, [name, function](Calls& calls, typename FromPython<A>::Type... arguments) {
    calls.add(name, function, std::move(arguments)...);
  });
}

py::dict cpu_features() {
  const ostf::CpuFeatures& found = ostf::cpu_features();
  py::dict out;
  out["avx2"] = found.avx2;
  out["avx_vnni"] = found.avx_vnni;
  out["avx512f"] = found.avx512f;
  out["avx512bw"] = found.avx512bw;
  out["avx512dq"] = found.avx512dq;
  out["avx512vl"] = found.avx512vl;
  out["avx512_vnni"] = found.avx512_vnni;
  out["avx512_bf16"] = found.avx512_bf16;
  out["avx512_fp16"] = found.avx512_fp16;
  out["amx_tile"] = found.amx_tile;
  out["amx_int8"] = found.amx_int8;
  out["amx_bf16"] = found.amx_bf16;
  return out;
}

// The numbers of ostf_dtype by PyTorch's names.
py::dict dtypes() {
  py::dict out;
  out["float32"] = static_cast<int>(OSTF_F32);
  out["float16"] = static_cast<int>(OSTF_F16);
  out["bfloat16"] = static_cast<int>(OSTF_BF16);
  out["int8"] = static_cast<int>(OSTF_I8);
  out["uint8"] = static_cast<int>(OSTF_U8);
  out["bool"] = static_cast<int>(OSTF_BOOL);
  out["int32"] = static_cast<int>(OSTF_I32);
  out["int64"] = static_cast<int>(OSTF_I64);
  out["float64"] = static_cast<int>(OSTF_F64);
  return out;
}

// The numbers of ostf_activation by the names of `ostrack_fast.ops.layers`.
py::dict activations() {
  py::dict out;
  out["none"] = static_cast<int>(OSTF_NONE);
  out["gelu"] = static_cast<int>(OSTF_GELU);
  out["relu"] = static_cast<int>(OSTF_RELU);
  return out;
}

int64_t linear_packed_bytes(const TensorArgument& weight, int dtype, int groups) {
  int64_t bytes = 0;
  check(ostf_cpu_linear_packed_bytes(&weight.view, dtype, groups, &bytes), "cpu_linear_packed_bytes");
  return bytes;
}

py::dict build_info() {
  py::dict out;
  out["version"] = OSTF_VERSION;
#if defined(__clang__)
  out["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  out["compiler"] = "gcc " __VERSION__;
#else
  out["compiler"] = "unknown";
#endif
#if defined(OSTF_WITH_CUDA)
  out["cuda"] = OSTF_CUDA_VERSION;
  out["cuda_architectures"] = py::str(OSTF_CUDA_ARCHITECTURES).attr("split")();
#else
  out["cuda"] = py::none();
  out["cuda_architectures"] = py::list();
#endif
  out["cpu_features"] = cpu_features();
  out["cpu_level"] = ostf::level() < 0 ? "unknown" : ostf::kLevelNames[ostf::level()];
  return out;
}

// (number of CUDA devices, why there is none): never an exception, so that a machine without a driver can be asked.
py::tuple cuda_device_count() {
#if defined(OSTF_WITH_CUDA)
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return py::make_tuple(0, std::string(cudaGetErrorString(error)));
  return py::make_tuple(count, count > 0 ? "" : "no CUDA device");
#else
  return py::make_tuple(0, "built without CUDA");
#endif
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of ostrack_fast; csrc/ostrack_fast.h documents each argument.";
  module.attr("dtypes") = dtypes();
  module.attr("activations") = activations();
  module.def("build_info", &build_info, "Version, compilers, CUDA architectures and the CPU features found.");
  module.def("cuda_device_count", &cuda_device_count, "(number of CUDA devices, reason why there is none).");
  py::class_<Calls>(module, "Calls").def(py::init<uintptr_t>()).def("replay", &Calls::replay);
#define OSTF_DEFINE(name)                          \
  define(module, "cpu_" #name, ostf_cpu_##name); \
  define_noted(module, "cpu_" #name, ostf_cpu_##name);
  OSTF_CPU_KERNELS(OSTF_DEFINE)
#undef OSTF_DEFINE
  module.def("cpu_linear_packed_bytes", &linear_packed_bytes);
  module.def("cpu_use_openmp", [](uintptr_t parallel) {
    return reinterpret_cast<uintptr_t>(ostf_cpu_use_openmp(reinterpret_cast<void*>(parallel)));
  });
#if defined(OSTF_WITH_CUDA)
#define OSTF_DEFINE(name) define(module, "cuda_" #name, ostf_cuda_##name);
  OSTF_CUDA_KERNELS(OSTF_DEFINE)
#undef OSTF_DEFINE
#endif
}
