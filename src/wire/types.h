// Types that several messages share: addresses, resources, causes of death, actor descriptions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/ids.h"

namespace skate::wire {

/// Where a process is found: its id, and the node whose daemon knows it.
struct Address {
  WorkerId worker;
  NodeId node;
  friend bool operator==(const Address&, const Address&) = default;
};

/// Resource quantities in units of 1/10000 (memory in bytes x 10000), by name: CPU, GPU, memory, custom.
using Resources = std::map<std::string, int64_t>;
inline constexpr int64_t kResourceUnit = 10000;

/// The instances behind a grant of a unit resource, e.g. {"GPU": [0, 2]}; empty for CPU and memory.
using ResourceInstances = std::map<std::string, std::vector<uint32_t>>;

enum class DeathKind : uint8_t {
  kUnknown,
  kExited,     ///< by itself, exit_code tells
  kSignalled,  ///< by a signal that Skate did not send
  kOutOfMemory,
  kNodeLost,
  kOwnerDied,      ///< its owner (driver or parent actor) is gone
  kKilled,         ///< skate.kill, or cancel(force=True)
  kIntended,       ///< idle, max_calls, shutdown, exit_actor
  kEnvironment,    ///< its runtime environment could not be built
  kConstructor,    ///< the actor's constructor raised; error_value holds the exception
  kUnschedulable,  ///< asks for what no node has
  kNeverCreated,   ///< the creator died or failed before the actor was registered
  kGroupRemoved,   ///< never begun: the placement group that it waited for was removed
  kStartFailed,    ///< never begun: the node has not what a further process needs
};

struct Death {
  DeathKind kind{};
  int32_t exit_code{};
  int32_t signal{};
  int32_t pid{};
  std::string message;      ///< one sentence for people
  std::string log_tail;     ///< what the process printed last, at most 4 KiB
  std::string error_value;  ///< flat value (wire/value.h) of an exception, when there is one
};

/// What is needed to run an actor's constructor on any node, again and again.
struct ActorSpec {
  ActorId actor;
  JobId job;
  Address owner;  ///< the creator; a detached actor outlives it
  std::string class_name;
  std::string name;  ///< empty when unnamed
  std::string name_space;
  bool detached{};
  int64_t max_restarts{};  ///< -1 is without limit
  int64_t max_task_retries{};
  int32_t max_concurrency{1};
  std::vector<std::pair<std::string, int32_t>> concurrency_groups;
  bool is_asyncio{};
  bool out_of_order{};  ///< calls may start in any order
  int64_t max_pending_calls{-1};
  Resources placement_resources;  ///< held while it is placed
  Resources resources;            ///< held while it lives
  std::string runtime_env;        ///< JSON, empty for none
  std::string scheduling;         ///< JSON of the scheduling strategy, empty for the default
  std::string class_blob;         ///< pickled class
  std::string arguments;          ///< encoded arguments, as in a task record
  std::string meta;               ///< pickled description of the methods, for handles
};

enum class ActorState : uint8_t { kPending, kAlive, kRestarting, kDead };

struct ActorInfo {
  ActorId actor;
  ActorState state{};
  Address address;          ///< valid while alive
  uint64_t incarnation{};   ///< counts the lives, from 0
  int64_t restarts_left{};  ///< -1 is without limit
  Death death;              ///< why it died or restarts
  std::string class_name;
  std::string name;
  std::string name_space;
  std::string meta;
  int64_t max_task_retries{};
  bool out_of_order{};
  int64_t max_pending_calls{-1};
  JobId job;
  int32_t pid{};
  Address owner{};  ///< nil when detached
  bool detached{};
};

}  // namespace skate::wire
