// put, get, wait, and values between Python and the runtime.
#include <algorithm>
#include <boost/unordered/unordered_flat_set.hpp>
#include <cmath>

#include "bindings/bindings.h"
#include "store/client/copy.h"

namespace skate::bindings {

using worker::OutgoingValue;
using worker::ReadyValue;
using worker::WaitOutcome;

PyObject* call_hook(const char* module, const char* name, PyObject* const* args, size_t count) {
  Object loaded(PyImport_ImportModule(module));
  if (!loaded) return nullptr;
  Object function(PyObject_GetAttrString(loaded.get(), name));
  if (!function) return nullptr;
  return PyObject_Vectorcall(function.get(), args, count, nullptr);
}

namespace {

void raise_instance(PyObject* exception) {  // steals nothing
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception)), exception);
}

/// The payload of an error value becomes the exception that get raises.
PyObject* raise_error_value(const wire::ValueView& view, PyObject* payload) {
  Object exception;
  if (view.format() == wire::ValueFormat::kError) {
    exception = Object(call_hook("skate._errors", "load_error", &payload, 1));
  } else {
    PyObject* kind = PyTuple_GetItem(payload, 0);
    PyObject* fields = kind == nullptr ? nullptr : PyTuple_GetItem(payload, 1);
    if (fields == nullptr) return nullptr;
    if (PyObject* hex = PyDict_GetItemString(fields, "creation_error_hex")) {
      Object bytes(PyObject_CallMethod(reinterpret_cast<PyObject*>(&PyBytes_Type), "fromhex", "O", hex));
      if (!bytes || PyDict_SetItemString(fields, "creation_error", bytes.get()) != 0 ||
          PyDict_DelItemString(fields, "creation_error_hex") != 0)
        return nullptr;
    }
    PyObject* args[] = {kind, fields};
    exception = Object(call_hook("skate._errors", "make_system_error", args, 2));
  }
  if (exception) raise_instance(exception.get());
  return nullptr;
}

/// Refs of one value: adopted in one go, handed out one by one.
struct RefContext {
  Runtime* runtime;
  std::vector<Entry*> adopted;
  std::vector<bool> used;
};

PyObject* make_ref(void* context, uint32_t index, const ObjectId&, const wire::Address&) {
  auto* refs = static_cast<RefContext*>(context);
  Entry* entry = refs->adopted[index];
  if (refs->used[index])
    refs->runtime->add_handle(entry);
  else
    refs->used[index] = true;
  return new_ref(*refs->runtime, entry);
}

PyObject* decode_view(Runtime& runtime, const wire::ValueView& view, PyObject* keeper, Entry* outer,
                      worker::IncomingTask* task) {
  if (view.ref_count() == 0) {
    Object value(decode(view, keeper, DecodeHooks{make_ref, nullptr}));
    if (value && view.is_error()) return raise_error_value(view, value.get());
    return value.release();
  }
  RefContext context{&runtime, runtime.adopt_refs(view, outer, task), std::vector<bool>(view.ref_count())};
  const DecodeHooks hooks{make_ref, &context};
  Object value(decode(view, keeper, hooks));
  if (value && view.is_error()) {
    DecodeScope scope(view, hooks);  // the payload holds the exception as a pickle, and that the refs
    raise_error_value(view, value.get());
    value = Object();
  }
  for (size_t i = 0; i < context.adopted.size(); ++i)
    if (!context.used[i]) runtime.drop_handle(context.adopted[i]);
  return value.release();
}

}  // namespace

