// The codec alone as a module, for tests/python/test_codec.py: values to bytes and back, with a stand-in ref.
// Not part of the wheel.
#include <cstdlib>
#include <cstring>

#include "codec.h"

namespace {

using namespace skate;

struct Ref {
  PyObject_HEAD ObjectId id;
  wire::Address owner;
};

PyTypeObject* ref_type = nullptr;
long pins = 0;

bool fill(PyObject* bytes, void* out, size_t size) {
  if (PyBytes_GET_SIZE(bytes) != static_cast<Py_ssize_t>(size)) {
    PyErr_SetString(PyExc_ValueError, "28 bytes wanted");
    return false;
  }
  std::memcpy(out, PyBytes_AS_STRING(bytes), size);
  return true;
}

PyObject* new_ref(const ObjectId& id, const wire::Address& owner) {
  PyObject* self = ref_type->tp_alloc(ref_type, 0);
  if (self == nullptr) return nullptr;
  reinterpret_cast<Ref*>(self)->id = id;
  reinterpret_cast<Ref*>(self)->owner = owner;
  return self;
}

PyObject* ref_new(PyTypeObject*, PyObject* args, PyObject*) {
  PyObject *id_bytes, *worker_bytes;
  if (!PyArg_ParseTuple(args, "SS", &id_bytes, &worker_bytes)) return nullptr;
  ObjectId id;
  wire::Address owner;
  if (!fill(id_bytes, id.data(), 28) || !fill(worker_bytes, owner.worker.data(), 28)) return nullptr;
  return new_ref(id, owner);
}

void ref_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* ref_compare(PyObject* a, PyObject* b, int op) {
  if (Py_TYPE(b) != ref_type || (op != Py_EQ && op != Py_NE)) Py_RETURN_NOTIMPLEMENTED;
  auto *left = reinterpret_cast<Ref*>(a), *right = reinterpret_cast<Ref*>(b);
  bool same = left->id == right->id && left->owner == right->owner;
  return PyBool_FromLong(same == (op == Py_EQ));
}

Py_hash_t ref_hash(PyObject* self) {
  return static_cast<Py_hash_t>(std::hash<ObjectId>()(reinterpret_cast<Ref*>(self)->id) >> 1);
}

PyObject* ref_reduce(PyObject* self, PyObject*) {
  if (!bindings::in_encode_context()) {
    PyErr_SetString(PyExc_RuntimeError, "a ref outside of a value");
    return nullptr;
  }
  auto* ref = reinterpret_cast<Ref*>(self);
  return bindings::reduce_registered_ref(bindings::register_ref(ref->id, ref->owner, self));
}

PyMethodDef ref_methods[] = {{"__reduce__", ref_reduce, METH_NOARGS, nullptr},
                             {nullptr, nullptr, 0, nullptr}};
PyType_Slot ref_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(ref_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(ref_dealloc)},
    {Py_tp_richcompare, reinterpret_cast<void*>(ref_compare)},
    {Py_tp_hash, reinterpret_cast<void*>(ref_hash)},
    {Py_tp_methods, ref_methods},
    {0, nullptr},
};
PyType_Spec ref_spec = {"codec_test_module.Ref", sizeof(Ref), 0, Py_TPFLAGS_DEFAULT, ref_slots};

bool read_ref(PyObject* object, ObjectId& id, wire::Address& owner) {
  id = reinterpret_cast<Ref*>(object)->id;
  owner = reinterpret_cast<Ref*>(object)->owner;
  return true;
}

PyObject* make_ref(void*, uint32_t, const ObjectId& id, const wire::Address& owner) {
  return new_ref(id, owner);
}

bindings::EncodeHooks encode_hooks() { return {ref_type, read_ref}; }
bindings::DecodeHooks decode_hooks() { return {make_ref, nullptr}; }

PyObject* flat(const bindings::EncodedValue& value) {
  PyObject* bytes = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(value.flat_size()));
  if (bytes == nullptr) return nullptr;
  auto* out = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(bytes));
  Py_BEGIN_ALLOW_THREADS value.write_to(out);
  Py_END_ALLOW_THREADS return bytes;
}

PyObject* encode(PyObject*, PyObject* object) {
  bindings::EncodedValue value;
  if (!bindings::encode(object, encode_hooks(), value)) return nullptr;
  return flat(value);
}

