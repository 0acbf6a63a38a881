// Actors: what handles own, their methods, creation and lookup.
#include "bindings/bindings.h"

#include "wire/archive.h"

namespace skate::bindings {

using worker::Argument;
using worker::TaskSpec;

namespace {

/// One reference to an actor. `handle` counts it (see ObjectTable); null for actors that are not counted:
/// detached ones and those found by name.
struct ActorObject {
  PyObject_HEAD wire::ActorInfo info;
  PyObject* handle;
  PyObject* weakrefs;
};
PyTypeObject* actor_type = nullptr;

struct MethodObject {
  PyObject_HEAD std::shared_ptr<TaskSpec> spec;
  ActorObject* actor;  ///< owned
  PyObject* check;
  int64_t arity_min, arity_max;
};
PyTypeObject* method_type = nullptr;

PyObject* actor_bytes(const ActorId& id) {
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(id.data()), ActorId::kSize);
}

void actor_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<ActorObject*>(object);
  self->info.~ActorInfo();
  Py_XDECREF(self->handle);
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

ActorObject* allocate_actor(const wire::ActorInfo& info) {
  auto* self = reinterpret_cast<ActorObject*>(actor_type->tp_alloc(actor_type, 0));
  if (self == nullptr) return nullptr;
  new (&self->info) wire::ActorInfo(info);
  self->handle = nullptr;
  return self;
}

PyObject* actor_actor_id(PyObject* self, PyObject*) {
  return actor_bytes(reinterpret_cast<ActorObject*>(self)->info.actor);
}
PyObject* actor_meta(PyObject* self, PyObject*) {
  const std::string& meta = reinterpret_cast<ActorObject*>(self)->info.meta;
  return PyBytes_FromStringAndSize(meta.data(), static_cast<Py_ssize_t>(meta.size()));
}
PyObject* actor_is_owned(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<ActorObject*>(object);
  if (self->handle == nullptr) Py_RETURN_FALSE;
  Entry* entry = entry_of(self->handle);
  if (entry == nullptr) return nullptr;
  return PyBool_FromLong(entry->owner == nullptr);
}
PyObject* actor_kill(PyObject* self, PyObject* no_restart) {
  Call runtime = enter();
  int truth = PyObject_IsTrue(no_restart);
  if (runtime == nullptr || truth < 0) return nullptr;
  runtime->kill_actor(reinterpret_cast<ActorObject*>(self)->info.actor, truth == 1);
  Py_RETURN_NONE;
}

PyObject* actor_method(PyObject* object, PyObject* args) {
  auto* self = reinterpret_cast<ActorObject*>(object);
  const char* name;
  PyObject* options;
  if (!PyArg_ParseTuple(args, "sO!:method", &name, &PyDict_Type, &options)) return nullptr;
  auto spec = std::make_shared<TaskSpec>();
  int64_t arity_min, arity_max;
  PyObject* check = nullptr;
  if (!spec_from_options(options, *spec, &arity_min, &arity_max, &check)) return nullptr;
  spec->method = name;
  if (spec->name.empty()) spec->name = self->info.class_name + "." + name;
  PyObject* retries = PyDict_GetItemString(options, "max_task_retries");
  spec->max_retries = self->info.max_task_retries;
  if (retries != nullptr && retries != Py_None) {
    spec->max_retries = PyLong_AsLongLong(retries);
    if (spec->max_retries == -1 && PyErr_Occurred() != nullptr) {
      Py_XDECREF(check);
      return nullptr;
    }
  }
  auto* method = reinterpret_cast<MethodObject*>(method_type->tp_alloc(method_type, 0));
  if (method == nullptr) {
    Py_XDECREF(check);
    return nullptr;
  }
  new (&method->spec) std::shared_ptr<TaskSpec>(std::move(spec));
  method->actor = reinterpret_cast<ActorObject*>(Py_NewRef(object));
  method->check = check;
  method->arity_min = arity_min;
  method->arity_max = arity_max;
  return reinterpret_cast<PyObject*>(method);
}

/// Pickles as what a receiver needs for calls; the counted handle travels as a ref (see ref_reduce).
PyObject* actor_reduce(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<ActorObject*>(object);
  wire::ActorInfo info = self->info;
  info.death = {};
  std::string body = wire::encode(info);
  Object module(PyImport_ImportModule("skate._skate"));
  if (!module) return nullptr;
  Object restore(PyObject_GetAttrString(module.get(), "_restore_actor"));
  if (!restore) return nullptr;
  return Py_BuildValue("(N(y#O))", restore.release(), body.data(), static_cast<Py_ssize_t>(body.size()),
                       self->handle == nullptr ? Py_None : self->handle);
}

PyMethodDef actor_methods[] = {
    {"actor_id", actor_actor_id, METH_NOARGS, nullptr},
    {"meta", actor_meta, METH_NOARGS, nullptr},
    {"method", actor_method, METH_VARARGS, nullptr},
    {"is_owned", actor_is_owned, METH_NOARGS, nullptr},
    {"kill", actor_kill, METH_O, nullptr},
    {"__reduce__", actor_reduce, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot actor_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(actor_dealloc)},
    {Py_tp_methods, actor_methods},
    {Py_tp_doc, const_cast<char*>("What an actor handle owns.")},
    {0, nullptr},
};
PyType_Spec actor_spec = {"skate._skate.ActorCore", sizeof(ActorObject), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, actor_slots};

void method_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<MethodObject*>(object);
  self->spec.~shared_ptr();
  Py_XDECREF(self->actor);
  Py_XDECREF(self->check);
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* method_submit(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* keyword_names) {
  auto* self = reinterpret_cast<MethodObject*>(object);
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  size_t n = static_cast<size_t>(count);
  if (!check_arity(self->check, self->arity_min, self->arity_max, args, n, keyword_names)) return nullptr;
  Entry* handle = nullptr;
  if (self->actor->handle != nullptr) {
    handle = entry_of(*runtime, self->actor->handle);
    if (handle == nullptr) return nullptr;
  }
  std::vector<Argument> arguments;
  std::vector<Entry*> pinned;
  if ((n != 0 || keyword_names != nullptr) &&
      !build_arguments(*runtime, args, n, keyword_names, arguments, pinned)) {
    blame_argument_of(self->spec->name);
    return nullptr;
  }
  Result<Runtime::Submitted> submitted =
      runtime->submit_to_actor(self->actor->info.actor, handle, self->spec, std::move(arguments),
                               std::move(pinned), current_task_id());
  if (!submitted.ok())
    return raise_system_error("pending_calls_exceeded", {{"message", submitted.error().message}});
  return wrap_returns(*runtime, *self->spec, std::move(*submitted));
}

PyMethodDef method_methods[] = {
    {"submit", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(method_submit)),
     METH_FASTCALL | METH_KEYWORDS, "Submits a call of the method."},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot method_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(method_dealloc)},
    {Py_tp_methods, method_methods},
    {Py_tp_doc, const_cast<char*>("A method of an actor with its options.")},
    {0, nullptr},
};
PyType_Spec method_spec = {"skate._skate.ActorMethodCore", sizeof(MethodObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, method_slots};

template <class T>
bool option(PyObject* options, const char* name, T& out);
template <>
bool option(PyObject* options, const char* name, int64_t& out) {
  PyObject* value = PyDict_GetItemString(options, name);
  if (value == nullptr || value == Py_None) return true;
  out = PyLong_AsLongLong(value);
  return !(out == -1 && PyErr_Occurred() != nullptr);
}
template <>
bool option(PyObject* options, const char* name, bool& out) {
  PyObject* value = PyDict_GetItemString(options, name);
  if (value == nullptr) return true;
  int truth = PyObject_IsTrue(value);
  out = truth == 1;
  return truth >= 0;
}
template <>
bool option(PyObject* options, const char* name, std::string& out) {
  PyObject* value = PyDict_GetItemString(options, name);
  if (value == nullptr || value == Py_None) return true;
  if (PyBytes_Check(value)) {
    out.assign(PyBytes_AS_STRING(value), static_cast<size_t>(PyBytes_GET_SIZE(value)));
    return true;
  }
  Py_ssize_t size;
  const char* text = PyUnicode_AsUTF8AndSize(value, &size);
  if (text == nullptr) return false;
  out.assign(text, static_cast<size_t>(size));
  return true;
}

}  // namespace

