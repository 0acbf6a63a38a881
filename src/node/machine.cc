#include "node/machine.h"

#include <dirent.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>
#include <utility>

#include "wire/accelerators.h"

namespace skate::node {

namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  return value;
}

std::optional<uint64_t> number_in(const std::string& path) { return parse_number(read_file(path)); }

/// The value of `key` in lines of "key value" or "key:   value kB".
std::optional<uint64_t> field(const std::string& text, std::string_view key) {
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    if (!line.starts_with(key) || line.size() <= key.size()) continue;
    size_t at = line.find_first_of("0123456789", key.size());
    if (at == std::string::npos || line.find_first_not_of(": \t", key.size()) != at) continue;
    return parse_number(std::string_view(line).substr(at));
  }
  return std::nullopt;
}

/// Directories of our cgroup from the leaf up to the mount: every one of them can hold a limit.
std::vector<std::string> cgroup_directories(const std::string& controller) {
  std::vector<std::string> out;
  auto climb = [&](const std::string& mount, std::string path) {
    while (true) {
      std::string directory = mount + (path == "/" ? "" : path);
      if (access(directory.c_str(), X_OK) == 0) out.push_back(directory);
      if (path.empty() || path == "/") break;
      path = path.substr(0, path.rfind('/'));
      if (path.empty()) path = "/";
    }
  };
  std::istringstream lines(read_file("/proc/self/cgroup"));
  std::string line;
  while (std::getline(lines, line)) {
    size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      climb("/sys/fs/cgroup", path);
      climb("/sys/fs/cgroup/unified", path);
    } else if (controllers.find("," + controller + ",") != std::string::npos) {
      climb("/sys/fs/cgroup/" + controllers.substr(1, controllers.size() - 2), path);
      climb("/sys/fs/cgroup/" + controller, path);
    }
  }
  return out;
}

}  // namespace

double usable_cpus() {
  double cpus = 1;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    cpus = CPU_COUNT(&set);
  } else {
    cpus = static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN));  // more CPUs than a cpu_set_t holds
  }
  for (const auto& directory : cgroup_directories("cpu")) {
    std::istringstream max(read_file(directory + "/cpu.max"));
    double quota = 0, period = 0;
    if (max >> quota >> period && period > 0) cpus = std::min(cpus, quota / period);  // "max" does not parse
    auto quota_v1 = number_in(directory + "/cpu.cfs_quota_us");                       // -1 does not parse
    auto period_v1 = number_in(directory + "/cpu.cfs_period_us");
    if (quota_v1 && period_v1 && *period_v1 > 0)
      cpus = std::min(cpus, static_cast<double>(*quota_v1) / static_cast<double>(*period_v1));
  }
  return std::max(1.0, cpus);
}

std::optional<std::vector<uint32_t>> visible_devices(const char* variable) {
  const char* visible = std::getenv(variable);
  if (visible == nullptr) return std::nullopt;
  std::vector<uint32_t> out;
  std::istringstream items(visible);
  std::string item;
  uint32_t index = 0;
  while (std::getline(items, item, ',')) {
    std::erase(item, ' ');
    if (item.empty() || item == "-1" || item == "NoDevFiles") break;  // CUDA, too, ends there
    auto number = parse_number(item);
    out.push_back(number ? static_cast<uint32_t>(*number) : index);
    ++index;
  }
  return out;
}

std::vector<uint32_t> usable_gpus() {
  for (const char* variable : {wire::kAccelerators[0].variable, wire::kAmdGpu.variable})
    if (auto visible = visible_devices(variable)) return *visible;
  namespace fs = std::filesystem;
  uint32_t count = 0;
  std::error_code none;  // no driver, no directory
  for (fs::directory_iterator gpu("/proc/driver/nvidia/gpus", none); gpu != fs::directory_iterator(); ++gpu)
    ++count;
  // AMD's driver lists the CPUs, too: those have no SIMD units.
  fs::directory_iterator amd("/sys/class/kfd/kfd/topology/nodes", none);
  for (const bool none_of_nvidia = count == 0; none_of_nvidia && amd != fs::directory_iterator(); ++amd)
    count += field(read_file(amd->path() / "properties"), "simd_count").value_or(0) > 0;
  std::vector<uint32_t> out(count);
  std::iota(out.begin(), out.end(), 0);
  return out;
}

