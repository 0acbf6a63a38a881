// The worker's side in Python: the loop of the main thread, running tasks and actor calls, their context.
#include <pthread.h>
#include <signal.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bindings/bindings.h"
#include "wire/accelerators.h"

namespace skate::bindings {

using worker::IncomingTask;
using worker::OutgoingValue;
using TaskPtr = std::shared_ptr<IncomingTask>;

namespace {

constexpr size_t kMethodsMax = 4096;  // remembered: a class may answer to any name

thread_local TaskPtr running;  // of this thread
pthread_t main_thread;
TaskPtr main_task;           // what the main thread runs; guarded by main_task_mutex
std::mutex main_task_mutex;  // shared with the thread that delivers cancellations
int exit_code = -1;          // set: the worker ends after the calls that run
int calls_running = 0;       // guarded by the GIL
wire::Death exit_reason;     // told to the daemon then; both guarded by the GIL
bool exit_waits = false;     // ... once its daemon has what others need of it

/// The actor that lives in this process.
struct ActorState {
  wire::ActorSpec spec;
  uint64_t incarnation = 0;
  PyObject* instance = nullptr;
  std::map<std::string, PyObject*> methods;  // guarded by the GIL
  std::shared_ptr<const wire::LeaseInfo> lease;
  std::string
      shown;  ///< beside its output: the repr() of a class that has one of its own, or the class's name
  bool alive = false;
};
ActorState actor;
PyObject* unflushed = nullptr;  // a bytearray: which of stdout and stderr hold text back

PyObject* hook(const char* name) {
  static std::map<std::string, PyObject*> hooks;
  PyObject*& found = hooks[name];
  if (found == nullptr) {
    Object module(PyImport_ImportModule("skate._worker"));
    if (module) found = PyObject_GetAttrString(module.get(), name);
  }
  return found;
}

/// Text that a task has printed without a newline goes out before its answer: who gets that may end at once.
void flush_output() {
  const char* streams = PyByteArray_AS_STRING(unflushed);
  if (streams[0] == 0 && streams[1] == 0) [[likely]]
    return;
  Object done(call_hook("skate._worker_main", "flush_output", nullptr, 0));
  if (!done) PyErr_WriteUnraisable(nullptr);
}

struct AsyncCallObject {
  PyObject_HEAD TaskPtr task;
};
PyTypeObject* async_call_type = nullptr;
bool serves_loop = false;

/// The task that the calling code belongs to: of this thread, or of this coroutine.
TaskPtr current_task() {
  if (running) return running;
  if (!serves_loop) return nullptr;
  PyObject* variable = hook("current_call");
  PyObject* call = nullptr;
  if (variable == nullptr || PyContextVar_Get(variable, nullptr, &call) != 0) {
    PyErr_Clear();
    return nullptr;
  }
  Object held(call);
  if (call == nullptr || Py_TYPE(call) != async_call_type) return nullptr;
  return reinterpret_cast<AsyncCallObject*>(call)->task;
}

std::string display_name(const IncomingTask& task) {
  if (task.create) return task.create->spec.class_name + ".__init__";
  return task.name;
}

// --- results ---------------------------------------------------------------------------------

/// Takes the pending Python exception, normalised and with its traceback.
Object take_exception() {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  if (traceback != nullptr) PyException_SetTraceback(value, traceback);
  Py_XDECREF(type);
  Py_XDECREF(traceback);
  return Object(value);
}

/// An exception as an error value. `retry` says whether retry_exceptions covers it. False: Python error set.
bool error_value(Runtime& runtime, IncomingTask& task, PyObject* exception, PyObject* callable,
                 OutgoingValue& out, bool* retry) {
  *retry = false;
  if (task.header.retry_exceptions != 0 && !PyErr_GivenExceptionMatches(exception, PyExc_KeyboardInterrupt)) {
    Object classes(PyBytes_FromStringAndSize(task.retry_classes.data(),
                                             static_cast<Py_ssize_t>(task.retry_classes.size())));
    PyObject* args[] = {exception, callable == nullptr ? Py_None : callable, classes.get()};
    Object answer(classes ? PyObject_Vectorcall(hook("should_retry"), args, 3, nullptr) : nullptr);
    if (!answer)
      PyErr_WriteUnraisable(callable);
    else
      *retry = PyObject_IsTrue(answer.get()) == 1;
  }
  ActorId owner = task.create ? task.create->spec.actor : task.header.task.actor();
  Object name(PyUnicode_FromString(display_name(task).c_str()));
  Object actor_hex(PyUnicode_FromString(owner.is_nil() ? "" : owner.hex().c_str()));
  if (!name || !actor_hex) return false;
  EncodedValue encoded;
  Object payload;
  {
    EncodeScope scope(encode_hooks(), encoded);
    PyObject* args[] = {exception, name.get(), actor_hex.get()};
    payload = Object(PyObject_Vectorcall(hook("make_task_error"), args, 3, nullptr));
  }
  return payload && encode_payload(wire::ValueFormat::kError, payload.get(), encoded) &&
         outgoing(runtime, encoded, out, nullptr, true);
}

/// The worker ends after this task. What the daemon is told becomes the cause in the callers' errors.
void end_worker(int code, wire::DeathKind kind, std::string why) {
  exit_code = code;
  exit_reason = {kind, code, 0, 0, std::move(why), {}, {}};
}

/// As the interpreter would: an integer is the code, None is 0, anything else is a message and means 1.
void end_by_system_exit(PyObject* exception) {
  Object value(PyObject_GetAttrString(exception, "code"));
  int code = 1;
  if (value && value.get() == Py_None) code = 0;
  if (value && PyLong_Check(value.get())) {
    code = static_cast<int>(PyLong_AsLong(value.get()) & 0xFF);
  }
  PyErr_Clear();  // an integer too large for a C long reads as -1, and is 255 to the system as well
  Object text(value && value.get() != Py_None && !PyLong_Check(value.get()) ? PyObject_Str(value.get())
                                                                            : nullptr);
  const char* words = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  PyErr_Clear();
  std::string why = std::string(actor.alive ? "the actor" : "the task") +
                    " called sys.exit, with exit code " + std::to_string(code);
  if (words != nullptr) why += std::string(" and the message: ") + words;
  // An actor that leaves with code 0 means to: it is not restarted.
  end_worker(code, actor.alive && code == 0 ? wire::DeathKind::kIntended : wire::DeathKind::kExited, why);
}

/// Results that were made for nothing.
void give_up_results(Runtime& runtime, const IncomingTask& task, std::vector<OutgoingValue>& results) {
  for (size_t i = 0; i < results.size(); ++i) {
    runtime.unpin_all(results[i].contained);
    if (!results[i].inline_value) runtime.store().erase(wire::result_id(task.header.task, i));
  }
  results.clear();
}

/// Answers the task with the pending Python exception, or ends the worker where that is what it means.
/// `results` are those that it made before, which stay unless its owner tries it again.
void finish_with_error(Runtime& runtime, const TaskPtr& task, PyObject* callable,
                       std::vector<OutgoingValue> results = {}, bool worker_exits = false) {
  Object exception = take_exception();
  flush_output();
  if (PyErr_GivenExceptionMatches(exception.get(), hook("ActorExitRequest"))) {
    // The caller hears of it as of an intended death, through control.
    end_worker(0, wire::DeathKind::kIntended, "it ended itself (exit_actor)");
    return;
  }
  if (PyErr_GivenExceptionMatches(exception.get(), PyExc_SystemExit)) {
    end_by_system_exit(exception.get());
    return;
  }
  bool interrupted =
      task->cancelled.load() && PyErr_GivenExceptionMatches(exception.get(), PyExc_KeyboardInterrupt);
  OutgoingValue error;
  bool retry = false;
  if (!error_value(runtime, *task, exception.get(), callable, error, &retry)) {
    PyErr_Print();
    end_worker(1, wire::DeathKind::kExited, "its exception could not be made into an answer");
    return;
  }
  wire::TaskStatus status = interrupted ? wire::TaskStatus::kCancelled
                            : retry     ? wire::TaskStatus::kRaisedRetryable
                                        : wire::TaskStatus::kRaised;
  if (interrupted) give_up_results(runtime, *task, results);
  const size_t count = task->header.mode == wire::ReturnMode::kStatic ? task->header.num_returns : 1;
  const size_t good = results.size();
  for (size_t i = good; i < count; ++i) {
    OutgoingValue copy;
    copy.inline_value = error.inline_value;
    copy.size_bytes = error.size_bytes;
    copy.is_error = true;
    copy.contained = error.contained;
    if (i != good)
      for (Entry* entry : error.contained) runtime.pin(entry);  // each result holds its refs by itself
    results.push_back(std::move(copy));
  }
  if (good >= count) runtime.unpin_all(error.contained);
  runtime.finish(task, status, std::move(results), worker_exits);
}

/// Appends a result to `out`.
bool encode_result(Runtime& runtime, const IncomingTask& task, PyObject* value,
                   std::vector<OutgoingValue>& out) {
  const ObjectId id = wire::result_id(task.header.task, out.size());
  OutgoingValue result;
  if (!to_blob(runtime, value, result, &id)) return false;
  out.push_back(std::move(result));
  return true;
}

/// What a generator yields, as so many results. On an error those that it had yielded before are in `out`.
bool encode_yielded(Runtime& runtime, IncomingTask& task, PyObject* iterator,
                    std::vector<OutgoingValue>& out) {
  const uint32_t wanted = task.header.num_returns;
  while (out.size() < wanted) {
    Object item(PyIter_Next(iterator));
    if (!item && PyErr_Occurred() != nullptr) return false;
    if (!item) {
      PyErr_Format(PyExc_ValueError, "the task has num_returns=%u but yielded %zu values", wanted,
                   out.size());
      return false;
    }
    if (!encode_result(runtime, task, item.get(), out)) return false;
  }
  return true;  // what it would yield beyond that is not asked for
}

bool encode_results(Runtime& runtime, IncomingTask& task, PyObject* value, std::vector<OutgoingValue>& out) {
  uint32_t wanted = task.header.num_returns;
  if (wanted == 1)
    return PyGen_Check(value) ? encode_yielded(runtime, task, value, out)
                              : encode_result(runtime, task, value, out);
  if (wanted == 0) return true;
  if (PyIter_Check(value)) return encode_yielded(runtime, task, value, out);
  Object items(PySequence_Fast(value, ""));  // of a string the characters, of a dict the keys
  if (!items && PyErr_ExceptionMatches(PyExc_TypeError) && Py_TYPE(value)->tp_iter == nullptr)
    PyErr_Format(PyExc_ValueError, "the task has num_returns=%u but returned a %s, which is no sequence",
                 wanted, Py_TYPE(value)->tp_name);
  if (!items) return false;
  Py_ssize_t size = PySequence_Fast_GET_SIZE(items.get());
  if (size != static_cast<Py_ssize_t>(wanted)) {
    PyErr_Format(PyExc_ValueError, "the task has num_returns=%u but returned %zd values", wanted, size);
    return false;
  }
  out.reserve(wanted);
  for (uint32_t i = 0; i < wanted; ++i) {
    if (encode_result(runtime, task, PySequence_Fast_GET_ITEM(items.get(), i), out)) continue;
    give_up_results(runtime, task, out);
    return false;
  }
  return true;
}

/// Sends one item of a stream, waiting for room. 1: sent; 0: nobody listens any more; -1: Python error set.
int yield_item(Runtime& runtime, const TaskPtr& task, PyObject* item) {
  while (!runtime.may_send_item(*task)) {
    {
      WithoutGil released;
      runtime.wait_for_credit(task);
    }
    if (PyErr_CheckSignals() != 0) return -1;
    if (task->cancelled.load() || runtime.should_exit()) return 0;
  }
  if (runtime.skip_item(*task)) return 1;
  flush_output();
  OutgoingValue value;
  ObjectId id = runtime.item_id(*task);
  if (!to_blob(runtime, item, value, &id)) return -1;
  return runtime.send_item(task, std::move(value)) ? 1 : 0;
}

/// Drives a sync generator to its end.
bool stream_results(Runtime& runtime, const TaskPtr& task, PyObject* generator) {
  Object iterator(PyObject_GetIter(generator));
  if (!iterator) return false;
  for (;;) {
    Object item(PyIter_Next(iterator.get()));
    if (!item) return PyErr_Occurred() == nullptr;
    int sent = yield_item(runtime, task, item.get());
    if (sent < 0) return false;
    if (sent == 0) {
      Object closed(PyObject_HasAttrString(generator, "close")
                        ? PyObject_CallMethod(generator, "close", nullptr)
                        : Py_NewRef(Py_None));
      return static_cast<bool>(closed);
    }
  }
}

/// num_returns="dynamic": what its generator raises is the last item, unless the task is tried again. False:
/// the exception is still pending.
bool yield_error(Runtime& runtime, const TaskPtr& task, PyObject* callable) {
  if (PyErr_ExceptionMatches(PyExc_Exception) == 0) return false;
  Object exception = take_exception();
  OutgoingValue error;
  bool retry = false;
  if (error_value(runtime, *task, exception.get(), callable, error, &retry)) {
    if (retry)
      runtime.unpin_all(error.contained);
    else if (runtime.send_item(task, std::move(error)))
      return true;
  }
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.get())), exception.get());
  return false;
}

