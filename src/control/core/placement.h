// Where an actor or a bundle goes: pure functions over what the nodes last reported.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "wire/scheduling.h"
#include "wire/types.h"

namespace skate::control {

struct NodeView {
  NodeId node;
  wire::Resources total;
  wire::Resources available;
  uint64_t actors{};  ///< placed there and not dead
  wire::Labels labels{};
};

bool fits(const wire::Resources& need, const wire::Resources& room);

/// Hybrid: fill a node until half of it is used, then the least used; nodes with room before those without.
/// Among nodes whose labels match, those of the earliest choice first. Nothing when no node could ever hold
/// `need`. Placement groups are not looked at.
std::optional<NodeId> choose_node(std::span<const NodeView> nodes, const wire::Resources& need,
                                  const wire::SchedulingPlan& plan);

enum class GroupStrategy : uint8_t { kPack, kSpread, kStrictPack, kStrictSpread };
std::optional<GroupStrategy> parse_group_strategy(const std::string& text);

struct BundleWish {
  wire::Resources resources;
  wire::LabelSelector labels{};
};
/// A node for each bundle, all or none, within `available`. Of nodes that serve equally well, `preferred`.
std::optional<std::vector<NodeId>> plan_bundles(std::span<const NodeView> nodes,
                                                std::span<const BundleWish> bundles, GroupStrategy strategy,
                                                const NodeId& preferred = NodeId::nil());

}  // namespace skate::control
