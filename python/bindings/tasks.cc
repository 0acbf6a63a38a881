// Submitting tasks: TaskTemplate, arguments, streams.
#include "bindings/bindings.h"

#include <structmember.h>

namespace skate::bindings {

using worker::Argument;
using worker::TaskSpec;
using worker::WaitOutcome;

bool resources_from(PyObject* dict, wire::Resources& out) {
  PyObject *key, *value;
  Py_ssize_t at = 0;
  if (!PyDict_Check(dict)) {
    PyErr_SetString(PyExc_TypeError, "resources must be a dict");
    return false;
  }
  while (PyDict_Next(dict, &at, &key, &value)) {
    const char* name = PyUnicode_AsUTF8(key);
    double amount = PyFloat_AsDouble(value);
    if (name == nullptr || (amount == -1.0 && PyErr_Occurred() != nullptr)) return false;
    out[name] = static_cast<int64_t>(amount * wire::kResourceUnit + (amount < 0 ? -0.5 : 0.5));
  }
  return true;
}

namespace {

bool get_int(PyObject* options, const char* name, int64_t& out) {
  PyObject* value = PyDict_GetItemString(options, name);
  if (value == nullptr || value == Py_None) return true;
  out = PyLong_AsLongLong(value);
  return !(out == -1 && PyErr_Occurred() != nullptr);
}
bool get_text(PyObject* options, const char* name, std::string& out) {
  PyObject* value = PyDict_GetItemString(options, name);
  if (value == nullptr || value == Py_None) return true;
  Py_ssize_t size;
  const char* text = PyUnicode_AsUTF8AndSize(value, &size);
  if (text == nullptr) return false;
  out.assign(text, static_cast<size_t>(size));
  return true;
}
bool get_bytes(PyObject* options, const char* name, std::string& out) {
  PyObject* value = PyDict_GetItemString(options, name);
  if (value == nullptr) return true;
  char* data;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(value, &data, &size) != 0) return false;
  out.assign(data, static_cast<size_t>(size));
  return true;
}
bool get_flag(PyObject* options, const char* name, bool& out) {
  PyObject* value = PyDict_GetItemString(options, name);
  if (value == nullptr) return true;
  int truth = PyObject_IsTrue(value);
  out = truth == 1;
  return truth >= 0;
}

}  // namespace

bool spec_from_options(PyObject* options, TaskSpec& spec, int64_t* arity_min, int64_t* arity_max,
                       PyObject** check) {
  int64_t num_returns = 1, max_calls = 0, backpressure = -1;
  std::string mode = "static";
  *arity_min = 0;
  *arity_max = -1;
  if (!get_int(options, "num_returns", num_returns) || !get_int(options, "max_calls", max_calls) ||
      !get_int(options, "backpressure", backpressure) || !get_int(options, "arity_min", *arity_min) ||
      !get_int(options, "arity_max", *arity_max) || !get_int(options, "max_retries", spec.max_retries) ||
      !get_text(options, "mode", mode) || !get_text(options, "name", spec.name) ||
      !get_text(options, "concurrency_group", spec.group) ||
      !get_text(options, "runtime_env", spec.shape.runtime_env) ||
      !get_text(options, "scheduling", spec.shape.scheduling) ||
      !get_flag(options, "retry_exceptions", spec.retry_exceptions) ||
      !get_bytes(options, "retry_classes", spec.retry_classes))
    return false;
  spec.num_returns = static_cast<uint32_t>(num_returns);
  spec.max_calls = static_cast<uint32_t>(max_calls);
  spec.backpressure = backpressure;
  spec.mode = mode == "streaming" ? wire::ReturnMode::kStreaming
              : mode == "dynamic" ? wire::ReturnMode::kDynamic
                                  : wire::ReturnMode::kStatic;
  if (PyObject* resources = PyDict_GetItemString(options, "resources"))
    if (!resources_from(resources, spec.shape.resources)) return false;
  PyObject* callable = PyDict_GetItemString(options, "check");
  *check = callable == nullptr || callable == Py_None ? nullptr : Py_NewRef(callable);
  return true;
}

