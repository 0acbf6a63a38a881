// ObjectRef: the Python object behind a counted ref.
#include "bindings/bindings.h"

#include <structmember.h>

namespace skate::bindings {

PyTypeObject* ref_type = nullptr;

namespace {

PyObject* bytes_of(const ObjectId& id) {
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(id.data()), ObjectId::kSize);
}

RefObject* allocate(PyTypeObject* type) {
  auto* self = reinterpret_cast<RefObject*>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  new (&self->id) ObjectId();
  self->entry = nullptr;
  self->epoch = connection_epoch();
  self->seen = 0;
  self->weakrefs = nullptr;
  return self;
}

PyObject* from_id(PyTypeObject* type, const ObjectId& id) {
  RefObject* self = allocate(type);
  if (self == nullptr) return nullptr;
  self->id = id;
  if (!id.is_nil())
    if (Runtime* runtime = runtime_or_null()) self->entry = runtime->find_or_lost(id);
  return reinterpret_cast<PyObject*>(self);
}

PyObject* from_binary(PyTypeObject* type, PyObject* bytes) {
  char* data;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(bytes, &data, &size) != 0) return nullptr;
  if (size != static_cast<Py_ssize_t>(ObjectId::kSize))
    return PyErr_Format(PyExc_ValueError, "an ObjectRef has %d bytes, not %zd", int{ObjectId::kSize}, size);
  return from_id(type, ObjectId(ObjectId::from_bytes(data)));
}

PyObject* ref_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* keywords[] = {"id", nullptr};
  PyObject* bytes;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "S:ObjectRef", const_cast<char**>(keywords), &bytes))
    return nullptr;
  return from_binary(type, bytes);
}

void ref_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<RefObject*>(object);
  if (self->weakrefs != nullptr) PyObject_ClearWeakRefs(object);
  if (self->entry != nullptr && self->epoch == connection_epoch()) {
    Runtime* runtime = runtime_or_null();
    if (runtime != nullptr && !runtime->in_forked_child()) runtime->drop_handle(self->entry);
  }
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

Py_hash_t ref_hash(PyObject* object) {
  auto hash = static_cast<Py_hash_t>(IdHash<ObjectId>{}(reinterpret_cast<RefObject*>(object)->id));
  return hash == -1 ? -2 : hash;
}

PyObject* ref_compare(PyObject* a, PyObject* b, int op) {
  if (!is_ref(a) || !is_ref(b)) Py_RETURN_NOTIMPLEMENTED;
  auto order = reinterpret_cast<RefObject*>(a)->id.bytes <=> reinterpret_cast<RefObject*>(b)->id.bytes;
  bool result = false;
  switch (op) {
    case Py_EQ: result = order == 0; break;
    case Py_NE: result = order != 0; break;
    case Py_LT: result = order < 0; break;
    case Py_LE: result = order <= 0; break;
    case Py_GT: result = order > 0; break;
    case Py_GE: result = order >= 0; break;
  }
  return PyBool_FromLong(result);
}

PyObject* ref_hex(PyObject* self, PyObject*) {
  return PyUnicode_FromString(reinterpret_cast<RefObject*>(self)->id.hex().c_str());
}
PyObject* ref_binary(PyObject* self, PyObject*) { return bytes_of(reinterpret_cast<RefObject*>(self)->id); }
PyObject* ref_is_nil(PyObject* self, PyObject*) {
  return PyBool_FromLong(reinterpret_cast<RefObject*>(self)->id.is_nil());
}
PyObject* ref_repr(PyObject* self) {
  return PyUnicode_FromFormat("ObjectRef(%s)", reinterpret_cast<RefObject*>(self)->id.hex().c_str());
}

