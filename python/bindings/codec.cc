#include "codec.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "codec_internal.h"

namespace skate::bindings {
namespace {

thread_local EncodeScope* encode_scope = nullptr;
thread_local DecodeScope* decode_scope = nullptr;

PyObject* corrupt_error = nullptr;  // CorruptValueError
PyObject* restore_ref_function = nullptr;

constexpr Py_ssize_t kRawBufferBytes = 64 * 1024;

PyObject* restore_ref(PyObject*, PyObject* index) {
  unsigned long number = PyLong_AsUnsignedLong(index);
  if (number == static_cast<unsigned long>(-1) && PyErr_Occurred()) return nullptr;
  if (number > UINT32_MAX) {
    set_corrupt_error("a ref index out of range");
    return nullptr;
  }
  return current_decode_ref(static_cast<uint32_t>(number));
}

PyMethodDef functions[] = {
    {"_restore_ref", restore_ref, METH_O, "A ref inside a pickled value, by its index there."},
    {nullptr, nullptr, 0, nullptr},
};

bool decode_system_error(const wire::ValueView& view, Owned& out) {
  auto error = wire::parse_system_error(view.inband());
  if (!error) {
    set_corrupt_error(error.error().message.c_str());
    return false;
  }
  Owned fields(PyDict_New());
  if (!fields) return false;
  for (const auto& [name, text] : error->fields) {
    Owned value(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
    Owned key(PyUnicode_DecodeUTF8(name.data(), static_cast<Py_ssize_t>(name.size()), "replace"));
    if (!key || !value || PyDict_SetItem(fields.get(), key.get(), value.get()) < 0) return false;
  }
  Owned kind(
      PyUnicode_DecodeUTF8(error->kind.data(), static_cast<Py_ssize_t>(error->kind.size()), "replace"));
  if (!kind) return false;
  out = Owned(PyTuple_Pack(2, kind.get(), fields.get()));
  return static_cast<bool>(out);
}

}  // namespace

// --- EncodedValue -----------------------------------------------------------------------------

void EncodedValue::reset() {
  for (auto& exported : exports_) PyBuffer_Release(exported.get());
  exports_.clear();
  for (PyObject* object : objects_) Py_DECREF(object);
  objects_.clear();
  buffers_.clear();
  refs_.clear();
  owners_.clear();
  outside_ = nullptr;
  outside_bytes_ = 0;
  used_ = 0;
}

void EncodedValue::clear() {
  reset();
  if (data_ != inline_) std::free(data_);
  data_ = inline_;
  capacity_ = kInlineBytes;
}

uint8_t* EncodedValue::grow(size_t bytes) {
  if (bytes > SIZE_MAX / 2 - capacity_) {
    PyErr_NoMemory();
    return nullptr;
  }
  size_t capacity = capacity_ * 2 > used_ + bytes ? capacity_ * 2 : used_ + bytes;
  auto* data =
      static_cast<uint8_t*>(data_ == inline_ ? std::malloc(capacity) : std::realloc(data_, capacity));
  if (data == nullptr) {
    PyErr_NoMemory();
    return nullptr;
  }
  if (data_ == inline_) std::memcpy(data, inline_, used_);
  data_ = data;
  capacity_ = capacity;
  return data_ + used_;
}

bool EncodedValue::append(const void* bytes, size_t size) {
  uint8_t* out = reserve(size);
  if (out == nullptr) return false;
  if (size != 0) std::memcpy(out, bytes, size);
  used_ += size;
  return true;
}

void EncodedValue::add_object_buffer(PyObject* owner, const void* data, size_t size) {
  objects_.push_back(Py_NewRef(owner));
  buffers_.emplace_back(static_cast<const uint8_t*>(data), size);
}

bool EncodedValue::add_exported_buffer(PyObject* exporter, int flags) {
  auto view = std::make_unique<Py_buffer>();
  if (PyObject_GetBuffer(exporter, view.get(), flags) < 0) return false;
  buffers_.emplace_back(static_cast<const uint8_t*>(view->buf), static_cast<size_t>(view->len));
  exports_.push_back(std::move(view));
  return true;
}

uint32_t EncodedValue::add_ref(const ObjectId& id, const wire::Address& owner, PyObject* object) {
  // Few owners per value as a rule, and mostly the same one in a row.
  uint32_t index = static_cast<uint32_t>(owners_.size());
  if (!refs_.empty() && owners_[refs_.back().owner] == owner) {
    index = refs_.back().owner;
    if (refs_.back().id == id) return static_cast<uint32_t>(refs_.size() - 1);
  } else {
    // Beyond this many owners a repeated entry is cheaper than the search.
    size_t searched = owners_.size() < 64 ? owners_.size() : 64;
    for (uint32_t i = 0; i < searched; ++i) {
      if (owners_[i] == owner) {
        index = i;
        break;
      }
    }
  }
  if (index == owners_.size()) owners_.push_back(owner);
  refs_.push_back({id, index});
  if (object != nullptr) objects_.push_back(Py_NewRef(object));
  return static_cast<uint32_t>(refs_.size() - 1);
}

wire::ValueParts EncodedValue::parts() const {
  std::span<const uint8_t> inband =
      outside_ != nullptr ? std::span(outside_, outside_bytes_) : std::span<const uint8_t>(data_, used_);
  return {format_, inband, buffers_, refs_, owners_};
}

// --- encode and decode ------------------------------------------------------------------------

bool encode(PyObject* value, const EncodeHooks& hooks, EncodedValue& out) {
  try {
    out.reset();
    if (PyBytes_CheckExact(value)) {
      out.format_ = wire::ValueFormat::kRaw;
      Py_ssize_t size = PyBytes_GET_SIZE(value);
      if (size >= kRawBufferBytes) {
        out.add_object_buffer(value, PyBytes_AS_STRING(value), static_cast<size_t>(size));
        return true;
      }
      return out.append(PyBytes_AS_STRING(value), static_cast<size_t>(size));
    }
    out.format_ = wire::ValueFormat::kNative;
    switch (native_encode(value, hooks, out)) {
      case NativeOutcome::kDone: return true;
      case NativeOutcome::kError: return false;
      case NativeOutcome::kNotNative: break;
    }
    out.reset();
    out.format_ = wire::ValueFormat::kPickle5;
    EncodeScope scope(hooks, out);
    return pickle_encode(value, out);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    return false;
  }
}

bool encode_payload(wire::ValueFormat format, PyObject* bytes, EncodedValue& out) {
  if (!PyBytes_CheckExact(bytes)) {
    PyErr_Format(PyExc_TypeError, "the payload must be bytes, not %.200s", Py_TYPE(bytes)->tp_name);
    return false;
  }
  try {
    out.objects_.push_back(Py_NewRef(bytes));
  } catch (const std::bad_alloc&) {
    Py_DECREF(bytes);
    PyErr_NoMemory();
    return false;
  }
  out.format_ = format;
  out.outside_ = reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(bytes));
  out.outside_bytes_ = static_cast<size_t>(PyBytes_GET_SIZE(bytes));
  return true;
}

PyObject* decode(const wire::ValueView& view, PyObject* keeper, const DecodeHooks& hooks) {
  try {
    switch (view.format()) {
      case wire::ValueFormat::kRaw: {
        auto bytes = view.buffer_count() == 0 ? view.inband() : view.first_buffer();
        return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes.data()),
                                         static_cast<Py_ssize_t>(bytes.size()));
      }
      case wire::ValueFormat::kNative: return native_decode(view, keeper, hooks);
      case wire::ValueFormat::kPickle5: {
        DecodeScope scope(view, hooks);
        return pickle_decode(view, keeper);
      }
      case wire::ValueFormat::kError: {
        auto bytes = view.inband();
        return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes.data()),
                                         static_cast<Py_ssize_t>(bytes.size()));
      }
      case wire::ValueFormat::kSystemError: {
        Owned error;
        if (!decode_system_error(view, error)) return nullptr;
        return error.release();
      }
      case wire::ValueFormat::kArrowIpc:
      case wire::ValueFormat::kMsgpack: break;
    }
    PyErr_Format(PyExc_ValueError, "this build of the Python codec does not read values of format %d",
                 static_cast<int>(view.format()));
    return nullptr;
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    return nullptr;
  }
}

