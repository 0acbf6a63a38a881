// What this machine lets us use: CPUs, memory, GPUs; and whether the kernel killed something for memory.
//
// Reads /proc, /sys and the environment when asked; keeps nothing but paths. Home: the daemon's loop.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace skate::node {

/// The least of the affinity mask and the cgroup's quota (v1 and v2), at least 1.
double usable_cpus();

struct Gpus {
  std::vector<uint32_t> ids;  ///< as the driver counts them, or as CUDA_VISIBLE_DEVICES names them
};
Gpus usable_gpus();

struct MemoryState {
  uint64_t limit_bytes{};      ///< the least of the machine's and the cgroup's
  uint64_t available_bytes{};  ///< before either is reached
};
MemoryState memory_state();

/// Sum of the kernel's counts of processes killed for memory: in our cgroup, and in the whole machine.
class OomCounter {
 public:
  OomCounter();
  uint64_t read() const;
  /// True, once, when the count has grown since the last call.
  bool grew();

 private:
  std::vector<std::string> files_;  ///< memory.events, memory.oom_control
  uint64_t last_;
};

struct ProcessMemory {
  uint64_t resident_bytes{};
  uint64_t private_bytes{};  ///< resident less what is shared with others
};
std::optional<ProcessMemory> memory_of(pid_t pid);

struct ProcessEntry {
  pid_t pid{}, parent{}, session{};
  char state{};  ///< as in /proc: 'Z' for a zombie
};
/// All processes that we can see.
std::vector<ProcessEntry> process_table();
/// All descendants of `roots`, children before grandchildren; without the roots.
std::vector<pid_t> descendants_of(const std::vector<pid_t>& roots);
/// What a process had in its environment when it was executed.
std::optional<std::string> environment_of(pid_t pid, const std::string& name);

/// "1.5 GiB"
std::string human_bytes(uint64_t bytes);

}  // namespace skate::node
