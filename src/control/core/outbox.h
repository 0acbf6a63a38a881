// What the core decides: messages to nodes, and rows to log before anything of it is told to anybody.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "wire/archive.h"
#include "wire/control_messages.h"

namespace skate::control {

enum class Table : uint8_t { kMeta = 1, kJobs, kActors, kActorSpecs, kKv, kGroups, kAnswers };

/// One change of the durable tables; no value erases.
struct Row {
  Table table{};
  std::string key;
  std::optional<std::string> value;
  friend bool operator==(const Row&, const Row&) = default;
};

struct NodeMessage {
  NodeId node;
  wire::NodeCommand command{};
  std::string body;
};

struct Outbox {
  std::vector<NodeMessage> messages;
  std::vector<Row> rows;

  template <class Message>
  void send(const NodeId& node, wire::NodeCommand command, const Message& message) {
    messages.push_back({node, command, wire::encode(message)});
  }
  template <class Key, class Record>
  void put(Table table, const Key& key, const Record& record) {
    rows.push_back({table, wire::encode(key), wire::encode(record)});
  }
  template <class Key>
  void erase(Table table, const Key& key) {
    rows.push_back({table, wire::encode(key), std::nullopt});
  }
};

/// Milliseconds of the loop's clock; only differences count.
using TimeMs = int64_t;

}  // namespace skate::control
