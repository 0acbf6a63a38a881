// Python values to flat values (wire/value.h) and back. All functions need the GIL unless they say otherwise.
//
// bytes travel raw; None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, refs and plain
// numpy arrays, of exact types, natively; all else as pickle 5 by cloudpickle's rules with out-of-band
// buffers. A value in which one container appears twice, or that nests deeper than kNativeDepthMax, is
// pickled, so that identity survives. Decoded arrays are read-only views onto the value's memory.
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "wire/value.h"

namespace skate::bindings {

inline constexpr int kNativeDepthMax = 128;

/// Makes the types and functions of the codec in `module`, and remembers it for what pickles refer to.
/// False with a Python error set.
bool codec_init(PyObject* module);

/// How refs are told apart. `ref_type` may be null: then there are no refs. The type must be final.
struct EncodeHooks {
  PyTypeObject* ref_type = nullptr;
  /// Reads the id and owner of a `ref_type` instance. False with a Python error set.
  bool (*read_ref)(PyObject* ref, ObjectId& id, wire::Address& owner) = nullptr;
};

/// A value ready to be written. Owned by one thread at a time; to destroy or clear one takes the GIL, to
/// read sizes and write it does not. Holds what it was made of: buffers stay exported, refs stay counted.
class EncodedValue {
 public:
  EncodedValue() = default;
  ~EncodedValue() { clear(); }
  EncodedValue(const EncodedValue&) = delete;
  EncodedValue& operator=(const EncodedValue&) = delete;

  void clear();

  wire::ValueFormat format() const { return format_; }
  /// Without the GIL.
  size_t flat_size() const { return parts().flat_size(); }
  /// Without the GIL: writes exactly flat_size() bytes.
  void write_to(uint8_t* out, wire::CopyFunction copy = nullptr) const { parts().write_to(out, copy); }
  wire::ValueParts parts() const;
  std::span<const wire::ValueRef> refs() const { return refs_; }
  std::span<const wire::Address> owners() const { return owners_; }

 private:
  friend class Encoder;
  friend struct EncodeState;
  friend bool encode(PyObject*, const EncodeHooks&, EncodedValue&);
  friend bool encode_payload(wire::ValueFormat, PyObject*, EncodedValue&);
  friend uint32_t register_ref(const ObjectId&, const wire::Address&, PyObject*);

  /// Room for `bytes` more; null with MemoryError set.
  uint8_t* reserve(size_t bytes) {
    if (bytes <= capacity_ - used_) [[likely]]
      return data_ + used_;
    return grow(bytes);
  }
  uint8_t* grow(size_t bytes);
  bool append(const void* bytes, size_t size);
  void add_object_buffer(PyObject* owner, const void* data, size_t size);
  bool add_exported_buffer(PyObject* exporter, int flags);
  uint32_t add_ref(const ObjectId& id, const wire::Address& owner, PyObject* object);
  /// Forgets all but the memory for in-band bytes.
  void reset();

  static constexpr size_t kInlineBytes = 256;
  wire::ValueFormat format_ = wire::ValueFormat::kRaw;
  const uint8_t* outside_ = nullptr;  ///< in-band bytes that live in a held object
  size_t outside_bytes_ = 0;
  uint8_t* data_ = inline_;
  size_t used_ = 0;
  size_t capacity_ = kInlineBytes;
  std::vector<std::span<const uint8_t>> buffers_;
  std::vector<PyObject*> objects_;                   ///< held: bytes, refs
  std::vector<std::unique_ptr<Py_buffer>> exports_;  ///< held: exported memory
  std::vector<wire::ValueRef> refs_;
  std::vector<wire::Address> owners_;
  uint8_t inline_[kInlineBytes];
};

/// False with a Python error set: TypeError for what cannot be serialized, else what the user's code raised.
bool encode(PyObject* value, const EncodeHooks& hooks, EncodedValue& out);
/// A value whose in-band bytes are a bytes object of the caller's, e.g. kError with a pickled task error.
/// Refs that were registered in an EncodeScope on `out` stay. False with a Python error set.
bool encode_payload(wire::ValueFormat format, PyObject* bytes, EncodedValue& out);

struct DecodeHooks {
  /// A new Python ref, or null with a Python error set. Called once for each occurrence in the value.
  PyObject* (*make_ref)(void* context, uint32_t index, const ObjectId& id,
                        const wire::Address& owner) = nullptr;
  void* context = nullptr;
};

/// A new object, or null with a Python error set; CorruptValueError (a ValueError) for bad bytes. `keeper`
/// keeps the view's memory alive (see new_pinned_buffer) and is held by what refers to it; without one,
/// buffers are copied. A kError yields its payload as bytes, a kSystemError a tuple (kind, dict of fields).
PyObject* decode(const wire::ValueView& view, PyObject* keeper, const DecodeHooks& hooks);
/// Sets CorruptValueError.
void set_corrupt_error(const char* what);

/// A read-only exporter of `size` bytes at `data`. When it and all views on it are gone, `release(context)`
/// is called once with the GIL: it must not block nor raise. On failure null, and `release` was called.
PyObject* new_pinned_buffer(const void* data, size_t size, void (*release)(void*), void* context);
PyObject* new_pinned_buffer(const void* data, size_t size, std::shared_ptr<const void> owner);
/// The same over memory that `owner`, a Python object, keeps alive.
PyObject* new_buffer_slice(const void* data, size_t size, PyObject* owner);

/// While one lives, refs that are pickled on this thread register in `out`, whoever runs the pickler.
/// encode() makes its own; use it around other code that pickles, such as that for a task's error.
class EncodeScope {
 public:
  EncodeScope(const EncodeHooks& hooks, EncodedValue& out);
  ~EncodeScope();
  EncodeScope(const EncodeScope&) = delete;

 private:
  friend struct EncodeState;
  friend uint32_t register_ref(const ObjectId&, const wire::Address&, PyObject*);
  const EncodeHooks& hooks_;
  EncodedValue& out_;
  EncodeScope* outer_;
  PyObject* function_reducer_ = nullptr;
};

/// The same for unpickling: current_decode_ref() looks into `view`.
class DecodeScope {
 public:
  DecodeScope(const wire::ValueView& view, const DecodeHooks& hooks);
  ~DecodeScope();
  DecodeScope(const DecodeScope&) = delete;

 private:
  friend PyObject* current_decode_ref(uint32_t);
  const wire::ValueView& view_;
  const DecodeHooks& hooks_;
  DecodeScope* outer_;
};

bool in_encode_context();
/// The index of a contained ref in the value being encoded; in_encode_context() must be true. `object`, when
/// given, is held by the EncodedValue.
uint32_t register_ref(const ObjectId& id, const wire::Address& owner, PyObject* object = nullptr);
/// For __reduce__ of a ref in an encode context: a new tuple (restore function, (index,)).
PyObject* reduce_registered_ref(uint32_t index);
bool in_decode_context();
/// A new ref from the value being decoded; null with a Python error set.
PyObject* current_decode_ref(uint32_t index);

}  // namespace skate::bindings
