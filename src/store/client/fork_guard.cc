#include "store/client/fork_guard.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <string>

namespace skate::store {
namespace {

constexpr off_t kMarksAt = off_t{1} << 32;  // behind the bytes of the slots, and far behind the file's own

struct flock lock_of(off_t byte, short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

off_t mark_byte(uint32_t slot, uint32_t number) {
  return kMarksAt + off_t{slot} * ForkGuard::kMarks + off_t{number};
}

Result<UniqueFd> reopen(int index_fd) {
  // A description of our own: locks of a descriptor that was passed to us would be the passer's.
  UniqueFd own(::open(("/proc/self/fd/" + std::to_string(index_fd)).c_str(), O_RDWR | O_CLOEXEC));
  if (!own) return errno_error("reopening the object store's index (is /proc mounted?)");
  return own;
}

/// Keeps the description open, and can be neither read nor written.
Result<Mapping> keep_open(int fd) { return Mapping::map(fd, 4096, PROT_NONE, MAP_SHARED | MAP_NORESERVE); }

}  // namespace

Result<ForkGuard> ForkGuard::create(int index_fd, uint32_t slot) {
  SKATE_TRY_ASSIGN(Mapping page, Mapping::map(-1, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS));
  if (::madvise(page.base(), page.bytes(), MADV_WIPEONFORK) != 0)
    return errno_error("asking for memory that fork wipes (Linux 4.14 has it)");
  page.base()[0] = 1;

  SKATE_TRY_ASSIGN(UniqueFd index, reopen(index_fd));
  struct flock lock = lock_of(slot, F_WRLCK);
  if (::fcntl(index.get(), F_OFD_SETLK, &lock) != 0)
    return errno_error("claiming client slot " + std::to_string(slot) + " of the object store");
  SKATE_TRY_ASSIGN(Mapping family, keep_open(index.get()));
  return ForkGuard(std::move(page), std::move(index), std::move(family), slot);
}

Result<Mapping> ForkGuard::mark(uint32_t number) const {
  SKATE_TRY_ASSIGN(UniqueFd own, reopen(index_.get()));
  struct flock lock = lock_of(mark_byte(slot_, number), F_RDLCK);
  if (::fcntl(own.get(), F_OFD_SETLK, &lock) != 0) return errno_error("marking a forked child");
  return keep_open(own.get());
}

bool ForkGuard::marked(uint32_t number) const {
  struct flock lock = lock_of(mark_byte(slot_, number), F_WRLCK);
  return ::fcntl(index_.get(), F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

bool ForkGuard::family_alive(int index_fd, uint32_t slot) {
  struct flock lock = lock_of(slot, F_WRLCK);
  if (::fcntl(index_fd, F_OFD_GETLK, &lock) != 0) return false;
  return lock.l_type != F_UNLCK;
}

}  // namespace skate::store