void set_corrupt_error(const char* what) { PyErr_Format(corrupt_error, "corrupt value: %s", what); }

// --- scopes -----------------------------------------------------------------------------------

EncodeScope::EncodeScope(const EncodeHooks& hooks, EncodedValue& out)
    : hooks_(hooks), out_(out), outer_(encode_scope) {
  encode_scope = this;
}

EncodeScope::~EncodeScope() {
  encode_scope = outer_;
  Py_XDECREF(function_reducer_);
}

DecodeScope::DecodeScope(const wire::ValueView& view, const DecodeHooks& hooks)
    : view_(view), hooks_(hooks), outer_(decode_scope) {
  decode_scope = this;
}

DecodeScope::~DecodeScope() { decode_scope = outer_; }

EncodeScope* current_encode_scope() { return encode_scope; }
bool in_encode_context() { return encode_scope != nullptr; }
bool in_decode_context() { return decode_scope != nullptr; }

uint32_t register_ref(const ObjectId& id, const wire::Address& owner, PyObject* object) {
  SKATE_ASSERT(encode_scope != nullptr, "register_ref outside of an encode context");
  return encode_scope->out_.add_ref(id, owner, object);
}

PyObject* reduce_registered_ref(uint32_t index) { return Py_BuildValue("O(I)", restore_ref_function, index); }

PyObject* current_decode_ref(uint32_t index) {
  if (decode_scope == nullptr) {
    PyErr_SetString(PyExc_RuntimeError,
                    "a ref that was pickled inside a value can only be read as part of that value");
    return nullptr;
  }
  const wire::ValueView& view = decode_scope->view_;
  if (index >= view.ref_count() || decode_scope->hooks_.make_ref == nullptr) {
    set_corrupt_error("a ref index out of range");
    return nullptr;
  }
  wire::ValueRef ref = view.ref(index);
  return decode_scope->hooks_.make_ref(decode_scope->hooks_.context, index, ref.id, view.owner(ref.owner));
}

bool codec_init(PyObject* module) {
  if (PyModule_AddFunctions(module, functions) < 0) return false;
  Py_XSETREF(restore_ref_function, PyObject_GetAttrString(module, "_restore_ref"));
  if (restore_ref_function == nullptr) return false;
  Py_XSETREF(corrupt_error,
             PyErr_NewExceptionWithDoc("skate._skate.CorruptValueError", "Bytes that are not a value.",
                                       PyExc_ValueError, nullptr));
  if (corrupt_error == nullptr || PyModule_AddObjectRef(module, "CorruptValueError", corrupt_error) < 0)
    return false;
  return codec_buffer_init(module) && codec_pickle_init(module);
}

}  // namespace skate::bindings
