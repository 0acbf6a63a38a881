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

/// The instances that such a variable names; nullopt: it is not set. One that is no number is known by its
/// place.
std::optional<std::vector<uint32_t>> visible_devices(const char* variable);
/// As CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES names them, or as NVIDIA's or AMD's driver counts them.
std::vector<uint32_t> usable_gpus();

struct MemoryState {
  uint64_t limit_bytes{};      ///< the least of the machine's and the cgroup's
  uint64_t available_bytes{};  ///< before either is reached
};
MemoryState memory_state();

/// Tells whose SIGKILL was the kernel's, for want of memory: as many deaths as it counts kills, in our cgroup
/// or in the whole machine, and only shortly after they were counted.
class OomKills {
 public:
  OomKills();
  /// True when a kill is left that no death has claimed yet.
  bool claim(int64_t now_us);

 private:
  struct Count {
    std::string path;  ///< memory.events, memory.oom_control or vmstat: each counts the same kill
    uint64_t last{};
  };
  std::vector<Count> counts_;
  uint64_t unclaimed_ = 0;
  int64_t counted_us_ = 0;
};
/// From 1000 (the kernel ends this one first) to -1000 (never). Silently less where it is not allowed.
void set_oom_score(pid_t pid, int score);

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
