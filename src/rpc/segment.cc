#include "rpc/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>

namespace skate::rpc {
namespace {

constexpr uint64_t kMagic = 0x31676573746b7353ull;
constexpr uint32_t kVersion = 2;
constexpr uint64_t kSlotsOffset = sizeof(NodePage);
constexpr uint64_t kLinksOffset = kSlotsOffset + uint64_t{kSlotsMax} * sizeof(ProcessSlot);
constexpr uint64_t kSegmentBytes = kLinksOffset + uint64_t{kLinksMax} * sizeof(LinkArea);

Result<uint8_t*> map(int fd) {
  void* base = mmap(nullptr, kSegmentBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base == MAP_FAILED) return errno_error("cannot map the link segment");
  madvise(base, kSegmentBytes, MADV_DONTDUMP);
  return static_cast<uint8_t*>(base);
}

}  // namespace

Result<std::unique_ptr<Segment>> Segment::create(uint32_t cpus) {
  UniqueFd fd(memfd_create("skate-links", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return errno_error("cannot create the link segment");
  if (ftruncate(fd.get(), kSegmentBytes) != 0) return errno_error("cannot size the link segment");
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return errno_error("cannot seal the link segment");
  SKATE_TRY_ASSIGN(uint8_t * base, map(fd.get()));
  std::unique_ptr<Segment> segment(new Segment(std::move(fd), base));
  segment->node().magic = kMagic;
  segment->node().version = kVersion;
  segment->node().cpus = cpus;
  return segment;
}

Result<std::unique_ptr<Segment>> Segment::attach(UniqueFd fd) {
  struct stat status {};
  if (fstat(fd.get(), &status) != 0) return errno_error("cannot look at the link segment");
  if (static_cast<uint64_t>(status.st_size) != kSegmentBytes)
    return Error{ErrorCode::kInvalid, "the link segment has an unexpected size: different builds of Skate?"};
  SKATE_TRY_ASSIGN(uint8_t * base, map(fd.get()));
  std::unique_ptr<Segment> segment(new Segment(std::move(fd), base));
  if (segment->node().magic != kMagic || segment->node().version != kVersion)
    return Error{ErrorCode::kInvalid, "the link segment is of another version: different builds of Skate?"};
  return segment;
}

Segment::~Segment() { munmap(base_, kSegmentBytes); }

ProcessSlot& Segment::slot(uint32_t index) {
  SKATE_ASSERT(index < kSlotsMax, "slot index out of range");
  return *reinterpret_cast<ProcessSlot*>(base_ + kSlotsOffset + uint64_t{index} * sizeof(ProcessSlot));
}

LinkArea& Segment::link(uint32_t index) {
  SKATE_ASSERT(index < kLinksMax, "link index out of range");
  return *reinterpret_cast<LinkArea*>(base_ + kLinksOffset + uint64_t{index} * sizeof(LinkArea));
}

void Segment::punch(uint64_t offset, uint64_t bytes) {
  // A kernel that cannot punch leaves the memory in use, so it is at least made clean for the next owner.
  if (fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                static_cast<off_t>(bytes)) != 0)
    std::memset(base_ + offset, 0, bytes);
}

void Segment::clear_link(uint32_t index) {
  SKATE_ASSERT(index < kLinksMax, "link index out of range");
  punch(kLinksOffset + uint64_t{index} * sizeof(LinkArea), sizeof(LinkArea));
}

void Segment::clear_slot(uint32_t index) {
  SKATE_ASSERT(index < kSlotsMax, "slot index out of range");
  punch(kSlotsOffset + uint64_t{index} * sizeof(ProcessSlot), sizeof(ProcessSlot));
}

}  // namespace skate::rpc
