// The connection of this process: starting or joining a cluster, leaving it, asking the control service.
#include <dlfcn.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "bindings/bindings.h"
#include "wire/archive.h"

namespace skate::bindings {

namespace {

uint64_t epoch = 0;
std::string job_runtime_env;

constexpr int kStartTimeoutMs = 30'000;

std::string text_of(PyObject* dict, const char* name) {
  PyObject* value = PyDict_GetItemString(dict, name);
  if (value == nullptr || !PyUnicode_Check(value)) return {};
  Py_ssize_t size;
  const char* text = PyUnicode_AsUTF8AndSize(value, &size);
  return text == nullptr ? std::string() : std::string(text, static_cast<size_t>(size));
}

/// Python data that JSON knows, by Python's own json module.
std::string json_of(PyObject* value) {
  Object text(call_hook("json", "dumps", &value, 1));
  const char* utf8 = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  return utf8 == nullptr ? std::string() : std::string(utf8);
}

std::string daemon_path() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&daemon_path), &info) == 0 || info.dli_fname == nullptr) return "skated";
  std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/')) + "/bin/skated";
}

bool add_number(PyObject* config, const char* name, const char* option, std::vector<std::string>& out) {
  PyObject* value = PyDict_GetItemString(config, name);
  if (value == nullptr || value == Py_None) return true;
  Object text(PyObject_Str(value));
  const char* utf8 = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  if (utf8 == nullptr) return false;
  out.insert(out.end(), {option, utf8});
  return true;
}

bool add_json(PyObject* config, const char* name, const char* option, std::vector<std::string>& out) {
  PyObject* value = PyDict_GetItemString(config, name);
  if (value == nullptr || value == Py_None || PyObject_Size(value) == 0) return true;
  std::string json = json_of(value);
  if (json.empty()) return false;
  out.insert(out.end(), {option, json});
  return true;
}

bool node_arguments(PyObject* config, std::vector<std::string>& out) {
  if (!add_number(config, "num_cpus", "--num-cpus", out) ||
      !add_number(config, "num_gpus", "--num-gpus", out) ||
      !add_number(config, "object_store_memory", "--object-store-memory", out) ||
      !add_number(config, "memory", "--memory", out) || !add_json(config, "resources", "--resources", out) ||
      !add_json(config, "labels", "--labels", out) || !add_json(config, "preload_modules", "--preload", out))
    return false;
  for (auto [name, option] :
       {std::pair{"python_executable", "--python"}, std::pair{"node_name", "--node-name"},
        std::pair{"spill_dir", "--spill-dir"}, std::pair{"node_ip_address", "--node-ip"}}) {
    std::string text = text_of(config, name);
    if (!text.empty()) out.insert(out.end(), {option, text});
  }
  nlohmann::json settings = nlohmann::json::object();
  PyObject* limit = PyDict_GetItemString(config, "inline_limit_bytes");
  if (limit != nullptr && limit != Py_None) settings["inline_limit_bytes"] = PyLong_AsLongLong(limit);
  settings["logging_config"] = text_of(config, "logging_config");
  out.insert(out.end(), {"--config", settings.dump()});
  return PyErr_Occurred() == nullptr;
}

PyObject* id_bytes(const uint8_t* data, size_t size) {
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(data), static_cast<Py_ssize_t>(size));
}

PyObject* fail_connect(const Error& error) {
  PyErr_SetString(PyExc_ConnectionError, error.message.c_str());
  return nullptr;
}

void begin_epoch() {
  ++epoch;
  wait_pass.first = ++wait_pass.current;
}

}  // namespace

WaitPass wait_pass{0, 0};
Connection* current_connection = nullptr;

uint64_t connection_epoch() { return epoch; }
const std::string& default_runtime_env() { return job_runtime_env; }

Runtime* require_runtime() {
  if (current_connection == nullptr) {
    PyErr_SetString(PyExc_RuntimeError,
                    "this process is not connected to a cluster: call skate.init() first");
    return nullptr;
  }
  if (current_connection->runtime->in_forked_child()) {
    PyErr_SetString(PyExc_RuntimeError, kForkedText);
    return nullptr;
  }
  return current_connection->runtime.get();
}

Call enter_if_connected() { return Call(current_connection); }

