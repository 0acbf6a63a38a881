// The daemon's half of the node's object store: the arena, its clients, upkeep, spilling.
//
// A seam between siblings: src/bin joins it to the arena and the spill files. Home: the daemon's loop; what
// blocks runs on a pool.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "rt/loop.h"
#include "rt/task.h"
#include "wire/node_messages.h"

namespace skate::node {

class ObjectStore {
 public:
  virtual ~ObjectStore() = default;
  virtual int index_fd() const = 0;
  virtual int data_fd() const = 0;
  virtual uint64_t capacity_bytes() const = 0;
  /// A slot for a process. kFull when there is none.
  virtual Result<uint32_t> add_client(int32_t pid) = 0;
  /// The process is gone: undoes what it had half done, drops its pins. Tries again until it is done.
  virtual void recover_client(uint32_t slot) = 0;
  /// Bounded steps of maintenance, for as long as the daemon lives.
  virtual rt::Task<void> upkeep() = 0;
  virtual rt::Task<Result<void>> make_space(uint64_t bytes) = 0;
  struct Restored {
    std::vector<ObjectId> restored, lost;
    std::string message;
  };
  virtual rt::Task<Restored> restore(std::vector<ObjectId> objects) = 0;
  virtual void erase(const std::vector<ObjectId>& objects) = 0;
  /// All that is sealed, in memory or on disk.
  virtual std::vector<ObjectId> objects() = 0;
  /// Such an object's size, and what its value says of itself; of one on disk that is nothing.
  virtual std::optional<wire::KeptObject> look(const ObjectId& id) = 0;
};

struct StoreOptions {
  uint64_t capacity_bytes{};
  std::string spill_dir;
};
using ObjectStoreFactory = std::function<Result<std::unique_ptr<ObjectStore>>(rt::Loop&, StoreOptions)>;

}  // namespace skate::node
