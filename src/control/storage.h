// Storage: where the control service's tables outlive it.
//
// A committed row is in the kernel: kill -9 of the service loses nothing. The disk follows within 50 ms (a
// crash of the machine may lose so much). Used by one Committer at a time; lives on the loop, works in a
// pool.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "control/core/outbox.h"
#include "rt/pool.h"
#include "rt/task.h"

namespace skate::control {

class Storage {
 public:
  virtual ~Storage() = default;
  /// All rows, tables in the order of their numbers.
  virtual Result<std::vector<Row>> load() = 0;
  /// All of the rows or none, in order.
  virtual rt::Task<Result<void>> commit(std::vector<Row> rows) = 0;
  /// Nothing of it outlives the process: answers need not wait.
  virtual bool is_volatile() const = 0;
};

/// For private clusters, which end with their driver: keeps nothing.
std::unique_ptr<Storage> make_memory_storage();
/// A SQLite database in WAL mode. kCorrupt when the file is none of ours, kIo when it cannot be used.
Result<std::unique_ptr<Storage>> open_sqlite_storage(const std::string& path, rt::Pool& pool);

}  // namespace skate::control