/// num_returns="dynamic": the items are the stream's; the one result is a generator over their refs, which
/// the caller owns.
PyObject* dynamic_value(Runtime& runtime, const TaskPtr& task) {
  Object refs(PyList_New(0));
  if (!refs) return nullptr;
  std::vector<wire::ObjectRecord> records;
  for (uint64_t i = 0; i < task->stream_items; ++i)
    records.push_back({wire::item_id(task->header.task, i), task->from->address});
  for (Entry* entry : runtime.adopt_refs(records, nullptr, task.get())) {
    Object ref(new_ref(runtime, entry));
    if (!ref || PyList_Append(refs.get(), ref.get()) != 0) return nullptr;
  }
  PyObject* argument = refs.get();
  return call_hook("skate._streaming", "DynamicObjectRefGenerator", &argument, 1);
}

// --- arguments and callables -----------------------------------------------------------------

bool load_arguments(Runtime& runtime, const TaskPtr& task, Object& positional, Object& named) {
  size_t count = 0;
  for (const IncomingTask::Arg& argument : task->arguments) count += argument.keyword.empty();
  positional = Object(PyTuple_New(static_cast<Py_ssize_t>(count)));
  if (!positional) return false;
  Py_ssize_t at = 0;
  for (size_t i = 0; i < task->arguments.size(); ++i) {
    const IncomingTask::Arg& argument = task->arguments[i];
    Object value(from_argument(runtime, *task, argument));
    if (!value) return false;
    if (argument.keyword.empty()) {
      PyTuple_SET_ITEM(positional.get(), at++, value.release());
      continue;
    }
    if (!named) named = Object(PyDict_New());
    Object key(PyUnicode_DecodeUTF8(argument.keyword.data(), static_cast<Py_ssize_t>(argument.keyword.size()),
                                    nullptr));
    if (!named || !key || PyDict_SetItem(named.get(), key.get(), value.get()) != 0) return false;
  }
  return true;
}

