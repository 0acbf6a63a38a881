// What the codec's own files share; nobody else includes it.
#pragma once

#include "codec.h"

namespace skate::bindings {

/// First byte of each item of the native format. Lengths are LEB128, numbers little-endian.
enum class Tag : uint8_t {
  kNone,
  kFalse,
  kTrue,
  kInt8,      ///< i8
  kInt32,     ///< i32
  kInt64,     ///< i64
  kIntBig,    ///< length, two's complement
  kFloat,     ///< f64
  kAscii,     ///< length, bytes below 128
  kUtf8,      ///< length, UTF-8 with surrogates as they come
  kBytes,     ///< length, bytes
  kBytesOut,  ///< buffer index
  kAsciiOut,  ///< buffer index
  kTuple,     ///< count, items
  kList,
  kDict,  ///< count, key and value alternately
  kSet,
  kFrozenset,
  kRef,    ///< ref index
  kArray,  ///< dtype code u8, order u8 ('C' or 'F'), ndim u8, lengths of the dimensions, buffer index
};

/// From here on bytes and ASCII strings inside containers are buffers: copied once, without the GIL.
inline constexpr Py_ssize_t kOutOfBandBytes = 8 * 1024;

/// numpy's types, found once somebody has imported it.
struct NumpyTypes {
  static constexpr int kDtypes = 14;
  PyTypeObject* ndarray = nullptr;
  PyObject* dtypes[kDtypes] = {};  ///< the native builtin dtypes, by code
  uint8_t itemsize[kDtypes] = {};
};
/// Looks into sys.modules, or imports when told to. Null without an error when numpy is not there yet; null
/// with a Python error when it is broken.
const NumpyTypes* numpy_types(bool import);

enum class NativeOutcome : uint8_t { kDone, kNotNative, kError };
NativeOutcome native_encode(PyObject* value, const EncodeHooks& hooks, EncodedValue& out);
PyObject* native_decode(const wire::ValueView& view, PyObject* keeper, const DecodeHooks& hooks);

/// With an EncodeScope on `out` in force.
bool pickle_encode(PyObject* value, EncodedValue& out);
/// With a DecodeScope in force.
PyObject* pickle_decode(const wire::ValueView& view, PyObject* keeper);
/// True when `type` has a serializer of the user's.
bool has_serializer(PyTypeObject* type);

/// A slice that `keeper` holds, or, without a keeper, a copy.
PyObject* buffer_object(std::span<const uint8_t> bytes, PyObject* keeper);

bool codec_buffer_init(PyObject* module);
bool codec_pickle_init(PyObject* module);

EncodeScope* current_encode_scope();

/// A strong reference.
class Owned {
 public:
  Owned() = default;
  explicit Owned(PyObject* object) : object_(object) {}
  Owned(Owned&& other) noexcept : object_(other.release()) {}
  Owned& operator=(Owned&& other) noexcept {
    PyObject* old = object_;
    object_ = other.release();
    Py_XDECREF(old);
    return *this;
  }
  ~Owned() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

}  // namespace skate::bindings