PyObject* new_actor_core(Runtime& runtime, const wire::ActorInfo& info, Entry* handle) {
  ActorObject* self = allocate_actor(info);
  if (self == nullptr) return nullptr;
  if (handle != nullptr) {
    self->handle = new_ref(runtime, handle);
    if (self->handle == nullptr) {
      Py_DECREF(self);
      return nullptr;
    }
  }
  return reinterpret_cast<PyObject*>(self);
}

PyObject* py_create_actor(PyObject*, PyObject* args) {
  PyObject *blob, *positional, *keywords, *options;
  const char* class_name;
  if (!PyArg_ParseTuple(args, "SsO!O!O!:create_actor", &blob, &class_name, &PyTuple_Type, &positional,
                        &PyDict_Type, &keywords, &PyDict_Type, &options))
    return nullptr;
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  wire::ActorSpec spec;
  spec.class_name = class_name;
  spec.class_blob.assign(PyBytes_AS_STRING(blob), static_cast<size_t>(PyBytes_GET_SIZE(blob)));
  int64_t max_concurrency = 1;
  bool get_if_exists = false;
  if (!option(options, "max_restarts", spec.max_restarts) ||
      !option(options, "max_task_retries", spec.max_task_retries) ||
      !option(options, "max_pending_calls", spec.max_pending_calls) ||
      !option(options, "max_concurrency", max_concurrency) || !option(options, "name", spec.name) ||
      !option(options, "namespace", spec.name_space) || !option(options, "detached", spec.detached) ||
      !option(options, "get_if_exists", get_if_exists) || !option(options, "is_asyncio", spec.is_asyncio) ||
      !option(options, "allow_out_of_order", spec.out_of_order) ||
      !option(options, "runtime_env", spec.runtime_env) || !option(options, "scheduling", spec.scheduling) ||
      !option(options, "meta", spec.meta))
    return nullptr;
  spec.max_concurrency = static_cast<int32_t>(std::min<int64_t>(max_concurrency, 1 << 20));
  if (spec.runtime_env.empty()) spec.runtime_env = default_runtime_env();
  inherit_group(spec.scheduling);
  if (PyObject* resources = PyDict_GetItemString(options, "resources"))
    if (!resources_from(resources, spec.resources)) return nullptr;
  if (PyObject* resources = PyDict_GetItemString(options, "placement_resources"))
    if (!resources_from(resources, spec.placement_resources)) return nullptr;
  if (PyObject* groups = PyDict_GetItemString(options, "concurrency_groups");
      groups != nullptr && PyDict_Check(groups)) {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(groups, &at, &key, &value)) {
      const char* name = PyUnicode_AsUTF8(key);
      long limit = PyLong_AsLong(value);
      if (name == nullptr || (limit == -1 && PyErr_Occurred() != nullptr)) return nullptr;
      spec.concurrency_groups.emplace_back(name, static_cast<int32_t>(limit));
    }
  }
  Object names(PyTuple_New(PyDict_GET_SIZE(keywords)));
  if (!names) return nullptr;
  std::vector<PyObject*> values;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(positional); ++i)
    values.push_back(PyTuple_GET_ITEM(positional, i));
  PyObject *key, *value;
  for (Py_ssize_t at = 0, i = 0; PyDict_Next(keywords, &at, &key, &value); ++i) {
    PyTuple_SET_ITEM(names.get(), i, Py_NewRef(key));
    values.push_back(value);
  }
  std::vector<Argument> arguments;
  std::vector<Entry*> pinned;
  if (!build_arguments(*runtime, values.data(), static_cast<size_t>(PyTuple_GET_SIZE(positional)),
                       names.get(), arguments, pinned))
    return nullptr;
  Result<Runtime::CreatedActor> created = [&] {
    WithoutGil released;
    return runtime->create_actor(std::move(spec), std::move(arguments), std::move(pinned), get_if_exists,
                                 interrupted);
  }();
  if (!created.ok()) {
    if (created.error().code == ErrorCode::kExists) {
      PyErr_SetString(PyExc_ValueError, created.error().message.c_str());
      return nullptr;
    }
    set_error(*runtime, created.error());
    return nullptr;
  }
  return new_actor_core(*runtime, created->info, created->handle);
}