/// New reference.
PyObject* callable_of(const TaskPtr& task) {
  if (task->function) {
    auto* loaded = static_cast<PyObject*>(task->function->loaded);
    if (loaded == nullptr) {
      Object blob(PyBytes_FromStringAndSize(task->function->blob.data(),
                                            static_cast<Py_ssize_t>(task->function->blob.size())));
      PyObject* argument = blob.get();
      loaded = blob ? PyObject_Vectorcall(hook("load_function"), &argument, 1, nullptr) : nullptr;
      if (loaded == nullptr) return nullptr;
      task->function->loaded = Py_NewRef(loaded);
      return loaded;
    }
    return Py_NewRef(loaded);
  }
  if (!actor.alive) return PyErr_Format(PyExc_RuntimeError, "the actor is not there yet");
  if (actor.methods.size() >= kMethodsMax) {
    for (auto& [name, known] : std::exchange(actor.methods, {})) Py_XDECREF(known);
  }
  PyObject*& method = actor.methods[task->method];
  if (method == nullptr) {
    Object name(PyUnicode_FromString(task->method.c_str()));
    PyObject* args[] = {actor.instance, name.get()};
    method = name ? PyObject_Vectorcall(hook("bind_method"), args, 2, nullptr) : nullptr;
    if (method == nullptr) {
      actor.methods.erase(task->method);
      return nullptr;
    }
  }
  return Py_NewRef(method);
}

/// What the node's daemon calls by its place, its maker may call by a name (a UUID): as the variable that the
/// daemon and this process were started with has it.
std::string device_name(const char* variable, uint32_t id) {
  static std::map<std::string, std::vector<std::string>> given;
  auto [names, first] = given.try_emplace(variable);
  if (const char* text = first ? std::getenv(variable) : nullptr) {
    std::string name;
    for (std::istringstream items(text); std::getline(items, name, ',');) {
      std::erase(name, ' ');
      names->second.push_back(name);
    }
  }
  const std::vector<std::string>& known = names->second;
  const bool named = id < known.size() && known[id].find_first_not_of("0123456789") != std::string::npos;
  return named ? known[id] : std::to_string(id);
}

/// As the accelerator's own variable names it.
std::string name_of_instance(const std::string& resource, uint32_t id) {
  for (const wire::Accelerator& accelerator : wire::kAccelerators)
    if (resource == accelerator.resource) return device_name(accelerator.variable, id);
  return std::to_string(id);
}

bool is_left_alone(const wire::Accelerator& accelerator) {
  const char* value = std::getenv(accelerator.left_alone);
  return value != nullptr && (std::strcmp(value, "1") == 0 || ::strcasecmp(value, "true") == 0);
}

