// DedupTable: runs each keyed piece of work once and gives every duplicate the same answer, in every phase:
// while it runs, duplicates join it; once done, they get the answer that was given.
//
// The work belongs to the table and goes on when those who wait for it are cancelled. Bounded by entries and
// by bytes of answers; the oldest answers are forgotten first, so that the bound says how late a duplicate
// may come. Lives on its loop's thread.
#pragma once

#include <list>
#include <memory>
#include <string>
#include <unordered_map>

#include "base/result.h"
#include "rt/task_group.h"

namespace skate::rpc {

struct DedupLimits {
  size_t entries_max = 65536;
  size_t bytes_max = 16u << 20;
};

class DedupTable {
 public:
  using Answer = Result<std::string>;
  using Limits = DedupLimits;

  explicit DedupTable(rt::Loop& loop, Limits limits = {}) : limits_(limits), tasks_(loop) {}

  /// `work` is dropped unstarted when the key is known. `key` should name sender and method too. kFull when
  /// entries_max pieces of work are running.
  rt::Task<Answer> once(std::string key, rt::Task<Answer> work);
  size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::string key;
    std::optional<Answer> answer;
    rt::Event done;
    size_t bytes() const { return key.size() + (answer && answer->ok() ? (*answer)->size() : 0); }
  };
  rt::Task<void> run(std::shared_ptr<Entry> entry, rt::Task<Answer> work);
  void trim();

  Limits limits_;
  size_t bytes_ = 0;
  std::unordered_map<std::string, std::shared_ptr<Entry>> entries_;  // shared with those who wait
  std::list<std::shared_ptr<Entry>> done_;                           // oldest first
  rt::TaskGroup tasks_;
};

}  // namespace skate::rpc
