// The native format, writing. No Python code runs while it does, so that no container changes under it.
#include <cstring>

#include "codec_internal.h"

namespace skate::bindings {

namespace {

/// Objects that were met, kept by address. Only those that may be met again are entered.
class SeenObjects {
 public:
  /// False when `object` was entered before.
  bool enter(const PyObject* object) {
    if (table_.empty()) {
      for (size_t i = 0; i < count_; ++i) {
        if (few_[i] == object) return false;
      }
      if (count_ < kFew) {
        few_[count_++] = object;
        return true;
      }
      table_.assign(64, nullptr);
      for (const PyObject* other : few_) *slot(other) = other;
    }
    const PyObject** place = slot(object);
    if (*place != nullptr) return false;
    *place = object;
    if (++count_ * 2 > table_.size()) rehash();
    return true;
  }

 private:
  const PyObject** slot(const PyObject* object) {
    size_t mask = table_.size() - 1;
    size_t at = (reinterpret_cast<uintptr_t>(object) >> 4) * 0x9E3779B97F4A7C15ull >> 20 & mask;
    while (table_[at] != nullptr && table_[at] != object) at = (at + 1) & mask;
    return &table_[at];
  }
  void rehash() {
    std::vector<const PyObject*> old(table_.size() * 2, nullptr);
    old.swap(table_);
    for (const PyObject* object : old) {
      if (object != nullptr) *slot(object) = object;
    }
  }

  static constexpr size_t kFew = 16;
  const PyObject* few_[kFew];
  size_t count_ = 0;
  std::vector<const PyObject*> table_;
};

}  // namespace

class Encoder {
 public:
  Encoder(const EncodeHooks& hooks, EncodedValue& out) : hooks_(hooks), out_(out) {}

  NativeOutcome value(PyObject* object, int depth) {
    if (object == Py_None) return tag_only(Tag::kNone);
    PyTypeObject* type = Py_TYPE(object);
    if (type == &PyUnicode_Type) return text(object);
    if (type == &PyLong_Type) return integer(object);
    if (type == &PyFloat_Type) {
      double number = PyFloat_AS_DOUBLE(object);
      return fixed(Tag::kFloat, &number, sizeof(number));
    }
    if (type == &PyBool_Type) return tag_only(object == Py_True ? Tag::kTrue : Tag::kFalse);
    if (type == &PyBytes_Type) return bytes(object);
    if (type == hooks_.ref_type) return ref(object);
    if (depth >= kNativeDepthMax) return NativeOutcome::kNotNative;
    if (type == &PyTuple_Type) {
      if (PyTuple_GET_SIZE(object) == 0) return header(Tag::kTuple, 0);  // shared by all
      if (!enter(object)) return NativeOutcome::kNotNative;
      return sequence(Tag::kTuple, object, depth);
    }
    if (type == &PyList_Type) {
      if (!enter(object)) return NativeOutcome::kNotNative;
      return sequence(Tag::kList, object, depth);
    }
    if (type == &PyDict_Type) return enter(object) ? dict(object, depth) : NativeOutcome::kNotNative;
    if (type == &PySet_Type) return enter(object) ? set(Tag::kSet, object, depth) : NativeOutcome::kNotNative;
    if (type == &PyFrozenSet_Type)
      return enter(object) ? set(Tag::kFrozenset, object, depth) : NativeOutcome::kNotNative;
    if (std::strcmp(type->tp_name, "numpy.ndarray") == 0) return array(object);
    return NativeOutcome::kNotNative;
  }

 private:
  /// False when the object was met before. What has one reference cannot be met twice.
  bool enter(PyObject* object) { return Py_REFCNT(object) == 1 || seen_.enter(object); }

  NativeOutcome tag_only(Tag tag) {
    uint8_t* at = out_.reserve(1);
    if (at == nullptr) return NativeOutcome::kError;
    *at = static_cast<uint8_t>(tag);
    out_.used_ += 1;
    return NativeOutcome::kDone;
  }