void Call::forget(Connection* connection) {
  if (connection->runtime->in_forked_child()) return;  // the parent's: its memory is partly not ours
  delete connection;
}

bool raise_shut_down() {
  raise_system_error("shut_down", {});
  return false;
}

PyObject* raise_ended(Runtime& runtime) {
  if (!still_connected(runtime)) return nullptr;
  const wire::Death reason = runtime.exit_reason();
  if (reason.kind == wire::DeathKind::kNodeLost)
    return raise_system_error("node_died",
                              {{"message", reason.message + ", and with it all tasks, actors and objects; "
                                                            "call skate.shutdown() and then skate.init()"}});
  PyErr_SetString(PyExc_RuntimeError, "the connection to the cluster has ended");
  return nullptr;
}

void set_job_json(const std::string& job_json) {
  job_runtime_env.clear();
  nlohmann::json job = nlohmann::json::parse(job_json, nullptr, false);
  if (job.is_object() && job.contains("runtime_env") && job["runtime_env"].is_string())
    job_runtime_env = job["runtime_env"].get<std::string>();
}

bool adopt_connection(std::unique_ptr<Connection> connection) {
  if (current_connection != nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "this process is connected already");
    return false;
  }
  begin_epoch();
  Runtime& runtime = *connection->runtime;
  nlohmann::json config = nlohmann::json::parse(runtime.welcome().config_json, nullptr, false);
  if (config.is_object() && config.contains("inline_limit_bytes") &&
      config["inline_limit_bytes"].is_number_unsigned())
    runtime.set_inline_limit(config["inline_limit_bytes"].get<uint64_t>());
  current_connection = connection.release();
  return true;
}

