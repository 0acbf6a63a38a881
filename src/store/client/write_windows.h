// WriteWindows: the parts of the data file that this process may write, kept open between objects.
//
// One inaccessible mapping of the whole file; `open` makes the chunks of an extent writable in it and
// remembers them, so that the next object in the same memory costs no system call. Windows of memory
// that has gone to others are closed when there are too many and no object is being written. Not
// inherited by fork. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "store/layout.h"
#include "store/mapping.h"

namespace skate::store {

class WriteWindows {
 public:
  static Result<std::unique_ptr<WriteWindows>> create(int data_fd, uint64_t capacity_bytes);

  /// The address at which [offset, offset + bytes) may be written until `close`. The caller has been
  /// allocated the range and reserved its memory; `fresh` says that some of it was new.
  Result<uint8_t*> open(uint64_t offset, uint64_t bytes, bool fresh);
  void close();
  size_t windows() const;

 private:
  explicit WriteWindows(Mapping mapping) : mapping_(std::move(mapping)) {}
  bool covers(uint64_t begin, uint64_t end) const;
  void remember(uint64_t begin, uint64_t end);

  Mapping mapping_;
  mutable std::mutex mutex_;
  std::map<uint64_t, uint64_t> windows_;  // begin -> end, disjoint
  int open_ = 0;
};

}  // namespace skate::store
