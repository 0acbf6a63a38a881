// The module's own state and the types that its files share. Everything here needs the GIL unless said.
//
// The module holds one connection (a Runtime) per process, as the API has it. Refs remember the epoch of the
// connection that they belong to: after a disconnect they keep their ids and hold nothing.
#pragma once

#include <Python.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/codec.h"
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

struct WithoutGil {
  WithoutGil() : state(PyEval_SaveThread()) {}
  ~WithoutGil() { PyEval_RestoreThread(state); }
  PyThreadState* state;
};

// --- connection (connect.cc) ---
/// What a forked child is told whose parent is connected; the module's FORKED_TEXT.
inline constexpr const char* kForkedText =
    "this process was forked from one that is connected, and can neither use its connection nor make one: "
    "start it with the 'spawn' method of multiprocessing (arrays that were read before may still be read)";
/// The runtime, or null with RuntimeError set (not connected; or in a forked child).
Runtime* require_runtime();
Runtime* runtime_or_null();
std::shared_ptr<Runtime> runtime_shared();
uint64_t connection_epoch();
/// Waits are numbered through all connections, under the GIL: `current` is the last one's number, `first`
/// that of the first one of this connection.
struct WaitPass {
  uint64_t current, first;
};
extern WaitPass wait_pass;
void adopt_runtime(std::unique_ptr<Runtime> runtime);
const std::string& default_runtime_env();
void set_job_json(const std::string& job_json);
/// Whether a signal's handler raised; for waits without the GIL.
bool interrupted();
/// Sets the Python exception for an Error of the runtime's.
void set_error(const Error& error);
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
/// Takes over one handle of `entry`.
PyObject* new_ref(Entry* entry);
/// The entry of a ref of the current connection; null with a Python error set.
Entry* entry_of(PyObject* ref);
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
/// Waits for entries; false with a Python error set (signal or timeout).
bool wait_for(Runtime& runtime, std::span<Entry* const> entries, size_t count, Clock::time_point until,
              bool* timed_out);
Clock::time_point deadline_of(PyObject* timeout, bool* failed);
PyObject* raise_system_error(const char* kind, const std::map<std::string, std::string>& fields);
PyObject* call_hook(const char* module, const char* name, PyObject* const* args, size_t count);
PyObject* py_put(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* py_get(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* py_wait(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* py_on_ready(PyObject*, PyObject* args);
bool start_callback(PyObject* callback, uint64_t* cookie);

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
PyObject* wrap_returns(const worker::TaskSpec& spec, Runtime::Submitted submitted);
bool resources_from(PyObject* dict, wire::Resources& out);
PyObject* py_cancel(PyObject*, PyObject* args);

// --- actors (actors.cc) ---
bool actors_init(PyObject* module);
PyObject* py_create_actor(PyObject*, PyObject* args);
PyObject* py_get_named_actor(PyObject*, PyObject* args);
PyObject* py_list_named_actors(PyObject*, PyObject* args);
PyObject* py_kill_actor(PyObject*, PyObject* args);
PyObject* py_restore_actor(PyObject*, PyObject* args);
PyObject* new_actor_core(const wire::ActorInfo& info, Entry* handle);

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
