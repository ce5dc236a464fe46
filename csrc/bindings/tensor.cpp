#include "bindings/tensor.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "bindings/dlpack.h"

namespace spos {

namespace {

// The device that the kernels of this module run on. The emulated one computes on the memory of CPU tensors.
#if defined(SPOS_CUDA_DEVICE)
constexpr int32_t device_type = dlpack::device_cuda;
constexpr const char *device_name = "cuda", *device_tensors = "CUDA tensors";
#else
constexpr int32_t device_type = dlpack::device_cpu;
constexpr const char *device_name = "cpu", *device_tensors = "CPU tensors";
#endif

struct TensorTypes {
    PyTypeObject* tensor = nullptr;
    PyTypeObject* parameter = nullptr;
    const dlpack::ExchangeApi* exchange = nullptr;
};

TensorTypes& tensor_types() {
    static TensorTypes types;
    return types;
}

std::string text(py::handle object) { return py::cast<std::string>(py::str(object)); }

[[noreturn]] void refuse(const char* name, const std::string& what) {
    throw py::value_error(std::string(name) + ": " + what);
}

bool is_plain(py::handle object) {
    const TensorTypes& types = tensor_types();
    PyTypeObject* type = Py_TYPE(object.ptr());
    return type == types.tensor || type == types.parameter;
}

bool is_negative(py::handle object) {
    static PyObject* const name = PyUnicode_InternFromString("is_neg");
    const auto answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), name));
    if (!answer) throw py::error_already_set();
    return answer.ptr() == Py_True;
}

// What the table says of a tensor. It sees memory only: a lazy minus sign (the negative bit) is not there, and neither
// is what a subclass does.
bool exchange(const dlpack::ExchangeApi& table, py::handle object, dlpack::Tensor& source) {
    if (table.tensor_from_py_object_no_sync(object.ptr(), &source) == 0) return true;
    PyErr_Clear();
    return false;
}

struct DtypeName {
    Dtype dtype;
    uint8_t code, bits;
    const char* name;
};
constexpr DtypeName dtypes[] = {
    {Dtype::float32, dlpack::code_float, 32, "torch.float32"},
    {Dtype::float64, dlpack::code_float, 64, "torch.float64"},
    {Dtype::float16, dlpack::code_float, 16, "torch.float16"},
    {Dtype::bfloat16, dlpack::code_bfloat, 16, "torch.bfloat16"},
    {Dtype::int8, dlpack::code_int, 8, "torch.int8"},
    {Dtype::uint8, dlpack::code_uint, 8, "torch.uint8"},
    {Dtype::int32, dlpack::code_int, 32, "torch.int32"},
    {Dtype::int64, dlpack::code_int, 64, "torch.int64"},
};

const DtypeName& entry_of(Dtype dtype) {
    return *std::find_if(std::begin(dtypes), std::end(dtypes),
                         [&](const DtypeName& entry) { return entry.dtype == dtype; });
}

// What a caller takes.
using Wanted = std::initializer_list<Dtype>;
constexpr Wanted floats = {Dtype::float32, Dtype::float64};

bool accepts(Wanted wanted, Dtype dtype) { return std::find(wanted.begin(), wanted.end(), dtype) != wanted.end(); }

// True when the table describes the tensor and the kernels accept it; otherwise from_attributes() says what is wrong.
bool from_exchange(const dlpack::ExchangeApi& table, py::handle object, Wanted wanted, Tensor& result) {
    dlpack::Tensor source;
    if (!exchange(table, object, source)) return false;
    const auto found = std::find_if(std::begin(dtypes), std::end(dtypes), [&](const DtypeName& entry) {
        return entry.code == source.dtype.code && entry.bits == source.dtype.bits && source.dtype.lanes == 1;
    });
    if (found == std::end(dtypes) || !accepts(wanted, found->dtype)) return false;
    if (source.device.type != device_type || source.ndim > Tensor::max_ndim) return false;
    result.data = static_cast<char*>(source.data) + source.byte_offset;
    result.dtype = found->dtype;
    result.device = source.device.id;
    result.ndim = source.ndim;
    std::copy_n(source.shape, source.ndim, result.shape.begin());
    std::copy_n(source.strides, source.ndim, result.strides.begin());
    return true;
}