PyObject* py_get_named_actor(PyObject*, PyObject* args) {
  const char *name, *name_space;
  if (!PyArg_ParseTuple(args, "ss:get_named_actor", &name, &name_space)) return nullptr;
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  std::string in = *name_space != '\0' ? name_space : runtime->welcome().name_space;
  Result<std::string> reply = [&] {
    WithoutGil released;
    return runtime->control_call(wire::ControlMethod::kGetNamedActor,
                                 wire::encode(wire::GetNamedActor{name, in}), Clock::time_point::max(),
                                 interrupted);
  }();
  if (!reply.ok()) {
    if (reply.error().code == ErrorCode::kNotFound) {
      PyErr_Format(PyExc_ValueError,
                   "no actor named '%s' lives in namespace '%s': create it, or name its namespace", name,
                   in.c_str());
      return nullptr;
    }
    set_error(*runtime, reply.error());
    return nullptr;
  }
  Result<wire::ActorInfo> info = wire::decode<wire::ActorInfo>(*reply);
  if (!info.ok()) {
    set_error(*runtime, info.error());
    return nullptr;
  }
  runtime->adopt_actor(*info);
  return new_actor_core(*runtime, *info, nullptr);
}

PyObject* py_list_named_actors(PyObject*, PyObject* args) {
  int all;
  if (!PyArg_ParseTuple(args, "p:list_named_actors", &all)) return nullptr;
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  Result<std::string> reply = [&] {
    WithoutGil released;
    return runtime->control_call(wire::ControlMethod::kListNamedActors,
                                 wire::encode(wire::ListNamedActors{all != 0, runtime->welcome().name_space}),
                                 Clock::time_point::max(), interrupted);
  }();
  Result<wire::ListNamedActorsReply> names = reply.ok() ? wire::decode<wire::ListNamedActorsReply>(*reply)
                                                        : Result<wire::ListNamedActorsReply>(reply.error());
  if (!names.ok()) {
    set_error(*runtime, names.error());
    return nullptr;
  }
  Object list(PyList_New(0));
  for (const auto& [name_space, name] : names->names) {
    Object pair(Py_BuildValue("(ss)", name_space.c_str(), name.c_str()));
    if (!list || !pair || PyList_Append(list.get(), pair.get()) != 0) return nullptr;
  }
  return list.release();
}

