#include "store/capacity.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

namespace skate::store {
namespace {

constexpr uint64_t kLeastBytes = 64ull << 20;
constexpr uint64_t kMostBytes = 1ull << 40;
constexpr uint64_t kNoLimitFrom = 1ull << 60;  // v1 says "no limit" with a number near 2^63

std::optional<std::string> read_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  return value;
}

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1);
}

/// Calls `fn` with each line.
template <class Fn>
void each_line(std::string_view text, Fn&& fn) {
  while (!text.empty()) {
    const size_t end = text.find('\n');
    fn(text.substr(0, end));
    if (end == std::string_view::npos) return;
    text.remove_prefix(end + 1);
  }
}

}  // namespace

std::optional<uint64_t> parse_meminfo_bytes(std::string_view meminfo, std::string_view field) {
  std::optional<uint64_t> found;
  each_line(meminfo, [&](std::string_view line) {
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || line.substr(0, colon) != field) return;
    const auto kib = parse_number(trimmed(line.substr(colon + 1)));
    if (kib && *kib < kNoLimitFrom / 1024) found = *kib * 1024;
  });
  return found;
}

std::optional<uint64_t> parse_cgroup_limit_bytes(std::string_view text) {
  const auto value = parse_number(trimmed(text));
  if (!value || *value == 0 || *value >= kNoLimitFrom) return std::nullopt;
  return value;
}

std::vector<std::string> cgroup_limit_files(std::string_view cgroups, const std::string& mount) {
  std::vector<std::string> files;
  each_line(cgroups, [&](std::string_view line) {
    const size_t first = line.find(':');
    const size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) return;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    std::string_view group = line.substr(second + 1);
    const bool v2 = controllers.empty();
    const bool v1 = ("," + std::string(controllers) + ",").find(",memory,") != std::string::npos;
    if ((!v1 && !v2) || group.empty() || group.front() != '/') return;
    const std::string file = v2 ? "/memory.max" : "/memory.limit_in_bytes";
    // In a container the group may be mounted as the root: look at every ancestor, up to "".
    for (;;) {
      if (group == "/") group = {};
      if (v2) {
        files.push_back(mount + std::string(group) + file);
        files.push_back(mount + "/unified" + std::string(group) + file);
      } else {
        files.push_back(mount + "/memory" + std::string(group) + file);
      }
      if (group.empty()) break;
      group = group.substr(0, group.rfind('/'));
    }
  });
  return files;
}

uint64_t capacity_bytes_for(const MemoryFacts& facts) {
  uint64_t least = kMostBytes;
  bool known = false;
  auto consider = [&](uint64_t bytes) {
    least = std::min(least, bytes);
    known = true;
  };
  if (facts.available_bytes) consider(*facts.available_bytes);
  if (facts.total_bytes) consider(*facts.total_bytes);
  for (const uint64_t limit : facts.limits_bytes) consider(limit);
  if (!known) return kLeastBytes;
  const uint64_t share = least / 10 * 3;
  return std::clamp(share, std::min(kLeastBytes, least / 2), kMostBytes) / 65536 * 65536;
}

MemoryFacts read_memory_facts() {
  MemoryFacts facts;
  if (const auto meminfo = read_file("/proc/meminfo")) {
    facts.available_bytes = parse_meminfo_bytes(*meminfo, "MemAvailable");
    facts.total_bytes = parse_meminfo_bytes(*meminfo, "MemTotal");
  }
  if (const auto cgroups = read_file("/proc/self/cgroup")) {
    for (const std::string& path : cgroup_limit_files(*cgroups)) {
      const auto text = read_file(path);
      if (!text) continue;
      if (const auto limit = parse_cgroup_limit_bytes(*text)) facts.limits_bytes.push_back(*limit);
    }
  }
  return facts;
}

uint64_t default_capacity_bytes() {
  return std::max<uint64_t>(capacity_bytes_for(read_memory_facts()), 65536);
}

}  // namespace skate::store
