// The native format, reading. The bytes are input: every length is checked, the nesting is bounded.
#include <cstring>

#include "codec_internal.h"

namespace skate::bindings {
namespace {

class Decoder {
 public:
  Decoder(const wire::ValueView& view, PyObject* keeper, const DecodeHooks& hooks)
      : view_(view),
        keeper_(keeper),
        hooks_(hooks),
        at_(view.inband().data()),
        end_(at_ + view.inband().size()) {
    if (view.buffer_count() != 0) buffers_ = view.buffers();
  }

  PyObject* whole() {
    PyObject* object = value(0);
    if (object != nullptr && at_ != end_) {
      Py_DECREF(object);
      return corrupt("bytes are left over");
    }
    return object;
  }

 private:
  static PyObject* corrupt(const char* what) {
    set_corrupt_error(what);
    return nullptr;
  }

  size_t left() const { return static_cast<size_t>(end_ - at_); }

  bool length(uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_ == end_) break;
      uint8_t byte = *at_++;
      if (shift == 63 && byte > 1) break;
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    corrupt("a bad length");
    return false;
  }

  /// A length of as many items or bytes as there are bytes left, at most.
  bool run_length(uint64_t& value) {
    if (!length(value)) return false;
    if (value > left()) {
      corrupt("a length beyond the end");
      return false;
    }
    return true;
  }

  template <class Number>
  bool number(Number& value) {
    if (left() < sizeof(value)) {
      corrupt("cut off");
      return false;
    }
    std::memcpy(&value, at_, sizeof(value));
    at_ += sizeof(value);
    return true;
  }

  template <class Number>
  PyObject* integer() {
    Number value;
    return number(value) ? PyLong_FromLongLong(value) : nullptr;
  }

  bool buffer(std::span<const uint8_t>& bytes) {
    uint64_t index;
    if (!length(index)) return false;
    if (index >= buffers_.size()) {
      corrupt("a buffer index out of range");
      return false;
    }
    bytes = buffers_[index];
    return true;
  }

  bool run(std::span<const uint8_t>& bytes) {
    uint64_t size;
    if (!run_length(size)) return false;
    bytes = {at_, size};
    at_ += size;
    return true;
  }

  static PyObject* ascii(std::span<const uint8_t> bytes) {
    PyObject* text = PyUnicode_New(static_cast<Py_ssize_t>(bytes.size()), 127);
    if (text == nullptr || bytes.empty()) return text;
    // Copied first and then checked, for the source may be memory that others share.
    auto* data = static_cast<uint8_t*>(PyUnicode_DATA(text));
    std::memcpy(data, bytes.data(), bytes.size());
    uint8_t all = 0;
    for (size_t i = 0; i < bytes.size(); ++i) all |= data[i];
    if (all >= 0x80) {
      std::memset(data, '?', bytes.size());
      Py_DECREF(text);
      return corrupt("a string that is not ASCII");
    }
    return text;
  }

