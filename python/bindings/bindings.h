// The module's own state and the types that its files share. Everything here needs the GIL unless said.
//
// The module holds one connection (a Runtime) per process, as the API has it. Refs remember the epoch of the
// connection that they belong to: after a disconnect they keep their ids and hold nothing.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bindings/codec.h"
#include "worker/local_cluster.h"
#include "worker/runtime.h"

namespace skate::bindings {

using worker::Clock;
using worker::Entry;
using worker::Runtime;

/// Owns a new reference.
class Object {
 public:
  Object() = default;
  explicit Object(PyObject* object) : object_(object) {}
  Object(Object&& other) noexcept : object_(other.release()) {}
  Object& operator=(Object&& other) noexcept {
    PyObject* old = object_;
    object_ = other.release();
    Py_XDECREF(old);
    return *this;
  }
  Object(const Object&) = delete;
  ~Object() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

/// `take` takes the GIL. Once the interpreter ends, CPython ends a thread that does so by pthread_exit, which
/// no frame of C++ stands: such a thread waits for the end of the process, as in CPython 3.14.
template <class Take>
auto take_gil(Take take) {
  try {
    return take();
  } catch (abi::__forced_unwind&) {
    for (;;) ::pause();
  }
}

struct WithoutGil {
  WithoutGil() : state(PyEval_SaveThread()) {}
  ~WithoutGil() {
    take_gil([this] { PyEval_RestoreThread(state); });
  }
  PyThreadState* state;
};

// --- connection (connect.cc) ---
/// What a forked child is told whose parent is connected; the module's FORKED_TEXT.
inline constexpr const char* kForkedText =
    "this process was forked from one that is connected, and can neither use its connection nor make one: "
    "start it with the 'spawn' method of multiprocessing (arrays that were read before may still be read)";
/// One connection of this process. Another thread may end it whenever a call lets the GIL go, so each call
/// that does counts itself in `calls` (see Call); the last one out deletes what has ended. Guarded by the
/// GIL.
struct Connection {
  std::unique_ptr<worker::LocalCluster> cluster;  ///< null if it was joined
  std::unique_ptr<Runtime> runtime;
  uint32_t calls = 0;
  bool ended = false;  ///< shut down by this process
  /// Callbacks that wait for objects, by their cookies; each one a reference.
  std::map<uint64_t, PyObject*> callbacks;
  uint64_t next_cookie = 1;
  enum class Dispatcher : uint8_t { kNone, kRuns, kEnded } dispatcher = Dispatcher::kNone;
};

/// A call inside of a connection, which keeps its runtime. Made and destroyed with the GIL.
class Call {
 public:
  explicit Call(Connection* connection) : connection_(connection) {
    if (connection_ != nullptr) ++connection_->calls;
  }
  Call(Call&& other) noexcept : connection_(std::exchange(other.connection_, nullptr)) {}
  Call(const Call&) = delete;
  ~Call() {
    if (connection_ != nullptr && --connection_->calls == 0 && connection_->ended) forget(connection_);
  }
  operator Runtime*() const { return connection_ == nullptr ? nullptr : connection_->runtime.get(); }
  Runtime* operator->() const { return connection_->runtime.get(); }
  Runtime& operator*() const { return *connection_->runtime; }
  Connection* connection() const { return connection_; }