  NativeOutcome fixed(Tag tag, const void* data, size_t size) {
    uint8_t* at = out_.reserve(1 + size);
    if (at == nullptr) return NativeOutcome::kError;
    *at = static_cast<uint8_t>(tag);
    std::memcpy(at + 1, data, size);
    out_.used_ += 1 + size;
    return NativeOutcome::kDone;
  }

  static uint8_t* put_length(uint8_t* at, uint64_t length) {
    while (length >= 0x80) {
      *at++ = static_cast<uint8_t>(length | 0x80);
      length >>= 7;
    }
    *at++ = static_cast<uint8_t>(length);
    return at;
  }

  NativeOutcome header(Tag tag, uint64_t length) {
    uint8_t* at = out_.reserve(11);
    if (at == nullptr) return NativeOutcome::kError;
    *at = static_cast<uint8_t>(tag);
    out_.used_ += static_cast<size_t>(put_length(at + 1, length) - at);
    return NativeOutcome::kDone;
  }

  NativeOutcome run(Tag tag, const void* data, size_t size) {
    uint8_t* at = out_.reserve(11 + size);
    if (at == nullptr) return NativeOutcome::kError;
    *at = static_cast<uint8_t>(tag);
    uint8_t* body = put_length(at + 1, size);
    if (size != 0) std::memcpy(body, data, size);
    out_.used_ += static_cast<size_t>(body - at) + size;
    return NativeOutcome::kDone;
  }

  /// A repeated large string would be written, and come back, many times over.
  bool repeated(PyObject* object, Py_ssize_t size) { return size >= 128 && !enter(object); }

  NativeOutcome outside(Tag tag, PyObject* object, const void* data, Py_ssize_t size) {
    uint64_t index = out_.buffers_.size();
    out_.add_object_buffer(object, data, static_cast<size_t>(size));
    return header(tag, index);
  }

  NativeOutcome text(PyObject* object) {
    if (PyUnicode_READY(object) < 0) return NativeOutcome::kError;
    Py_ssize_t size = PyUnicode_GET_LENGTH(object);
    if (repeated(object, size)) return NativeOutcome::kNotNative;
    if (PyUnicode_IS_COMPACT_ASCII(object)) {
      const void* data = PyUnicode_DATA(object);
      if (size >= kOutOfBandBytes) return outside(Tag::kAsciiOut, object, data, size);
      return run(Tag::kAscii, data, static_cast<size_t>(size));
    }
    Owned utf8(PyUnicode_AsEncodedString(object, "utf-8", "surrogatepass"));
    if (!utf8) return NativeOutcome::kError;
    return run(Tag::kUtf8, PyBytes_AS_STRING(utf8.get()), static_cast<size_t>(PyBytes_GET_SIZE(utf8.get())));
  }

  NativeOutcome bytes(PyObject* object) {
    Py_ssize_t size = PyBytes_GET_SIZE(object);
    if (repeated(object, size)) return NativeOutcome::kNotNative;
    if (size >= kOutOfBandBytes) return outside(Tag::kBytesOut, object, PyBytes_AS_STRING(object), size);
    return run(Tag::kBytes, PyBytes_AS_STRING(object), static_cast<size_t>(size));
  }

  NativeOutcome integer(PyObject* object) {
    int overflow = 0;
    int64_t number = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0) return big_integer(object);
    if (number == static_cast<int8_t>(number)) {
      int8_t narrow = static_cast<int8_t>(number);
      return fixed(Tag::kInt8, &narrow, sizeof(narrow));
    }
    if (number == static_cast<int32_t>(number)) {
      int32_t narrow = static_cast<int32_t>(number);
      return fixed(Tag::kInt32, &narrow, sizeof(narrow));
    }
    return fixed(Tag::kInt64, &number, sizeof(number));
  }