PyObject* py_kill_actor(PyObject*, PyObject* args) {
  PyObject* core;
  int no_restart;
  if (!PyArg_ParseTuple(args, "O!p:kill_actor", actor_type, &core, &no_restart)) return nullptr;
  return actor_kill(core, no_restart ? Py_True : Py_False);
}

PyObject* py_restore_actor(PyObject*, PyObject* args) {
  const char* body;
  Py_ssize_t size;
  PyObject* handle;
  if (!PyArg_ParseTuple(args, "y#O:_restore_actor", &body, &size, &handle)) return nullptr;
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  Result<wire::ActorInfo> info =
      wire::decode<wire::ActorInfo>(std::string_view(body, static_cast<size_t>(size)));
  if (!info.ok() || (handle != Py_None && !is_ref(handle))) {
    PyErr_SetString(PyExc_ValueError, "the pickled actor handle is damaged");
    return nullptr;
  }
  runtime->learn_actor(*info);
  ActorObject* self = allocate_actor(*info);
  if (self == nullptr) return nullptr;
  if (handle != Py_None) self->handle = Py_NewRef(handle);
  return reinterpret_cast<PyObject*>(self);
}

bool actors_init(PyObject* module) {
  actor_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&actor_spec));
  method_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&method_spec));
  return actor_type != nullptr && method_type != nullptr &&
         PyModule_AddObjectRef(module, "ActorCore", reinterpret_cast<PyObject*>(actor_type)) == 0 &&
         PyModule_AddObjectRef(module, "ActorMethodCore", reinterpret_cast<PyObject*>(method_type)) == 0;
}

}  // namespace skate::bindings
