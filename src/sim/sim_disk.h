// SimDisk: a disk for the control service that takes its time, and keeps what was committed over a crash.
#pragma once

#include <map>

#include "control/storage.h"
#include "rt/sleep.h"

namespace skate::sim {

/// The rows themselves; outlives the services that write them.
using DiskRows = std::map<std::pair<control::Table, std::string>, std::string>;

class SimDisk final : public control::Storage {
 public:
  SimDisk(DiskRows& rows, rt::Loop& loop) : rows_(rows), loop_(loop) {}

  Result<std::vector<control::Row>> load() override {
    std::vector<control::Row> out;
    for (const auto& [key, value] : rows_) out.push_back({key.first, key.second, value});
    return out;
  }
  rt::Task<Result<void>> commit(std::vector<control::Row> rows) override {
    co_await rt::sleep_for(std::chrono::microseconds(loop_.random().below(5000)));
    if (loop_.random().chance(0.02)) co_return Error{ErrorCode::kFull, "the simulated disk is full"};
    for (const control::Row& row : rows) {
      if (row.value) {
        rows_[{row.table, row.key}] = *row.value;
      } else {
        rows_.erase({row.table, row.key});
      }
    }
    co_return Result<void>();
  }
  bool is_volatile() const override { return false; }

 private:
  DiskRows& rows_;
  rt::Loop& loop_;
};

}  // namespace skate::sim