PyObject* raise_system_error(const char* kind, const std::map<std::string, std::string>& fields) {
  Object dict(PyDict_New());
  if (!dict) return nullptr;
  for (const auto& [name, text] : fields) {
    Object value(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
    if (!value || PyDict_SetItemString(dict.get(), name.c_str(), value.get()) != 0) return nullptr;
  }
  Object kind_text(PyUnicode_FromString(kind));
  PyObject* args[] = {kind_text.get(), dict.get()};
  Object exception(call_hook("skate._errors", "make_system_error", args, 2));
  if (exception) raise_instance(exception.get());
  return nullptr;
}

bool outgoing(Runtime& runtime, const EncodedValue& encoded, OutgoingValue& out, const ObjectId* store_id,
              bool is_error) {
  if (!still_connected(runtime)) return false;  // pickling runs Python
  size_t size = encoded.flat_size();
  out.size_bytes = size;
  out.is_error = is_error;
  if (!encoded.refs().empty()) out.contained = runtime.pin_known(encoded.refs());
  if (store_id == nullptr || size <= runtime.inline_limit_bytes()) {
    out.inline_value = worker::Blob::create(size);
    if (size < 1024 * 1024) {
      encoded.write_to(out.inline_value->data());
    } else {
      WithoutGil released;
      encoded.write_to(out.inline_value->data());
    }
    return true;
  }
  if (const uint64_t capacity = runtime.welcome().store_capacity_bytes; size > capacity) {
    runtime.unpin_all(out.contained);
    out.contained.clear();
    raise_system_error(
        "object_too_large",
        {{"message", "a value of " + std::to_string(size) +
                         " bytes cannot be stored: the whole object store has " + std::to_string(capacity) +
                         " bytes, and even a spilled value must fit"}});
    return false;
  }
  Error failure;
  {
    WithoutGil released;
    Result<store::Writable> object = runtime.create_stored(*store_id, size);
    if (object.ok()) {
      encoded.write_to(object->data(), store::copy_in);
      Result<void> sealed = runtime.store().seal(std::move(*object));
      if (sealed.ok()) return true;
      failure = sealed.error();
    } else {
      failure = object.error();
    }
  }
  runtime.unpin_all(out.contained);
  out.contained.clear();
  if (failure.code == ErrorCode::kCancelled)
    set_error(runtime, failure);
  else
    raise_system_error(failure.code == ErrorCode::kIo ? "out_of_disk" : "object_store_full",
                       {{"message", failure.message}});
  return false;
}

bool to_blob(Runtime& runtime, PyObject* value, OutgoingValue& out, const ObjectId* store_id) {
  EncodedValue encoded;
  return encode(value, encode_hooks(), encoded) && outgoing(runtime, encoded, out, store_id, false);
}

PyObject* from_ready(Runtime& runtime, const ReadyValue& value, Entry* outer, worker::IncomingTask* task) {
  Result<wire::ValueView> view = wire::parse_value(value.bytes());
  if (!view.ok()) {
    set_corrupt_error(view.error().message.c_str());
    return nullptr;
  }
  if (view->buffer_count() == 0) return decode_view(runtime, *view, nullptr, outer, task);
  std::shared_ptr<const void> owner;
  if (value.view)
    owner = value.view;
  else
    owner = std::make_shared<worker::BlobPtr>(value.blob);
  std::span<const uint8_t> bytes = value.bytes();
  Object keeper(new_pinned_buffer(bytes.data(), bytes.size(), std::move(owner)));
  if (!keeper) return nullptr;
  return decode_view(runtime, *view, keeper.get(), outer, task);
}

PyObject* from_argument(Runtime& runtime, worker::IncomingTask& task,
                        const worker::IncomingTask::Arg& argument) {
  if (argument.stored != nullptr) {
    Result<ReadyValue> value = [&] {
      WithoutGil released;
      return runtime.read(argument.stored, Clock::time_point::max());
    }();
    if (!value.ok()) {
      set_error(runtime, value.error());
      return nullptr;
    }
    return from_ready(runtime, *value, argument.stored, nullptr);
  }
  Result<wire::ValueView> view = wire::parse_value(argument.value);
  if (!view.ok()) {
    set_corrupt_error(view.error().message.c_str());
    return nullptr;
  }
  if (view->buffer_count() == 0) return decode_view(runtime, *view, nullptr, nullptr, &task);
  // The record's memory is only 16-byte aligned inside: give the buffers a home of their own.
  worker::BlobPtr copy = worker::Blob::copy(argument.value);
  return from_ready(runtime, ReadyValue{copy, nullptr}, nullptr, &task);
}

Clock::time_point deadline_of(PyObject* timeout, bool* failed) {
  *failed = false;
  if (timeout == nullptr || timeout == Py_None) return Clock::time_point::max();
  double seconds = PyFloat_AsDouble(timeout);
  if (seconds == -1.0 && PyErr_Occurred() != nullptr) {
    *failed = true;
    return {};
  }
  if (std::isnan(seconds) || seconds > 1e9) return Clock::time_point::max();
  return Clock::now() + std::chrono::nanoseconds(static_cast<int64_t>(std::max(0.0, seconds) * 1e9));
}

bool wait_for(Runtime& runtime, std::span<Entry* const> entries, size_t count, Clock::time_point until,
              bool* timed_out, bool until_error) {
  *timed_out = false;
  for (;;) {
    WaitOutcome outcome;
    {
      WithoutGil released;
      outcome = until_error ? runtime.wait_for_all(entries, until) : runtime.wait(entries, count, until);
    }
    if (outcome == WaitOutcome::kReady) return true;
    if (PyErr_CheckSignals() != 0) return false;
    if (outcome == WaitOutcome::kTimeout) {
      *timed_out = true;
      return true;
    }
    if (runtime.stopped()) {
      raise_ended(runtime);
      return false;
    }
  }
}

namespace {

PyObject* value_of(Runtime& runtime, Entry* entry, Clock::time_point until) {
  // The value of a ready inline object never changes while a handle is held: no lock is needed.
  if (entry->state.load(std::memory_order_acquire) == worker::ObjectState::kInline)
    return from_ready(runtime, ReadyValue{entry->value, nullptr}, entry, nullptr);
  Result<ReadyValue> value = [&] {
    WithoutGil released;
    return runtime.read(entry, until);
  }();
  if (value.ok()) return from_ready(runtime, *value, entry, nullptr);
  if (value.error().code == ErrorCode::kTimeout)
    return raise_system_error("get_timeout", {{"message", value.error().message}});
  set_error(runtime, value.error());
  return nullptr;
}

}  // namespace

PyObject* py_put(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count < 1 || count > 2) return PyErr_Format(PyExc_TypeError, "put takes a value and an owner");
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  if (is_ref(args[0])) {
    PyErr_SetString(PyExc_TypeError,
                    "an ObjectRef cannot be put: it is a ref already; put it inside a list if that is meant");
    return nullptr;
  }
  ObjectId id = runtime->next_put_id();
  OutgoingValue value;
  if (!to_blob(*runtime, args[0], value, &id)) return nullptr;
  return new_ref(*runtime, runtime->put(id, std::move(value)));
}