/// encode, then call(), then write: what call() changes must not show where the buffers are copies.
PyObject* encode_payload(PyObject*, PyObject* args) {
  int format;
  PyObject* make;
  if (!PyArg_ParseTuple(args, "iO", &format, &make)) return nullptr;
  bindings::EncodedValue value;
  bindings::EncodeHooks hooks = encode_hooks();
  bindings::EncodeScope scope(hooks, value);
  PyObject* payload = PyObject_CallNoArgs(make);
  if (payload == nullptr) return nullptr;
  bool done = bindings::encode_payload(static_cast<wire::ValueFormat>(format), payload, value);
  Py_DECREF(payload);
  return done ? flat(value) : nullptr;
}

PyObject* decode_from(const Py_buffer& source, bool pinned) {
  // An aligned copy in memory of its own, as the store would give it.
  size_t size = static_cast<size_t>(source.len);
  void* memory = std::aligned_alloc(64, (size + 64) / 64 * 64);
  if (memory == nullptr) return PyErr_NoMemory();
  std::memcpy(memory, source.buf, size);
  auto view = wire::parse_value({static_cast<const uint8_t*>(memory), size});
  if (!view) {
    std::free(memory);
    bindings::set_corrupt_error(view.error().message.c_str());
    return nullptr;
  }
  if (!pinned) {
    PyObject* result = bindings::decode(*view, nullptr, decode_hooks());
    std::memset(memory, 0xEE, size);
    std::free(memory);
    return result;
  }
  ++pins;
  auto release = [](void* context) {
    --pins;
    std::free(context);
  };
  PyObject* keeper = bindings::new_pinned_buffer(memory, size, release, memory);
  if (keeper == nullptr) return nullptr;
  PyObject* result = bindings::decode(*view, keeper, decode_hooks());
  Py_DECREF(keeper);
  return result;
}

PyObject* decode_either(PyObject* bytes, bool pinned) {
  Py_buffer source;
  if (PyObject_GetBuffer(bytes, &source, PyBUF_SIMPLE) < 0) return nullptr;
  PyObject* result = decode_from(source, pinned);
  PyBuffer_Release(&source);
  return result;
}

PyObject* decode(PyObject*, PyObject* bytes) { return decode_either(bytes, true); }
PyObject* decode_copied(PyObject*, PyObject* bytes) { return decode_either(bytes, false); }
PyObject* pin_count(PyObject*, PyObject*) { return PyLong_FromLong(pins); }

/// (format, number of buffers, number of refs, number of owners, in-band bytes)
PyObject* describe(PyObject*, PyObject* bytes) {
  char* data;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0) return nullptr;
  auto view = wire::parse_value({reinterpret_cast<const uint8_t*>(data), static_cast<size_t>(size)});
  if (!view) {
    bindings::set_corrupt_error(view.error().message.c_str());
    return nullptr;
  }
  return Py_BuildValue("iIIIn", static_cast<int>(view->format()), view->buffer_count(), view->ref_count(),
                       view->owner_count(), static_cast<Py_ssize_t>(view->inband().size()));
}

/// encode, write into memory that is there, and decode, `times` over: for counting instructions.
PyObject* repeat(PyObject*, PyObject* args) {
  PyObject* object;
  int times;
  if (!PyArg_ParseTuple(args, "Oi", &object, &times)) return nullptr;
  std::vector<uint8_t> memory;
  for (int i = 0; i < times; ++i) {
    bindings::EncodedValue value;
    if (!bindings::encode(object, encode_hooks(), value)) return nullptr;
    memory.resize(value.flat_size());
    value.write_to(memory.data());
    auto view = wire::parse_value(memory);
    PyObject* back = bindings::decode(*view, nullptr, decode_hooks());
    if (back == nullptr) return nullptr;
    Py_DECREF(back);
  }
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"encode", encode, METH_O, nullptr},
    {"encode_payload", encode_payload, METH_VARARGS, nullptr},
    {"decode", decode, METH_O, nullptr},
    {"decode_copied", decode_copied, METH_O, nullptr},
    {"pin_count", pin_count, METH_NOARGS, nullptr},
    {"describe", describe, METH_O, nullptr},
    {"repeat", repeat, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "codec_test_module", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_codec_test_module() {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  ref_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&ref_spec));
  if (ref_type == nullptr ||
      PyModule_AddObjectRef(module, "Ref", reinterpret_cast<PyObject*>(ref_type)) < 0 ||
      !skate::bindings::codec_init(module)) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
