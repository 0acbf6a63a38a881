// Mapping: an mmap of a descriptor (or of nothing), unmapped once. Movable; owns the address range only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/result.h"

namespace skate::store {

class Mapping {
 public:
  Mapping() = default;
  static Result<Mapping> map(int fd, size_t bytes, int protection, int flags);
  Mapping(Mapping&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping() { unmap(); }

  uint8_t* base() const { return base_; }
  size_t bytes() const { return bytes_; }
  /// madvise over all of it; for hints whose failure changes nothing.
  void advise(int advice) const;

 private:
  void unmap();
  uint8_t* base_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace skate::store
