// PinnedBuffer: read-only memory with something that is let go when its last view is gone.
#include "codec_internal.h"

namespace skate::bindings {
namespace {

struct PinnedBuffer {
  PyObject_HEAD void* data;
  Py_ssize_t size;
  PyObject* owner;
  void (*release)(void*);
  void* context;
};

PyTypeObject* pinned_buffer_type = nullptr;

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  auto* buffer = reinterpret_cast<PinnedBuffer*>(self);
  return PyBuffer_FillInfo(view, self, buffer->data, buffer->size, 1, flags);
}

Py_ssize_t length(PyObject* self) { return reinterpret_cast<PinnedBuffer*>(self)->size; }

void deallocate(PyObject* self) {
  auto* buffer = reinterpret_cast<PinnedBuffer*>(self);
  PyTypeObject* type = Py_TYPE(self);
  if (buffer->release != nullptr) buffer->release(buffer->context);
  Py_XDECREF(buffer->owner);
  PyObject_Free(self);
  Py_DECREF(type);
}

PyObject* refuse_reduce(PyObject*, PyObject*) {
  PyErr_SetString(PyExc_TypeError, "memory of an object cannot be pickled: copy it with bytes() first");
  return nullptr;
}

PyMethodDef methods[] = {
    {"__reduce_ex__", refuse_reduce, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
    {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
    {Py_sq_length, reinterpret_cast<void*>(length)},
    {Py_tp_methods, methods},
    {Py_tp_doc, const_cast<char*>("Read-only memory of an object, pinned while anything looks at it.")},
    {0, nullptr},
};

PyType_Spec spec = {
    "skate._skate.PinnedBuffer",
    sizeof(PinnedBuffer),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    slots,
};

PinnedBuffer* make(const void* data, size_t size) {
  static uint8_t nothing;
  if (size > static_cast<size_t>(PY_SSIZE_T_MAX)) {
    PyErr_SetString(PyExc_OverflowError, "a buffer of more than PY_SSIZE_T_MAX bytes");
    return nullptr;
  }
  auto* buffer = PyObject_New(PinnedBuffer, pinned_buffer_type);
  if (buffer == nullptr) return nullptr;
  buffer->data = size == 0 && data == nullptr ? &nothing : const_cast<void*>(data);
  buffer->size = static_cast<Py_ssize_t>(size);
  buffer->owner = nullptr;
  buffer->release = nullptr;
  buffer->context = nullptr;
  return buffer;
}

}  // namespace

PyObject* new_pinned_buffer(const void* data, size_t size, void (*release)(void*), void* context) {
  PinnedBuffer* buffer = make(data, size);
  if (buffer == nullptr) {
    if (release != nullptr) release(context);
    return nullptr;
  }
  buffer->release = release;
  buffer->context = context;
  return reinterpret_cast<PyObject*>(buffer);
}

PyObject* new_pinned_buffer(const void* data, size_t size, std::shared_ptr<const void> owner) {
  auto* held = new std::shared_ptr<const void>(std::move(owner));
  return new_pinned_buffer(
      data, size, [](void* context) { delete static_cast<std::shared_ptr<const void>*>(context); }, held);
}

PyObject* new_buffer_slice(const void* data, size_t size, PyObject* owner) {
  PinnedBuffer* buffer = make(data, size);
  if (buffer == nullptr) return nullptr;
  buffer->owner = Py_NewRef(owner);
  return reinterpret_cast<PyObject*>(buffer);
}

PyObject* buffer_object(std::span<const uint8_t> bytes, PyObject* keeper) {
  if (keeper != nullptr) return new_buffer_slice(bytes.data(), bytes.size(), keeper);
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes.data()),
                                   static_cast<Py_ssize_t>(bytes.size()));
}

bool codec_buffer_init(PyObject* module) {
  pinned_buffer_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return pinned_buffer_type != nullptr &&
         PyModule_AddObjectRef(module, "PinnedBuffer", reinterpret_cast<PyObject*>(pinned_buffer_type)) == 0;
}

}  // namespace skate::bindings