PyObject* py_get(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "get takes refs and a timeout");
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  bool failed = false;
  if (is_ref(args[0])) {
    Entry* entry = entry_of(args[0]);
    if (entry == nullptr) return nullptr;
    Clock::time_point until = deadline_of(args[1], &failed);
    if (failed) return nullptr;
    if (!entry->ready()) {
      bool timed_out;
      if (!wait_for(*runtime, {&entry, 1}, 1, until, &timed_out)) return nullptr;
      if (timed_out)
        return raise_system_error("get_timeout", {{"message", "the value of ObjectRef(" + entry->id.hex() +
                                                                  ") was not there in time"}});
    }
    return value_of(*runtime, entry, until);
  }
  // A tuple of its own: while this waits, or loads a value, somebody may change the caller's list.
  Object list(PyList_Check(args[0]) ? PyList_AsTuple(args[0])
                                    : PySequence_Fast(args[0], "get takes an ObjectRef or a list of them"));
  if (!list) return nullptr;
  Py_ssize_t size = PySequence_Fast_GET_SIZE(list.get());
  std::vector<Entry*> entries(static_cast<size_t>(size));
  size_t ready = 0;
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* item = PySequence_Fast_GET_ITEM(list.get(), i);
    if (!is_ref(item))
      return PyErr_Format(PyExc_TypeError, "get takes ObjectRefs; element %zd is a %s", i,
                          Py_TYPE(item)->tp_name);
    entries[static_cast<size_t>(i)] = entry_of(*runtime, item);
    if (entries[static_cast<size_t>(i)] == nullptr) return nullptr;
    ready += entries[static_cast<size_t>(i)]->ready();
  }
  Clock::time_point until = deadline_of(args[1], &failed);
  if (failed) return nullptr;
  if (ready < entries.size()) {
    std::vector<Entry*> unique = entries;
    std::sort(unique.begin(), unique.end());
    unique.erase(std::unique(unique.begin(), unique.end()), unique.end());
    bool timed_out;
    if (!wait_for(*runtime, unique, unique.size(), until, &timed_out, true)) return nullptr;
    if (timed_out) {
      size_t missing = 0;
      const Entry* first = nullptr;
      for (Entry* entry : entries) {
        if (entry->ready()) continue;
        ++missing;
        if (first == nullptr) first = entry;
      }
      std::string example = first != nullptr ? ", ObjectRef(" + first->id.hex() + ") for one" : "";
      return raise_system_error(
          "get_timeout", {{"message", std::to_string(missing) + " of " + std::to_string(entries.size()) +
                                          " values were not there in time" + example}});
    }
  }
  // The first error that is there is raised at once, whether or not the others are.
  if (ready < entries.size())
    for (Entry* entry : entries)
      if (entry->ready() && entry->is_error) return value_of(*runtime, entry, until);
  Object out(PyList_New(size));
  if (!out) return nullptr;
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* value = value_of(*runtime, entries[static_cast<size_t>(i)], until);
    if (value == nullptr) return nullptr;
    PyList_SET_ITEM(out.get(), i, value);
  }
  return out.release();
}

