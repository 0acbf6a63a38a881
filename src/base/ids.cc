#include "base/ids.h"

#include <sys/random.h>

#include "base/assert.h"

namespace skate {

std::string to_hex(const uint8_t* data, size_t size) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out(size * 2, '\0');
  for (size_t i = 0; i < size; ++i) {
    out[2 * i] = kDigits[data[i] >> 4];
    out[2 * i + 1] = kDigits[data[i] & 15];
  }
  return out;
}

bool from_hex(std::string_view hex, uint8_t* out, size_t size) {
  if (hex.size() != size * 2) return false;
  auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  for (size_t i = 0; i < size; ++i) {
    int high = digit(hex[2 * i]), low = digit(hex[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    out[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

void secure_random_bytes(uint8_t* out, size_t size) {
  size_t done = 0;
  while (done < size) {
    ssize_t got = getrandom(out + done, size - done, 0);
    if (got < 0) {
      SKATE_ASSERT(errno == EINTR, "getrandom failed");
      continue;
    }
    done += static_cast<size_t>(got);
  }
}

namespace {
constexpr size_t kOrigin = 8;  // offset of the origin in a TaskId
constexpr size_t kOriginSize = 12;
constexpr size_t kJob = 20;
}  // namespace

ActorId ActorId::make(JobId job) {
  ActorId id;
  secure_random_bytes(id.data(), 12);
  if (id.bytes[0] == 0xFF) id.bytes[0] = 0x7F;  // 0xFF marks a normal task's origin
  std::memcpy(id.data() + 12, job.data(), JobId::kSize);
  return id;
}

TaskId TaskId::normal(uint64_t sequence, const WorkerId& owner, JobId job) {
  TaskId id;
  std::memcpy(id.data(), &sequence, 8);
  id.bytes[kOrigin] = 0xFF;
  std::memcpy(id.data() + kOrigin + 1, owner.data(), kOriginSize - 1);
  std::memcpy(id.data() + kJob, job.data(), JobId::kSize);
  return id;
}

TaskId TaskId::actor_call(uint64_t sequence, const ActorId& actor) {
  TaskId id;
  std::memcpy(id.data(), &sequence, 8);
  std::memcpy(id.data() + kOrigin, actor.data(), ActorId::kSize);
  return id;
}

TaskId TaskId::actor_creation(const ActorId& actor) { return actor_call(~uint64_t{0}, actor); }

ActorId TaskId::actor() const {
  if (bytes[kOrigin] == 0xFF) return ActorId{};
  return ActorId(ActorId::from_bytes(data() + kOrigin));
}

ObjectId ObjectId::of(const TaskId& task, uint32_t index) {
  ObjectId id;
  std::memcpy(id.data(), task.data(), TaskId::kSize);
  std::memcpy(id.data() + TaskId::kSize, &index, 4);
  return id;
}

uint32_t ObjectId::index() const {
  uint32_t index;
  std::memcpy(&index, data() + TaskId::kSize, 4);
  return index;
}

}  // namespace skate