 private:
  static void forget(Connection* connection);
  Connection* connection_;
};

extern Connection* current_connection;  ///< owned, until it is ended
/// As enter(), but null without an error if there is none.
Call enter_if_connected();
/// The runtime for what neither lets the GIL go nor runs Python; null with RuntimeError set.
Runtime* require_runtime();
inline Runtime* runtime_or_null() {
  return current_connection == nullptr ? nullptr : current_connection->runtime.get();
}
/// Enters the connection; null with RuntimeError set if there is none (or in a forked child).
inline Call enter() { return Call(require_runtime() == nullptr ? nullptr : current_connection); }
/// False with an error set if the connection that a call is inside of has been shut down meanwhile: what it
/// holds is then no longer of use to anyone.
bool raise_shut_down();
inline bool still_connected(const Runtime& runtime) {
  return runtime_or_null() == &runtime || raise_shut_down();
}
/// The exception for a call that waits on a runtime that has stopped. Returns null.
PyObject* raise_ended(Runtime& runtime);
uint64_t connection_epoch();
/// Waits are numbered through all connections, under the GIL: `current` is the last one's number, `first`
/// that of the first one of this connection.
struct WaitPass {
  uint64_t current, first;
};
extern WaitPass wait_pass;
/// False with an error set if there is a connection already.
bool adopt_connection(std::unique_ptr<Connection> connection);
const std::string& default_runtime_env();
void set_job_json(const std::string& job_json);
/// Whether a signal's handler raised; for waits without the GIL.
bool interrupted();
/// Sets the Python exception for an Error of the runtime's.
void set_error(Runtime& runtime, const Error& error);
PyObject* py_connect(PyObject*, PyObject* config);
PyObject* py_disconnect(PyObject*, PyObject*);
PyObject* py_is_connected(PyObject*, PyObject*);
PyObject* py_in_forked_child(PyObject*, PyObject*);
PyObject* py_control_call(PyObject*, PyObject* args);
PyObject* py_kv(PyObject*, PyObject* args);
PyObject* py_flush_logs(PyObject*, PyObject* timeout);
PyObject* py_next_log_batch(PyObject*, PyObject* args);

// --- refs (refs.cc) ---
struct RefObject {
  PyObject_HEAD uint64_t seen;  ///< the last wait() that saw it (wait_pass); 0: to be looked at closely
  Entry* entry;                 ///< one handle; null for nil and stray refs
  uint64_t epoch;
  ObjectId id;
  PyObject* weakrefs;
};
extern PyTypeObject* ref_type;
inline bool is_ref(PyObject* object) { return Py_TYPE(object) == ref_type; }
/// Takes over one handle of `entry`; null with an error set if the runtime's connection has ended.
PyObject* new_ref(Runtime& runtime, Entry* entry);
/// The entry of a ref of the current connection; null with a Python error set.
Entry* entry_of(PyObject* ref);
/// The same for a call inside of `runtime`.
inline Entry* entry_of(const Runtime& runtime, PyObject* ref) {
  return still_connected(runtime) ? entry_of(ref) : nullptr;
}
const EncodeHooks& encode_hooks();
bool refs_init(PyObject* module);
PyObject* py_restore_stray_ref(PyObject*, PyObject* bytes);

// --- values (objects.cc) ---
/// Encodes `value`; false with a Python error set.
bool to_blob(Runtime& runtime, PyObject* value, worker::OutgoingValue& out, const ObjectId* store_id);
bool outgoing(Runtime& runtime, const EncodedValue& encoded, worker::OutgoingValue& out,
              const ObjectId* store_id, bool is_error);
/// Decodes; raises what an error value holds. `outer`: the object it is; `task`: whose argument it is.
PyObject* from_ready(Runtime& runtime, const worker::ReadyValue& value, Entry* outer,
                     worker::IncomingTask* task);
PyObject* from_argument(Runtime& runtime, worker::IncomingTask& task,
                        const worker::IncomingTask::Arg& argument);
/// Waits for `count` of the entries, or until one is an error where that is to end it; false with a Python
/// error set (by a signal).
bool wait_for(Runtime& runtime, std::span<Entry* const> entries, size_t count, Clock::time_point until,
              bool* timed_out, bool until_error = false);
Clock::time_point deadline_of(PyObject* timeout, bool* failed);
PyObject* raise_system_error(const char* kind, const std::map<std::string, std::string>& fields);
PyObject* call_hook(const char* module, const char* name, PyObject* const* args, size_t count);
PyObject* py_put(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* py_get(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* py_wait(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* py_on_ready(PyObject*, PyObject* args);
/// Makes sure that the callback is called: without arguments when the runtime says its cookie, or with the
/// exception of a wait that the connection's end cut short. False with a Python error set.
bool start_callback(const Call& call, PyObject* callback, uint64_t* cookie);

// --- tasks (tasks.cc) ---
bool tasks_init(PyObject* module);
bool spec_from_options(PyObject* options, worker::TaskSpec& spec, int64_t* arity_min, int64_t* arity_max,
                       PyObject** check);
/// Arguments of a call; false with a Python error set.
bool build_arguments(Runtime& runtime, PyObject* const* args, size_t count, PyObject* keyword_names,
                     std::vector<worker::Argument>& out, std::vector<Entry*>& pinned);
/// Puts the function's name into the error of an argument that cannot be pickled.
void blame_argument_of(const std::string& function);
bool check_arity(PyObject* check, int64_t arity_min, int64_t arity_max, PyObject* const* args, size_t count,
                 PyObject* keyword_names);
PyObject* wrap_returns(Runtime& runtime, const worker::TaskSpec& spec, Runtime::Submitted submitted);
bool resources_from(PyObject* dict, wire::Resources& out);
PyObject* py_cancel(PyObject*, PyObject* args);

// --- actors (actors.cc) ---
bool actors_init(PyObject* module);
PyObject* py_create_actor(PyObject*, PyObject* args);
PyObject* py_get_named_actor(PyObject*, PyObject* args);
PyObject* py_list_named_actors(PyObject*, PyObject* args);
PyObject* py_kill_actor(PyObject*, PyObject* args);
PyObject* py_restore_actor(PyObject*, PyObject* args);
PyObject* new_actor_core(Runtime& runtime, const wire::ActorInfo& info, Entry* handle);

// --- worker (worker.cc) ---
bool worker_init(PyObject* module);
PyObject* py_run_worker(PyObject*, PyObject* args);
PyObject* py_context(PyObject*, PyObject*);
PyObject* py_look(PyObject*, PyObject* timeout);
PyObject* py_is_cancelled(PyObject*, PyObject*);
PyObject* py_current_actor(PyObject*, PyObject*);
/// The task that the current thread runs; nil outside.
TaskId current_task_id();
/// Puts what names no strategy of its own into the group that captures the children of what runs here.
bool inherit_group(std::string& scheduling);

}  // namespace skate::bindings