namespace {

bool names_one_twice(PyObject* list) {
  boost::unordered_flat_set<Entry*> found(static_cast<size_t>(PyList_GET_SIZE(list)));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i)
    if (!found.insert(reinterpret_cast<RefObject*>(PyList_GET_ITEM(list, i))->entry).second) return true;
  return false;
}

/// One pass of wait() over its list marks each ref that it sees.
struct Pass {
  uint64_t number, first, age;
  // Nothing is special about a ref whose `seen` is of this connection and not of this pass.
  bool is_plain(const RefObject* ref) const { return ref->seen - first < age; }
};

/// Marks refs and copies them, until one is not plain; how many. A function of its own, so that the loop has
/// the registers to itself: it runs once for each ref of each wait.
[[gnu::noinline]] Py_ssize_t copy_plain(PyObject* const* items, Py_ssize_t size, PyObject** out, Pass pass) {
  const PyTypeObject* const type = ref_type;
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* item = items[i];
    auto* ref = reinterpret_cast<RefObject*>(item);
    if (Py_TYPE(item) != type || !pass.is_plain(ref)) return i;
    ref->seen = pass.number;
    out[i] = Py_NewRef(item);
  }
  return size;
}

/// The first `take` refs of the list that are ready, and the others, in one pass over them, as a wait is
/// often repeated with a long rest. False with a Python error set; `taken` is less if fewer are ready, and
/// the lists are then not complete.
bool split_ready(PyObject* list, Py_ssize_t take, Object& done, Object& rest, Py_ssize_t& taken) {
  const Py_ssize_t size = PyList_GET_SIZE(list);
  done = Object(PyList_New(take));
  rest = Object(PyList_New(size - take));
  if (!done || !rest) return false;
  if (PyList_GET_SIZE(list) != size) {  // a destructor that ran just now did that
    PyErr_SetString(PyExc_RuntimeError, "the list of refs changed while wait ran");
    return false;
  }
  const uint64_t number = ++wait_pass.current;
  const Pass pass{number, wait_pass.first, number - wait_pass.first};
  PyObject* const* const items = &PyList_GET_ITEM(list, 0);
  bool twice = false;   // one ref object was met twice
  bool shared = false;  // there are refs that may be of one object although they are two
  auto look = [&twice, &shared, &pass](PyObject* item, Py_ssize_t i) {
    if (!is_ref(item)) {
      PyErr_Format(PyExc_TypeError, "wait takes ObjectRefs; element %zd is a %s", i, Py_TYPE(item)->tp_name);
      return false;
    }
    auto* ref = reinterpret_cast<RefObject*>(item);
    if (pass.is_plain(ref)) {
      ref->seen = pass.number;
      return true;
    }
    (ref->seen == pass.number ? twice : shared) = true;
    return entry_of(item) != nullptr;
  };
  PyObject** ready = &PyList_GET_ITEM(done.get(), 0);
  PyObject** other = &PyList_GET_ITEM(rest.get(), 0);
  PyObject** const other_end = other + (size - take);
  taken = 0;
  Py_ssize_t i = 0;
  for (; i < size && taken < take; ++i) {
    PyObject* item = items[i];
    if (!look(item, i)) return false;
    if (reinterpret_cast<RefObject*>(item)->entry->ready())
      ready[taken++] = Py_NewRef(item);
    else if (other != other_end)
      *other++ = Py_NewRef(item);
  }
  while (i < size) {
    const Py_ssize_t copied = copy_plain(items + i, size - i, other, pass);
    i += copied;
    other += copied;
    if (i == size) break;
    if (!look(items[i], i)) return false;
    *other++ = Py_NewRef(items[i++]);
  }
  if (twice || (shared && names_one_twice(list))) {
    PyErr_SetString(PyExc_ValueError, "wait takes each ObjectRef once; the list holds one of them twice");
    return false;
  }
  return true;
}

}  // namespace