  static PyObject* make_bytes(std::span<const uint8_t> bytes) {
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes.data()),
                                     static_cast<Py_ssize_t>(bytes.size()));
  }

  PyObject* value(int depth) {
    if (at_ == end_) return corrupt("cut off");
    std::span<const uint8_t> bytes;
    switch (static_cast<Tag>(*at_++)) {
      case Tag::kNone: return Py_NewRef(Py_None);
      case Tag::kFalse: return Py_NewRef(Py_False);
      case Tag::kTrue: return Py_NewRef(Py_True);
      case Tag::kInt8: return integer<int8_t>();
      case Tag::kInt32: return integer<int32_t>();
      case Tag::kInt64: return integer<int64_t>();
      case Tag::kIntBig:
        if (!run(bytes)) return nullptr;
#if PY_VERSION_HEX >= 0x030D0000
        return PyLong_FromNativeBytes(bytes.data(), bytes.size(), Py_ASNATIVEBYTES_LITTLE_ENDIAN);
#else
        return _PyLong_FromByteArray(bytes.data(), bytes.size(), 1, 1);
#endif
      case Tag::kFloat: {
        double real;
        return number(real) ? PyFloat_FromDouble(real) : nullptr;
      }
      case Tag::kAscii: return run(bytes) ? ascii(bytes) : nullptr;
      case Tag::kAsciiOut: return buffer(bytes) ? ascii(bytes) : nullptr;
      case Tag::kUtf8: {
        if (!run(bytes)) return nullptr;
        const char* text = reinterpret_cast<const char*>(bytes.data());
        PyObject* object = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(bytes.size()), "surrogatepass");
        if (object == nullptr && PyErr_ExceptionMatches(PyExc_UnicodeError))
          return corrupt("a string that is not UTF-8");
        return object;
      }
      case Tag::kBytes: return run(bytes) ? make_bytes(bytes) : nullptr;
      case Tag::kBytesOut: return buffer(bytes) ? make_bytes(bytes) : nullptr;
      case Tag::kRef: return ref();
      case Tag::kTuple: return tuple(depth);
      case Tag::kList: return list(depth);
      case Tag::kDict: return dict(depth);
      case Tag::kSet: return set(PySet_New(nullptr), depth);
      case Tag::kFrozenset: return set(PyFrozenSet_New(nullptr), depth);
      case Tag::kArray: return array();
    }
    return corrupt("an unknown tag");
  }

  bool enter(int depth, uint64_t& count) {
    if (depth >= kNativeDepthMax) {
      corrupt("nested too deep");
      return false;
    }
    return run_length(count);
  }

  PyObject* tuple(int depth) {
    uint64_t count;
    if (!enter(depth, count)) return nullptr;
    Owned items(PyTuple_New(static_cast<Py_ssize_t>(count)));
    if (!items) return nullptr;
    for (uint64_t i = 0; i < count; ++i) {
      PyObject* item = value(depth + 1);
      if (item == nullptr) return nullptr;
      PyTuple_SET_ITEM(items.get(), static_cast<Py_ssize_t>(i), item);
    }
    return items.release();
  }

  PyObject* list(int depth) {
    uint64_t count;
    if (!enter(depth, count)) return nullptr;
    Owned items(PyList_New(static_cast<Py_ssize_t>(count)));
    if (!items) return nullptr;
    for (uint64_t i = 0; i < count; ++i) {
      PyObject* item = value(depth + 1);
      if (item == nullptr) return nullptr;
      PyList_SET_ITEM(items.get(), static_cast<Py_ssize_t>(i), item);
    }
    return items.release();
  }

  static PyObject* unhashable() {
    if (PyErr_ExceptionMatches(PyExc_TypeError)) {
      PyErr_Clear();
      return corrupt("a key that cannot be hashed");
    }
    return nullptr;
  }

  PyObject* dict(int depth) {
    uint64_t count;
    if (!enter(depth, count)) return nullptr;
    Owned items(PyDict_New());
    if (!items) return nullptr;
    for (uint64_t i = 0; i < count; ++i) {
      Owned key(value(depth + 1));
      if (!key) return nullptr;
      Owned item(value(depth + 1));
      if (!item) return nullptr;
      if (PyDict_SetItem(items.get(), key.get(), item.get()) < 0) return unhashable();
    }
    return items.release();
  }

  PyObject* set(PyObject* empty, int depth) {
    Owned items(empty);
    uint64_t count;
    if (!items || !enter(depth, count)) return nullptr;
    for (uint64_t i = 0; i < count; ++i) {
      Owned item(value(depth + 1));
      if (!item) return nullptr;
      if (PySet_Add(items.get(), item.get()) < 0) return unhashable();
    }
    return items.release();
  }

  PyObject* ref() {
    uint64_t index;
    if (!length(index)) return nullptr;
    if (index >= view_.ref_count() || hooks_.make_ref == nullptr) return corrupt("a ref index out of range");
    wire::ValueRef found = view_.ref(static_cast<uint32_t>(index));
    return hooks_.make_ref(hooks_.context, static_cast<uint32_t>(index), found.id, view_.owner(found.owner));
  }

  PyObject* array() {
    const NumpyTypes* numpy = numpy_types(true);
    if (numpy == nullptr) return nullptr;
    uint8_t head[3];
    if (!number(head)) return nullptr;
    auto [code, order, dimensions] = head;
    if (code >= NumpyTypes::kDtypes) return corrupt("an unknown dtype");
    if (order != 'C' && order != 'F') return corrupt("an unknown order of an array");
    if (dimensions > 64) return corrupt("an array of too many dimensions");
    Owned shape(PyTuple_New(dimensions));
    if (!shape) return nullptr;
    uint64_t expected = numpy->itemsize[code];
    bool empty = false;
    for (int i = 0; i < dimensions; ++i) {
      uint64_t extent;
      if (!length(extent)) return nullptr;
      if (extent > static_cast<uint64_t>(PY_SSIZE_T_MAX)) return corrupt("an array's dimension out of range");
      if (extent == 0) {
        empty = true;
      } else if (__builtin_mul_overflow(expected, extent, &expected)) {
        return corrupt("an array's size out of range");
      }
      PyObject* number = PyLong_FromUnsignedLongLong(extent);
      if (number == nullptr) return nullptr;
      PyTuple_SET_ITEM(shape.get(), i, number);
    }
    std::span<const uint8_t> bytes;
    if (!buffer(bytes)) return nullptr;
    if (bytes.size() != (empty ? 0 : expected)) return corrupt("an array whose buffer has another size");
    Owned memory(buffer_object(bytes, keeper_));
    Owned order_text(PyUnicode_FromStringAndSize(order == 'C' ? "C" : "F", 1));
    Owned offset(PyLong_FromLong(0));
    if (!memory || !order_text || !offset) return nullptr;
    // numpy.ndarray(shape, dtype, buffer, offset, strides, order)
    PyObject* arguments[] = {shape.get(), numpy->dtypes[code], memory.get(), offset.get(),
                             Py_None,     order_text.get()};
    PyObject* made = PyObject_Vectorcall(reinterpret_cast<PyObject*>(numpy->ndarray), arguments, 6, nullptr);
    if (made == nullptr && PyErr_ExceptionMatches(PyExc_ValueError)) {
      PyErr_Clear();
      return corrupt("an array that numpy refuses");
    }
    return made;
  }

  const wire::ValueView& view_;
  PyObject* keeper_;
  const DecodeHooks& hooks_;
  const uint8_t* at_;
  const uint8_t* end_;
  std::vector<std::span<const uint8_t>> buffers_;
};

}  // namespace

PyObject* native_decode(const wire::ValueView& view, PyObject* keeper, const DecodeHooks& hooks) {
  return Decoder(view, keeper, hooks).whole();
}

}  // namespace skate::bindings