PyObject* make_python_id(const char* name, const uint8_t* data, size_t size) {
  Object bytes(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(data), static_cast<Py_ssize_t>(size)));
  if (!bytes) return nullptr;
  PyObject* argument = bytes.get();
  return call_hook("skate._ids", name, &argument, 1);
}
PyObject* ref_task_id(PyObject* self, PyObject*) {
  return make_python_id("TaskID", reinterpret_cast<RefObject*>(self)->id.data(), TaskId::kSize);
}
PyObject* ref_job_id(PyObject* self, PyObject*) {
  return make_python_id("JobID", reinterpret_cast<RefObject*>(self)->id.data() + 20, JobId::kSize);
}
PyObject* ref_call_site(PyObject*, PyObject*) { return PyUnicode_FromString(""); }
PyObject* ref_owner_address(PyObject* self, PyObject*) {
  Entry* entry = entry_of(self);
  if (entry == nullptr) return nullptr;
  wire::Address owner = require_runtime()->owner_of(entry);
  std::string out(reinterpret_cast<const char*>(owner.worker.data()), WorkerId::kSize);
  out.append(reinterpret_cast<const char*>(owner.node.data()), NodeId::kSize);
  return PyBytes_FromStringAndSize(out.data(), static_cast<Py_ssize_t>(out.size()));
}
PyObject* ref_await(PyObject* self) { return call_hook("skate._async", "ref_await", &self, 1); }
PyObject* ref_future(PyObject* self, PyObject*) { return call_hook("skate._async", "ref_future", &self, 1); }
PyObject* ref_as_future(PyObject* self, PyObject*) {
  return call_hook("skate._async", "ref_as_future", &self, 1);
}

PyObject* ref_size(PyObject*, PyObject*) { return PyLong_FromLong(ObjectId::kSize); }
PyObject* ref_nil(PyObject* type, PyObject*) {
  return from_id(reinterpret_cast<PyTypeObject*>(type), ObjectId());
}
PyObject* ref_from_binary(PyObject* type, PyObject* bytes) {
  return from_binary(reinterpret_cast<PyTypeObject*>(type), bytes);
}
PyObject* ref_from_hex(PyObject* type, PyObject* text) {
  const char* hex = PyUnicode_AsUTF8(text);
  if (hex == nullptr) return nullptr;
  auto id = ObjectId::parse_hex(hex);
  if (!id)
    return PyErr_Format(PyExc_ValueError, "an ObjectRef has %d hexadecimal digits", int{ObjectId::kSize * 2});
  return from_id(reinterpret_cast<PyTypeObject*>(type), ObjectId(*id));
}
PyObject* ref_from_random(PyObject* type, PyObject*) {
  return from_id(reinterpret_cast<PyTypeObject*>(type), ObjectId(ObjectId::random()));
}

/// Inside a value: an index into the value's refs. Elsewhere (a closure, or the user pickles a ref himself):
/// its id and owner. Nobody knows how many copies of that pickle there are, so the object then stays until
/// its owner ends, as in Ray.
PyObject* ref_reduce(PyObject* self, PyObject*) {
  auto* ref = reinterpret_cast<RefObject*>(self);
  if (ref->id.is_nil()) {
    Object maker(PyObject_GetAttrString(reinterpret_cast<PyObject*>(ref_type), "nil"));
    return maker ? Py_BuildValue("(N())", maker.release()) : nullptr;
  }
  Entry* entry = entry_of(self);
  if (entry == nullptr) return nullptr;
  Runtime* runtime = require_runtime();
  wire::Address owner = runtime->owner_of(entry);
  if (in_encode_context()) return reduce_registered_ref(register_ref(ref->id, owner, self));
  runtime->pin(entry);
  wire::ObjectRecord record{ref->id, owner};
  Object module(PyImport_ImportModule("skate._skate"));
  Object maker(module ? PyObject_GetAttrString(module.get(), "_restore_stray_ref") : nullptr);
  Object bytes(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(&record), sizeof record));
  if (!maker || !bytes) return nullptr;
  return Py_BuildValue("(N(N))", maker.release(), bytes.release());
}

