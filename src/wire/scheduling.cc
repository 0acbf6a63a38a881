#include "wire/scheduling.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace skate::wire {

namespace {

std::string trimmed(std::string text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && blank(text.back())) text.pop_back();
  size_t begin = 0;
  while (begin < text.size() && blank(text[begin])) ++begin;
  return text.substr(begin);
}

LabelTerm parse_term(const std::string& key, std::string text) {
  text = trimmed(std::move(text));
  const bool negated = !text.empty() && text.front() == '!';
  if (negated) text.erase(0, 1);
  LabelTerm term{key, negated ? LabelTerm::Op::kNotIn : LabelTerm::Op::kIn, {}};
  if (text.starts_with("in(") && text.ends_with(")")) {
    const std::string list = text.substr(3, text.size() - 4);
    for (size_t begin = 0; begin <= list.size();) {
      const size_t end = std::min(list.find(',', begin), list.size());
      term.values.push_back(trimmed(list.substr(begin, end - begin)));
      begin = end + 1;
    }
  } else {
    term.values.push_back(std::move(text));
  }
  return term;
}

LabelSelector selector_from(const nlohmann::json& json) {
  Labels texts;
  if (json.is_object())
    for (const auto& [key, value] : json.items())
      if (value.is_string()) texts[key] = value.get<std::string>();
  return parse_selector(texts);
}

LabelSelector expressions_from(const nlohmann::json& plan, const char* name) {
  LabelSelector out;
  const auto found = plan.find(name);
  if (found == plan.end() || !found->is_object()) return out;
  for (const auto& [key, value] : found->items()) {
    if (!value.is_object()) continue;
    const auto word = value.find("op");
    const std::string op = word != value.end() && word->is_string() ? word->get<std::string>() : "";
    LabelTerm term{key, LabelTerm::Op::kIn, {}};
    if (op == "not_in") term.op = LabelTerm::Op::kNotIn;
    if (op == "exists") term.op = LabelTerm::Op::kExists;
    if (op == "does_not_exist") term.op = LabelTerm::Op::kAbsent;
    const auto values = value.find("values");
    if (values != value.end() && values->is_array())
      for (const nlohmann::json& item : *values)
        if (item.is_string()) term.values.push_back(item.get<std::string>());
    out.push_back(std::move(term));
  }
  return out;
}

std::string text_in(const nlohmann::json& plan, const char* name) {
  const auto found = plan.find(name);
  return found != plan.end() && found->is_string() ? found->get<std::string>() : std::string();
}

bool holds(const LabelTerm& term, const Labels& labels) {
  const auto found = labels.find(term.key);
  const bool there = found != labels.end();
  const bool among =
      there && std::find(term.values.begin(), term.values.end(), found->second) != term.values.end();
  switch (term.op) {
    case LabelTerm::Op::kIn: return among;
    case LabelTerm::Op::kNotIn: return !among;
    case LabelTerm::Op::kExists: return there;
    case LabelTerm::Op::kAbsent: return !there;
  }
  return false;
}

}  // namespace

LabelSelector parse_selector(const Labels& texts) {
  LabelSelector out;
  for (const auto& [key, text] : texts) out.push_back(parse_term(key, text));
  return out;
}

bool matches(const LabelSelector& selector, const Labels& labels) {
  return std::all_of(selector.begin(), selector.end(),
                     [&](const LabelTerm& term) { return holds(term, labels); });
}

std::string describe(const LabelSelector& selector) {
  std::string out;
  for (const LabelTerm& term : selector) {
    if (!out.empty()) out += ", ";
    if (term.op == LabelTerm::Op::kExists || term.op == LabelTerm::Op::kAbsent) {
      out += term.key + (term.op == LabelTerm::Op::kExists ? " exists" : " does not exist");
      continue;
    }
    out += term.key + (term.op == LabelTerm::Op::kIn ? " in (" : " not in (");
    for (size_t i = 0; i < term.values.size(); ++i) out += (i == 0 ? "" : ", ") + term.values[i];
    out += ")";
  }
  return out.empty() ? "any" : out;
}

SchedulingPlan parse_scheduling(const std::string& text) {
  SchedulingPlan out;
  if (text.empty()) return out;
  if (text == "SPREAD") out.spread = true;
  const nlohmann::json plan = nlohmann::json::parse(text, nullptr, false);
  if (plan.is_string() && plan.get<std::string>() == "SPREAD") out.spread = true;
  if (!plan.is_object()) return out;
  const std::string strategy = text_in(plan, "strategy");
  out.spread = strategy == "spread";
  if (const auto node = plan.find("node_id"); node != plan.end() && node->is_string()) {
    out.node = NodeId::parse_hex(node->get<std::string>()).value_or(NodeId::nil());
    const auto soft = plan.find("soft");
    out.soft = soft != plan.end() && soft->is_boolean() && soft->get<bool>();
  }
  if (strategy == "placement_group") {
    out.group = PlacementGroupId::parse_hex(text_in(plan, "id")).value_or(PlacementGroupId::nil());
    if (const auto index = plan.find("bundle_index"); index != plan.end() && index->is_number_integer())
      out.bundle = static_cast<int32_t>(std::clamp<int64_t>(index->get<int64_t>(), -1, INT32_MAX));
  }
  if (strategy == "node_label") {
    out.hard = expressions_from(plan, "hard");
    out.preferred = expressions_from(plan, "soft");
  }
  const auto selector = plan.find("label_selector");
  const auto fallbacks = plan.find("fallback");
  if (selector != plan.end()) out.choices.push_back(selector_from(*selector));
  if (fallbacks != plan.end() && fallbacks->is_array() && !fallbacks->empty()) {
    if (out.choices.empty()) out.choices.emplace_back();  // no selector: any node is the first choice
    for (const nlohmann::json& fallback : *fallbacks) out.choices.push_back(selector_from(fallback));
  }
  return out;
}

std::optional<size_t> choice_for(const SchedulingPlan& plan, const Labels& labels) {
  if (!matches(plan.hard, labels)) return std::nullopt;
  for (size_t i = 0; i < plan.choices.size(); ++i)
    if (matches(plan.choices[i], labels)) return i;
  return plan.choices.empty() ? std::optional<size_t>(0) : std::nullopt;
}

std::string describe_labels(const SchedulingPlan& plan) {
  std::string out = plan.hard.empty() ? "" : describe(plan.hard);
  for (const LabelSelector& choice : plan.choices) {
    if (!out.empty()) out += &choice == &plan.choices.front() ? ", and " : "; or ";
    out += describe(choice);
  }
  return out.empty() ? "any" : out;
}

}  // namespace skate::wire