// Slower, and for every other case: a torch without the exchange table, subclasses, errors.
Tensor from_attributes(py::handle object, Wanted wanted, const char* name) {
    const std::string layout = text(object.attr("layout"));
    if (layout != "torch.strided") refuse(name, "layout is " + layout + ", accepted is torch.strided");
    const std::string device = text(object.attr("device").attr("type"));
    if (device != device_name)
        refuse(name, "is on " + device + ", the kernels of this module accept " + device_tensors);
    const std::string dtype = text(object.attr("dtype"));
    const auto found =
        std::find_if(std::begin(dtypes), std::end(dtypes), [&](const DtypeName& entry) { return dtype == entry.name; });
    if (found == std::end(dtypes) || !accepts(wanted, found->dtype)) {
        std::string accepted;
        for (const DtypeName& entry : dtypes)
            if (accepts(wanted, entry.dtype)) accepted += (accepted.empty() ? "" : " and ") + std::string(entry.name);
        throw py::type_error(std::string(name) + ": dtype is " + dtype + ", accepted " +
                             (wanted.size() > 1 ? "are " : "is ") + accepted);
    }
    const auto shape = py::cast<std::vector<int64_t>>(py::tuple(object.attr("shape")));
    const auto strides = py::cast<std::vector<int64_t>>(py::tuple(object.attr("stride")()));
    if (shape.size() > Tensor::max_ndim) refuse(name, "has " + std::to_string(shape.size()) + " dimensions, at most 4");
    Tensor result{};
    result.data = reinterpret_cast<void*>(py::cast<uintptr_t>(object.attr("data_ptr")()));
    result.dtype = found->dtype;
    const py::object index = object.attr("device").attr("index");
    result.device = index.is_none() ? 0 : py::cast<int>(index);
    result.ndim = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), result.shape.begin());
    std::copy(strides.begin(), strides.end(), result.strides.begin());
    return result;
}

}  // namespace

void set_tensor_types(py::type tensor, py::type parameter, py::object exchange_capsule) {
    TensorTypes types;
    types.tensor = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
    types.parameter = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
    if (!exchange_capsule.is_none()) {
        void* table = PyCapsule_GetPointer(exchange_capsule.ptr(), dlpack::capsule_name);
        if (table == nullptr) throw py::error_already_set();
        auto* header = static_cast<dlpack::ExchangeHeader*>(table);
        while (header != nullptr && header->version.major != dlpack::major_version) header = header->previous;
        // The header is the table's first member. A table may leave the function out, then attributes serve.
        auto* exchange = reinterpret_cast<const dlpack::ExchangeApi*>(header);
        if (exchange != nullptr && exchange->tensor_from_py_object_no_sync != nullptr) types.exchange = exchange;
    }
    tensor_types() = types;
}

namespace {

Tensor read(py::handle object, Wanted wanted, const char* name) {
    const TensorTypes& types = tensor_types();
    if (types.tensor == nullptr || !PyObject_TypeCheck(object.ptr(), types.tensor))
        throw py::type_error(std::string(name) + ": expected a torch.Tensor, got " + text(py::type::of(object)));
    if (is_negative(object)) refuse(name, "has the negative bit set; call resolve_neg() first");
    Tensor result{};
    if (types.exchange == nullptr || !is_plain(object) || !from_exchange(*types.exchange, object, wanted, result))
        result = from_attributes(object, wanted, name);
    const bool empty =
        std::find(result.shape.begin(), result.shape.begin() + result.ndim, 0) != result.shape.begin() + result.ndim;
    if (result.data == nullptr && !empty) refuse(name, "has no memory behind it (a fake or meta tensor?)");
    return result;
}

}  // namespace

