// What the `scheduling` text of a task or an actor asks for, and whether a node's labels allow it. Pure.
//
// The text is JSON, or empty for the default; control reads it for actors and the node daemon for tasks, so
// both decide by the same rules. It comes from a process and is input: what does not parse is the default,
// but an id that does not parse names nothing and so can never be found.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"

namespace skate::wire {

using Labels = std::map<std::string, std::string>;

/// The label of every node that holds its id.
inline constexpr char kNodeIdLabel[] = "ray.io/node-id";

struct LabelTerm {
  enum class Op : uint8_t { kIn, kNotIn, kExists, kAbsent };
  std::string key;
  Op op{};
  std::vector<std::string> values;
  friend bool operator==(const LabelTerm&, const LabelTerm&) = default;
};
/// All of its terms must hold.
using LabelSelector = std::vector<LabelTerm>;

/// key -> "value", "!value", "in(a, b)", "!in(a, b)".
LabelSelector parse_selector(const Labels& texts);
bool matches(const LabelSelector& selector, const Labels& labels);
/// "region in (eu, us), not tier in (gold)" for people.
std::string describe(const LabelSelector& selector);

struct SchedulingPlan {
  bool spread{};
  std::optional<NodeId> node;  ///< affinity
  bool soft = true;            ///< another node will do
  std::optional<PlacementGroupId> group;
  int32_t bundle = -1;  ///< of the group; -1: any
  LabelSelector hard;   ///< of a node label strategy
  LabelSelector preferred;
  std::vector<LabelSelector> choices;  ///< label_selector, then the fallbacks; none: any node
};
SchedulingPlan parse_scheduling(const std::string& text);

/// The place of the first choice that these labels match (0 when there are no choices); nullopt: not at all.
std::optional<size_t> choice_for(const SchedulingPlan& plan, const Labels& labels);
/// What labels it asks for, for people.
std::string describe_labels(const SchedulingPlan& plan);

}  // namespace skate::wire