bool interrupted() {
  PyGILState_STATE state = take_gil([] { return PyGILState_Ensure(); });
  bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

void set_error(Runtime& runtime, const Error& error) {
  switch (error.code) {
    case ErrorCode::kTimeout: raise_system_error("get_timeout", {{"message", error.message}}); return;
    case ErrorCode::kInvalid: PyErr_SetString(PyExc_ValueError, error.message.c_str()); return;
    case ErrorCode::kCancelled:
      if (PyErr_Occurred() == nullptr && PyErr_CheckSignals() == 0) raise_ended(runtime);
      return;
    default: raise_system_error("system", {{"message", error.message}});
  }
}

PyObject* py_connect(PyObject*, PyObject* config) {
  if (!PyDict_Check(config)) return PyErr_Format(PyExc_TypeError, "connect takes a dict");
  if (current_connection != nullptr && current_connection->runtime->in_forked_child())
    return PyErr_Format(PyExc_RuntimeError, kForkedText);
  if (current_connection != nullptr)
    return PyErr_Format(PyExc_RuntimeError, "this process is connected already");
  std::string address = text_of(config, "address");
  std::string socket_path;
  auto connection = std::make_unique<Connection>();
  if (address.empty() || address == "local") {
    worker::LocalClusterOptions options;
    options.skated = daemon_path();
    options.session_base = text_of(config, "session_dir_base");
    if (options.session_base.empty()) {
      const char* tmp = std::getenv("TMPDIR");
      options.session_base = std::string(tmp != nullptr && *tmp != '\0' ? tmp : "/tmp") + "/skate";
      if (geteuid() != 0) options.session_base += "-" + std::to_string(geteuid());
    }
    if (!node_arguments(config, options.node_arguments)) return nullptr;
    options.send_twice = PyDict_GetItemString(config, "send_twice") == Py_True;
    Error failure;
    bool failed = false;
    {
      WithoutGil released;
      Result<std::unique_ptr<worker::LocalCluster>> prepared = worker::LocalCluster::prepare(options);
      if (prepared.ok()) {
        connection->cluster = std::move(*prepared);
        if (Result<void> started = connection->cluster->start(kStartTimeoutMs); !started.ok()) {
          failure = started.error();
          failed = true;
          connection->cluster.reset();
        }
      } else {
        failure = prepared.error();
        failed = true;
      }
    }
    if (failed) return fail_connect(failure);
    socket_path = connection->cluster->socket_path();
  } else if (address == "auto") {
    return fail_connect(
        {ErrorCode::kNotFound,
         "could not find any running Skate cluster on this machine: leave the address out to start one, or "
         "name one by init(address=...) or the environment variable SKATE_ADDRESS"});
  } else {
    socket_path = address;
    if (socket_path.starts_with("unix:")) socket_path.erase(0, 5);
    if (!socket_path.ends_with("/node.sock"))
      socket_path = socket_path.substr(0, socket_path.rfind("/control.sock")) + "/node.sock";
    if (access(socket_path.c_str(), F_OK) != 0)
      return fail_connect(
          {ErrorCode::kNotFound, "no cluster answers at '" + address +
                                     "': pass the session directory of a cluster on this machine"});
  }
  std::string session_dir = socket_path.substr(0, socket_path.rfind('/'));
  if (PyObject* prepare = PyDict_GetItemString(config, "prepare"); prepare != nullptr && prepare != Py_None) {
    Object directory(PyUnicode_FromString(session_dir.c_str()));
    Object done(directory ? PyObject_CallOneArg(prepare, directory.get()) : nullptr);
    if (!done) return nullptr;
  }
  worker::ConnectOptions options;
  options.socket_path = socket_path;
  options.hello.version = SKATE_VERSION;
  options.hello.kind = wire::ProcessKind::kDriver;
  options.hello.pid = static_cast<int32_t>(getpid());
  options.hello.language = "python";
  options.hello.name_space = text_of(config, "namespace");
  nlohmann::json job;
  job["runtime_env"] = text_of(config, "runtime_env");
  job["script_dir"] = text_of(config, "script_dir");
  job["cwd"] = text_of(config, "cwd");
  job["logging_config"] = text_of(config, "logging_config");
  for (const char* name : {"sys_path", "job_metadata"}) {
    PyObject* value = PyDict_GetItemString(config, name);
    if (value == nullptr || value == Py_None) continue;
    std::string json = json_of(value);
    if (json.empty()) return nullptr;
    job[name] = nlohmann::json::parse(json, nullptr, false);
  }
  options.hello.job_json = job.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  PyObject* logs = PyDict_GetItemString(config, "log_to_driver");
  options.hello.log_to_driver = logs != nullptr && PyObject_IsTrue(logs) == 1;
  Result<std::unique_ptr<Runtime>> connected = [&] {
    WithoutGil released;
    return Runtime::connect(options);
  }();
  if (!connected.ok()) return fail_connect(connected.error());
  connection->runtime = std::move(*connected);
  if (!adopt_connection(std::move(connection))) return nullptr;
  set_job_json(options.hello.job_json);
  const wire::Welcome& welcome = current_connection->runtime->welcome();
  std::string session_name = welcome.session_dir.substr(welcome.session_dir.rfind('/') + 1);
  return Py_BuildValue("{s:s,s:s,s:s,s:N,s:N,s:s,s:s,s:K,s:s}", "node_id", welcome.node.hex().c_str(),
                       "session_dir", welcome.session_dir.c_str(), "session_name", session_name.c_str(),
                       "job_id", id_bytes(welcome.job.data(), JobId::kSize), "worker_id",
                       id_bytes(welcome.worker.data(), WorkerId::kSize), "node_ip_address",
                       welcome.node_ip.c_str(), "gcs_address", welcome.control_address.c_str(),
                       "object_store_bytes", static_cast<unsigned long long>(welcome.store_capacity_bytes),
                       "version", SKATE_VERSION);
}

PyObject* py_disconnect(PyObject*, PyObject*) {
  if (current_connection == nullptr || current_connection->runtime->in_forked_child()) Py_RETURN_NONE;
  Call last = enter_if_connected();
  last.connection()->ended = true;
  current_connection = nullptr;
  begin_epoch();
  job_runtime_env.clear();
  {
    WithoutGil released;
    last->stop();
    last.connection()->cluster.reset();
  }
  Py_RETURN_NONE;
}

PyObject* py_is_connected(PyObject*, PyObject*) { return PyBool_FromLong(current_connection != nullptr); }

PyObject* py_in_forked_child(PyObject*, PyObject*) {
  return PyBool_FromLong(current_connection != nullptr && current_connection->runtime->in_forked_child());
}

namespace {

/// A control call that Ctrl-C may interrupt, and that may take `longer` than others.
Result<std::string> ask_control(Runtime& runtime, wire::ControlMethod method, const std::string& body,
                                Clock::duration longer = {}) {
  WithoutGil released;
  return runtime.control_call(method, body, Clock::now() + std::chrono::seconds(60) + longer, interrupted);
}

Result<wire::PlacementGroupRequest> group_request(const Runtime& runtime, const nlohmann::json& arguments,
                                                  bool is_new) {
  wire::PlacementGroupRequest out;
  secure_random_bytes(reinterpret_cast<uint8_t*>(&out.key), sizeof out.key);
  out.job = runtime.job();
  out.name_space = runtime.welcome().name_space;
  out.creator = runtime.self().worker;
  if (arguments.contains("by_name")) {
    out.group = PlacementGroupId::nil();
    out.name = arguments.value("by_name", "");
    return out;
  }
  if (!is_new) {
    std::optional<PlacementGroupId> group = PlacementGroupId::parse_hex(arguments.value("id", ""));
    if (!group) return Error{ErrorCode::kInvalid, "that is no id of a placement group"};
    out.group = *group;
    out.wait_ms = arguments.value("wait_ms", int64_t{0});
    return out;
  }
  out.group = PlacementGroupId::random();
  std::memcpy(out.group.data() + PlacementGroupId::kSize - JobId::kSize, out.job.data(), JobId::kSize);
  try {
    out.name = arguments.value("name", "");
    out.strategy = arguments.value("strategy", "PACK");
    out.detached = arguments.value("detached", false);
    if (const std::string target = arguments.value("soft_target_node_id", ""); !target.empty())
      out.soft_target = NodeId::parse_hex(target).value_or(NodeId::nil());
    for (const nlohmann::json& selector : arguments.at("bundle_label_selector"))
      out.bundle_labels.push_back(selector.get<std::map<std::string, std::string>>());
    for (const nlohmann::json& bundle : arguments.at("bundles")) {
      wire::Resources resources;
      for (const auto& [name, amount] : bundle.items())
        resources[name] = std::llround(amount.get<double>() * wire::kResourceUnit);
      out.bundles.push_back(std::move(resources));
    }
  } catch (const nlohmann::json::exception& error) {
    return Error{ErrorCode::kInvalid, error.what()};
  }
  return out;
}

/// "pg_create", "pg_remove", "pg_get" (by name) and "pg_wait" are requests of their own. "pg_wait" is
/// answered when the group is there or after "wait_ms".
Result<std::string> ask_group(Runtime& runtime, std::string_view method, const std::string& payload) {
  nlohmann::json arguments = nlohmann::json::parse(payload, nullptr, false);
  if (!arguments.is_object()) return Error{ErrorCode::kInvalid, "the arguments are no JSON object"};
  bool is_new = method == "pg_create";
  Result<wire::PlacementGroupRequest> request = group_request(runtime, arguments, is_new);
  if (!request.ok()) return request.error();
  wire::ControlMethod asked = is_new                  ? wire::ControlMethod::kCreatePlacementGroup
                              : method == "pg_remove" ? wire::ControlMethod::kRemovePlacementGroup
                                                      : wire::ControlMethod::kGetPlacementGroup;
  Result<std::string> reply =
      ask_control(runtime, asked, wire::encode(*request), std::chrono::milliseconds(request->wait_ms));
  if (!reply.ok() && method == "pg_get" && reply.error().code == ErrorCode::kNotFound)
    return std::string("null");
  if (!reply.ok()) return reply.error();
  Result<wire::PlacementGroupReply> group = wire::decode<wire::PlacementGroupReply>(*reply);
  if (!group.ok()) return group.error();
  return nlohmann::json{{"id", group->group.hex()}, {"state", group->state}}.dump();
}

}  // namespace

PyObject* py_control_call(PyObject*, PyObject* args) {
  const char *method, *payload;
  if (!PyArg_ParseTuple(args, "ss:control_call", &method, &payload)) return nullptr;
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  std::string_view name = method;
  if (name == "pg_create" || name == "pg_remove" || name == "pg_wait" || name == "pg_get") {
    Result<std::string> json = ask_group(*runtime, name, payload);
    if (json.ok()) return PyUnicode_FromStringAndSize(json->data(), static_cast<Py_ssize_t>(json->size()));
    set_error(*runtime, json.error());
    return nullptr;
  }
  Result<std::string> reply = ask_control(*runtime, wire::ControlMethod::kClusterInfo,
                                          wire::encode(wire::ClusterInfo{method, payload}));
  if (!reply.ok()) {
    set_error(*runtime, reply.error());
    return nullptr;
  }
  Result<wire::ClusterInfoReply> info = wire::decode<wire::ClusterInfoReply>(*reply);
  if (!info.ok()) {
    set_error(*runtime, info.error());
    return nullptr;
  }
  return PyUnicode_DecodeUTF8(info->json.data(), static_cast<Py_ssize_t>(info->json.size()), "replace");
}

/// _kv(operation: int, key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> (found, value, keys)
PyObject* py_kv(PyObject*, PyObject* args) {
  int operation, overwrite;
  const char *key, *value, *name_space;
  Py_ssize_t key_size, value_size, space_size;
  if (!PyArg_ParseTuple(args, "iy#y#py#:_kv", &operation, &key, &key_size, &value, &value_size, &overwrite,
                        &name_space, &space_size))
    return nullptr;
  Call runtime = enter();
  if (runtime == nullptr) return nullptr;
  wire::Kv request;
  secure_random_bytes(reinterpret_cast<uint8_t*>(&request.key), sizeof request.key);
  request.operation = static_cast<wire::KvOperation>(operation);
  request.name.assign(key, static_cast<size_t>(key_size));
  request.value.assign(value, static_cast<size_t>(value_size));
  request.name_space.assign(name_space, static_cast<size_t>(space_size));
  request.overwrite = overwrite != 0;
  Result<std::string> reply = ask_control(*runtime, wire::ControlMethod::kKv, wire::encode(request));
  Result<wire::KvReply> decoded =
      reply.ok() ? wire::decode<wire::KvReply>(*reply) : Result<wire::KvReply>(reply.error());
  if (!decoded.ok()) {
    set_error(*runtime, decoded.error());
    return nullptr;
  }
  Object keys(PyList_New(0));
  for (const std::string& name : decoded->keys) {
    Object item(PyBytes_FromStringAndSize(name.data(), static_cast<Py_ssize_t>(name.size())));
    if (!keys || !item || PyList_Append(keys.get(), item.get()) != 0) return nullptr;
  }
  return Py_BuildValue("(Oy#N)", decoded->found || decoded->erased != 0 ? Py_True : Py_False,
                       decoded->value.data(), static_cast<Py_ssize_t>(decoded->value.size()), keys.release());
}

PyObject* py_flush_logs(PyObject*, PyObject* timeout) {
  Call runtime = enter_if_connected();
  bool failed;
  Clock::time_point until = deadline_of(timeout, &failed);
  if (failed) return nullptr;
  bool whole = true;
  if (runtime != nullptr && !runtime->in_forked_child()) {
    WithoutGil released;
    whole = runtime->flush_logs(until);
  }
  return PyBool_FromLong(whole);
}

PyObject* py_next_log_batch(PyObject*, PyObject* args) {
  PyObject* timeout;
  if (!PyArg_ParseTuple(args, "O:next_log_batch", &timeout)) return nullptr;
  Call runtime = enter_if_connected();
  if (runtime == nullptr) Py_RETURN_NONE;
  bool failed;
  Clock::time_point until = deadline_of(timeout, &failed);
  if (failed) return nullptr;
  std::optional<wire::LogLines> lines;
  {
    WithoutGil released;
    lines = runtime->next_logs(until);
  }
  if (!lines) Py_RETURN_NONE;
  Object list(PyList_New(0));
  uint64_t dropped = lines->dropped;
  for (const wire::LogLine& line : lines->lines) {
    Object item(Py_BuildValue("(isOy#K)", line.pid, line.source.c_str(), line.is_stderr ? Py_True : Py_False,
                              line.text.data(), static_cast<Py_ssize_t>(line.text.size()),
                              static_cast<unsigned long long>(dropped)));
    dropped = 0;
    if (!list || !item || PyList_Append(list.get(), item.get()) != 0) return nullptr;
  }
  if (dropped != 0) {  // nothing was left to carry the count
    Object item(Py_BuildValue("(isOOK)", 0, "", Py_False, Py_None, static_cast<unsigned long long>(dropped)));
    if (!list || !item || PyList_Append(list.get(), item.get()) != 0) return nullptr;
  }
  return list.release();
}

}  // namespace skate::bindings
