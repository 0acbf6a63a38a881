// Fuzzes Inbox::take: any bytes from a peer that holds the key but is wrong.
#include "base/assert.h"
#include "rpc/session.h"
#include "wire/archive.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  size_t delivered = 0;
  skate::rpc::Inbox inbox(
      [&](const skate::NodeId&, std::string_view record) { delivered += 8 + record.size(); });
  // The number that is due, so that the records are looked at.
  std::string due(bytes);
  constexpr size_t kNumberAt = skate::NodeId::kSize, kRecordsAt = kNumberAt + 8 + 8;
  if (due.size() >= kNumberAt + 8) due.replace(kNumberAt, 8, std::string("\1\0\0\0\0\0\0\0", 8));
  if (inbox.take(due).ok()) {
    SKATE_ASSERT(delivered == due.size() - kRecordsAt, "a batch is delivered whole");
    SKATE_ASSERT(inbox.take(due).ok(), "a repeated batch is answered again");
    SKATE_ASSERT(delivered == due.size() - kRecordsAt, "and not delivered again");
  } else {
    SKATE_ASSERT(delivered == 0, "of nonsense nothing is delivered");
  }
  (void)inbox.take(bytes);
  return 0;
}
