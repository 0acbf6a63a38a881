#include "store/client/fork_guard.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <string>

namespace skate::store {
namespace {

struct flock family_byte(uint32_t slot) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = slot;
  lock.l_len = 1;
  return lock;
}

}  // namespace

Result<ForkGuard> ForkGuard::create(int index_fd, uint32_t slot) {
  SKATE_TRY_ASSIGN(Mapping page, Mapping::map(-1, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS));
  if (::madvise(page.base(), page.bytes(), MADV_WIPEONFORK) != 0)
    return errno_error("asking for memory that fork wipes (Linux 4.14 has it)");
  page.base()[0] = 1;

  // A description of our own: locks of a descriptor that was passed to us would be the passer's.
  UniqueFd family(::open(("/proc/self/fd/" + std::to_string(index_fd)).c_str(), O_RDWR | O_CLOEXEC));
  if (!family) return errno_error("reopening the object store's index (is /proc mounted?)");
  struct flock lock = family_byte(slot);
  if (::fcntl(family.get(), F_OFD_SETLK, &lock) != 0)
    return errno_error("claiming client slot " + std::to_string(slot) + " of the object store");
  return ForkGuard(std::move(page), std::move(family));
}

bool ForkGuard::family_alive(int index_fd, uint32_t slot) {
  struct flock lock = family_byte(slot);
  if (::fcntl(index_fd, F_OFD_GETLK, &lock) != 0) return false;
  return lock.l_type != F_UNLCK;
}

}  // namespace skate::store