PyObject* py_wait(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 4)
    return PyErr_Format(PyExc_TypeError, "wait takes refs, num_returns, timeout and fetch_local");
  if (!PyList_Check(args[0])) return PyErr_Format(PyExc_TypeError, "wait takes a list of ObjectRefs");
  PyObject* list = args[0];
  const Py_ssize_t size = PyList_GET_SIZE(list);
  const Py_ssize_t wanted = PyLong_AsSsize_t(args[1]);
  if (wanted == -1 && PyErr_Occurred() != nullptr) return nullptr;
  if (size == 0) return Py_BuildValue("([][])");
  if (wanted <= 0 || wanted > size)
    return PyErr_Format(PyExc_ValueError, "num_returns must be from 1 to the number of refs (%zd), not %zd",
                        size, wanted);
  bool failed;
  const Clock::time_point until = deadline_of(args[2], &failed);
  if (failed) return nullptr;
  if (runtime_or_null() == nullptr) Py_RETURN_NONE;
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  Object done, rest;
  Py_ssize_t taken;
  if (!split_ready(list, wanted, done, rest, taken)) return nullptr;
  if (taken < wanted) {
    Object hold(PySequence_List(list));  // the caller's list may change while the GIL is released
    if (!hold) return nullptr;
    std::vector<Entry*> entries(static_cast<size_t>(size));
    for (Py_ssize_t i = 0; i < size; ++i)
      entries[static_cast<size_t>(i)] = reinterpret_cast<RefObject*>(PyList_GET_ITEM(hold.get(), i))->entry;
    bool timed_out;
    if (!still_connected(*runtime)) return nullptr;
    if (!wait_for(*runtime, entries, static_cast<size_t>(wanted), until, &timed_out)) return nullptr;
    if (!still_connected(*runtime)) return nullptr;
    const auto ready =
        std::count_if(entries.begin(), entries.end(), [](Entry* entry) { return entry->ready(); });
    if (!split_ready(hold.get(), std::min<Py_ssize_t>(wanted, ready), done, rest, taken)) return nullptr;
  }
  return PyTuple_Pack(2, done.get(), rest.get());
}

// --- callbacks -------------------------------------------------------------------------------