Tensor read_tensor(py::handle object, const char* name) { return read(object, floats, name); }

Tensor read_tensor_of(std::initializer_list<Dtype> dtypes, py::handle object, const char* name) {
    return read(object, dtypes, name);
}

bool try_read_tensor(py::handle object, Tensor& result) {
    const TensorTypes& types = tensor_types();
    return types.exchange && is_plain(object) && !is_negative(object) &&
           from_exchange(*types.exchange, object, floats, result) && result.data;
}

int64_t* try_read_count(py::handle object) {
    const TensorTypes& types = tensor_types();
    dlpack::Tensor source;
    if (!types.exchange || !is_plain(object) || !exchange(*types.exchange, object, source)) return nullptr;
    const bool is_count = source.dtype.code == dlpack::code_int && source.dtype.bits == 64 && source.dtype.lanes == 1 &&
                          source.device.type == device_type && source.ndim == 0;
    return is_count ? reinterpret_cast<int64_t*>(static_cast<char*>(source.data) + source.byte_offset) : nullptr;
}

int64_t size_of(Dtype dtype) { return entry_of(dtype).bits / 8; }

NhwcStrides nhwc_strides(const Tensor& tensor, const char* name) {
    if (tensor.ndim != 4)
        refuse(name, "has shape " + to_string(tensor.shape.data(), tensor.ndim) + ", expected [N, C, H, W]");
    const auto& [batch, channels, height, width] = tensor.shape;
    const bool empty = batch * channels * height * width == 0;  // its strides mean nothing either
    if (!empty && channels > 1 && tensor.strides[1] != 1)
        refuse(name,
               "has strides " + to_string(tensor.strides.data(), 4) + ", expected channels_last (channel stride 1)");
    NhwcStrides result;
    result.w = width > 1 ? tensor.strides[3] : channels;
    result.h = height > 1 ? tensor.strides[2] : width * result.w;
    result.n = batch > 1 ? tensor.strides[0] : height * result.h;
    return result;
}

int64_t reach(const Tensor& tensor) {
    int64_t last = 0;
    for (int d = 0; d < tensor.ndim; ++d) {
        if (tensor.shape[d] == 0) return 0;
        last += (tensor.shape[d] - 1) * tensor.strides[d];
    }
    return last + 1;
}

void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> expected) {
    const int ndim = static_cast<int>(expected.size());
    if (tensor.ndim == ndim && std::equal(expected.begin(), expected.end(), tensor.shape.begin())) return;
    refuse(name, "has shape " + to_string(tensor.shape.data(), tensor.ndim) + ", expected " +
                     to_string(expected.begin(), ndim));
}

void check_contiguous(const Tensor& tensor, const char* name) {
    int64_t stride = 1;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
        if (tensor.shape[i] != 1 && tensor.strides[i] != stride)
            refuse(name,
                   "has strides " + to_string(tensor.strides.data(), tensor.ndim) + ", expected a contiguous tensor");
        stride *= std::max<int64_t>(tensor.shape[i], 1);  // as torch has it for tensors without elements
    }
}

void check_same_dtype(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
    if (tensor.dtype != other.dtype)
        throw py::type_error(std::string(name) + " and " + other_name + " differ in dtype (" +
                             entry_of(tensor.dtype).name + " and " + entry_of(other.dtype).name + ")");
}

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
        throw py::value_error(std::string(name) + " = " + std::to_string(value) + ": expected an integer from " +
                              std::to_string(low) + " to " + std::to_string(high));
}

std::string to_string(const int64_t* values, int count) {
    std::string result = "[";
    for (int i = 0; i < count; ++i) result += (i ? ", " : "") + std::to_string(values[i]);
    return result + "]";
}

}  // namespace spos
