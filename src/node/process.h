// One process of this node as the daemon knows it: a driver, or a worker from its start to its end.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "node/scheduler/scheduler.h"
#include "node/worker_log.h"
#include "rpc/link.h"
#include "rt/fd.h"
#include "rt/loop.h"
#include "wire/node_messages.h"

namespace skate::node {

inline wire::Death death_of(wire::DeathKind kind, std::string message, pid_t pid = 0) {
  wire::Death out;
  out.kind = kind;
  out.pid = pid;
  out.message = std::move(message);
  return out;
}

struct Process {
  ProcessNumber number{};
  wire::ProcessKind kind{};
  WorkerId id;
  JobId job;
  PoolKey pool;  ///< of a worker
  pid_t pid{-1};
  bool registered{};                        ///< Welcome has been sent
  bool ready{};                             ///< a worker: its set-up is done
  bool ending{};                            ///< its death is being dealt with
  std::shared_ptr<rt::ProcessWatch> watch;  ///< owned by this and by the task that awaits the end
  uint32_t slot{};
  uint32_t daemon_link{};
  uint32_t store_slot{};
  std::unique_ptr<rpc::Link> link;
  std::map<ProcessNumber, uint32_t>
      links;  ///< by peer; this process is side 0 where the peer's number is larger
  bool log_to_driver{};
  std::unique_ptr<WorkerLog> log;
  std::pair<UniqueFd, UniqueFd> stdio;       ///< the worker's ends, until it runs
  std::unique_ptr<rt::Timer> setup_limit;    ///< of its set-up hook, until it is ready
  std::optional<wire::Death> cause;          ///< known before its end: who ended it, and why
  bool declined_exit{};                      ///< since it was last asked
  std::vector<ProcessNumber> refused_later;  ///< asked for a link while it was ending
  uint64_t first_sequence{};                 ///< of its tasks
  // of an actor's worker
  uint64_t actor_number{};  ///< 0: none
};

}  // namespace skate::node