  NativeOutcome big_integer(PyObject* object) {
#if PY_VERSION_HEX >= 0x030D0000
    Py_ssize_t size = PyLong_AsNativeBytes(object, nullptr, 0, -1);
    if (size < 0) return NativeOutcome::kError;
#else
    size_t bits = _PyLong_NumBits(object);
    if (bits == static_cast<size_t>(-1) && PyErr_Occurred()) return NativeOutcome::kError;
    Py_ssize_t size = static_cast<Py_ssize_t>(bits / 8 + 1);
#endif
    if (header(Tag::kIntBig, static_cast<uint64_t>(size)) != NativeOutcome::kDone)
      return NativeOutcome::kError;
    uint8_t* at = out_.reserve(static_cast<size_t>(size));
    if (at == nullptr) return NativeOutcome::kError;
#if PY_VERSION_HEX >= 0x030D0000
    if (PyLong_AsNativeBytes(object, at, size, Py_ASNATIVEBYTES_LITTLE_ENDIAN) < 0)
      return NativeOutcome::kError;
#else
    auto* number = reinterpret_cast<PyLongObject*>(object);
    if (_PyLong_AsByteArray(number, at, static_cast<size_t>(size), 1, 1) < 0) return NativeOutcome::kError;
#endif
    out_.used_ += static_cast<size_t>(size);
    return NativeOutcome::kDone;
  }

  NativeOutcome sequence(Tag tag, PyObject* object, int depth) {
    Py_ssize_t size = PySequence_Fast_GET_SIZE(object);
    if (NativeOutcome outcome = header(tag, static_cast<uint64_t>(size)); outcome != NativeOutcome::kDone)
      return outcome;
    PyObject** items = PySequence_Fast_ITEMS(object);
    for (Py_ssize_t i = 0; i < size; ++i) {
      if (NativeOutcome outcome = value(items[i], depth + 1); outcome != NativeOutcome::kDone) return outcome;
    }
    return NativeOutcome::kDone;
  }

  NativeOutcome dict(PyObject* object, int depth) {
    NativeOutcome outcome = header(Tag::kDict, static_cast<uint64_t>(PyDict_GET_SIZE(object)));
    if (outcome != NativeOutcome::kDone) return outcome;
    Py_ssize_t position = 0;
    PyObject* key;
    PyObject* item;
    while (PyDict_Next(object, &position, &key, &item)) {
      if (outcome = value(key, depth + 1); outcome != NativeOutcome::kDone) return outcome;
      if (outcome = value(item, depth + 1); outcome != NativeOutcome::kDone) return outcome;
    }
    return NativeOutcome::kDone;
  }

  NativeOutcome set(Tag tag, PyObject* object, int depth) {
    NativeOutcome outcome = header(tag, static_cast<uint64_t>(PySet_GET_SIZE(object)));
    if (outcome != NativeOutcome::kDone) return outcome;
    // Making the iterator could start a collection, and that the user's finalizers.
    int collecting = PyGC_Disable();
    Owned iterator(PyObject_GetIter(object));
    if (collecting) PyGC_Enable();
    if (!iterator) return NativeOutcome::kError;
    while (Owned item{PyIter_Next(iterator.get())}) {
      // The iteration's own reference is one more than those of other items.
      if (outcome = value(item.get(), depth + 1); outcome != NativeOutcome::kDone) return outcome;
    }
    return PyErr_Occurred() != nullptr ? NativeOutcome::kError : NativeOutcome::kDone;
  }

  NativeOutcome ref(PyObject* object) {
    ObjectId id;
    wire::Address owner;
    if (!hooks_.read_ref(object, id, owner)) return NativeOutcome::kError;
    return header(Tag::kRef, out_.add_ref(id, owner, object));
  }