/// Instances of the lease's accelerators are what this process may see of the node's.
void show_devices(const wire::LeaseInfo* lease, Runtime& runtime) {
  static std::map<std::string, std::string> shown;
  auto show = [&](const wire::Accelerator& accelerator) {
    if (!runtime.welcome().node_resources.contains(accelerator.resource) || is_left_alone(accelerator))
      return;
    std::string devices;
    if (lease != nullptr)
      if (auto granted = lease->instances.find(accelerator.resource); granted != lease->instances.end())
        for (uint32_t id : granted->second)
          devices += (devices.empty() ? "" : ",") + device_name(accelerator.variable, id);
    auto [before, first] = shown.try_emplace(accelerator.variable, devices);
    if (!first && before->second == devices) return;
    before->second = devices;
    Object os(PyImport_ImportModule("os"));
    Object environ(os ? PyObject_GetAttrString(os.get(), "environ") : nullptr);
    Object text(PyUnicode_FromString(devices.c_str()));
    if (!environ || !text || PyMapping_SetItemString(environ.get(), accelerator.variable, text.get()) != 0)
      PyErr_WriteUnraisable(nullptr);
  };
  for (const wire::Accelerator& accelerator : wire::kAccelerators) show(accelerator);
  static const bool has_amd_gpus = ::access(wire::kAmdDevice, F_OK) == 0;
  if (has_amd_gpus) show(wire::kAmdGpu);
}

std::string shown_name(PyObject* instance, const std::string& class_name) {
  if (Py_TYPE(instance)->tp_repr == PyBaseObject_Type.tp_repr) return class_name;
  Object text(PyObject_Repr(instance));
  const char* utf8 = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  if (utf8 != nullptr) return utf8;
  PyErr_WriteUnraisable(instance);
  return class_name;
}

void create_instance(Runtime& runtime, const TaskPtr& task) {
  const wire::ActorSpec& spec = task->create->spec;
  actor.spec = spec;
  actor.incarnation = task->create->incarnation;
  actor.lease = task->lease;
  Object blob(
      PyBytes_FromStringAndSize(spec.class_blob.data(), static_cast<Py_ssize_t>(spec.class_blob.size())));
  PyObject* blob_argument = blob.get();
  Object cls(blob ? PyObject_Vectorcall(hook("load_class"), &blob_argument, 1, nullptr) : nullptr);
  Object positional, named, instance;
  if (cls && load_arguments(runtime, task, positional, named)) {
    if (!named) named = Object(PyDict_New());
    PyObject* args[] = {cls.get(), positional.get(), named.get()};
    instance = Object(PyObject_Vectorcall(hook("create_actor_instance"), args, 3, nullptr));
  }
  positional = Object();
  named = Object();
  if (!instance) {
    OutgoingValue error;
    bool retry;
    Object exception = take_exception();
    flush_output();
    if (!error_value(runtime, *task, exception.get(), nullptr, error, &retry)) PyErr_Print();
    runtime.finish_actor_creation(task, false, error.inline_value);
    end_worker(1, wire::DeathKind::kConstructor, "its constructor raised an exception");
    return;
  }
  actor.shown = shown_name(instance.get(), spec.class_name);
  flush_output();
  actor.instance = instance.release();
  actor.alive = true;
  if (spec.max_concurrency > 1 || !spec.concurrency_groups.empty() || spec.is_asyncio)
    runtime.read_calls_at_once();
  for (const auto& [group, limit] : spec.concurrency_groups)
    if (!spec.is_asyncio) runtime.serve_group(group);
  if (spec.is_asyncio) runtime.keep_groups();
  runtime.set_max_concurrency(static_cast<uint32_t>(spec.max_concurrency));
  runtime.finish_actor_creation(task, true, nullptr);
}

void run_task(Runtime& runtime, const TaskPtr& task) {
  running = task;
  bool on_main = pthread_equal(pthread_self(), main_thread) != 0;
  if (on_main) {
    std::lock_guard lock(main_task_mutex);
    main_task = task;
  }
  std::string name = task->create ? task->create->spec.class_name : (actor.alive ? actor.shown : task->name);
  runtime.set_source(name);
  if (on_main && !actor.alive) show_devices(task->lease.get(), runtime);
  if (task->create) {
    create_instance(runtime, task);
  } else if (task->cancelled.load()) {
    PyErr_SetNone(PyExc_KeyboardInterrupt);
    finish_with_error(runtime, task, nullptr);
  } else {
    Object callable(callable_of(task));
    Object positional, named, value;
    if (callable && load_arguments(runtime, task, positional, named))
      value = Object(PyObject_Call(callable.get(), positional.get(), named.get()));
    // The task's own names go before its refs are looked at: what it does not keep is not borrowed.
    positional = Object();
    named = Object();
    std::vector<OutgoingValue> results;
    bool ok = static_cast<bool>(value);
    // A method that was told by is_canceled and returned is cancelled all the same.
    auto is_cancelled_call = [&] {
      if (!actor.alive || !task->cancelled.load()) return false;
      PyErr_SetNone(PyExc_KeyboardInterrupt);
      return true;
    };
    ok = ok && !is_cancelled_call();
    if (ok && task->header.mode != wire::ReturnMode::kStatic) {
      const bool dynamic = task->header.mode == wire::ReturnMode::kDynamic;
      ok = stream_results(runtime, task, value.get()) ||
           (dynamic && yield_error(runtime, task, callable.get()));
      ok = ok && !is_cancelled_call();
      if (ok) value = Object(dynamic ? dynamic_value(runtime, task) : Py_NewRef(Py_None));
      ok = ok && value && encode_result(runtime, *task, value.get(), results);
    } else if (ok) {
      ok = encode_results(runtime, *task, value.get(), results);
    }
    value = Object();
    const bool exits =
        task->header.max_calls != 0 && task->function && ++task->function->calls >= task->header.max_calls;
    if (ok) {
      flush_output();
      runtime.finish(task, wire::TaskStatus::kOk, std::move(results), exits);
    } else {
      finish_with_error(runtime, task, callable.get(), std::move(results), exits);
    }
    if (exits && exit_code < 0) {
      end_worker(0, wire::DeathKind::kIntended, "it had run its max_calls");
      exit_waits = true;
    }
  }
  if (on_main) {
    {
      std::lock_guard lock(main_task_mutex);
      main_task = nullptr;
    }
    // A cancellation that came too late must not hit the next task.
    if (PyErr_CheckSignals() != 0) PyErr_Clear();
  }
  running = nullptr;
}