bool build_arguments(Runtime& runtime, PyObject* const* args, size_t count, PyObject* keyword_names,
                     std::vector<Argument>& out, std::vector<Entry*>& pinned) {
  size_t keywords = keyword_names == nullptr ? 0 : static_cast<size_t>(PyTuple_GET_SIZE(keyword_names));
  out.reserve(count + keywords);
  for (size_t i = 0; i < count + keywords; ++i) {
    Argument argument;
    if (i >= count) {
      Py_ssize_t size;
      const char* name =
          PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(keyword_names, static_cast<Py_ssize_t>(i - count)), &size);
      if (name == nullptr) break;
      if (size > 0xFFFF) {
        PyErr_SetString(PyExc_ValueError, "the name of a keyword argument has more than 65535 bytes");
        break;
      }
      argument.keyword.assign(name, static_cast<size_t>(size));
    }
    if (is_ref(args[i])) {
      Entry* entry = entry_of(runtime, args[i]);
      if (entry == nullptr) break;
      runtime.pin(entry);
      pinned.push_back(entry);
      argument.ref = entry;
      out.push_back(std::move(argument));
      continue;
    }
    EncodedValue encoded;
    if (!encode(args[i], encode_hooks(), encoded)) break;
    worker::OutgoingValue value;
    if (encoded.flat_size() > runtime.inline_limit_bytes()) {
      // Large arguments go through the store, as if they had been put.
      ObjectId id = runtime.next_put_id();
      if (!outgoing(runtime, encoded, value, &id, false)) break;
      Entry* entry = runtime.put(id, std::move(value));
      runtime.pin(entry);
      runtime.drop_handle(entry);
      pinned.push_back(entry);
      argument.ref = entry;
    } else {
      if (!outgoing(runtime, encoded, value, nullptr, false)) break;
      pinned.insert(pinned.end(), value.contained.begin(), value.contained.end());
      argument.value = std::move(value.inline_value);
    }
    out.push_back(std::move(argument));
  }
  if (out.size() == count + keywords) return true;
  runtime.unpin_all(pinned);
  return false;
}

void blame_argument_of(const std::string& function) {
  if (!PyErr_ExceptionMatches(PyExc_TypeError)) return;
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  Object name(PyUnicode_FromStringAndSize(function.data(), static_cast<Py_ssize_t>(function.size())));
  PyObject* args[] = {value, name.get()};
  Object done(name ? call_hook("skate._pickle", "blame_argument", args, 2) : nullptr);
  if (!done) PyErr_Clear();  // the error itself matters more than its better words
  PyErr_Restore(type, value, traceback);
}

// --- streams ---------------------------------------------------------------------------------

namespace {

struct StreamObject {
  PyObject_HEAD std::shared_ptr<worker::Stream> stream;
  PyObject* completed;  ///< ObjectRef
  uint64_t epoch;
};
PyTypeObject* stream_type = nullptr;

Call enter(StreamObject* self) {
  Call runtime = bindings::enter();
  if (runtime == nullptr || self->epoch == connection_epoch()) return runtime;
  PyErr_SetString(PyExc_ValueError, "the generator belongs to a connection that has ended");
  return Call(nullptr);
}

void stream_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<StreamObject*>(object);
  if (self->stream && self->epoch == connection_epoch())
    if (Runtime* runtime = runtime_or_null(); runtime != nullptr && !runtime->in_forked_child())
      runtime->abandon_stream(self->stream);
  Py_XDECREF(self->completed);
  self->stream.~shared_ptr();
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* stream_next(PyObject* object, PyObject* timeout) {
  auto* self = reinterpret_cast<StreamObject*>(object);
  Call runtime = enter(self);
  if (runtime == nullptr) return nullptr;
  bool failed;
  Clock::time_point until = deadline_of(timeout, &failed);
  if (failed) return nullptr;
  for (;;) {
    Entry* item = nullptr;
    WaitOutcome outcome;
    {
      WithoutGil released;
      outcome = runtime->next_item(*self->stream, until, &item);
    }
    if (item != nullptr) return new_ref(*runtime, item);
    if (outcome == WaitOutcome::kReady) {
      PyErr_SetNone(PyExc_StopIteration);
      return nullptr;
    }
    if (PyErr_CheckSignals() != 0) return nullptr;
    if (outcome == WaitOutcome::kTimeout)
      return raise_system_error("get_timeout", {{"message", "no item of the stream came in time"}});
    if (runtime->stopped()) return raise_ended(*runtime);
  }
}

PyObject* stream_next_ready(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<StreamObject*>(object);
  Call runtime = enter(self);
  if (runtime == nullptr) return nullptr;
  return PyBool_FromLong(runtime->stream_state(*self->stream) == Runtime::StreamState::kItem);
}

PyObject* stream_is_finished(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<StreamObject*>(object);
  Call runtime = enter(self);
  if (runtime == nullptr) return nullptr;
  return PyBool_FromLong(runtime->stream_state(*self->stream) == Runtime::StreamState::kEnded);
}

PyObject* stream_completed_ref(PyObject* object, PyObject*) {
  return Py_NewRef(reinterpret_cast<StreamObject*>(object)->completed);
}

PyObject* stream_on_next_ready(PyObject* object, PyObject* callback) {
  auto* self = reinterpret_cast<StreamObject*>(object);
  Call runtime = enter(self);
  uint64_t cookie;
  if (runtime == nullptr || !start_callback(runtime, callback, &cookie)) return nullptr;
  runtime->notify_when_item(*self->stream, cookie);
  Py_RETURN_NONE;
}

PyMethodDef stream_methods[] = {
    {"next", stream_next, METH_O, nullptr},
    {"next_ready", stream_next_ready, METH_NOARGS, nullptr},
    {"is_finished", stream_is_finished, METH_NOARGS, nullptr},
    {"completed_ref", stream_completed_ref, METH_NOARGS, nullptr},
    {"on_next_ready", stream_on_next_ready, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot stream_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(stream_dealloc)},
    {Py_tp_methods, stream_methods},
    {Py_tp_doc, const_cast<char*>("The consumer's end of a streaming generator.")},
    {0, nullptr},
};
PyType_Spec stream_spec = {"skate._skate.StreamCore", sizeof(StreamObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, stream_slots};

// --- templates -------------------------------------------------------------------------------

struct TemplateObject {
  PyObject_HEAD std::shared_ptr<TaskSpec> spec;
  std::shared_ptr<TaskSpec> captured;  ///< the same within the group that captures the caller's children
  PyObject* blob;
  PyObject* check;
  int64_t arity_min, arity_max;
  uint64_t epoch;  ///< of the connection that `spec` was made ready for
};

int template_init(PyObject* object, PyObject* args, PyObject* kwargs) {
  auto* self = reinterpret_cast<TemplateObject*>(object);
  static const char* keywords[] = {"blob", "name", "options", nullptr};
  PyObject *blob, *options;
  const char* name;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "SsO!:TaskTemplate", const_cast<char**>(keywords), &blob,
                                   &name, &PyDict_Type, &options))
    return -1;
  auto spec = std::make_shared<TaskSpec>();
  if (!spec_from_options(options, *spec, &self->arity_min, &self->arity_max, &self->check)) return -1;
  if (spec->name.empty()) spec->name = name;
  spec->shape.function = name;
  self->spec = std::move(spec);
  self->blob = Py_NewRef(blob);
  self->epoch = 0;
  return 0;
}