MemoryState memory_state() {
  std::string meminfo = read_file("/proc/meminfo");
  MemoryState out;
  out.limit_bytes = field(meminfo, "MemTotal").value_or(0) * 1024;
  out.available_bytes = field(meminfo, "MemAvailable").value_or(0) * 1024;
  for (const auto& directory : cgroup_directories("memory")) {
    auto limit = number_in(directory + "/memory.max");
    auto used = number_in(directory + "/memory.current");
    auto cache = field(read_file(directory + "/memory.stat"), "inactive_file");
    if (!limit) {
      limit = number_in(directory + "/memory.limit_in_bytes");
      used = number_in(directory + "/memory.usage_in_bytes");
      cache = field(read_file(directory + "/memory.stat"), "total_inactive_file");
    }
    if (!limit || *limit >= out.limit_bytes) continue;
    out.limit_bytes = *limit;
    uint64_t busy = used.value_or(0) - std::min(used.value_or(0), cache.value_or(0));
    out.available_bytes = std::min(out.available_bytes, *limit - std::min(*limit, busy));
  }
  return out;
}

namespace {
uint64_t oom_kills_in(const std::string& path) { return field(read_file(path), "oom_kill").value_or(0); }
constexpr int64_t kClaimUs = 2'000'000;
}  // namespace

OomKills::OomKills() {
  std::vector<std::string> paths{"/proc/vmstat"};
  for (const auto& directory : cgroup_directories("memory"))
    for (const char* name : {"/memory.events", "/memory.oom_control"})
      if (access((directory + name).c_str(), R_OK) == 0) paths.push_back(directory + name);
  for (auto& path : paths) counts_.push_back({path, oom_kills_in(path)});
}

bool OomKills::claim(int64_t now_us) {
  uint64_t fresh = 0;
  for (Count& count : counts_) {
    const uint64_t now = oom_kills_in(count.path);
    fresh = std::max(fresh, now - std::min(now, std::exchange(count.last, now)));
  }
  if (now_us - counted_us_ > kClaimUs) unclaimed_ = 0;  // they were processes that nobody watches
  if (fresh > 0) counted_us_ = now_us;
  unclaimed_ += fresh;
  if (unclaimed_ == 0) return false;
  --unclaimed_;
  return true;
}

void set_oom_score(pid_t pid, int score) {
  std::ofstream("/proc/" + std::to_string(pid) + "/oom_score_adj") << score;
}

std::optional<ProcessMemory> memory_of(pid_t pid) {
  std::istringstream text(read_file("/proc/" + std::to_string(pid) + "/statm"));
  uint64_t size = 0, resident = 0, shared = 0;
  if (!(text >> size >> resident >> shared)) return std::nullopt;
  uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return ProcessMemory{resident * page, (resident - std::min(resident, shared)) * page};
}

std::vector<ProcessEntry> process_table() {
  std::vector<ProcessEntry> out;
  DIR* directory = opendir("/proc");
  if (directory == nullptr) return out;
  while (const dirent* item = readdir(directory)) {
    auto pid = parse_number(item->d_name);
    if (!pid) continue;
    std::string stat = read_file("/proc/" + std::string(item->d_name) + "/stat");
    size_t after_name = stat.rfind(')');  // a name may hold anything
    if (after_name == std::string::npos) continue;
    std::istringstream rest(stat.substr(after_name + 1));
    ProcessEntry entry;
    pid_t group = 0;
    entry.pid = static_cast<pid_t>(*pid);
    if (rest >> entry.state >> entry.parent >> group >> entry.session) out.push_back(entry);
  }
  closedir(directory);
  return out;
}

std::vector<pid_t> descendants_of(const std::vector<pid_t>& roots) {
  std::multimap<pid_t, pid_t> children;
  for (const ProcessEntry& entry : process_table()) children.emplace(entry.parent, entry.pid);
  std::vector<pid_t> out = roots;
  for (size_t i = 0; i < out.size(); ++i) {
    auto [first, last] = children.equal_range(out[i]);
    for (auto child = first; child != last; ++child) out.push_back(child->second);
  }
  out.erase(out.begin(), out.begin() + static_cast<ptrdiff_t>(roots.size()));
  return out;
}

std::optional<std::string> environment_of(pid_t pid, const std::string& name) {
  std::string text = read_file("/proc/" + std::to_string(pid) + "/environ");
  std::istringstream items(text);
  std::string item;
  while (std::getline(items, item, '\0'))
    if (item.starts_with(name + "=")) return item.substr(name.size() + 1);
  return std::nullopt;
}

std::string human_bytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

}  // namespace skate::node