void deliver_cancel(Runtime& runtime, const TaskPtr& task, bool recursive) {
  if (recursive) runtime.cancel_children(task->header.task, false);
  if (actor.alive) return;  // a method sees it by is_canceled; a coroutine is cancelled by its loop
  std::lock_guard lock(main_task_mutex);
  if (main_task == task) pthread_kill(main_thread, SIGINT);
}

void run_counted(Runtime& runtime, const TaskPtr& task) {
  ++calls_running;
  run_task(runtime, task);
  --calls_running;
}

/// The loop of a further thread of a threaded actor.
PyObject* serve_group_thread(PyObject* group_name, PyObject*) {
  Call runtime = enter_if_connected();
  const char* group = PyUnicode_AsUTF8(group_name);
  if (runtime == nullptr || group == nullptr) return nullptr;
  std::string name = group;
  for (;;) {
    TaskPtr task;
    {
      WithoutGil released;
      task = runtime->next_task(name, false);
    }
    if (!task || exit_code >= 0) Py_RETURN_NONE;
    run_counted(*runtime, task);
    if (exit_code < 0) continue;
    if (calls_running == 0)
      runtime->request_exit(exit_reason);  // the main thread waits for that, or for a call
    Py_RETURN_NONE;
  }
}
PyMethodDef serve_group_method = {"skate_actor_thread", serve_group_thread, METH_NOARGS, nullptr};

bool start_threads(const std::string& group, int32_t count) {
  Object threading(PyImport_ImportModule("threading"));
  Object type(threading ? PyObject_GetAttrString(threading.get(), "Thread") : nullptr);
  for (int32_t i = 0; i < count; ++i) {
    Object name(PyUnicode_FromString(group.c_str()));
    Object target(name ? PyCFunction_New(&serve_group_method, name.get()) : nullptr);
    Object kwargs(target ? Py_BuildValue("{s:O,s:O}", "target", target.get(), "daemon", Py_True) : nullptr);
    Object none(PyTuple_New(0));
    Object thread(type && kwargs && none ? PyObject_Call(type.get(), none.get(), kwargs.get()) : nullptr);
    Object started(thread ? PyObject_CallMethod(thread.get(), "start", nullptr) : nullptr);
    if (!started) return false;
  }
  return true;
}

// --- asyncio actors --------------------------------------------------------------------------

struct AsyncActorObject {
  PyObject_HEAD int fd;
  std::vector<std::pair<TaskPtr, PyObject*>>* credits;  ///< futures that wait for room in a stream
  std::map<IncomingTask*, PyObject*>* calls;            ///< given out and not answered (borrowed references)
};
PyTypeObject* async_actor_type = nullptr;
std::mutex cancelled_mutex;  // the thread that delivers cancellations does not have the GIL
std::vector<TaskPtr> cancelled_calls;

PyObject* async_group(PyObject* self, void*) {
  return PyUnicode_FromString(reinterpret_cast<AsyncCallObject*>(self)->task->group.c_str());
}
PyObject* async_streaming(PyObject* self, void*) {
  return PyBool_FromLong(reinterpret_cast<AsyncCallObject*>(self)->task->header.mode !=
                         wire::ReturnMode::kStatic);
}
void async_call_dealloc(PyObject* object) {
  reinterpret_cast<AsyncCallObject*>(object)->task.~shared_ptr();
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}
PyGetSetDef async_call_getset[] = {{"concurrency_group", async_group, nullptr, nullptr, nullptr},
                                   {"is_streaming", async_streaming, nullptr, nullptr, nullptr},
                                   {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyType_Slot async_call_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(async_call_dealloc)},
                                  {Py_tp_getset, async_call_getset},
                                  {0, nullptr}};
PyType_Spec async_call_spec = {"skate._skate.AsyncCall", sizeof(AsyncCallObject), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, async_call_slots};

AsyncActorObject* core_of(PyObject* self) { return reinterpret_cast<AsyncActorObject*>(self); }

PyObject* async_fd(PyObject* self, PyObject*) { return PyLong_FromLong(core_of(self)->fd); }

PyObject* async_next_batch(PyObject* object, PyObject*) {
  AsyncActorObject* self = core_of(object);
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  uint64_t count;
  [[maybe_unused]] ssize_t n = read(self->fd, &count, sizeof count);
  for (size_t i = 0; i < self->credits->size();) {
    auto& [task, future] = (*self->credits)[i];
    if (!runtime->may_send_item(*task) && !task->cancelled.load()) {
      ++i;
      continue;
    }
    Object held(future);
    self->credits->erase(self->credits->begin() + static_cast<ptrdiff_t>(i));
    Object done(PyObject_CallMethod(held.get(), "done", nullptr));
    if (!done) return nullptr;
    if (PyObject_IsTrue(done.get()) == 0) {
      Object set(PyObject_CallMethod(held.get(), "set_result", "O", Py_None));
      if (!set) return nullptr;
    }
  }
  Object list(PyList_New(0));
  if (!list) return nullptr;
  for (TaskPtr& task : runtime->take_tasks()) {
    auto* call = reinterpret_cast<AsyncCallObject*>(async_call_type->tp_alloc(async_call_type, 0));
    if (call == nullptr) return nullptr;
    new (&call->task) TaskPtr(task);
    Object held(reinterpret_cast<PyObject*>(call));
    Object positional, named;
    if (!load_arguments(*runtime, task, positional, named)) {
      finish_with_error(*runtime, task, nullptr);
      continue;
    }
    if (!named) named = Object(PyDict_New());
    (*self->calls)[task.get()] = held.get();
    Object item(Py_BuildValue("(OsOO)", held.get(), task->method.c_str(), positional.get(), named.get()));
    if (!item || PyList_Append(list.get(), item.get()) != 0) return nullptr;
  }
  return list.release();
}

PyObject* async_cancelled_batch(PyObject* object, PyObject*) {
  AsyncActorObject* self = core_of(object);
  std::vector<TaskPtr> due;
  {
    std::lock_guard lock(cancelled_mutex);
    due.swap(cancelled_calls);
  }
  Object list(PyList_New(0));
  for (const TaskPtr& task : due) {
    auto found = self->calls->find(task.get());
    if (found == self->calls->end()) continue;
    if (!list || PyList_Append(list.get(), found->second) != 0) return nullptr;
  }
  return list.release();
}

