// The part of DLPack's C ABI that reading a tensor needs, declared here after the specification
// (https://dmlc.github.io/dlpack/latest/c_api.html, version 1.3), so that the build depends on no header of it.
//
// A type that offers `__dlpack_c_exchange_api__` holds a capsule named "dlpack_exchange_api" there, which points to
// a table of functions that lives as long as the process. Within one major version the table only grows at its end.
#pragma once

#include <cstdint>

namespace spos::dlpack {

constexpr uint32_t major_version = 1;
constexpr const char* capsule_name = "dlpack_exchange_api";

constexpr int32_t device_cpu = 1;
constexpr int32_t device_cuda = 2;
constexpr uint8_t code_int = 0;
constexpr uint8_t code_uint = 1;
constexpr uint8_t code_float = 2;
constexpr uint8_t code_bfloat = 4;

struct Device {
    int32_t type;
    int32_t id;
};

struct DataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;    // owned by the tensor that was read
    int64_t* strides;  // in elements
    uint64_t byte_offset;
};

struct Version {
    uint32_t major, minor;
};

struct ExchangeHeader {
    Version version;
    ExchangeHeader* previous;  // the table of an older version, or null
};

struct ExchangeApi {
    ExchangeHeader header;
    void (*managed_tensor_allocator)();  // the first three are not used here: only their places in the table matter
    void (*managed_tensor_from_py_object_no_sync)();
    void (*managed_tensor_to_py_object_no_sync)();
    // Fills in a view that is good until control returns to Python. 0, or -1 with a Python exception set.
    int (*tensor_from_py_object_no_sync)(void* object, Tensor* out);
};

static_assert(sizeof(Tensor) == 48 && sizeof(ExchangeApi) == 48, "the layout of DLPack's tables on 64-bit machines");

}  // namespace spos::dlpack
