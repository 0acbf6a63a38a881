// Values by pickle 5. The pickler is the interpreter's C one; a native reducer_override decides what goes by
// value, so that no Python code of ours or cloudpickle's runs for what is importable. cloudpickle's rules are
// asked only about code that does not plainly belong to an importable module.
#include <cstring>

#include "codec_internal.h"

namespace skate::bindings {
namespace {

PyTypeObject* sink_type = nullptr;
PyObject* serializers = nullptr;  ///< dict: class -> (serializer, deserializer)

/// What is needed from Python, imported when a value is first pickled.
struct Helpers {
  PyObject* pickler_type = nullptr;  ///< our subclass of _pickle.Pickler
  PyObject* loads = nullptr;
  PyObject* dispatch = nullptr;          ///< cloudpickle's dict: class -> reducer
  PyObject* by_value_modules = nullptr;  ///< cloudpickle's set of names
  PyObject* class_reduce = nullptr;
  PyObject* function_reducer = nullptr;  ///< class, one instance per pickle
  PyObject* explain = nullptr;
  PyObject* pickling_error = nullptr;
};
Helpers helpers;
bool helpers_ready = false;

// --- the file that the pickler writes to ------------------------------------------------------

struct Sink {
  PyObject_HEAD EncodedValue* out;  ///< null once the pickle is finished
};

}  // namespace

/// Has what of EncodedValue the pickler needs.
struct EncodeState {
  static bool append(EncodedValue& out, const void* data, size_t size);
  static bool add_buffer(EncodedValue& out, PyObject* exporter);
  static const EncodeHooks& hooks(EncodeScope& scope) { return scope.hooks_; }
  static PyObject*& function_reducer(EncodeScope& scope) { return scope.function_reducer_; }
};

namespace {

PyObject* sink_write(PyObject* self, PyObject* data) {
  EncodedValue* out = reinterpret_cast<Sink*>(self)->out;
  if (out == nullptr) {
    PyErr_SetString(PyExc_ValueError, "this pickle is finished");
    return nullptr;
  }
  if (PyBytes_CheckExact(data)) {
    if (!EncodeState::append(*out, PyBytes_AS_STRING(data), static_cast<size_t>(PyBytes_GET_SIZE(data))))
      return nullptr;
    Py_RETURN_NONE;
  }
  Py_buffer view;
  if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return nullptr;
  bool done = EncodeState::append(*out, view.buf, static_cast<size_t>(view.len));
  PyBuffer_Release(&view);
  if (!done) return nullptr;
  Py_RETURN_NONE;
}

/// The buffer callback: true keeps the buffer in the pickle.
PyObject* sink_add_buffer(PyObject* self, PyObject* pickle_buffer) {
  EncodedValue* out = reinterpret_cast<Sink*>(self)->out;
  const Py_buffer* view = PyPickleBuffer_GetBuffer(pickle_buffer);
  if (view == nullptr) return nullptr;
  if (out == nullptr || !PyBuffer_IsContiguous(view, 'A')) Py_RETURN_TRUE;
  try {
    if (!EncodeState::add_buffer(*out, pickle_buffer)) return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  Py_RETURN_FALSE;
}

void sink_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_Free(self);
  Py_DECREF(type);
}

PyMethodDef sink_methods[] = {
    {"write", sink_write, METH_O, nullptr},
    {"add_buffer", sink_add_buffer, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot sink_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(sink_dealloc)},
    {Py_tp_methods, sink_methods},
    {0, nullptr},
};

PyType_Spec sink_spec = {
    "skate._skate._PickleSink",
    sizeof(Sink),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    sink_slots,
};

// --- what goes by reference -------------------------------------------------------------------

/// The attribute `qualname` of `module`, by its dotted parts; null with or without an error.
PyObject* find_in_module(PyObject* module, PyObject* qualname) {
  Py_ssize_t size = PyUnicode_GET_LENGTH(qualname);
  Py_ssize_t dot = PyUnicode_FindChar(qualname, '.', 0, size, 1);
  if (dot == -1) return PyObject_GetAttr(module, qualname);
  Owned parts(PyUnicode_Split(qualname, Owned(PyUnicode_FromString(".")).get(), -1));
  if (!parts) return nullptr;
  PyObject* found = Py_NewRef(module);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(parts.get()); ++i) {
    PyObject* next = PyObject_GetAttr(found, PyList_GET_ITEM(parts.get(), i));
    Py_DECREF(found);
    if (next == nullptr) return nullptr;
    found = next;
  }
  return found;
}

/// True when the function or class is plainly found where it says it lives, and that is importable. False
/// leaves the question to cloudpickle. Never leaves an error.
bool plainly_importable(PyObject* object) {
  if (PySet_GET_SIZE(helpers.by_value_modules) != 0) return false;
  Owned module_name(PyObject_GetAttrString(object, "__module__"));
  if (!module_name || !PyUnicode_CheckExact(module_name.get()) ||
      PyUnicode_CompareWithASCIIString(module_name.get(), "__main__") == 0) {
    PyErr_Clear();
    return false;
  }
  PyObject* module = PyDict_GetItemWithError(PyImport_GetModuleDict(), module_name.get());
  Owned held_module(Py_XNewRef(module));
  Owned qualname(module == nullptr ? nullptr : PyObject_GetAttrString(object, "__qualname__"));
  if (!qualname || !PyUnicode_CheckExact(qualname.get())) {
    PyErr_Clear();
    return false;
  }
  Owned found(find_in_module(module, qualname.get()));
  PyErr_Clear();
  return found.get() == object;
}

PyObject* reduce_by_serializer(PyObject* pair, PyObject* object) {
  Owned held(Py_NewRef(pair));
  Owned plain(PyObject_CallOneArg(PyTuple_GET_ITEM(pair, 0), object));
  if (!plain) return nullptr;
  return Py_BuildValue("O(O)", PyTuple_GET_ITEM(pair, 1), plain.get());
}

PyObject* reducer_override(PyObject*, PyObject* object) {
  EncodeScope* scope = current_encode_scope();
  PyTypeObject* type = Py_TYPE(object);
  if (scope != nullptr && type == EncodeState::hooks(*scope).ref_type) {
    ObjectId id;
    wire::Address owner;
    if (!EncodeState::hooks(*scope).read_ref(object, id, owner)) return nullptr;
    try {
      return reduce_registered_ref(register_ref(id, owner, object));
    } catch (const std::bad_alloc&) {
      return PyErr_NoMemory();
    }
  }
  if (PyDict_GET_SIZE(serializers) != 0) {
    PyObject* pair = PyDict_GetItemWithError(serializers, reinterpret_cast<PyObject*>(type));
    if (pair != nullptr) return reduce_by_serializer(pair, object);
    if (PyErr_Occurred()) return nullptr;
  }
  if (PyType_Check(object)) {
    if (plainly_importable(object)) Py_RETURN_NOTIMPLEMENTED;
    return PyObject_CallOneArg(helpers.class_reduce, object);
  }
  if (PyFunction_Check(object)) {
    if (plainly_importable(object)) Py_RETURN_NOTIMPLEMENTED;
    if (scope == nullptr) {
      PyErr_SetString(PyExc_RuntimeError, "this pickler is finished");
      return nullptr;
    }
    // One for the whole pickle: functions of one module share their globals there.
    PyObject*& reducer = EncodeState::function_reducer(*scope);
    if (reducer == nullptr) reducer = PyObject_CallNoArgs(helpers.function_reducer);
    static PyObject* const name = PyUnicode_InternFromString("reduce");
    if (reducer == nullptr || name == nullptr) return nullptr;
    return PyObject_CallMethodOneArg(reducer, name, object);
  }
  PyObject* reduce = PyDict_GetItemWithError(helpers.dispatch, reinterpret_cast<PyObject*>(type));
  if (reduce != nullptr) {
    Owned held(Py_NewRef(reduce));
    return PyObject_CallOneArg(reduce, object);
  }
  if (PyErr_Occurred()) return nullptr;
  Py_RETURN_NOTIMPLEMENTED;
}

PyMethodDef pickler_methods[] = {
    {"reducer_override", reducer_override, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot pickler_slots[] = {
    {Py_tp_methods, pickler_methods},
    {0, nullptr},
};

PyType_Spec pickler_spec = {"skate._skate._Pickler", 0, 0, Py_TPFLAGS_DEFAULT, pickler_slots};

bool take(PyObject* module, const char* name, PyObject*& into) {
  Py_XSETREF(into, PyObject_GetAttrString(module, name));
  return into != nullptr;
}

bool load_helpers() {
  if (helpers_ready) return true;
  Owned python(PyImport_ImportModule("skate._pickle"));
  if (!python) return false;
  Owned c_pickle(PyImport_ImportModule("_pickle"));
  if (!c_pickle) return false;
  Owned base(PyObject_GetAttrString(c_pickle.get(), "Pickler"));
  if (!base) return false;
  if (!take(c_pickle.get(), "loads", helpers.loads)) return false;
  if (!take(c_pickle.get(), "PicklingError", helpers.pickling_error)) return false;
  if (!take(python.get(), "dispatch", helpers.dispatch)) return false;
  if (!take(python.get(), "by_value_modules", helpers.by_value_modules)) return false;
  if (!take(python.get(), "class_reduce", helpers.class_reduce)) return false;
  if (!take(python.get(), "FunctionReducer", helpers.function_reducer)) return false;
  if (!take(python.get(), "explain", helpers.explain)) return false;
  if (!PyDict_CheckExact(helpers.dispatch) || !PyAnySet_Check(helpers.by_value_modules)) {
    PyErr_SetString(PyExc_ImportError, "this version of cloudpickle is not supported: install cloudpickle 3");
    return false;
  }
  Owned bases(PyTuple_Pack(1, base.get()));
  if (!bases) return false;
  Py_XSETREF(helpers.pickler_type, PyType_FromSpecWithBases(&pickler_spec, bases.get()));
  if (helpers.pickler_type == nullptr) return false;
  helpers_ready = true;
  return true;
}

/// Replaces the error of an unpicklable value by a TypeError that says where it is. Errors that the user's
/// own code raised stay.
void explain_failure(PyObject* value) {
  bool of_pickle =
      PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(helpers.pickling_error) ||
      PyErr_ExceptionMatches(PyExc_RecursionError) || PyErr_ExceptionMatches(PyExc_AttributeError);
  if (!of_pickle) return;
  PyObject* type;
  PyObject* error;
  PyObject* traceback;
  PyErr_Fetch(&type, &error, &traceback);
  PyErr_NormalizeException(&type, &error, &traceback);
  if (traceback != nullptr) PyException_SetTraceback(error, traceback);
  Py_XDECREF(type);
  Py_XDECREF(traceback);
  Owned cause(error);
  Owned explained(PyObject_CallFunctionObjArgs(helpers.explain, value, cause.get(), nullptr));
  if (explained) PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(explained.get())), explained.get());
}

PyObject* register_serializer(PyObject*, PyObject* arguments) {
  PyObject* type;
  PyObject* serializer;
  PyObject* deserializer;
  if (!PyArg_ParseTuple(arguments, "O!OO:register_serializer", &PyType_Type, &type, &serializer,
                        &deserializer))
    return nullptr;
  if (!PyCallable_Check(serializer) || !PyCallable_Check(deserializer)) {
    PyErr_SetString(PyExc_TypeError, "serializer and deserializer must be callable");
    return nullptr;
  }
  Owned pair(PyTuple_Pack(2, serializer, deserializer));
  if (!pair || PyDict_SetItem(serializers, type, pair.get()) < 0) return nullptr;
  Py_RETURN_NONE;
}

PyObject* deregister_serializer(PyObject*, PyObject* type) {
  int known = PyDict_Contains(serializers, type);
  if (known < 0 || (known == 1 && PyDict_DelItem(serializers, type) < 0)) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"register_serializer", register_serializer, METH_VARARGS,
     "register_serializer(cls, serializer, deserializer): how instances of exactly `cls` travel from now "
     "on."},
    {"deregister_serializer", deregister_serializer, METH_O,
     "Forgets the serializer of a class, if there is one."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool EncodeState::append(EncodedValue& out, const void* data, size_t size) { return out.append(data, size); }
bool EncodeState::add_buffer(EncodedValue& out, PyObject* exporter) {
  return out.add_exported_buffer(exporter, PyBUF_ANY_CONTIGUOUS);
}

bool has_serializer(PyTypeObject* type) {
  if (PyDict_GET_SIZE(serializers) == 0) return false;
  return PyDict_GetItemWithError(serializers, reinterpret_cast<PyObject*>(type)) != nullptr;
}

bool pickle_encode(PyObject* value, EncodedValue& out) {
  if (!load_helpers()) return false;
  Owned sink(reinterpret_cast<PyObject*>(PyObject_New(Sink, sink_type)));
  if (!sink) return false;
  reinterpret_cast<Sink*>(sink.get())->out = &out;
  static PyObject* const kKeywords = Py_BuildValue("(s)", "buffer_callback");
  Owned callback(PyObject_GetAttrString(sink.get(), "add_buffer"));
  Owned protocol(PyLong_FromLong(5));
  bool done = false;
  if (kKeywords != nullptr && callback && protocol) {
    PyObject* arguments[] = {sink.get(), protocol.get(), callback.get()};
    Owned pickler(PyObject_Vectorcall(helpers.pickler_type, arguments, 2, kKeywords));
    Owned dump(pickler ? PyObject_GetAttrString(pickler.get(), "dump") : nullptr);
    if (dump) done = static_cast<bool>(Owned(PyObject_CallOneArg(dump.get(), value)));
  }
  reinterpret_cast<Sink*>(sink.get())->out = nullptr;
  if (!done) explain_failure(value);
  return done;
}

PyObject* pickle_decode(const wire::ValueView& view, PyObject* keeper) {
  if (helpers.loads == nullptr) {
    Owned c_pickle(PyImport_ImportModule("_pickle"));
    if (!c_pickle || !take(c_pickle.get(), "loads", helpers.loads)) return nullptr;
  }
  Owned data(buffer_object(view.inband(), keeper));
  if (!data) return nullptr;
  if (view.buffer_count() == 0) return PyObject_CallOneArg(helpers.loads, data.get());
  auto buffers = view.buffers();
  Owned list(PyList_New(static_cast<Py_ssize_t>(buffers.size())));
  if (!list) return nullptr;
  for (size_t i = 0; i < buffers.size(); ++i) {
    PyObject* buffer = buffer_object(buffers[i], keeper);
    if (buffer == nullptr) return nullptr;
    PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(i), buffer);
  }
  static PyObject* const kKeywords = Py_BuildValue("(s)", "buffers");
  if (kKeywords == nullptr) return nullptr;
  PyObject* arguments[] = {data.get(), list.get()};
  return PyObject_Vectorcall(helpers.loads, arguments, 1, kKeywords);
}

bool codec_pickle_init(PyObject* module) {
  if (serializers == nullptr) serializers = PyDict_New();
  sink_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&sink_spec));
  return serializers != nullptr && sink_type != nullptr && PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace skate::bindings
