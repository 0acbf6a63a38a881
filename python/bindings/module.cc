// The extension module skate._skate. Its contract is python/skate/_skate.pyi.
//
// The hot types and functions use CPython's own calling conventions (vectorcall); nothing here is a wrapper
// that could be generated.
#include "bindings/bindings.h"

namespace skate::bindings {
namespace {

/// kv_put(key, value, overwrite, namespace) -> bool: was there something before
PyObject* kv_put(PyObject* self, PyObject* args) {
  PyObject *key, *value, *overwrite, *name_space;
  if (!PyArg_ParseTuple(args, "OOOO:kv_put", &key, &value, &overwrite, &name_space)) return nullptr;
  Object inner(Py_BuildValue("(iOOOO)", 0, key, value, overwrite, name_space));
  Object reply(inner ? py_kv(self, inner.get()) : nullptr);
  return reply ? Py_NewRef(PyTuple_GET_ITEM(reply.get(), 0)) : nullptr;
}

PyObject* kv_ask(PyObject* self, PyObject* args, int operation) {
  PyObject *key, *name_space;
  if (!PyArg_ParseTuple(args, "OO:kv", &key, &name_space)) return nullptr;
  Object inner(Py_BuildValue("(iOy#OO)", operation, key, "", Py_ssize_t{0}, Py_False, name_space));
  return inner ? py_kv(self, inner.get()) : nullptr;
}
PyObject* kv_get(PyObject* self, PyObject* args) {
  Object reply(kv_ask(self, args, 1));
  if (!reply) return nullptr;
  if (PyTuple_GET_ITEM(reply.get(), 0) == Py_False) Py_RETURN_NONE;
  return Py_NewRef(PyTuple_GET_ITEM(reply.get(), 1));
}
PyObject* kv_del(PyObject* self, PyObject* args) {
  Object reply(kv_ask(self, args, 2));
  return reply ? Py_NewRef(PyTuple_GET_ITEM(reply.get(), 0)) : nullptr;
}
PyObject* kv_exists(PyObject* self, PyObject* args) {
  Object reply(kv_ask(self, args, 3));
  return reply ? Py_NewRef(PyTuple_GET_ITEM(reply.get(), 0)) : nullptr;
}
PyObject* kv_keys(PyObject* self, PyObject* args) {
  Object reply(kv_ask(self, args, 4));
  return reply ? Py_NewRef(PyTuple_GET_ITEM(reply.get(), 2)) : nullptr;
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
PyCFunction fast(Fast function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(function));
}

PyMethodDef functions[] = {
    {"connect", py_connect, METH_O, nullptr},
    {"disconnect", py_disconnect, METH_NOARGS, nullptr},
    {"is_connected", py_is_connected, METH_NOARGS, nullptr},
    {"in_forked_child", py_in_forked_child, METH_NOARGS, nullptr},
    {"put", fast(py_put), METH_FASTCALL, nullptr},
    {"get", fast(py_get), METH_FASTCALL, nullptr},
    {"wait", fast(py_wait), METH_FASTCALL, nullptr},
    {"on_ready", py_on_ready, METH_VARARGS, nullptr},
    {"cancel", py_cancel, METH_VARARGS, nullptr},
    {"create_actor", py_create_actor, METH_VARARGS, nullptr},
    {"get_named_actor", py_get_named_actor, METH_VARARGS, nullptr},
    {"list_named_actors", py_list_named_actors, METH_VARARGS, nullptr},
    {"kill_actor", py_kill_actor, METH_VARARGS, nullptr},
    {"_restore_actor", py_restore_actor, METH_VARARGS, nullptr},
    {"_restore_stray_ref", py_restore_stray_ref, METH_O, nullptr},
    {"control_call", py_control_call, METH_VARARGS, nullptr},
    {"kv_put", kv_put, METH_VARARGS, nullptr},
    {"kv_get", kv_get, METH_VARARGS, nullptr},
    {"kv_del", kv_del, METH_VARARGS, nullptr},
    {"kv_exists", kv_exists, METH_VARARGS, nullptr},
    {"kv_keys", kv_keys, METH_VARARGS, nullptr},
    {"context", py_context, METH_NOARGS, nullptr},
    {"current_actor", py_current_actor, METH_NOARGS, nullptr},
    {"look", py_look, METH_O, nullptr},
    {"is_cancelled", py_is_cancelled, METH_NOARGS, nullptr},
    {"flush_logs", py_flush_logs, METH_O, nullptr},
    {"next_log_batch", py_next_log_batch, METH_VARARGS, nullptr},
    {"run_worker", py_run_worker, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "skate._skate",
                          "Skate's runtime.",
                          -1,
                          functions,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace
}  // namespace skate::bindings

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__skate() {
  using namespace skate::bindings;
  Object module(PyModule_Create(&definition));
  if (!module || !codec_init(module.get()) || !refs_init(module.get()) || !tasks_init(module.get()) ||
      !actors_init(module.get()) || !worker_init(module.get()) ||
      PyModule_AddStringConstant(module.get(), "FORKED_TEXT", kForkedText) != 0)
    return nullptr;
  return module.release();
}
