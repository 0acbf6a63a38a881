#include "store/mapping.h"

#include <sys/mman.h>

#include <string>

namespace skate::store {

Result<Mapping> Mapping::map(int fd, size_t bytes, int protection, int flags) {
  void* at = ::mmap(nullptr, bytes, protection, flags, fd, 0);
  if (at == MAP_FAILED) return errno_error("mapping " + std::to_string(bytes) + " bytes of the object store");
  Mapping mapping;
  mapping.base_ = static_cast<uint8_t*>(at);
  mapping.bytes_ = bytes;
  return mapping;
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    unmap();
    base_ = std::exchange(other.base_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void Mapping::advise(int advice) const { (void)::madvise(base_, bytes_, advice); }

void Mapping::unmap() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
  base_ = nullptr;
}

}  // namespace skate::store
