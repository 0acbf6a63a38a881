#include "control/core/placement.h"

#include <algorithm>
#include <tuple>

namespace skate::control {
namespace {

constexpr double kSpreadThreshold = 0.5;

double utilization(const NodeView& node) {
  double highest = 0;
  for (const auto& [name, total] : node.total) {
    if (total <= 0) continue;
    const auto found = node.available.find(name);
    const int64_t left = found == node.available.end() ? 0 : found->second;
    highest = std::max(highest, 1.0 - static_cast<double>(left) / static_cast<double>(total));
  }
  return highest;
}

void subtract(wire::Resources& room, const wire::Resources& taken) {
  for (const auto& [name, amount] : taken) room[name] -= amount;
}

}  // namespace

bool fits(const wire::Resources& need, const wire::Resources& room) {
  return std::all_of(need.begin(), need.end(), [&](const auto& entry) {
    if (entry.second <= 0) return true;
    const auto found = room.find(entry.first);
    return found != room.end() && found->second >= entry.second;
  });
}

std::optional<NodeId> choose_node(std::span<const NodeView> nodes, const wire::Resources& need,
                                  const wire::SchedulingPlan& plan) {
  auto allowed = [&](const NodeView& node) {
    return fits(need, node.total) ? wire::choice_for(plan, node.labels) : std::nullopt;
  };
  if (plan.node) {
    for (const NodeView& node : nodes) {
      if (node.node == *plan.node && allowed(node)) return node.node;
    }
    if (!plan.soft) return std::nullopt;
  }
  using Score = std::tuple<size_t, bool, bool, double, uint64_t, NodeId>;
  std::optional<Score> best;
  for (const NodeView& node : nodes) {
    const std::optional<size_t> choice = allowed(node);
    if (!choice) continue;
    double used = utilization(node);
    uint64_t actors = node.actors;
    if (!plan.spread) {
      actors = 0;  // which of the barely used ones does not matter: the first fills up first
      if (used < kSpreadThreshold) used = 0;
    }
    Score score{
        *choice,  !wire::matches(plan.preferred, node.labels), !fits(need, node.available), used, actors,
        node.node};
    if (!best || score < *best) best = score;
  }
  if (!best) return std::nullopt;
  return std::get<NodeId>(*best);
}

std::optional<GroupStrategy> parse_group_strategy(const std::string& text) {
  if (text.empty() || text == "PACK") return GroupStrategy::kPack;
  if (text == "SPREAD") return GroupStrategy::kSpread;
  if (text == "STRICT_PACK") return GroupStrategy::kStrictPack;
  if (text == "STRICT_SPREAD") return GroupStrategy::kStrictSpread;
  return std::nullopt;
}

std::optional<std::vector<NodeId>> plan_bundles(std::span<const NodeView> nodes,
                                                std::span<const BundleWish> bundles, GroupStrategy strategy,
                                                const NodeId& preferred) {
  if (strategy == GroupStrategy::kStrictPack) {
    wire::Resources sum;
    for (const BundleWish& bundle : bundles) {
      for (const auto& [name, amount] : bundle.resources) sum[name] += amount;
    }
    std::optional<NodeId> best;
    for (const NodeView& node : nodes) {
      const bool allowed = std::all_of(bundles.begin(), bundles.end(), [&](const BundleWish& bundle) {
        return wire::matches(bundle.labels, node.labels);
      });
      if (!allowed || !fits(sum, node.available)) continue;
      if (!best || node.node == preferred) best = node.node;
    }
    if (!best) return std::nullopt;
    return std::vector<NodeId>(bundles.size(), *best);
  }
  struct Room {
    NodeView view;
    size_t bundles = 0;
  };
  std::vector<Room> rooms;
  for (const NodeView& node : nodes) rooms.push_back({node});
  // The largest bundle first finds room where the given order may not.
  std::vector<size_t> order(bundles.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  auto weight = [&](size_t i) {
    int64_t sum = 0;
    for (const auto& [name, amount] : bundles[i].resources)
      sum += name == "memory" ? amount / (int64_t{1} << 30) : amount;
    return sum;
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return weight(a) > weight(b); });
  std::vector<NodeId> plan(bundles.size());
  for (const size_t i : order) {
    Room* best = nullptr;
    for (Room& room : rooms) {
      if (!fits(bundles[i].resources, room.view.available)) continue;
      if (!wire::matches(bundles[i].labels, room.view.labels)) continue;
      if (strategy == GroupStrategy::kStrictSpread && room.bundles > 0) continue;
      const bool better =
          best == nullptr ||
          (strategy == GroupStrategy::kPack ? room.bundles > best->bundles : room.bundles < best->bundles);
      if (better) best = &room;
    }
    if (best == nullptr) return std::nullopt;
    subtract(best->view.available, bundles[i].resources);
    ++best->bundles;
    plan[i] = best->view.node;
  }
  return plan;
}

}  // namespace skate::control