namespace {

Call* call_in(PyObject* capsule) { return static_cast<Call*>(PyCapsule_GetPointer(capsule, nullptr)); }

void run_callback(PyObject* callback, PyObject* error) {
  Object result(error == nullptr ? PyObject_CallNoArgs(callback) : PyObject_CallOneArg(callback, error));
  if (!result) PyErr_WriteUnraisable(callback);
}

/// Python's side of the dispatcher: a daemon thread that runs callbacks in order. Those that still wait when
/// the runtime stops are told why they wait in vain.
PyObject* dispatch_callbacks(PyObject* capsule, PyObject*) {
  Call& call = *call_in(capsule);
  Connection& connection = *call.connection();
  auto& callbacks = connection.callbacks;
  for (;;) {
    std::optional<uint64_t> cookie;
    {
      WithoutGil released;
      cookie = call->next_callback();
    }
    if (!cookie) break;
    auto found = callbacks.find(*cookie);
    if (found == callbacks.end()) continue;
    Object callback(found->second);
    callbacks.erase(found);
    run_callback(callback.get(), nullptr);
  }
  connection.dispatcher = Connection::Dispatcher::kEnded;  // from here on there are no new ones
  while (!callbacks.empty()) {
    Object callback(callbacks.begin()->second);
    callbacks.erase(callbacks.begin());
    raise_ended(*call);
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    Object kind(type), error(value), where(traceback);
    run_callback(callback.get(), error.get());
  }
  Py_RETURN_NONE;
}

PyMethodDef dispatch_method = {"skate_callbacks", dispatch_callbacks, METH_NOARGS, nullptr};

bool start_dispatcher(const Call& call) {
  Object capsule(
      PyCapsule_New(new Call(call.connection()), nullptr, [](PyObject* object) { delete call_in(object); }));
  Object threading(PyImport_ImportModule("threading"));
  Object target(capsule ? PyCFunction_New(&dispatch_method, capsule.get()) : nullptr);
  if (!threading || !target) return false;
  Object kwargs(
      Py_BuildValue("{s:O,s:s,s:O}", "target", target.get(), "name", "skate-callbacks", "daemon", Py_True));
  Object type(PyObject_GetAttrString(threading.get(), "Thread"));
  Object none(PyTuple_New(0));
  if (!kwargs || !type || !none) return false;
  Object thread(PyObject_Call(type.get(), none.get(), kwargs.get()));
  if (!thread) return false;
  call.connection()->dispatcher = Connection::Dispatcher::kRuns;  // other threads run while it starts
  Object started(PyObject_CallMethod(thread.get(), "start", nullptr));
  if (!started) call.connection()->dispatcher = Connection::Dispatcher::kNone;
  return static_cast<bool>(started);
}

}  // namespace

bool start_callback(const Call& call, PyObject* callback, uint64_t* cookie) {
  Connection& connection = *call.connection();
  if (connection.dispatcher == Connection::Dispatcher::kNone && !start_dispatcher(call)) return false;
  if (connection.dispatcher == Connection::Dispatcher::kEnded || !still_connected(*call)) {
    raise_ended(*call);
    return false;
  }
  *cookie = connection.next_cookie++;
  connection.callbacks.emplace(*cookie, Py_NewRef(callback));
  return true;
}

PyObject* py_on_ready(PyObject*, PyObject* args) {
  PyObject *ref, *callback;
  if (!PyArg_ParseTuple(args, "OO:on_ready", &ref, &callback)) return nullptr;
  if (!is_ref(ref)) return PyErr_Format(PyExc_TypeError, "on_ready takes an ObjectRef");
  Entry* entry = entry_of(ref);
  if (entry == nullptr) return nullptr;
  Call runtime = enter();
  uint64_t cookie;
  if (!start_callback(runtime, callback, &cookie)) return nullptr;
  // The callback holds the ref in all uses; the entry must live until it has run all the same.
  runtime->notify_when_ready(entry, cookie);
  Py_RETURN_NONE;
}

}  // namespace skate::bindings
