#include "node/scheduler/resource_book.h"

#include <algorithm>
#include <cstdio>

#include "base/assert.h"

namespace skate::node {

namespace {
constexpr int64_t kUnit = wire::kResourceUnit;
}

void add_to(Resources& sum, const Resources& amount) {
  for (const auto& [name, units] : amount) sum[name] += units;
}

void subtract_from(Resources& sum, const Resources& amount) {
  for (const auto& [name, units] : amount) {
    auto& left = sum[name];
    left -= units;
    if (left == 0) sum.erase(name);
  }
}

std::string describe(const Resources& resources) {
  std::string out;
  for (const auto& [name, units] : resources) {
    if (units == 0) continue;
    char number[32];
    std::snprintf(number, sizeof number, "%.10g", static_cast<double>(units) / kUnit);
    if (!out.empty()) out += ", ";
    out += std::string(number) + " " + name;
  }
  return out.empty() ? "nothing" : out;
}

ResourceInstances Allocation::instances() const {
  ResourceInstances out;
  for (const auto& [name, taken] : shares)
    for (const auto& [instance, units] : taken) out[name].push_back(instance);
  return out;
}

ResourceBook::ResourceBook(Resources total, ResourceInstances instances) : total_(std::move(total)) {
  for (const auto& [name, ids] : instances) {
    if (ids.empty()) continue;
    for (uint32_t id : ids) instance_free_[name][id] = kUnit;
    // A unit resource has as much of it as it has instances.
    total_[name] = static_cast<int64_t>(instance_free_[name].size()) * kUnit;
  }
  std::erase_if(total_, [](const auto& item) { return item.second <= 0; });
  free_ = total_;
}

ResourceBook::ResourceBook(const Allocation& holding) : total_(holding.amounts), free_(holding.amounts) {
  for (const auto& [name, taken] : holding.shares)
    for (const auto& [id, units] : taken) instance_free_[name][id] += units;
}

bool ResourceBook::feasible(const Resources& need) const {
  return std::all_of(need.begin(), need.end(), [&](const auto& item) {
    auto found = total_.find(item.first);
    return item.second <= 0 || (found != total_.end() && found->second >= item.second);
  });
}

bool ResourceBook::fits_beside(const Resources& need, const Resources& reserved) const {
  for (const auto& [name, units] : need) {
    if (units <= 0) continue;
    auto kept = reserved.find(name);
    int64_t aside = kept == reserved.end() ? 0 : kept->second;
    if (free_of(name) - aside < units) return false;
    auto unit = instance_free_.find(name);
    if (unit == instance_free_.end()) continue;
    int64_t whole = std::count_if(unit->second.begin(), unit->second.end(),
                                  [](const auto& item) { return item.second == kUnit; });
    if (units >= kUnit) {
      if (whole * kUnit - aside < units) return false;
    } else if (std::none_of(unit->second.begin(), unit->second.end(),
                            [&](const auto& item) { return item.second >= units; })) {
      return false;
    }
  }
  return true;
}

Resources ResourceBook::lacking(const Resources& need) const {
  Resources out;
  for (const auto& [name, units] : need) {
    Resources one{{name, units}};
    if (fits(one)) continue;
    // Fragmented fractions of a unit resource lack at least the smallest step.
    out[name] = std::max<int64_t>(1, units - free_of(name));
  }
  return out;
}

Allocation ResourceBook::take(const Resources& need) {
  SKATE_ASSERT(fits(need), "resources are taken that are not free");
  Allocation out;
  for (const auto& [name, units] : need) {
    if (units <= 0) continue;
    out.amounts[name] = units;
    free_[name] -= units;
    auto unit = instance_free_.find(name);
    if (unit == instance_free_.end()) continue;
    auto& shares = out.shares[name];
    int64_t left = units;
    for (auto& [id, free] : unit->second) {
      if (left < kUnit) break;
      if (free != kUnit) continue;
      free = 0;
      shares.emplace_back(id, kUnit);
      left -= kUnit;
    }
    if (left == 0) continue;
    // A fraction goes where the least room is left over, so that whole instances stay whole.
    std::pair<const uint32_t, int64_t>* best = nullptr;
    for (auto& item : unit->second)
      if (item.second >= left && (best == nullptr || item.second < best->second)) best = &item;
    SKATE_ASSERT(best != nullptr, "a fraction that fits has an instance");
    best->second -= left;
    shares.emplace_back(best->first, left);
  }
  return out;
}

void ResourceBook::give_back(Allocation allocation) {
  reclaim_cpu(allocation);
  for (const auto& [name, units] : allocation.amounts) free_[name] += units;
  for (const auto& [name, taken] : allocation.shares)
    for (const auto& [id, units] : taken) instance_free_[name][id] += units;
}

void ResourceBook::shrink(Allocation& allocation, const Resources& keep) {
  reclaim_cpu(allocation);
  Resources names = allocation.amounts;
  add_to(names, keep);
  for (const auto& [name, unused] : names) {
    auto want = keep.find(name);
    int64_t wanted = want == keep.end() ? 0 : want->second;
    auto& held = allocation.amounts[name];
    if (instance_free_.count(name) && wanted != 0) continue;  // instances stay with who has them
    free_[name] += held - wanted;
    held = wanted;
    if (auto shares = allocation.shares.find(name); shares != allocation.shares.end()) {
      for (const auto& [id, units] : shares->second) instance_free_[name][id] += units;
      allocation.shares.erase(shares);
    }
  }
  std::erase_if(allocation.amounts, [](const auto& item) { return item.second == 0; });
}

void ResourceBook::lend_cpu(Allocation& allocation) {
  auto cpu = allocation.amounts.find("CPU");
  if (cpu == allocation.amounts.end() || allocation.cpu_lent > 0) return;
  allocation.cpu_lent = cpu->second;
  free_["CPU"] += allocation.cpu_lent;
}

void ResourceBook::reclaim_cpu(Allocation& allocation) {
  free_["CPU"] -= allocation.cpu_lent;
  allocation.cpu_lent = 0;
}

Resources ResourceBook::available() const {
  Resources out;
  for (const auto& [name, units] : total_) out[name] = std::max<int64_t>(0, free_of(name));
  return out;
}

int64_t ResourceBook::free_of(const std::string& name) const {
  auto found = free_.find(name);
  return found == free_.end() ? 0 : found->second;
}

int64_t ResourceBook::dominant_share(const Resources& used) const {
  double share = 0;
  for (const auto& [name, units] : used)
    if (auto total = total_.find(name); total != total_.end())
      share = std::max(share, static_cast<double>(units) / static_cast<double>(total->second));
  return static_cast<int64_t>(share * 1e6);
}

bool ResourceBook::is_whole() const {
  return std::all_of(total_.begin(), total_.end(),
                     [&](const auto& item) { return free_of(item.first) == item.second; });
}

std::string ResourceBook::check() const {
  for (const auto& [name, units] : free_) {
    auto total = total_.find(name);
    int64_t most = total == total_.end() ? 0 : total->second;
    if (units > most) return name + " has more free than there is";
    if (units < 0 && name != "CPU") return name + " is over-subscribed";
  }
  for (const auto& [name, ids] : instance_free_) {
    int64_t sum = 0;
    for (const auto& [id, free] : ids) {
      if (free < 0 || free > kUnit) return name + " instance " + std::to_string(id) + " is out of range";
      sum += free;
    }
    if (sum != free_of(name)) return name + " instances do not add up to what is free";
  }
  return "";
}

}  // namespace skate::node
