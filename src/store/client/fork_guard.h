// ForkGuard: tells a process from its forked children, and lets the daemon see those children.
//
// A page that the kernel wipes in a child answers "is this the process that attached?" without a system
// call. A lock on one byte of the index file, held by an open file description that children share and
// exec closes, is seen by the daemon for as long as the process or any forked child of it lives.
#pragma once

#include "base/unique_fd.h"
#include "store/mapping.h"

namespace skate::store {

class ForkGuard {
 public:
  static Result<ForkGuard> create(int index_fd, uint32_t slot);

  bool in_parent() const { return *reinterpret_cast<const volatile uint8_t*>(page_.base()) == 1; }

  /// Whether a process with this slot, or a forked child of one, still lives. `index_fd` is the asker's.
  static bool family_alive(int index_fd, uint32_t slot);

 private:
  ForkGuard(Mapping page, UniqueFd family) : page_(std::move(page)), family_(std::move(family)) {}
  Mapping page_;
  UniqueFd family_;
};

}  // namespace skate::store