PyObject* template_new(PyTypeObject* type, PyObject*, PyObject*) {
  auto* self = reinterpret_cast<TemplateObject*>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  new (&self->spec) std::shared_ptr<TaskSpec>();
  new (&self->captured) std::shared_ptr<TaskSpec>();
  return reinterpret_cast<PyObject*>(self);
}

void template_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<TemplateObject*>(object);
  self->spec.~shared_ptr();
  self->captured.~shared_ptr();
  Py_XDECREF(self->blob);
  Py_XDECREF(self->check);
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

}  // namespace

bool check_arity(PyObject* check, int64_t arity_min, int64_t arity_max, PyObject* const* args, size_t count,
                 PyObject* keyword_names) {
  int64_t given = static_cast<int64_t>(count);
  bool keywords = keyword_names != nullptr && PyTuple_GET_SIZE(keyword_names) != 0;
  if (check == nullptr || (!keywords && given >= arity_min && (arity_max < 0 || given <= arity_max)))
    return true;
  Object positional(PyTuple_New(static_cast<Py_ssize_t>(count)));
  Object named(PyDict_New());
  if (!positional || !named) return false;
  for (size_t i = 0; i < count; ++i)
    PyTuple_SET_ITEM(positional.get(), static_cast<Py_ssize_t>(i), Py_NewRef(args[i]));
  for (Py_ssize_t i = 0; keywords && i < PyTuple_GET_SIZE(keyword_names); ++i)
    if (PyDict_SetItem(named.get(), PyTuple_GET_ITEM(keyword_names, i),
                       args[count + static_cast<size_t>(i)]) != 0)
      return false;
  PyObject* both[] = {positional.get(), named.get()};
  Object result(PyObject_Vectorcall(check, both, 2, nullptr));
  return static_cast<bool>(result);
}

