// How much memory the object store takes by default: 30 % of the least of what the machine has available
// and what the control groups (v1 and v2, with all their ancestors that are visible) allow.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace skate::store {

/// A field of /proc/meminfo in bytes.
std::optional<uint64_t> parse_meminfo_bytes(std::string_view meminfo, std::string_view field);
/// memory.max or memory.limit_in_bytes; nothing for "max", for v1's huge "no limit", and for nonsense.
std::optional<uint64_t> parse_cgroup_limit_bytes(std::string_view text);
/// The files that may hold a limit for a process whose /proc/self/cgroup reads `cgroups`, the group's
/// ancestors included.
std::vector<std::string> cgroup_limit_files(std::string_view cgroups,
                                            const std::string& mount = "/sys/fs/cgroup");

struct MemoryFacts {
  std::optional<uint64_t> available_bytes;
  std::optional<uint64_t> total_bytes;
  std::vector<uint64_t> limits_bytes;
};
uint64_t capacity_bytes_for(const MemoryFacts& facts);

/// Reads the facts of this process and machine.
MemoryFacts read_memory_facts();
uint64_t default_capacity_bytes();

}  // namespace skate::store
