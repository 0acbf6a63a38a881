#include "bin/node_main.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bin/arena_store.h"
#include "bin/starter.h"
#include "node/node_daemon.h"
#include "wire/accelerators.h"

namespace skate::bin {
namespace {

using nlohmann::json;

rt::Task<void> serve(rt::Loop* loop, node::NodeDaemon* daemon) {
  co_await daemon->run();
  loop->stop();
}

void log_line(rt::Loop& loop, const std::string& text) {
  std::time_t seconds = loop.unix_time_ms() / 1000;
  std::tm parts{};
  localtime_r(&seconds, &parts);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%F %T", &parts);
  std::fprintf(stderr, "%s node: %s\n", stamp, text.c_str());
}

/// {"name": number} as resources; throws CLI::ValidationError for anything else.
void read_resources(const std::string& text, node::NodeOptions& options) {
  json parsed = json::parse(text, nullptr, false);
  if (!parsed.is_object()) throw CLI::ValidationError("--resources", "must be a JSON object of numbers");
  for (const auto& [name, value] : parsed.items()) {
    if (!value.is_number() || value.get<double>() < 0)
      throw CLI::ValidationError("--resources", "'" + name + "' must be a number that is not negative");
    options.resources[name] = std::llround(value.get<double>() * wire::kResourceUnit);
  }
}

/// As many as the user says: those that are visible, and what else that takes.
std::vector<uint32_t> instances_of(std::vector<uint32_t> visible, size_t count) {
  for (uint32_t id = 0; visible.size() < count; ++id)
    if (std::find(visible.begin(), visible.end(), id) == visible.end()) visible.push_back(id);
  visible.resize(count);
  return visible;
}

void read_labels(const std::string& text, node::NodeOptions& options) {
  json parsed = json::parse(text, nullptr, false);
  if (!parsed.is_object()) throw CLI::ValidationError("--labels", "must be a JSON object of strings");
  for (const auto& [name, value] : parsed.items()) {
    if (!value.is_string()) throw CLI::ValidationError("--labels", "'" + name + "' must be a string");
    options.labels[name] = value;
  }
}

void read_preload(const std::string& text, node::NodeOptions& options) {
  json parsed = json::parse(text, nullptr, false);
  if (!parsed.is_array()) throw CLI::ValidationError("--preload", "must be a JSON list of module names");
  for (const auto& module : parsed) {
    if (!module.is_string()) throw CLI::ValidationError("--preload", "must be a JSON list of module names");
    options.preload.push_back(module);
  }
}

}  // namespace

int node_main(int argc, char** argv) {
  node::NodeOptions options;
  double num_gpus = -1;
  uint64_t memory_bytes = 0;
  std::string resources = "{}", labels = "{}", preload = "[]";
  CLI::App app{"The node daemon: workers, leases and the object store of one machine", "skated node"};
  app.add_option("--session-dir", options.session_dir, "Directory of this session; created with mode 0700")
      ->required();
  app.add_option("--control", options.control_address,
                 "Address of the control service: unix:PATH or tcp:HOST:PORT")
      ->required();
  app.add_option("--key-file", options.key_file, "File with the cluster's key")->required();
  auto* cpus =
      app.add_option("--num-cpus", options.num_cpus, "CPUs to offer; default: affinity and cgroup quota");
  app.add_option("--num-gpus", num_gpus,
                 "GPUs to offer; default: what CUDA_VISIBLE_DEVICES or the driver shows");
  app.add_option("--resources", resources, "Custom resources, as JSON");
  app.add_option("--labels", labels, "Labels of the node, as JSON");
  app.add_option("--object-store-memory", options.object_store_bytes,
                 "Bytes; default: 30 % of the available memory");
  app.add_option("--memory", memory_bytes,
                 "Bytes that tasks may ask for; default: the rest of the available memory");
  app.add_option("--python", options.python, "Interpreter of the workers");
  app.add_option("--watch-pid", options.watch_pid,
                 "End, and remove the session directory, when this process ends");
  app.add_option("--ready-fd", options.ready_fd,
                 "Descriptor to which a line of JSON is written when all is ready");
  app.add_option("--node-name", options.node_name, "Name for people");
  app.add_option("--node-ip", options.node_ip, "Address of this machine, for reports");
  app.add_option("--spill-dir", options.spill_dir, "Where objects go when memory is full");
  app.add_option("--preload", preload, "Further modules of the fork server, as a JSON list");
  app.add_option("--config", options.config_json,
                 "Settings of the cluster, as JSON, handed to every process");
  app.add_flag("--send-twice", options.send_twice,
               "For tests: requests to the control service that may be repeated go out twice");
  app.add_flag("--head", options.is_head, "This is the cluster's first node");
  try {
    app.parse(argc, argv);
    read_resources(resources, options);
    read_labels(labels, options);
    read_preload(preload, options);
  } catch (const CLI::Error& error) {
    return app.exit(error);
  }
  options.num_cpus_given = cpus->count() > 0;
  if (memory_bytes > 0)
    options.resources["memory"] = static_cast<int64_t>(memory_bytes) * wire::kResourceUnit;
  std::vector<uint32_t> gpus = node::usable_gpus();
  if (const char* visible = std::getenv(wire::kAccelerators[0].variable);
      visible != nullptr && num_gpus > static_cast<double>(gpus.size())) {
    std::fprintf(
        stderr,
        "skated node: num_gpus is %g, but CUDA_VISIBLE_DEVICES (\"%s\") shows %zu: ask for fewer, or "
        "show more\n",
        num_gpus, visible, gpus.size());
    return 1;
  }
  options.instances["GPU"] =
      num_gpus < 0 ? gpus : instances_of(std::move(gpus), static_cast<size_t>(num_gpus));
  for (const wire::Accelerator& accelerator : wire::kAccelerators) {
    auto given = options.resources.find(accelerator.resource);
    if (given == options.resources.end() || given->second % wire::kResourceUnit != 0) continue;
    const auto count = static_cast<size_t>(given->second / wire::kResourceUnit);
    options.instances[accelerator.resource] =
        instances_of(node::visible_devices(accelerator.variable).value_or(std::vector<uint32_t>()), count);
  }

  std::unique_ptr<rt::Loop> loop = rt::make_loop();
  options.log = [&loop](const std::string& text) { log_line(*loop, text); };
  const int watch_pid = static_cast<int>(options.watch_pid);
  const std::string session_dir = options.session_dir;
  node::NodeDaemon daemon(*loop, std::move(options), make_arena_store);
  if (Result<void> started = daemon.start(); !started) {
    std::fprintf(stderr, "skated node: %s\n", started.error().message.c_str());
    std::error_code ignored;  // the control service removes it too
    if (watch_pid > 0 && has_ended(watch_pid)) std::filesystem::remove_all(session_dir, ignored);
    return 1;
  }
  rt::TaskGroup tasks(*loop);
  tasks.spawn(serve(loop.get(), &daemon));
  loop->run();
  return 0;
}

}  // namespace skate::bin
