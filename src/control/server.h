// ControlServer: the control service of a cluster. Feeds the core with what node daemons send, logs what it
// decides, then answers and pushes. All on one loop; writing to disk in a pool.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "control/core/control_core.h"
#include "rpc/key.h"
#include "rt/task.h"

namespace skate::rt {
class Network;
}  // namespace skate::rt

namespace skate::control {

class Storage;

struct ControlOptions {
  std::string listen;  ///< unix:PATH or tcp:HOST:PORT
  rpc::ClusterKey key;
  std::string release;
  std::string session_name{};
  std::string config_json{};
  std::string sqlite_path{};  ///< empty: tables in memory
  int64_t node_grace_ms = 10'000;
  bool send_twice = false;     ///< for tests: commands to nodes go out twice
  int32_t watch_pid = 0;       ///< ends when this process does; 0: none
  int ready_fd = -1;           ///< gets the bound address and a newline, then is closed
  bool handle_signals = true;  ///< SIGTERM and SIGINT end run()
  std::function<void(std::string)> log{};
};

class ControlServer {
 public:
  explicit ControlServer(ControlOptions options);
  ~ControlServer();

  /// Serves until a signal, the end of watch_pid, or stop(). An error says why it could not begin.
  Result<void> run();
  /// From any thread.
  void stop();

 private:
  ControlOptions options_;
  std::unique_ptr<rt::Loop> loop_;
};

/// The service on a given loop, network and storage: what run() puts together, and what simulation uses.
class ControlService {
 public:
  ControlService(rt::Loop& loop, rt::Network& network, Storage& storage, const ControlOptions& options);
  ~ControlService();
  /// Recovers, then listens; returns the bound address.
  Result<std::string> start(const std::string& address);
  /// Tells every connected node to shut down, and waits until they are gone, for at most a second.
  rt::Task<void> shut_down_nodes();
  const ControlCore& core() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace skate::control