AsyncCallObject* call_argument(PyObject* object) {
  if (Py_TYPE(object) == async_call_type) return reinterpret_cast<AsyncCallObject*>(object);
  PyErr_SetString(PyExc_TypeError, "an AsyncCall is needed");
  return nullptr;
}

PyObject* async_reply(PyObject* object, PyObject* args) {
  PyObject *call_object, *value;
  if (!PyArg_ParseTuple(args, "OO:reply", &call_object, &value)) return nullptr;
  AsyncCallObject* call = call_argument(call_object);
  Call runtime = enter();
  if (call == nullptr || runtime == nullptr) return nullptr;
  TaskPtr task = call->task;
  core_of(object)->calls->erase(task.get());
  std::vector<OutgoingValue> results;
  bool ok;
  if (task->header.mode == wire::ReturnMode::kStatic) {
    ok = encode_results(*runtime, *task, value, results);
  } else {
    Object last(task->header.mode == wire::ReturnMode::kDynamic ? dynamic_value(*runtime, task)
                                                                : Py_NewRef(Py_None));
    ok = last && encode_result(*runtime, *task, last.get(), results);
  }
  if (ok) {
    flush_output();
    runtime->finish(task, wire::TaskStatus::kOk, std::move(results), false);
  } else {
    finish_with_error(*runtime, task, nullptr, std::move(results));
  }
  Py_RETURN_NONE;
}

PyObject* async_reply_error(PyObject* object, PyObject* args) {
  PyObject *call_object, *exception;
  if (!PyArg_ParseTuple(args, "OO:reply_error", &call_object, &exception)) return nullptr;
  AsyncCallObject* call = call_argument(call_object);
  Call runtime = enter();
  if (call == nullptr || runtime == nullptr) return nullptr;
  TaskPtr task = call->task;
  core_of(object)->calls->erase(task.get());
  Object method;
  if (auto found = actor.methods.find(task->method); found != actor.methods.end())
    method = Object(Py_NewRef(found->second));
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception)), exception);
  finish_with_error(*runtime, task, method.get());
  Py_RETURN_NONE;
}

