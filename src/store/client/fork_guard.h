// ForkGuard: tells a process from its forked children, and lets both it and the daemon see those children.
//
// A page that the kernel wipes in a child answers "is this the process that attached?" without a system
// call. Who lives is told by locks on bytes of the index file. Each belongs to an open file description that
// a mapping keeps open: forked children share it, exec and the end of the process let go of it, and closing
// descriptors does nothing to it. The daemon asks for the byte of the slot, which the whole family holds; the
// process itself for its marks, which only children hold.
#pragma once

#include "base/unique_fd.h"
#include "store/mapping.h"

namespace skate::store {

class ForkGuard {
 public:
  static Result<ForkGuard> create(int index_fd, uint32_t slot);

  bool in_parent() const { return *reinterpret_cast<const volatile uint8_t*>(page_.base()) == 1; }

  static constexpr uint32_t kMarks = 64;
  /// Around a fork: the child that inherits this, and what it forks, hold the mark while they live. Several
  /// children may hold one. Takes a descriptor for a moment.
  Result<Mapping> mark(uint32_t number) const;
  /// Whether anybody holds the mark; yes if that cannot be told.
  bool marked(uint32_t number) const;

  /// Whether a process with this slot, or a forked child of one, still lives. `index_fd` is the asker's.
  static bool family_alive(int index_fd, uint32_t slot);

 private:
  ForkGuard(Mapping page, UniqueFd index, Mapping family, uint32_t slot)
      : page_(std::move(page)), index_(std::move(index)), family_(std::move(family)), slot_(slot) {}
  Mapping page_;
  UniqueFd index_;
  Mapping family_;
  uint32_t slot_;
};

}  // namespace skate::store
