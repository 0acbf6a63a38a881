// What a node daemon is told at its start. Filled by src/bin, never global.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "node/scheduler/resource_book.h"

namespace skate::node {

struct NodeOptions {
  std::string session_dir;      ///< 0700; the socket, the logs and spilled objects live in it
  std::string control_address;  ///< as rt::Network takes it
  std::string key_file;
  std::string node_name;
  std::string node_ip = "127.0.0.1";
  std::string python = "python3";
  std::string spill_dir;           ///< empty: <session_dir>/spill
  std::string config_json = "{}";  ///< handed to every process in its Welcome
  std::vector<std::string> preload = {"skate", "skate._skate", "cloudpickle"};
  double num_cpus = 0;          ///< below zero or zero: what the machine has
  bool num_cpus_given = false;  ///< then zero is zero
  ResourceInstances instances;  ///< of unit resources, GPUs first of all
  Resources resources;          ///< custom ones and memory; CPU is set from num_cpus
  std::map<std::string, std::string> labels;
  uint64_t object_store_bytes = 0;  ///< zero: 30 % of what is available
  bool is_head = false;
  bool send_twice = false;  ///< for tests: rpc::ClientOptions::send_twice towards control
  int watch_pid = 0;        ///< ends with this process, and takes the session directory with it
  int ready_fd = -1;

  // Limits, named.
  uint64_t log_file_bytes_max = 64ull << 20;  ///< per stream of a worker; one older file is kept
  uint32_t log_lines_per_s_max = 20'000;      ///< to one driver; what is more is counted and dropped
  uint64_t worker_bytes_guess = 48ull << 20;  ///< private memory of a worker, for the limit of workers
  int64_t worker_start_timeout_ms = 60'000;
  int64_t setup_timeout_s = 600;       ///< of a worker_process_setup_hook whose environment names none
  int64_t exit_grace_ms = 300;         ///< between the request to exit and SIGKILL
  int64_t idle_exit_grace_ms = 5'000;  ///< for an idle worker, which may decline
  std::function<void(const std::string&)> log = [](const std::string&) {};
};

}  // namespace skate::node