  NativeOutcome array(PyObject* object) {
    if (numpy_ == nullptr) numpy_ = numpy_types(false);
    if (numpy_ == nullptr)
      return PyErr_Occurred() != nullptr ? NativeOutcome::kError : NativeOutcome::kNotNative;
    if (Py_TYPE(object) != numpy_->ndarray || has_serializer(numpy_->ndarray))
      return NativeOutcome::kNotNative;
    if (!enter(object)) return NativeOutcome::kNotNative;
    Owned dtype(PyObject_GetAttrString(object, "dtype"));
    if (!dtype) return NativeOutcome::kError;
    int code = 0;
    while (code < NumpyTypes::kDtypes && numpy_->dtypes[code] != dtype.get()) ++code;
    if (code == NumpyTypes::kDtypes) return NativeOutcome::kNotNative;

    uint64_t index = out_.buffers_.size();
    if (!out_.add_exported_buffer(object, PyBUF_ANY_CONTIGUOUS)) {
      // Not contiguous: pickle makes it so.
      if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_BufferError))
        return NativeOutcome::kError;
      PyErr_Clear();
      return NativeOutcome::kNotNative;
    }
    const Py_buffer& view = *out_.exports_.back();
    uint8_t head[3] = {static_cast<uint8_t>(code),
                       PyBuffer_IsContiguous(&view, 'C') ? uint8_t{'C'} : uint8_t{'F'},
                       static_cast<uint8_t>(view.ndim)};
    if (fixed(Tag::kArray, head, sizeof(head)) != NativeOutcome::kDone) return NativeOutcome::kError;
    uint8_t* at = out_.reserve(10 * (static_cast<size_t>(view.ndim) + 1));
    if (at == nullptr) return NativeOutcome::kError;
    uint8_t* const start = at;
    for (int i = 0; i < view.ndim; ++i) at = put_length(at, static_cast<uint64_t>(view.shape[i]));
    at = put_length(at, index);
    out_.used_ += static_cast<size_t>(at - start);
    return NativeOutcome::kDone;
  }

  const EncodeHooks& hooks_;
  EncodedValue& out_;
  SeenObjects seen_;
  const NumpyTypes* numpy_ = nullptr;
};

NativeOutcome native_encode(PyObject* value, const EncodeHooks& hooks, EncodedValue& out) {
  return Encoder(hooks, out).value(value, 0);
}

const NumpyTypes* numpy_types(bool import) {
  static NumpyTypes types;
  if (types.ndarray != nullptr) return &types;
  Owned numpy;
  if (import) {
    numpy = Owned(PyImport_ImportModule("numpy"));
    if (!numpy) return nullptr;
  } else {
    PyObject* module = PyDict_GetItemString(PyImport_GetModuleDict(), "numpy");
    if (module == nullptr) return nullptr;
    numpy = Owned(Py_NewRef(module));
  }
  static constexpr const char* kNames[NumpyTypes::kDtypes] = {
      "bool",   "int8",   "int16",   "int32",   "int64",   "uint8",     "uint16",
      "uint32", "uint64", "float16", "float32", "float64", "complex64", "complex128"};
  static constexpr uint8_t kSizes[NumpyTypes::kDtypes] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 8, 16};
  Owned make_dtype(PyObject_GetAttrString(numpy.get(), "dtype"));
  if (!make_dtype) return nullptr;
  PyObject* dtypes[NumpyTypes::kDtypes];
  for (int i = 0; i < NumpyTypes::kDtypes; ++i) {
    dtypes[i] = PyObject_CallFunction(make_dtype.get(), "s", kNames[i]);
    if (dtypes[i] == nullptr) {
      while (i-- > 0) Py_DECREF(dtypes[i]);
      return nullptr;
    }
  }
  PyObject* ndarray = PyObject_GetAttrString(numpy.get(), "ndarray");
  if (ndarray == nullptr) {
    for (PyObject* dtype : dtypes) Py_DECREF(dtype);
    return nullptr;
  }
  std::memcpy(types.dtypes, dtypes, sizeof(dtypes));
  std::memcpy(types.itemsize, kSizes, sizeof(kSizes));
  types.ndarray = reinterpret_cast<PyTypeObject*>(ndarray);
  return &types;
}

}  // namespace skate::bindings