PyObject* async_yield_value(PyObject*, PyObject* args) {
  PyObject *call_object, *value;
  if (!PyArg_ParseTuple(args, "OO:yield_value", &call_object, &value)) return nullptr;
  AsyncCallObject* call = call_argument(call_object);
  Call runtime = enter();
  if (call == nullptr || runtime == nullptr) return nullptr;
  if (runtime->skip_item(*call->task)) Py_RETURN_NONE;
  flush_output();
  OutgoingValue item;
  ObjectId id = runtime->item_id(*call->task);
  if (!to_blob(*runtime, value, item, &id)) return nullptr;
  if (!runtime->send_item(call->task, std::move(item))) {
    Object asyncio(PyImport_ImportModule("asyncio"));
    Object cancelled(asyncio ? PyObject_GetAttrString(asyncio.get(), "CancelledError") : nullptr);
    if (cancelled) PyErr_SetString(cancelled.get(), "the consumer of the stream is gone");
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* async_can_yield(PyObject* object, PyObject* call_object) {
  AsyncCallObject* call = call_argument(call_object);
  Call runtime = enter();
  if (call == nullptr || runtime == nullptr) return nullptr;
  if (runtime->may_send_item(*call->task)) Py_RETURN_NONE;
  Object asyncio(PyImport_ImportModule("asyncio"));
  Object loop(asyncio ? PyObject_CallMethod(asyncio.get(), "get_running_loop", nullptr) : nullptr);
  Object future(loop ? PyObject_CallMethod(loop.get(), "create_future", nullptr) : nullptr);
  if (!future) return nullptr;
  core_of(object)->credits->emplace_back(call->task, Py_NewRef(future.get()));
  uint64_t one = 1;  // a credit may have come in between: look once more in the next turn
  [[maybe_unused]] ssize_t n = write(core_of(object)->fd, &one, sizeof one);
  return future.release();
}

PyObject* async_groups(PyObject*, PyObject*) {
  Object dict(PyDict_New());
  Object limit(PyLong_FromLong(actor.spec.max_concurrency));
  if (!dict || !limit || PyDict_SetItemString(dict.get(), "", limit.get()) != 0) return nullptr;
  for (const auto& [group, count] : actor.spec.concurrency_groups) {
    Object value(PyLong_FromLong(count));
    if (!value || PyDict_SetItemString(dict.get(), group.c_str(), value.get()) != 0) return nullptr;
  }
  return dict.release();
}

PyObject* async_should_stop(PyObject*, PyObject*) {
  Runtime* runtime = runtime_or_null();
  return PyBool_FromLong(runtime == nullptr || runtime->should_exit());
}

PyObject* async_leaving(PyObject*, PyObject*) { return PyBool_FromLong(exit_code >= 0); }

PyMethodDef async_actor_methods[] = {
    {"fd", async_fd, METH_NOARGS, nullptr},
    {"next_batch", async_next_batch, METH_NOARGS, nullptr},
    {"cancelled_batch", async_cancelled_batch, METH_NOARGS, nullptr},
    {"reply", async_reply, METH_VARARGS, nullptr},
    {"reply_error", async_reply_error, METH_VARARGS, nullptr},
    {"yield_value", async_yield_value, METH_VARARGS, nullptr},
    {"can_yield", async_can_yield, METH_O, nullptr},
    {"concurrency_groups", async_groups, METH_NOARGS, nullptr},
    {"should_stop", async_should_stop, METH_NOARGS, nullptr},
    {"leaving", async_leaving, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot async_actor_slots[] = {{Py_tp_methods, async_actor_methods}, {0, nullptr}};
PyType_Spec async_actor_spec = {"skate._skate.AsyncActorCore", sizeof(AsyncActorObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, async_actor_slots};

bool serve_asyncio(Runtime& runtime) {
  auto* core = reinterpret_cast<AsyncActorObject*>(async_actor_type->tp_alloc(async_actor_type, 0));
  if (core == nullptr) return false;
  Object held(reinterpret_cast<PyObject*>(core));
  core->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  core->credits = new std::vector<std::pair<TaskPtr, PyObject*>>();
  core->calls = new std::map<IncomingTask*, PyObject*>();
  if (core->fd < 0) {
    PyErr_SetFromErrno(PyExc_OSError);
    return false;
  }
  serves_loop = true;
  runtime.set_event_fd(core->fd);
  int fd = core->fd;
  runtime.on_cancel([&runtime, fd](const TaskPtr& task, bool recursive) {
    if (recursive) runtime.cancel_children(task->header.task, false);
    {
      std::lock_guard lock(cancelled_mutex);
      cancelled_calls.push_back(task);
    }
    uint64_t one = 1;
    [[maybe_unused]] ssize_t n = write(fd, &one, sizeof one);
  });
  PyObject* argument = held.get();
  Object done(PyObject_Vectorcall(hook("run_asyncio_actor"), &argument, 1, nullptr));
  return static_cast<bool>(done);
}

}  // namespace

/// JSON of the group that the current task or actor captures its children in; "" for none.
std::string captured_scheduling() {
  TaskPtr task = current_task();
  const wire::LeaseInfo* lease = actor.alive ? actor.lease.get() : task ? task->lease.get() : nullptr;
  if (lease == nullptr || lease->scheduling.empty()) return {};
  nlohmann::json plan = nlohmann::json::parse(lease->scheduling, nullptr, false);
  if (!plan.is_object() || plan.value("strategy", "") != "placement_group") return {};
  if (!plan.value("capture_child_tasks", false)) return {};
  return nlohmann::json{{"strategy", "placement_group"},
                        {"id", plan.value("id", "")},
                        {"bundle_index", -1},
                        {"capture_child_tasks", true}}
      .dump();
}

bool inherit_group(std::string& scheduling) {
  const std::string captured = captured_scheduling();
  if (captured.empty()) return false;
  nlohmann::json plan = nlohmann::json::object();
  if (!scheduling.empty()) plan = nlohmann::json::parse(scheduling, nullptr, false);
  if (!plan.is_object() || plan.contains("strategy")) return false;
  plan.update(nlohmann::json::parse(captured));
  scheduling = plan.dump();
  return true;
}

TaskId current_task_id() {
  TaskPtr task = current_task();
  return task ? (task->create ? TaskId::actor_creation(task->create->spec.actor) : task->header.task)
              : TaskId();
}

PyObject* py_run_worker(PyObject*, PyObject* args) {
  const char* socket_path;
  unsigned long long token;
  if (!PyArg_ParseTuple(args, "sK:run_worker", &socket_path, &token)) return nullptr;
  worker::ConnectOptions options;
  options.socket_path = socket_path;
  options.hello.version = SKATE_VERSION;
  options.hello.kind = wire::ProcessKind::kWorker;
  options.hello.pid = static_cast<int32_t>(getpid());
  options.hello.start_token = token;
  options.hello.language = "python";
  Result<std::unique_ptr<Runtime>> connected = [&] {
    WithoutGil released;
    return Runtime::connect(options);
  }();
  if (!connected.ok()) return PyErr_Format(PyExc_ConnectionError, "%s", connected.error().message.c_str());
  auto connection = std::make_unique<Connection>();
  connection->runtime = std::move(*connected);
  if (!adopt_connection(std::move(connection))) return nullptr;
  Call runtime = enter();
  set_job_json(runtime->welcome().job_json);
  main_thread = pthread_self();
  Object main_module(PyImport_ImportModule("skate._worker_main"));
  unflushed = main_module ? PyObject_GetAttrString(main_module.get(), "unflushed") : nullptr;
  if (unflushed == nullptr) return nullptr;
  if (!PyByteArray_CheckExact(unflushed)) return PyErr_Format(PyExc_TypeError, "unflushed is no bytearray");
  runtime->on_cancel(
      [raw = &*runtime](const TaskPtr& task, bool recursive) { deliver_cancel(*raw, task, recursive); });

  nlohmann::json job = nlohmann::json::parse(runtime->welcome().job_json, nullptr, false);
  std::string logging = job.is_object() ? job.value("logging_config", "") : "";
  Object ready(PyObject_CallFunction(hook("setup_process"), "ssss", default_runtime_env().c_str(),
                                     runtime->welcome().session_dir.c_str(),
                                     runtime->welcome().node_ip.c_str(), logging.c_str()));
  if (!ready) {
    // Told to the daemon, which tells those who wait for this worker: it goes into their errors.
    Object exception = take_exception();
    Object text(PyObject_CallFunctionObjArgs(hook("setup_failure"), exception.get(), nullptr));
    const char* failure = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
    if (failure == nullptr) return nullptr;
    {
      WithoutGil released;
      runtime->report_ready(failure);
      runtime->stop();
    }
    return PyLong_FromLong(1);
  }
  runtime->report_ready({});

  runtime->begin_active();
  while (exit_code < 0) {
    TaskPtr task;
    {
      WithoutGil released;
      task = runtime->next_task("", true);
    }
    if (!task || exit_code >= 0) break;
    run_counted(*runtime, task);
    if (actor.alive && task->create) {
      if (actor.spec.is_asyncio) {
        runtime->end_active();
        if (!serve_asyncio(*runtime)) return nullptr;
        if (exit_code < 0 && !runtime->should_exit())
          end_worker(1, wire::DeathKind::kExited,
                     "one of its methods stopped the event loop that runs all of them (loop.stop())");
        break;
      }
      for (const auto& [group, limit] : actor.spec.concurrency_groups)
        if (!start_threads(group, limit)) return nullptr;
      if (!start_threads("", actor.spec.max_concurrency - 1)) return nullptr;
    }
  }
  // Calls of other threads come to their end; the last of them asks for the exit.
  if (exit_code >= 0 && calls_running != 0) {
    WithoutGil released;
    runtime->end_active();
    while (runtime->next_task("", true)) {
    }
  }
  if (exit_waits) {
    WithoutGil released;
    runtime->end_active();
    runtime->leave(exit_reason.message);
  }
  if (exit_code >= 0) runtime->request_exit(exit_reason);
  {
    WithoutGil released;
    runtime->stop();
  }
  return PyLong_FromLong(std::max(exit_code, 0));
}

PyObject* py_look(PyObject*, PyObject* timeout) {
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  auto until = worker::Clock::time_point::max();
  if (timeout != Py_None) {
    const double seconds = PyFloat_AsDouble(timeout);
    if (PyErr_Occurred() != nullptr) return nullptr;
    if (seconds < 1)
      until = worker::Clock::now() + std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
  }
  {
    WithoutGil released;
    runtime->look(until);
  }
  Py_RETURN_NONE;
}

PyObject* py_is_cancelled(PyObject*, PyObject*) {
  TaskPtr task = current_task();
  return PyBool_FromLong(task && task->cancelled.load());
}

PyObject* py_current_actor(PyObject*, PyObject*) {
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  if (actor.spec.actor.is_nil()) Py_RETURN_NONE;
  wire::ActorInfo info;
  info.actor = actor.spec.actor;
  info.class_name = actor.spec.class_name;
  info.name = actor.spec.name;
  info.name_space = actor.spec.name_space;
  info.meta = actor.spec.meta;
  info.max_task_retries = actor.spec.max_task_retries;
  info.out_of_order = actor.spec.out_of_order;
  info.max_pending_calls = actor.spec.max_pending_calls;
  info.job = actor.spec.job;
  runtime->learn_actor(info);
  return new_actor_core(*runtime, info, nullptr);
}

PyObject* py_context(PyObject*, PyObject*) {
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  TaskPtr task = current_task();
  auto bytes = [](const uint8_t* data, size_t size) {
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(data), static_cast<Py_ssize_t>(size));
  };
  auto bytes_or_none = [&](bool there, const uint8_t* data, size_t size) {
    return there ? bytes(data, size) : Py_NewRef(Py_None);
  };
  const wire::LeaseInfo* lease = actor.alive ? actor.lease.get() : task ? task->lease.get() : nullptr;
  Object resources(PyDict_New()), accelerators(PyDict_New()), labels(PyDict_New());
  if (!resources || !accelerators || !labels) return nullptr;
  for (const auto& [key, value] : runtime->welcome().node_labels) {
    Object text(PyUnicode_DecodeUTF8(value.data(), static_cast<Py_ssize_t>(value.size()), "replace"));
    if (!text || PyDict_SetItemString(labels.get(), key.c_str(), text.get()) != 0) return nullptr;
  }
  for (const wire::Accelerator& accelerator : wire::kAccelerators) {
    Object none(PyList_New(0));
    if (!none || PyDict_SetItemString(accelerators.get(), accelerator.resource, none.get()) != 0)
      return nullptr;
  }
  if (lease != nullptr) {
    for (const auto& [name, amount] : lease->resources) {
      Object value(PyFloat_FromDouble(static_cast<double>(amount) / wire::kResourceUnit));
      if (!value || PyDict_SetItemString(resources.get(), name.c_str(), value.get()) != 0) return nullptr;
    }
    for (const auto& [name, ids] : lease->instances) {
      Object list(PyList_New(0));
      for (uint32_t id : ids) {
        Object text(PyUnicode_FromString(name_of_instance(name, id).c_str()));
        if (!list || !text || PyList_Append(list.get(), text.get()) != 0) return nullptr;
      }
      if (PyDict_SetItemString(accelerators.get(), name.c_str(), list.get()) != 0) return nullptr;
    }
  }
  TaskId task_id = current_task_id();
  JobId job = runtime->job();
  const ActorId& actor_id = actor.spec.actor;
  std::string env =
      lease != nullptr && !lease->runtime_env.empty() ? lease->runtime_env : default_runtime_env();
  std::string name = task ? display_name(*task) : "";
  auto* function = task && task->function && task->function->loaded != nullptr
                       ? static_cast<PyObject*>(task->function->loaded)
                       : Py_None;
  const char* method = task == nullptr ? "" : task->create ? "__init__" : task->method.c_str();
  const wire::Welcome& welcome = runtime->welcome();
  std::optional<PlacementGroupId> group;
  bool captures = false;
  if (lease != nullptr && !lease->scheduling.empty()) {
    nlohmann::json plan = nlohmann::json::parse(lease->scheduling, nullptr, false);
    if (plan.is_object() && plan.value("strategy", "") == "placement_group") {
      group = PlacementGroupId::parse_hex(plan.value("id", ""));
      captures = plan.value("capture_child_tasks", false);
    }
  }
  return Py_BuildValue(
      "{s:N,s:N,s:N,s:N,s:N,s:s,s:O,s:s,s:O,s:O,s:s,s:s,s:s,s:i,s:O,s:O,s:N,s:O,s:O,s:s,s:s}", "job_id",
      bytes(job.data(), JobId::kSize), "task_id",
      bytes_or_none(task != nullptr, task_id.data(), TaskId::kSize), "actor_id",
      bytes_or_none(!actor_id.is_nil(), actor_id.data(), ActorId::kSize), "worker_id",
      bytes(welcome.worker.data(), WorkerId::kSize), "node_id", bytes(welcome.node.data(), NodeId::kSize),
      "task_name", name.c_str(), "function", function, "method", method, "assigned_resources",
      resources.get(), "accelerator_ids", accelerators.get(), "actor_name", actor.spec.name.c_str(),
      "namespace", welcome.name_space.c_str(), "runtime_env", env.c_str(), "attempt",
      task ? int{task->header.attempt} : 0, "is_worker", runtime->is_worker() ? Py_True : Py_False,
      "actor_restarted", actor.incarnation > 0 ? Py_True : Py_False, "placement_group_id",
      bytes_or_none(group.has_value(), group ? group->data() : nullptr, PlacementGroupId::kSize),
      "should_capture", captures ? Py_True : Py_False, "node_labels", labels.get(), "session_dir",
      welcome.session_dir.c_str(), "gcs_address", welcome.control_address.c_str());
}

bool worker_init(PyObject* module) {
  async_call_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&async_call_spec));
  async_actor_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&async_actor_spec));
  return async_call_type != nullptr && async_actor_type != nullptr &&
         PyModule_AddObjectRef(module, "AsyncCall", reinterpret_cast<PyObject*>(async_call_type)) == 0 &&
         PyModule_AddObjectRef(module, "AsyncActorCore", reinterpret_cast<PyObject*>(async_actor_type)) == 0;
}

}  // namespace skate::bindings
