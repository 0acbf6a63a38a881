// Where an actor or a bundle goes: pure functions over what the nodes last reported.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "wire/types.h"

namespace skate::control {

struct NodeView {
  NodeId node;
  wire::Resources total;
  wire::Resources available;
  uint64_t actors{};  ///< placed there and not dead
};

enum class SpreadMode : uint8_t { kPack, kSpread };

/// What the `scheduling` text of a spec asks for. Empty, "DEFAULT", "SPREAD", or an object with "strategy"
/// ("spread"), or "node_id" (hexadecimal) and "soft"; what is not known is the default.
struct SchedulingWish {
  SpreadMode mode = SpreadMode::kPack;
  std::optional<NodeId> node;
  bool soft = true;
};
SchedulingWish parse_scheduling(const std::string& text);

bool fits(const wire::Resources& need, const wire::Resources& room);

/// Hybrid: fill a node until half of it is used, then the least used; nodes with room before those without.
/// Nothing when no node could ever hold `need`.
std::optional<NodeId> choose_node(std::span<const NodeView> nodes, const wire::Resources& need,
                                  const SchedulingWish& wish);

enum class GroupStrategy : uint8_t { kPack, kSpread, kStrictPack, kStrictSpread };
std::optional<GroupStrategy> parse_group_strategy(const std::string& text);

/// A node for each bundle, all or none, within `available`.
std::optional<std::vector<NodeId>> plan_bundles(std::span<const NodeView> nodes,
                                                std::span<const wire::Resources> bundles,
                                                GroupStrategy strategy);

}  // namespace skate::control