PyObject* wrap_returns(Runtime& runtime, const TaskSpec& spec, Runtime::Submitted submitted) {
  if (spec.mode == wire::ReturnMode::kStreaming) {
    auto* stream = reinterpret_cast<StreamObject*>(stream_type->tp_alloc(stream_type, 0));
    if (stream == nullptr) return nullptr;
    new (&stream->stream) std::shared_ptr<worker::Stream>(std::move(submitted.stream));
    stream->completed = new_ref(runtime, submitted.returns[0]);
    Object core(reinterpret_cast<PyObject*>(stream));
    if (stream->completed == nullptr) return nullptr;
    stream->epoch = connection_epoch();
    PyObject* argument = core.get();
    return call_hook("skate._streaming", "ObjectRefGenerator", &argument, 1);
  }
  if (submitted.returns.size() == 1) return new_ref(runtime, submitted.returns[0]);
  if (submitted.returns.empty()) Py_RETURN_NONE;
  Object list(PyList_New(static_cast<Py_ssize_t>(submitted.returns.size())));
  if (!list) return nullptr;
  for (size_t i = 0; i < submitted.returns.size(); ++i) {
    PyObject* ref = new_ref(runtime, submitted.returns[i]);
    if (ref == nullptr) return nullptr;
    PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(i), ref);
  }
  return list.release();
}

namespace {

PyObject* template_submit(PyObject* object, PyObject* const* args, Py_ssize_t count,
                          PyObject* keyword_names) {
  auto* self = reinterpret_cast<TemplateObject*>(object);
  Call runtime = bindings::enter();
  if (runtime == nullptr) return nullptr;
  if (self->epoch != connection_epoch()) {
    auto fresh = std::make_shared<TaskSpec>(*self->spec);
    fresh->shape_queue = nullptr;
    fresh->function = runtime->define_function(
        std::string(PyBytes_AS_STRING(self->blob), static_cast<size_t>(PyBytes_GET_SIZE(self->blob))),
        fresh->name);
    if (fresh->shape.runtime_env.empty()) fresh->shape.runtime_env = default_runtime_env();
    self->spec = std::move(fresh);
    self->captured.reset();
    self->epoch = connection_epoch();
  }
  std::shared_ptr<TaskSpec> spec = self->spec;
  if (runtime->is_worker()) {
    std::string scheduling = spec->shape.scheduling;
    if (inherit_group(scheduling)) {
      if (!self->captured || self->captured->shape.scheduling != scheduling) {
        self->captured = std::make_shared<TaskSpec>(*spec);
        self->captured->shape_queue = nullptr;
        self->captured->shape.scheduling = std::move(scheduling);
      }
      spec = self->captured;
    }
  }
  size_t n = static_cast<size_t>(count);
  if (!check_arity(self->check, self->arity_min, self->arity_max, args, n, keyword_names)) return nullptr;
  std::vector<Argument> arguments;
  std::vector<Entry*> pinned;
  if ((n != 0 || keyword_names != nullptr) &&
      !build_arguments(*runtime, args, n, keyword_names, arguments, pinned)) {
    blame_argument_of(spec->name);
    return nullptr;
  }
  return wrap_returns(*runtime, *spec,
                      runtime->submit(spec, std::move(arguments), std::move(pinned), current_task_id()));
}

PyMethodDef template_methods[] = {
    {"submit", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(template_submit)),
     METH_FASTCALL | METH_KEYWORDS, "Submits a call; returns its ref, refs, stream or None."},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot template_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(template_new)},
    {Py_tp_init, reinterpret_cast<void*>(template_init)},
    {Py_tp_dealloc, reinterpret_cast<void*>(template_dealloc)},
    {Py_tp_methods, template_methods},
    {Py_tp_doc, const_cast<char*>("A function with its options, exported once; immutable.")},
    {0, nullptr},
};
PyType_Spec template_spec = {"skate._skate.TaskTemplate", sizeof(TemplateObject), 0, Py_TPFLAGS_DEFAULT,
                             template_slots};

}  // namespace

PyObject* py_cancel(PyObject*, PyObject* args) {
  PyObject* ref;
  int force, recursive;
  if (!PyArg_ParseTuple(args, "Opp:cancel", &ref, &force, &recursive)) return nullptr;
  if (!is_ref(ref)) return PyErr_Format(PyExc_TypeError, "cancel takes an ObjectRef");
  Entry* entry = entry_of(ref);
  if (entry == nullptr) return nullptr;
  require_runtime()->cancel(entry, force != 0, recursive != 0);
  Py_RETURN_NONE;
}

bool tasks_init(PyObject* module) {
  PyObject* tasks = PyType_FromSpec(&template_spec);
  stream_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&stream_spec));
  return tasks != nullptr && stream_type != nullptr &&
         PyModule_AddObjectRef(module, "TaskTemplate", tasks) == 0 &&
         PyModule_AddObjectRef(module, "StreamCore", reinterpret_cast<PyObject*>(stream_type)) == 0;
}

}  // namespace skate::bindings
