#include "control/core/placement.h"

#include <algorithm>
#include <nlohmann/json.hpp>
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

SchedulingWish parse_scheduling(const std::string& text) {
  SchedulingWish wish;
  if (text == "SPREAD") wish.mode = SpreadMode::kSpread;
  const nlohmann::json parsed = nlohmann::json::parse(text, nullptr, false);
  if (parsed.is_string() && parsed.get<std::string>() == "SPREAD") wish.mode = SpreadMode::kSpread;
  if (!parsed.is_object()) return wish;
  const auto strategy = parsed.find("strategy");
  if (strategy != parsed.end() && strategy->is_string() && strategy->get<std::string>() == "spread")
    wish.mode = SpreadMode::kSpread;
  const auto node = parsed.find("node_id");
  if (node == parsed.end() || !node->is_string()) return wish;
  // An id that does not parse names no node: a hard wish for it can never be granted.
  wish.node = NodeId::parse_hex(node->get<std::string>()).value_or(NodeId::nil());
  const auto soft = parsed.find("soft");
  wish.soft = soft != parsed.end() && soft->is_boolean() && soft->get<bool>();
  return wish;
}

bool fits(const wire::Resources& need, const wire::Resources& room) {
  return std::all_of(need.begin(), need.end(), [&](const auto& entry) {
    if (entry.second <= 0) return true;
    const auto found = room.find(entry.first);
    return found != room.end() && found->second >= entry.second;
  });
}

std::optional<NodeId> choose_node(std::span<const NodeView> nodes, const wire::Resources& need,
                                  const SchedulingWish& wish) {
  if (wish.node) {
    for (const NodeView& node : nodes) {
      if (node.node == *wish.node && fits(need, node.total)) return node.node;
    }
    if (!wish.soft) return std::nullopt;
  }
  using Score = std::tuple<bool, double, uint64_t, NodeId>;
  std::optional<Score> best;
  for (const NodeView& node : nodes) {
    if (!fits(need, node.total)) continue;
    double used = utilization(node);
    uint64_t actors = node.actors;
    if (wish.mode == SpreadMode::kPack) {
      actors = 0;  // which of the barely used ones does not matter: the first fills up first
      if (used < kSpreadThreshold) used = 0;
    }
    Score score{!fits(need, node.available), used, actors, node.node};
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
                                                std::span<const wire::Resources> bundles,
                                                GroupStrategy strategy) {
  if (strategy == GroupStrategy::kStrictPack) {
    wire::Resources sum;
    for (const wire::Resources& bundle : bundles) {
      for (const auto& [name, amount] : bundle) sum[name] += amount;
    }
    for (const NodeView& node : nodes) {
      if (fits(sum, node.available)) return std::vector<NodeId>(bundles.size(), node.node);
    }
    return std::nullopt;
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
    for (const auto& [name, amount] : bundles[i])
      sum += name == "memory" ? amount / (int64_t{1} << 30) : amount;
    return sum;
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return weight(a) > weight(b); });
  std::vector<NodeId> plan(bundles.size());
  for (const size_t i : order) {
    Room* best = nullptr;
    for (Room& room : rooms) {
      if (!fits(bundles[i], room.view.available)) continue;
      if (strategy == GroupStrategy::kStrictSpread && room.bundles > 0) continue;
      const bool better =
          best == nullptr ||
          (strategy == GroupStrategy::kPack ? room.bundles > best->bundles : room.bundles < best->bundles);
      if (better) best = &room;
    }
    if (best == nullptr) return std::nullopt;
    subtract(best->view.available, bundles[i]);
    ++best->bundles;
    plan[i] = best->view.node;
  }
  return plan;
}

}  // namespace skate::control