PyMethodDef methods[] = {
    {"hex", ref_hex, METH_NOARGS, nullptr},
    {"binary", ref_binary, METH_NOARGS, nullptr},
    {"is_nil", ref_is_nil, METH_NOARGS, nullptr},
    {"task_id", ref_task_id, METH_NOARGS, nullptr},
    {"job_id", ref_job_id, METH_NOARGS, nullptr},
    {"call_site", ref_call_site, METH_NOARGS, nullptr},
    {"owner_address", ref_owner_address, METH_NOARGS, nullptr},
    {"future", ref_future, METH_NOARGS, nullptr},
    {"as_future", ref_as_future, METH_NOARGS, nullptr},
    {"__reduce__", ref_reduce, METH_NOARGS, nullptr},
    {"size", ref_size, METH_NOARGS | METH_CLASS, nullptr},
    {"nil", ref_nil, METH_NOARGS | METH_CLASS, nullptr},
    {"from_binary", ref_from_binary, METH_O | METH_CLASS, nullptr},
    {"from_hex", ref_from_hex, METH_O | METH_CLASS, nullptr},
    {"from_random", ref_from_random, METH_NOARGS | METH_CLASS, nullptr},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(RefObject, weakrefs), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};
PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(ref_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(ref_dealloc)},
    {Py_tp_hash, reinterpret_cast<void*>(ref_hash)},
    {Py_tp_richcompare, reinterpret_cast<void*>(ref_compare)},
    {Py_tp_repr, reinterpret_cast<void*>(ref_repr)},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_am_await, reinterpret_cast<void*>(ref_await)},
    {Py_tp_doc, const_cast<char*>("Counted reference to a value.")},
    {0, nullptr},
};
PyType_Spec type_spec = {"skate._skate.ObjectRef", sizeof(RefObject), 0, Py_TPFLAGS_DEFAULT, slots};

bool read_ref(PyObject* ref, ObjectId& id, wire::Address& owner) {
  Entry* entry = entry_of(ref);
  if (entry == nullptr) return false;
  id = entry->id;
  owner = require_runtime()->owner_of(entry);
  return true;
}

}  // namespace

const EncodeHooks& encode_hooks() {
  static const EncodeHooks hooks{ref_type, read_ref};
  return hooks;
}

PyObject* new_ref(Runtime& runtime, Entry* entry) {
  RefObject* self = still_connected(runtime) ? allocate(ref_type) : nullptr;
  if (self == nullptr) {
    runtime.drop_handle(entry);
    return nullptr;
  }
  self->entry = entry;
  // The only ref of its entry: two such are never of one entry, and need no close look to tell them apart.
  if (entry->handles.load(std::memory_order_relaxed) <= 1) self->seen = wait_pass.current;
  self->id = entry->id;
  return reinterpret_cast<PyObject*>(self);
}

Entry* entry_of(PyObject* object) {
  auto* self = reinterpret_cast<RefObject*>(object);
  Runtime* runtime = require_runtime();
  if (runtime == nullptr) return nullptr;
  if (self->entry == nullptr || self->epoch != connection_epoch()) {
    if (self->id.is_nil()) {
      PyErr_SetString(PyExc_ValueError, "the nil ObjectRef has no value");
      return nullptr;
    }
    if (self->epoch != connection_epoch() && self->entry != nullptr) {
      PyErr_Format(PyExc_ValueError,
                   "ObjectRef(%s) belongs to a connection that has ended: its value is gone, make it again",
                   self->id.hex().c_str());
      return nullptr;
    }
    self->entry = runtime->find_or_lost(self->id);  // made before the connection was
    self->epoch = connection_epoch();
  }
  return self->entry;
}

PyObject* py_restore_stray_ref(PyObject*, PyObject* bytes) {
  char* data;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(bytes, &data, &size) != 0) return nullptr;
  wire::ObjectRecord record;
  if (size != static_cast<Py_ssize_t>(sizeof record))
    return PyErr_Format(PyExc_ValueError, "the pickled ObjectRef is damaged");
  std::memcpy(&record, data, sizeof record);
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  return new_ref(*runtime, runtime->adopt_refs({&record, 1}, nullptr, nullptr)[0]);
}

bool refs_init(PyObject* module) {
  ref_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&type_spec));
  return ref_type != nullptr &&
         PyModule_AddObjectRef(module, "ObjectRef", reinterpret_cast<PyObject*>(ref_type)) == 0;
}

}  // namespace skate::bindings
