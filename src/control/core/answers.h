// AnswerTable: the answers given to keyed requests, so that a duplicate gets the first answer again. Pure.
// Bounded: the oldest are forgotten first, which says how late a duplicate may come.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>

#include "base/result.h"
#include "control/core/outbox.h"

namespace skate::control {

struct Answer {
  bool ok{};
  uint8_t code{};
  std::string body;  ///< or the error's message

  static Answer of(const Result<std::string>& result) {
    if (result) return {true, 0, *result};
    return {false, static_cast<uint8_t>(result.error().code), result.error().message};
  }
  Result<std::string> result() const {
    if (ok) return body;
    return Error{static_cast<ErrorCode>(code), body};
  }
};

class AnswerTable {
 public:
  static constexpr size_t kEntriesMax = 20'000;
  static constexpr size_t kBytesMax = 16u << 20;
  using Key = std::pair<uint16_t, uint64_t>;

  std::optional<Result<std::string>> find(const Key& key) const {
    const auto found = answers_.find(key);
    if (found == answers_.end()) return std::nullopt;
    return found->second.result();
  }
  /// Logged beside the rows of the request, if it has any.
  void add(const Key& key, const Result<std::string>& result, Outbox& out) {
    const Answer answer = Answer::of(result);
    if (!out.rows.empty()) out.put(Table::kAnswers, key, answer);
    recover(key, answer);
    while (order_.size() > kEntriesMax || bytes_ > kBytesMax) {
      const auto oldest = answers_.find(order_.front());
      bytes_ -= oldest->second.body.size();
      out.erase(Table::kAnswers, oldest->first);
      answers_.erase(oldest);
      order_.pop_front();
    }
  }
  void recover(const Key& key, Answer answer) {
    bytes_ += answer.body.size();
    if (answers_.emplace(key, std::move(answer)).second) order_.push_back(key);
  }

 private:
  std::map<Key, Answer> answers_;
  std::deque<Key> order_;
  size_t bytes_ = 0;
};

}  // namespace skate::control
